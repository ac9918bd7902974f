"""What a training step costs when freed memory goes back to the kernel, and when it is kept.

    python benchmarks/freed_memory.py                  # about 20 minutes on 2 slow cores
    python benchmarks/freed_memory.py --rounds 1 --models dlrm

Trains models of the zoo by `fit` in batches of 4096 (8 ids of 10,000 rows each, the tables by Adam
like all else), with and without `keep_freed_memory` at the start of the process: on JAX, and on
TensorFlow with and without oneDNN's kernels (`TF_ENABLE_ONEDNN_OPTS`), which come with an allocator
of their own. TensorFlow leaves them out by itself on an x86 processor without VNNI. Batches come
from arrays in tensors (`in_memory`, shuffled), or from a `tf.data` pipeline with Python in it
(`from_generator`), which is how `streaming.read` begins.

Each measurement is a process of its own; rounds go through all of them in turn. A step's time is an
epoch's over its steps, the first epoch left out; reported are the median over the epochs of all
rounds, and the system time and page faults of a step (of all threads).

Writes `<out>/freed_memory.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _processes import keras_versions, machine, run_worker
from _records import write_json

BATCH, FIELDS, IDS = 4096, 8, 10_000
FEEDS = ("in memory", "generator")
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"class": "DLRM", "dim": 16, "top_units": (300, 300), "batch_norm": True},
    "wukong": {
        "class": "Wukong",
        "dim": 32,
        "num_layers": 2,
        "n_fmb": 8,
        "n_lcb": 8,
        "rank": 8,
        "mlp_units": (128,),
        "head_units": (300, 300),
    },
}
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "jax": ("jax", {}),
    "tensorflow, oneDNN": ("tensorflow", {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    "tensorflow, no oneDNN": ("tensorflow", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
}


def worker(model: str, feed: str, memory: str, steps: int, epochs: int) -> None:
    """Trains in this process and prints what an epoch's steps took."""
    import resource

    from keras_exfm import keep_freed_memory

    if memory == "kept":
        assert keep_freed_memory(), "no glibc: there is nothing to keep"
    import keras
    import tensorflow as tf

    from keras_exfm import Categorical, Schema, models
    from keras_exfm.datasets import in_memory
    from keras_exfm.streaming.reader import without_autotune

    def used() -> np.ndarray:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([time.monotonic(), usage.ru_stime, usage.ru_minflt])

    class Epochs(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.spent: list[list[float]] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin = used()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.spent.append(list((used() - self.begin) / steps))

    keras.utils.set_random_seed(1)
    settings = dict(MODELS[model])
    schema = Schema([Categorical(f"id_{i}", IDS) for i in range(FIELDS)])
    ranker = getattr(models, settings.pop("class"))(schema, optimizer=None, **settings)
    ranker.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile="auto" if keras.backend.backend() == "jax" else False,
    )
    rng = np.random.default_rng(1)
    rows = BATCH * steps
    features = {name: rng.integers(0, IDS, rows).astype("int32") for name in schema.names}
    clicks = rng.random(rows).astype("float32").round()
    counted = Epochs()
    data = in_memory(features, clicks, batch_size=BATCH, shuffle=True, seed=1)
    if feed == "generator":
        batches = list(data.as_numpy_iterator())
        python = tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=data.element_spec
        )
        data = without_autotune(python.prefetch(2))
    ranker.fit(data, epochs=epochs + 1, callbacks=[counted], shuffle=False, verbose=0)
    keys = ("seconds", "system_seconds", "page_faults")
    result = [dict(zip(keys, spent, strict=True)) for spent in counted.spent[1:]]
    print(json.dumps({"epochs": result, "versions": keras_versions()}))


def summarize(raw: dict[tuple[str, ...], list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a model, feed and way: both settings and the ratio of their medians."""

    def middle(key: tuple[str, ...], field: str) -> float:
        return statistics.median(epoch[field] for epoch in raw[key])

    rows = []
    for model, feed, way in dict.fromkeys(key[:3] for key in raw):
        row: dict[str, Any] = {"model": model, "feed": feed, "way": way}
        for memory in ("default", "kept"):
            key = (model, feed, way, memory)
            row[f"{memory}_ms"] = round(1e3 * middle(key, "seconds"), 1)
            row[f"{memory}_system_ms"] = round(1e3 * middle(key, "system_seconds"), 1)
            row[f"{memory}_page_faults"] = round(middle(key, "page_faults"))
        row["default_over_kept"] = round(row["default_ms"] / row["kept_ms"], 2)
        rows.append(row)
    return rows


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Freed memory: given back or kept",
        "",
        f"`{record['command']}`, {record['date']}, {record['machine']['cpu']} with "
        f"{record['machine']['cores']} cores, "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + ". A step of `fit` at batch 4096; medians. How: the docstring of the script.",
        "",
        "| model | batches | way | default ms | of it system | page faults | kept ms "
        "| of it system | page faults | default / kept |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["results"]:
        cells = [row["model"], row["feed"], row["way"]]
        for memory in ("default", "kept"):
            cells += [row[f"{memory}_ms"], row[f"{memory}_system_ms"]]
            cells += [f"{row[f'{memory}_page_faults']:,}"]
        lines.append("| " + " | ".join(map(str, [*cells, row["default_over_kept"]])) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="steps an epoch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--feeds", nargs="+", choices=FEEDS, default=list(FEEDS))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "freed-memory"
    )
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker, args.steps, args.epochs)
        return
    raw: dict[tuple[str, ...], list[dict[str, float]]] = {}
    versions: dict[str, str] = {}
    rest = list(itertools.product(args.models, args.feeds, WAYS, ("default", "kept")))
    for turn, (model, feed, way, memory) in itertools.product(range(args.rounds), rest):
        backend, settings = WAYS[way]
        command = [sys.executable, __file__, "--worker", model, feed, memory]
        command += ["--steps", str(args.steps), "--epochs", str(args.epochs)]
        result = run_worker(command, backend, settings)
        assert result is not None
        raw.setdefault((model, feed, way, memory), []).extend(result["epochs"])
        versions = result["versions"]
        step = statistics.median(e["seconds"] for e in result["epochs"])
        print(f"{turn + 1} {model} {feed} {way} {memory}: {1e3 * step:.0f} ms", flush=True)
    record = {
        "command": shlex.join(["python", "benchmarks/freed_memory.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions,
        "results": summarize(raw),
        "epochs": {" / ".join(key): epochs for key, epochs in raw.items()},
    }
    write_json(args.out / "freed_memory.json", record)
    (args.out / "freed_memory.md").write_text(markdown(record))


if __name__ == "__main__":
    main()
