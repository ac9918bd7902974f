"""What the data augmentation service costs beside the teacher, and whether its memory is flat.

    python benchmarks/das.py                                     # a quarter of an hour
    python benchmarks/das.py --only memory --rows 50000000       # half an hour

Four measurements, each a process of its own, on one machine:

* **service**: rows per second from impressions and label events on disk to committed rows of a
  labelled stream (`Worker.run`: join, scoring, two Delta tables, side output), over the rate of the
  same teacher's bare `model.predict` on arrays in memory. Goal: at least 0.9.
* **read**: rows per second of `streaming.read` over a committed stream (`--passes` of them, the
  first batch included), over the rate at which a student trains (`fit` on arrays in memory).
  Goal: at least 10.
* **fit**: rows per second of `fit` on `streaming.read`, over `fit` on the same batches in memory,
  `--passes` over them, without the first steps, which compile. Goal: at least 0.95.
* **memory**: highest resident size of the service and its scorers while `--rows` synthetic rows go
  through, hour by hour, with a linear teacher; for each engine. Flat: the second half's highest is
  within a tenth of the first half's.

The teachers are Wukongs of two layers, a **small** and a **large** one (1.3 and 21 million FLOPs to
predict an example); 10 categorical features, one multi-hot, four numbers. There are two students,
both DLRMs with row-wise Adagrad on their tables: a **tiny** one (29,000 FLOPs) and a **medium** one
(1.1 million). Recorded are their FLOPs (`models.flops`) too, and the processor's seconds for a
million rows, which say what reading takes from a training that keeps all cores busy. Rates are
medians over `--rounds` rounds that go through all contenders in turn; `keep_freed_memory` is on.
Writes `<out>/das.json` and `<out>/das.md`; `--only` leaves the other part as it was.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata as metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _processes import cpu_model, keras_versions, run_worker

BATCH = 4096
TABLES = 10


def features() -> list[dict[str, Any]]:
    categorical = [
        {"kind": "categorical", "name": f"c{i}", "vocabulary_size": 100_000, "hashed": True}
        for i in range(TABLES)
    ]
    return [
        *categorical,
        {"kind": "multi_hot", "name": "h", "vocabulary_size": 100_000, "length": 8, "hashed": True},
        *({"kind": "numeric", "name": f"n{i}"} for i in range(4)),
    ]


def write_hour(root: Path, hour: int, rows: int, small: bool) -> None:
    """Impressions of an hour, and clicks of one in ten within half an hour."""
    import pyarrow as pa

    from keras_exfm.streaming import MS_PER_HOUR, partitions

    rng = np.random.default_rng(hour)
    ids = np.arange(rows) + hour * 10_000_000
    shown = hour * MS_PER_HOUR + np.sort(rng.integers(0, MS_PER_HOUR, rows))
    columns: dict[str, Any] = {
        "example_id": ids,
        "timestamp": shown,
        "vertical": np.where(rng.random(rows) < 0.5, "feed", "search"),
    }
    if small:
        columns["n0"] = rng.normal(size=rows).astype(np.float32)
        columns["c0"] = rng.integers(0, 2**40, rows)
    else:
        for i in range(TABLES):
            columns[f"c{i}"] = rng.integers(0, 2**40, rows)
        lists = rng.integers(0, 2**40, 4 * rows)
        columns["h"] = pa.ListArray.from_arrays(np.arange(0, 4 * rows + 1, 4, np.int32), lists)
        for i in range(4):
            columns[f"n{i}"] = rng.normal(size=rows).astype(np.float32)
    partitions.write_impressions(root, hour, pa.table(columns))
    clicked = rng.random(rows) < 0.1
    when = shown[clicked] + rng.integers(0, MS_PER_HOUR // 2, clicked.sum())
    # Clicks that come in the next hour are left out: its partition is its own to write.
    mine = when // MS_PER_HOUR == hour
    events = {
        "example_id": ids[clicked][mine],
        "timestamp": when[mine],
        "label": np.ones(mine.sum(), np.float32),
    }
    partitions.write_labels(root, hour, pa.table(events))


def job(
    root: Path, engine: str, workers: int, small: bool, teacher_name: str = "", output: str = ""
) -> Any:
    from keras_exfm.das import Job

    teacher = {"entry_point": "das:linear"} if small else {"snapshots": str(root / teacher_name)}
    some = [f for f in features() if f["name"] in ("c0", "n0")] if small else features()
    return Job.parse(
        {
            "name": "benchmark",
            "source": str(root / "data"),
            "output": str(root / (output or engine)),
            "features": some,
            "tasks": {"click": {"window": "30m"}},
            "verticals": {"all": {"tasks": ["click"]}},
            "teacher": {**teacher, "batch_size": BATCH, "workers": workers},
            "engine": engine,
            "join": {"memory_limit": "1GB", "temp_directory": str(root / "spill")},
        }
    )


def linear(columns: dict[str, np.ndarray]) -> np.ndarray:
    return columns["n0"] * np.float32(0.5)


TEACHERS: dict[str, dict[str, Any]] = {
    "small": {"dim": 32, "n_fmb": 16, "n_lcb": 16, "rank": 16, "mlp_units": (256,),
              "head_units": (128,)},
    "large": {"dim": 64, "n_fmb": 32, "n_lcb": 32, "rank": 32, "mlp_units": (768,),
              "head_units": (1024, 512)},
}  # fmt: skip


def teacher_model(schema: Any, name: str) -> Any:
    import keras_exfm as kx

    return kx.models.Wukong(schema, num_layers=2, **TEACHERS[name])


STUDENTS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 8, "top_units": (64, 32)},
    "medium": {"dim": 16, "top_units": (1024, 256, 64)},
}


def student_model(schema: Any, name: str) -> Any:
    import keras

    import keras_exfm as kx

    model = kx.models.DLRM(schema, **STUDENTS[name])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def measure_service(root: Path, teacher: str, workers: int) -> dict[str, float]:
    from keras_exfm.das import Worker

    # The small teacher's stream is what readers and students read.
    out = "local" if teacher == "small" else f"local-{teacher}"
    shutil.rmtree(root / out, ignore_errors=True)
    worker = Worker(job(root, "local", workers, False, teacher, out))
    rows = 0
    begun = time.monotonic()
    seconds: dict[str, float] = {}
    for step in worker.steps(ended=True):
        if step.hour == 0 and step.kind == "score":  # Loads the teacher and compiles it.
            begun = time.monotonic()
            continue
        # The first hour's other units count: the next hour is scored meanwhile.
        rows += step.rows * (step.kind == "score")
        # Scoring overlaps the other kinds: these do not add up to the whole.
        seconds[step.kind] = seconds.get(step.kind, 0.0) + step.seconds
    spent = time.monotonic() - begun
    worker.close()
    return {"rows_per_s": rows / spent, "rows": rows, "seconds": spent, **seconds}


def arrays(root: Path, hours: int) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    from keras_exfm import streaming
    from keras_exfm.features import Schema

    schema = Schema.from_dict({"features": features()})
    data = [streaming.read_hour(root / "local" / "all", hour, schema) for hour in range(1, hours)]
    whole = {name: np.concatenate([d[name] for d in data]) for name in data[0]}
    return schema, {n: whole[n] for n in schema.names}, whole["label"]


def measure_predict(root: Path, hours: int, teacher: str) -> dict[str, float]:
    from keras_exfm.das import SnapshotStore
    from keras_exfm.models import flops

    _, x, _ = arrays(root, hours)
    model = SnapshotStore(root / teacher).latest().load()
    rows = len(x["c0"]) - len(x["c0"]) % BATCH
    x = {name: column[:rows] for name, column in x.items()}
    model.predict({n: c[: 4 * BATCH] for n, c in x.items()}, batch_size=BATCH, verbose=0)
    begun = time.monotonic()
    model.predict(x, batch_size=BATCH, verbose=0)
    return {
        "rows_per_s": rows / (time.monotonic() - begun),
        "rows": rows,
        "flops": flops(model).inference,
    }


def measure_read(root: Path, hours: int, passes: int) -> dict[str, float]:
    from keras_exfm import streaming

    # TensorFlow's own start is nobody's.
    next(iter(streaming.read(root / "local" / "all", batch_size=BATCH)))
    begun, processor, batches = time.monotonic(), time.process_time(), 0
    for _ in streaming.read(root / "local" / "all", batch_size=BATCH, epochs=passes):
        batches += 1
    rows = batches * BATCH
    return {
        "rows_per_s": rows / (time.monotonic() - begun),
        "cpu_s_per_million": (time.process_time() - processor) / rows * 1e6,
        "rows": rows,
    }


def measure_fit(
    root: Path, hours: int, student: str, stream: bool, passes: int
) -> dict[str, float]:
    import keras

    from keras_exfm import streaming
    from keras_exfm.models import flops

    schema, x, label = arrays(root, hours)
    rows = len(label) - len(label) % BATCH
    model = student_model(schema, student)
    times: list[tuple[float, float]] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append((time.monotonic(), time.process_time()))

    if stream:
        data = streaming.read(
            root / "local" / "all", schema, BATCH, hours=(1, hours - 1), drop_remainder=True,
            epochs=passes,
        ).map(lambda x, y, w: (x, y["label"], w))  # fmt: skip
        model.fit(data, callbacks=[Clock()], verbose=0)
    else:
        x = {name: np.tile(c[:rows], (passes, *[1] * (c.ndim - 1))) for name, c in x.items()}
        label = np.tile(label[:rows], passes)
        weight = np.ones(len(label), np.float32)
        model.fit(x, label, sample_weight=weight, batch_size=BATCH, shuffle=False,
                  callbacks=[Clock()], verbose=0)  # fmt: skip
    # The first steps compile.
    skip = 5
    done = (len(times) - 1 - skip) * BATCH
    return {
        "rows_per_s": done / (times[-1][0] - times[skip][0]),
        "cpu_s_per_million": (times[-1][1] - times[skip][1]) / done * 1e6,
        "rows": rows * passes,
        "flops": flops(model).inference,
    }


def resident(pid: int) -> int:
    """Bytes that a process and its children hold."""
    total = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in thread.read_text().split():
                total += resident(int(child))
    except (OSError, StopIteration):
        pass
    return total


def measure_memory(root: Path, rows: int, per_hour: int, engine: str) -> dict[str, Any]:
    """Hours are written, processed and deleted one after another."""
    from keras_exfm.das import Worker

    shutil.rmtree(root, ignore_errors=True)
    hours = max(4, rows // per_hour)
    worker = Worker(job(root, engine, 1, True))
    peaks: list[int] = []
    done = threading.Event()
    top = [0]

    def watch() -> None:
        while not done.wait(0.2):
            top[0] = max(top[0], resident(os.getpid()))

    # Of a failure the process should end, not wait for its watcher.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    begun = time.monotonic()
    scored = 0
    for hour in range(hours):
        write_hour(root / "data", hour, per_hour, small=True)
        for step in worker.steps():
            scored += step.rows * (step.kind == "score")
        for kind in ("impressions", "labels"):
            shutil.rmtree(root / "data" / kind / f"hour={hour - 4}", ignore_errors=True)
        peaks.append(top[0])
        top[0] = 0
    done.set()
    thread.join()
    worker.close()
    # The first hours load what is needed.
    half = len(peaks) // 2
    first, second = max(peaks[2:half] or peaks[:half]), max(peaks[half:])
    shutil.rmtree(root, ignore_errors=True)
    return {
        "rows": scored,
        "hours": hours,
        "rows_per_s": scored / (time.monotonic() - begun),
        "first_half_mb": first / 2**20,
        "second_half_mb": second / 2**20,
        "growth": second / first,
    }


def prepare(root: Path, hours: int, per_hour: int) -> None:
    from keras_exfm.das import SnapshotStore
    from keras_exfm.features import Schema

    shutil.rmtree(root, ignore_errors=True)
    for hour in range(hours):
        write_hour(root / "data", hour, per_hour, small=False)
    schema = Schema.from_dict({"features": features()})
    for name in TEACHERS:
        SnapshotStore(root / name).publish(teacher_model(schema, name), 0)


def work(arguments: argparse.Namespace) -> Any:
    import keras_exfm as kx

    kx.keep_freed_memory()
    root, hours = arguments.scratch, arguments.hours
    name, _, option = arguments.measure.partition(":")
    if name == "prepare":
        prepare(root, hours, arguments.per_hour)
        return {}
    if name == "service":
        teacher, _, workers = option.partition(":")
        return measure_service(root, teacher, int(workers))
    if name == "predict":
        return measure_predict(root, hours, option)
    if name == "read":
        return measure_read(root, hours, arguments.passes)
    if name == "fit":
        student, _, source = option.partition(":")
        # The medium student takes some thirty times as long a row.
        passes = arguments.passes if student == "tiny" else 1
        return measure_fit(root, hours, student, source == "stream", passes)
    return measure_memory(root / f"memory-{option}", arguments.rows, arguments.per_hour, option)


def median(found: list[dict[str, Any]], key: str, form: str) -> str:
    """Of the rounds that measured it."""
    values = [one[key] for one in found if key in one]
    return format(statistics.median(values), form) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000, help="rows of the memory run")
    parser.add_argument("--per-hour", type=int, default=100_000)
    parser.add_argument("--hours", type=int, default=4, help="hours of the rates")
    parser.add_argument("--passes", type=int, default=5, help="over the stream that is read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="scoring processes; 0: none")
    parser.add_argument("--engines", nargs="*", default=["local", "ray"])
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--scratch", type=Path, default=Path("runs/das-benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/das"))
    parser.add_argument("--only", choices=["rates", "memory"], help="of the two parts of it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(work(arguments)))
        return

    def run(measure: str) -> dict[str, Any]:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", measure]
        path = {"PYTHONPATH": str(Path(__file__).parent)}
        found = run_worker(command, arguments.backend, path)
        assert found is not None
        print(measure, json.dumps(found), flush=True)
        return found

    about = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/das.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "backend": arguments.backend,
        "versions": keras_versions()
        | {name: metadata.version(name) for name in ("duckdb", "deltalake", "pyarrow")},
        "load_before": os.getloadavg(),
    }
    record = arguments.out / "das.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    if arguments.only != "memory":
        results["rates"] = {"about": about, **measure_rates(run, arguments)}
    if arguments.only != "rates":
        memory = {engine: run(f"memory:{engine}") for engine in arguments.engines}
        results["memory"] = {"about": about, "engines": memory}
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = page(results)
    record.write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "das.md").write_text("\n".join(lines) + "\n")
    shutil.rmtree(arguments.scratch, ignore_errors=True)


def measure_rates(
    run: Callable[[str], dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    run("prepare")
    services = {name: f"service:{name}:{arguments.workers}" for name in TEACHERS}
    predicts = {name: f"predict:{name}" for name in TEACHERS}
    fits = [f"fit:{name}:{source}" for name in STUDENTS for source in ("memory", "stream")]
    measures = [*services.values(), *predicts.values(), "read", *fits]
    found: dict[str, list[dict[str, Any]]] = {measure: [] for measure in measures}
    for _ in range(arguments.rounds):
        for measure in measures:
            found[measure].append(run(measure))
    rate = {m: statistics.median(one["rows_per_s"] for one in each) for m, each in found.items()}
    ratios = {
        f"service / predict, {name} teacher": (rate[services[name]] / rate[predicts[name]], 0.9)
        for name in TEACHERS
    }
    for name in STUDENTS:
        memory_rate = rate[f"fit:{name}:memory"]
        ratios[f"read / {name} student"] = (rate["read"] / memory_rate, 10.0)
        ratios[f"{name} student's fit on stream / in memory"] = (
            rate[f"fit:{name}:stream"] / memory_rate,
            0.95,
        )
    return {"ratios": ratios, "measures": found}


def page(results: dict[str, Any]) -> list[str]:
    lines = ["# The data augmentation service"]

    def heading(about: dict[str, Any]) -> list[str]:
        return [
            "",
            f"`{about['command']}`, {about['date']}, {about['cpu']}, Keras on {about['backend']}.",
            "",
        ]

    if "rates" in results:
        rates = results["rates"]
        lines += [
            *heading(rates["about"]),
            "| ratio | measured | goal |",
            "|---|---|---|",
            *(f"| {name} | {value:.2f} | {goal} |" for name, (value, goal) in
              rates["ratios"].items()),
            "",
            "| rows per second | median | of each round | CPU s a million rows | FLOPs a row |",
            "|---|---|---|---|---|",
        ]  # fmt: skip
        for name, found in rates["measures"].items():
            each = ", ".join(f"{one['rows_per_s']:,.0f}" for one in found)
            lines.append(
                f"| {name} | {median(found, 'rows_per_s', ',.0f')} | {each} | "
                f"{median(found, 'cpu_s_per_million', '.2f')} | {median(found, 'flops', ',.0f')} |"
            )
    if "memory" in results:
        lines += [
            *heading(results["memory"]["about"]),
            "| memory | rows | rows/s | first half, MB | second half, MB | growth |",
            "|---|---|---|---|---|---|",
        ]
        for engine, found in results["memory"]["engines"].items():
            lines.append(
                f"| {engine} | {found['rows']:,} | {found['rows_per_s']:,.0f} | "
                f"{found['first_half_mb']:,.0f} | {found['second_half_mb']:,.0f} | "
                f"{found['growth']:.2f} |"
            )
        # Added by hand, where a row comes from a run of its own.
        lines += ["", results["memory"]["note"]] if "note" in results["memory"] else []
    return lines


if __name__ == "__main__":
    main()
