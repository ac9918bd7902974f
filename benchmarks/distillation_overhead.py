"""What distillation adds to a student's training step.

    python benchmarks/distillation_overhead.py                       # both backends, some minutes
    python benchmarks/distillation_overhead.py --rounds 3 --students dlrm --backends jax

The student is a model of the zoo over 20 ids (50,000 rows each) and 6 numbers, its tables trained
by row-wise Adagrad and its dense weights by Adam. Contenders: `plain`, the Keras model itself on
labels; `no_teacher`, the same under `ExternalDistillation` without parts; `heads`, auxiliary head
(linear) and student adapter (8 units); `gate`, the same with a gate; `all`, a representation head
of 32 numbers on top; `strict`, `heads` in the order of Algorithm 1.

A step's time is that of `model.fit` over a `tf.data` stream that lies in memory: the time from the
end of an epoch's first step to the end of its last, over the steps between. The first step of an
epoch holds the start of the pipeline, which on TensorFlow may wait for 0.3 s, whatever the model.
One process for each student and backend; inside it every round trains one epoch of each contender
in turn, so that a slow minute of the machine hits all alike. Reported is the median over the rounds
of the ratio to `plain` in the same round, and the quarter points, of the wall clock and of the
processor time of all threads, which other processes on the machine disturb less. `serving` says
whether `serving_model()` costs the FLOPs of the plain student.

Writes `<out>/distillation_overhead.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _processes import cpu_model, keras_versions, run_worker

IDS, NUMBERS, ROWS = 20, 6, 50_000
CONTENDERS = ("plain", "no_teacher", "heads", "gate", "all", "strict")
STUDENTS = {
    "dlrm": ("DLRM", {"dim": 16, "numeric_units": (64,), "top_units": (256, 128)}),
    "wukong": (
        "Wukong",
        {
            "dim": 16,
            "num_layers": 2,
            "n_fmb": 8,
            "n_lcb": 8,
            "rank": 8,
            "mlp_units": (128,),
            "head_units": (64,),
        },
    ),
}


def student(name: str) -> Any:
    import keras_exfm as kx

    schema = kx.Schema(
        [
            *(kx.Categorical(f"c{i}", ROWS) for i in range(IDS)),
            *(kx.Numeric(f"n{i}") for i in range(NUMBERS)),
        ]
    )
    cls, settings = STUDENTS[name]
    return getattr(kx.models, cls)(schema, optimizer=kx.optimizers.RowwiseAdagrad(0.05), **settings)


def contender(name: str, model: Any) -> Any:
    import keras

    import keras_exfm as kx
    from keras_exfm.layers import AuxiliaryHead, RepresentationHead, StudentAdapter, TeacherGate

    parts: dict[str, Any] = {}
    if name in ("heads", "gate", "all", "strict"):
        parts = {"auxiliary_head": AuxiliaryHead(), "student_adapter": StudentAdapter()}
    if name in ("gate", "all"):
        parts["gate"] = TeacherGate()
    if name == "all":
        parts["representation_head"] = RepresentationHead(32)
    if name == "strict":
        parts["strict"] = True
    optimizer = keras.optimizers.Adam(1e-3)
    if name == "plain":
        model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
        return model
    model = kx.ExternalDistillation.from_model(model, **parts)
    model.compile(optimizer)
    return model


def stream(name: str, batch: int, steps: int) -> Any:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    rows = batch * steps
    x = {f"c{i}": rng.integers(0, ROWS, rows).astype("int32") for i in range(IDS)}
    x |= {f"n{i}": rng.normal(size=rows).astype("float32") for i in range(NUMBERS)}
    label = (rng.random(rows) < 0.1).astype("float32")
    y: Any = {"label": label, "teacher_logit": rng.normal(-2, 1, rows).astype("float32")}
    if name == "all":
        y["teacher_representation"] = rng.normal(size=(rows, 32)).astype("float32")
    weight = np.ones(rows, "float32")
    data = (x, label if name == "plain" else y, weight)
    return tf.data.Dataset.from_tensor_slices(data).batch(batch).cache().prefetch(2)


def measure(name: str, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Step times of all contenders, a list over the rounds each."""
    import keras

    import keras_exfm as kx

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.ends: list[tuple[float, float]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ends.append((time.perf_counter(), time.process_time()))

    models = {c: contender(c, student(name)) for c in CONTENDERS}
    plain = kx.models.flops(models["plain"]).inference
    serving = {
        c: kx.models.flops(m.serving_model()).inference for c, m in models.items() if c != "plain"
    }
    streams = {c: stream(c, batch, steps) for c in CONTENDERS}
    times: dict[str, list[list[float]]] = {c: [] for c in CONTENDERS}
    clock = Clock()
    for round_ in range(rounds + 1):
        for c in CONTENDERS:
            models[c].fit(streams[c], verbose=0, callbacks=[clock])
            # The first round compiles.
            if round_:
                ends, steps_between = clock.ends, len(clock.ends) - 1
                times[c].append([(b - a) / steps_between for a, b in zip(ends[0], ends[-1])])
    return {"times": times, "plain_flops": plain, "serving_flops": serving}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Wall and processor time: the step, and its ratio to `plain` in the same round."""
    result: dict[str, Any] = {}
    for clock, which in enumerate(("wall", "cpu")):
        plain = [pair[clock] for pair in found["times"]["plain"]]
        for c, pairs in found["times"].items():
            times = [pair[clock] for pair in pairs]
            ratios = [own / base for own, base in zip(times, plain)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            result.setdefault(c, {})[which] = {
                "step_ms": 1e3 * statistics.median(times),
                "ratio": middle,
                "quarters": [low, high],
            }
    return result


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| backend | student | clock | " + " | ".join(CONTENDERS) + " | serving |",
        "|---|---|---|" + "---|" * (len(CONTENDERS) + 1),
    ]
    for r in results:
        same = all(v == r["plain_flops"] for v in r["serving_flops"].values())
        equal = "equal FLOPs" if same else f"{r['serving_flops']} against {r['plain_flops']}"
        for which in ("wall", "cpu"):
            cells = [r["backend"], r["student"], which]
            for c in CONTENDERS:
                figures = r["summary"][c][which]
                low, high = figures["quarters"]
                cells.append(
                    f"{figures['step_ms']:.2f} ms"
                    if c == "plain"
                    else f"{figures['ratio']:.3f} ({low:.3f}-{high:.3f})"
                )
            lines.append("| " + " | ".join([*cells, equal]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "distillation-overhead"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = (arguments.batch, arguments.steps, arguments.rounds)
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, *settings)))
        return
    results = []
    for name in arguments.students:
        for backend in arguments.backends:
            command = [sys.executable, __file__, "--worker", name]
            for option, value in zip(("--batch", "--steps", "--rounds"), settings):
                command += [option, str(value)]
            found = run_worker(command, backend)
            assert found is not None
            results.append({"student": name, "backend": backend, **found})
            results[-1]["summary"] = summary(found)
            print(table(results[-1:]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", "benchmarks/distillation_overhead.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_the_end": os.getloadavg()[0],
        "versions": keras_versions(),
        "settings": dict(zip(("batch", "steps", "rounds"), settings)),
        "results": results,
    }
    (arguments.out / "distillation_overhead.json").write_text(json.dumps(record, indent=1) + "\n")
    heading = (
        "# What distillation adds to a training step\n\n"
        f"    {record['command']}\n\n"
        "Ratios to the plain student's step: median over the rounds (quarter points). Contenders "
        "and method: the script.\n\n"
    )
    (arguments.out / "distillation_overhead.md").write_text(heading + table(results))


if __name__ == "__main__":
    main()
