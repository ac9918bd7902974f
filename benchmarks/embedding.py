"""What a training step costs as the embedding table grows.

    python benchmarks/embedding.py                      # everything, about 40 minutes on 2 cores
    python benchmarks/embedding.py --rows 10000 1000000 --rounds 1 --no-torch

One training step: 1024 x 26 ids drawn uniformly from all rows, dimension 32, then the `--head`s on
the concatenated vectors, binary crossentropy; dense weights by Adam. `mlp` is a hidden layer of 128
ReLU units and one logit, about the least that a ranking model has; `unit` is the logit alone, next
to nothing beside the table. Uniform ids are the hardest case: nearly every id of a step is another
row, and in a large table no row is still in a cache. Step times are those of `model.fit` on
in-memory arrays (of an eager loop for PyTorch), an epoch's time over its steps; reported is the
median over the epochs of all rounds. The first step of an epoch is left out: on TensorFlow some
epochs begin with a wait of 0.25 to 0.3 s in which the processor is idle (`tf.data` ends the
iterator of the epoch before), whatever the model. Each measurement is a process of its own, and
rounds go through all contenders in turn, so that a slow minute of the machine hits all alike.
Memory is the highest resident size during build and training, less the resident size of the same
process after it trained a table of 16 rows, over the bytes of the table and its optimizer's state.

Writes `<out>/embedding.json` and `<out>/embedding.md`. PyTorch is looked for in the Python that
`--torch-python` names; it is no dependency of keras_exfm.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _processes import cpu_model, keras_versions, run_worker

BATCH, WIDTH, DIM = 1024, 26, 32
SIZES = (10_000, 100_000, 1_000_000, 4_000_000, 10_000_000)
# Optimizer -> numbers of state a row.
STATE = {"rowwise_adagrad": 1, "sparse_adam": 2 * DIM, "adam": 2 * DIM}
# Contender -> optimizer. The stock layer holds table, gradient and moments with temporaries: its
# largest size is bounded by memory.
CONTENDERS = {
    "ours": ("rowwise_adagrad", "sparse_adam"),
    "keras.layers.Embedding": ("adam",),
    "torch": ("sparse_adam",),
}
STOCK_LIMIT = 4_000_000
HEADS: dict[str, tuple[int, ...]] = {"mlp": (128,), "unit": ()}


def table_bytes(rows: int, optimizer: str) -> int:
    return 4 * rows * (DIM + STATE[optimizer])


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` (the highest so far) of this process in bytes; 0 off Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def batches(rows: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, rows, (steps * BATCH, WIDTH), dtype="int32")
    return ids, (rng.random((steps * BATCH, 1)) < 0.3).astype("float32")


def keras_model(contender: str, optimizer: str, rows: int, head: str) -> Any:
    import keras

    from keras_exfm.layers import EmbeddingTable

    ids = keras.Input((WIDTH,), dtype="int32")
    if contender == "ours":
        vectors = EmbeddingTable(rows, DIM, optimizer=optimizer)(ids)
    else:
        vectors = keras.layers.Embedding(rows, DIM)(ids)
    hidden = keras.layers.Flatten()(vectors)
    for units in HEADS[head]:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    model = keras.Model(ids, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def run_keras(
    contender: str, optimizer: str, rows: int, head: str, steps: int, epochs: int
) -> dict:
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            # The logs were read, so the steps are done.
            self.times.append((time.perf_counter() - self.start) / (steps - 1))

    tiny_ids, tiny_labels = batches(16, 2)
    keras_model(contender, optimizer, 16, head).fit(
        tiny_ids, tiny_labels, batch_size=BATCH, verbose=0
    )
    ids, labels = batches(rows, steps)
    baseline = resident("VmRSS")
    model = keras_model(contender, optimizer, rows, head)
    clock = Clock()
    model.fit(
        ids,
        labels,
        batch_size=BATCH,
        epochs=epochs + 1,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return {"step_ms": [1e3 * t for t in clock.times[1:]], "memory": resident("VmHWM") - baseline}


def run_torch(optimizer: str, rows: int, head: str, steps: int, epochs: int) -> dict:
    import torch

    assert optimizer == "sparse_adam"

    def make(rows: int) -> tuple:
        table = torch.nn.Embedding(rows, DIM, sparse=True)
        layers, width = [], WIDTH * DIM
        for units in HEADS[head]:
            layers += [torch.nn.Linear(width, units), torch.nn.ReLU()]
            width = units
        dense = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))
        return (
            table,
            dense,
            torch.optim.SparseAdam(table.parameters(), lr=1e-3),
            torch.optim.Adam(dense.parameters(), lr=1e-3),
        )

    def epoch(parts: tuple, ids: Any, labels: Any) -> float:
        table, dense, table_optimizer, dense_optimizer = parts
        start = 0.0
        for first in range(0, len(ids), BATCH):
            if first == BATCH:
                start = time.perf_counter()
            x, y = ids[first : first + BATCH], labels[first : first + BATCH]
            logit = dense(table(x).flatten(1))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, y)
            table_optimizer.zero_grad()
            dense_optimizer.zero_grad()
            loss.backward()
            table_optimizer.step()
            dense_optimizer.step()
        loss.item()
        return (time.perf_counter() - start) / (len(ids) // BATCH - 1)

    epoch(make(16), *map(torch.from_numpy, batches(16, 2)))
    ids, labels = map(torch.from_numpy, batches(rows, steps))
    baseline = resident("VmRSS")
    parts = make(rows)
    times = [epoch(parts, ids, labels) for _ in range(epochs + 1)]
    return {"step_ms": [1e3 * t for t in times[1:]], "memory": resident("VmHWM") - baseline}


def work(args: argparse.Namespace) -> None:
    """One measurement, in this process; its result is the last line of the output."""
    contender, optimizer, head, rows = *args.worker[:3], int(args.worker[3])
    if contender == "torch":
        import torch

        result = run_torch(optimizer, rows, head, args.steps, args.epochs)
        result["versions"] = {"torch": torch.__version__}
    else:
        result = run_keras(contender, optimizer, rows, head, args.steps, args.epochs)
        result["versions"] = keras_versions()
    print(json.dumps(result))


def measure(
    args: argparse.Namespace, framework: str, contender: str, optimizer: str, head: str, rows: int
) -> dict:
    python = args.torch_python if contender == "torch" else sys.executable
    command = [python, __file__, "--worker", contender, optimizer, head, str(rows)]
    # A slow contender needs fewer steps for the same precision.
    slow = contender.startswith("keras") and rows >= 1_000_000
    command += ["--steps", str(10 if slow else args.steps)]
    command += ["--epochs", str(2 if slow else args.epochs)]
    result = run_worker(command, framework)
    assert result is not None
    return result


def plan(args: argparse.Namespace) -> list[tuple[str, str, str, str, int]]:
    jobs = []
    for head in args.head:
        for rows in args.rows:
            for framework in args.backends:
                jobs += [(framework, "ours", o, head, rows) for o in CONTENDERS["ours"]]
                if rows <= STOCK_LIMIT:
                    jobs.append((framework, "keras.layers.Embedding", "adam", head, rows))
            if args.torch:
                jobs.append(("torch", "torch", "sparse_adam", head, rows))
    return jobs


def summarize(raw: dict[tuple, list[dict]]) -> list[dict]:
    rows = []
    for (framework, contender, optimizer, head, size), results in raw.items():
        times = [t for result in results for t in result["step_ms"]]
        memory = statistics.median(result["memory"] for result in results)
        rows.append(
            {
                "framework": framework,
                "contender": contender,
                "optimizer": optimizer,
                "head": head,
                "rows": size,
                "step_ms": round(statistics.median(times), 3),
                "step_ms_best": round(min(times), 3),
                "step_ms_worst": round(max(times), 3),
                "epochs_timed": len(times),
                "memory_over_table_and_state": round(memory / table_bytes(size, optimizer), 3),
            }
        )
    return rows


def claims(rows: list[dict], head: str) -> list[dict]:
    """The ratios that the project promises, of those sizes that were measured."""
    found = {
        (r["framework"], r["contender"], r["optimizer"], r["rows"]): r
        for r in rows
        if r["head"] == head
    }
    sizes = sorted({r["rows"] for r in found.values()})
    out = []

    def claim(text: str, value: float, bound: float, at_most: bool) -> None:
        met = value <= bound if at_most else value >= bound
        sign = "at most" if at_most else "at least"
        out.append(
            {
                "head": head,
                "claim": text,
                "value": round(value, 2),
                "bound": f"{sign} {bound:g}",
                "met": met,
            }
        )

    def time_of(framework: str, contender: str, optimizer: str, size: int) -> float | None:
        row = found.get((framework, contender, optimizer, size))
        return None if row is None else row["step_ms"]

    for framework, growth in (("jax", 1.5), ("tensorflow", 2.0)):
        small, large = (
            time_of(framework, "ours", "rowwise_adagrad", s) for s in (10_000, 10_000_000)
        )
        if small and large:
            claim(f"{framework}: step at 10M rows / at 10k rows", large / small, growth, True)
        ours = time_of(framework, "ours", "rowwise_adagrad", 4_000_000)
        stock = time_of(framework, "keras.layers.Embedding", "adam", 4_000_000)
        if ours and stock:
            claim(f"{framework}: Embedding + Adam / ours at 4M rows", stock / ours, 20, False)
        for size in sizes:
            theirs = time_of("torch", "torch", "sparse_adam", size)
            for optimizer in CONTENDERS["ours"]:
                mine = time_of(framework, "ours", optimizer, size)
                if mine and theirs:
                    text = f"{framework} {optimizer} / torch SparseAdam, {size:,} rows"
                    claim(text, mine / theirs, 1.0, True)
        for optimizer in CONTENDERS["ours"]:
            row = found.get((framework, "ours", optimizer, 10_000_000))
            if row:
                text = f"{framework} {optimizer}: memory / (table + state) at 10M rows"
                claim(text, row["memory_over_table_and_state"], 1.2, True)
    return out


def markdown(report: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# Embedding training: step time and memory",
        "",
        f"`{report['command']}`, {report['date']}, {report['cpu']} with {report['cores']} cores, "
        f"{versions}. Batch {BATCH} x {WIDTH} ids, dimension {DIM}, uniform ids; median step time "
        f"of {report['rounds']} rounds. How: the docstring of `benchmarks/embedding.py`.",
    ]
    columns = ("framework", "table", "optimizer", "rows", "ms/step", "best..worst", "memory")
    for head in report["heads"]:
        lines += ["", f"## Head `{head}`", "", f"| {' | '.join(columns)} |"]
        lines.append("|---|---|---|--:|--:|--:|--:|")
        for r in report["results"]:
            if r["head"] == head:
                lines.append(
                    f"| {r['framework']} | {r['contender']} | {r['optimizer']} | {r['rows']:,} "
                    f"| {r['step_ms']:.2f} | {r['step_ms_best']:.2f}..{r['step_ms_worst']:.2f} "
                    f"| {r['memory_over_table_and_state']:.2f} |"
                )
        lines += ["", "| claim | measured | bound | met |", "|---|--:|--:|---|"]
        for c in report["claims"]:
            if c["head"] == head:
                met = "yes" if c["met"] else "**no**"
                lines.append(f"| {c['claim']} | {c['value']:.2f} | {c['bound']} | {met} |")
    lines += [
        "",
        "Memory is over the bytes of table and state; at small sizes it is the runtime's own.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--head", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="steps an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--backends", nargs="+", default=["jax", "tensorflow"], choices=["jax", "tensorflow"]
    )
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/embedding")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    raw: dict[tuple, list[dict]] = {}
    versions: dict[str, str] = {"python": platform.python_version()}
    for turn in range(args.rounds):
        for job in plan(args):
            result = measure(args, *job)
            versions |= result.pop("versions")
            raw.setdefault(job, []).append(result)
            print(turn + 1, *job, f"{statistics.median(result['step_ms']):.2f} ms", flush=True)
    results = summarize(raw)
    options = [a for a in sys.argv[1:] if "/" not in a and a not in ("--torch-python", "--out")]
    report = {
        "command": " ".join(["python benchmarks/embedding.py", *options]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "versions": versions,
        "rounds": args.rounds,
        "heads": args.head,
        "results": results,
        "claims": [c for head in args.head for c in claims(results, head)],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "embedding.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "embedding.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
