"""What a training step and a prediction of Wukong cost, against PyTorch.

    python benchmarks/wukong_speed.py --torch-python PYTHON     # about 30 minutes on 2 cores
    python benchmarks/wukong_speed.py --rounds 1 --no-torch

The model: 39 categorical fields of 1,000 ids each, dimension 16, 3 layers with 40 embeddings from
the FMB and 40 from the LCB, rank 8, hidden layers 512-256 in each FMB and in the head, batch 2048;
2.5 million dense weights. Ours is `keras_exfm.models.Wukong` in plain `model.fit` and
`model.predict`, on arrays or, on TensorFlow, also on `keras_exfm.datasets.in_memory` of them: Adam
on the dense weights, the row-sparse table with its default optimizer. PyTorch's is the model of the
same equations in this file, by a bare loop over tensors that lie ready, with Adam (`fused=True`);
its table is `nn.Embedding(sparse=True)` with `SparseAdam` ("sparse"), or a plain one under the same
Adam, which a table this small favours ("dense"). It runs eagerly and under `torch.compile`, with
the embeddings in rows, as the open implementations have them, and in columns, the layout of ours
("columns"). All numbers of weights are checked against one formula.

"Kept" memory is the same with the environment variables `KEPT` of this file: by default glibc
hands each large buffer back to the kernel as soon as it is free, and the next step pays for new
pages.

Each measurement is a process of its own, and rounds go through all contenders in turn, so that a
slow minute of the machine hits all alike; a time is an epoch's over its steps, reported is the
median over the epochs of all rounds. Each process measures, before and after, the rate of its
framework's product of two 2048 x 2048 matrices in the same precision. FLOPs are those that
`keras_exfm.models.flops` counts. bfloat16 is the policy `mixed_bfloat16` for ours and
`torch.autocast` for PyTorch.

Writes `<out>/<name>.json` and `<out>/<name>.md`. PyTorch is looked for in the Python
that `--torch-python` names; it is no dependency of keras_exfm. `torch.compile` needs a C++
compiler.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _processes import cpu_model, keras_versions, run_worker

FIELDS, VOCABULARY, DIM, LAYERS, FMB, LCB, RANK = 39, 1000, 16, 3, 40, 40, 8
MLP, HEAD = (512, 256), (512, 256)
BATCH = 2048
GEMM = 2048
DTYPES = ("float32", "bfloat16")
# Environment in which glibc keeps freed memory instead of handing it back to the kernel.
KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",
}
MEMORY = ("default", "kept")
# What `fit` and `predict` are given.
KERAS = (("jax", "arrays"), ("tensorflow", "arrays"), ("tensorflow", "in_memory"))
# Ways to run PyTorch: `compile` or not, the table, the layout.
TORCH = (
    "eager sparse rows",
    "eager dense rows",
    "eager dense columns",
    "compile sparse rows",
    "compile dense rows",
    "compile dense columns",
)
# Those that go on to bfloat16 and to kept memory.
TORCH_MORE = ("eager dense columns", "compile dense columns")


def dense_weights() -> int:
    """Number of weights beside the table."""

    def mlp(width: int, *units: int) -> int:
        return sum((a + 1) * b for a, b in zip((width, *units), units))

    total, n = 0, FIELDS
    for _ in range(LAYERS):
        flat, out = n * RANK, FMB + LCB
        total += n * RANK + 2 * flat + mlp(flat, *MLP, FMB * DIM)
        total += n * LCB + 2 * DIM + (n * out if n != out else 0)
        n = out
    return total + mlp(n * DIM, *HEAD, 1)


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (steps * BATCH, FIELDS), dtype="int32")
    return ids, (rng.random((steps * BATCH, 1)) < 0.3).astype("float32")


def gemm_rate(product: Callable[[], Any]) -> float:
    """GFLOP/s of `product`, a call that waits for a product of two `GEMM`-sized matrices."""
    times = []
    for _ in range(18):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return 2 * GEMM**3 / statistics.median(times[3:]) / 1e9


def square() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(GEMM, GEMM)).astype("float32")


def run_keras(way: str, dtype: str, steps: int, epochs: int) -> dict:
    import keras

    from keras_exfm import Categorical, Schema
    from keras_exfm.datasets import in_memory
    from keras_exfm.models import Wukong, flops

    if keras.backend.backend() == "jax":
        import jax

        a = jax.numpy.asarray(square(), dtype=dtype)
        multiply = jax.jit(lambda a: a @ a)

        def product() -> None:
            multiply(a).block_until_ready()
    else:
        import tensorflow as tf

        b = tf.cast(square(), dtype)

        def product() -> None:
            tf.linalg.matmul(b, b)[0, 0].numpy()

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            # The logs were read, so the steps are done.
            self.times.append((time.perf_counter() - self.start) / steps)

    names = [f"f{i}" for i in range(FIELDS)]
    model = Wukong(
        Schema([Categorical(name, VOCABULARY) for name in names]),
        dim=DIM,
        num_layers=LAYERS,
        n_fmb=FMB,
        n_lcb=LCB,
        rank=RANK,
        mlp_units=MLP,
        head_units=HEAD,
        dtype="mixed_bfloat16" if dtype == "bfloat16" else None,
    )
    weights = sum(
        int(np.prod(weight.shape))
        for layer in model.layers
        if layer.name != "feature-embedding"
        for weight in layer.trainable_weights
    )
    assert weights == dense_weights(), f"{weights} weights instead of {dense_weights()}"
    count = flops(model)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    ids, labels = data(steps)
    inputs = {name: np.ascontiguousarray(ids[:, i]) for i, name in enumerate(names)}
    before = gemm_rate(product)
    clock = Clock()
    quiet = {"verbose": 0, "shuffle": False, "epochs": epochs + 1, "callbacks": [clock]}
    if way == "in_memory":
        model.fit(in_memory(inputs, labels, batch_size=BATCH), **quiet)
        examples = in_memory(inputs, batch_size=BATCH)
    else:
        model.fit(inputs, labels, batch_size=BATCH, **quiet)
        examples = inputs
    predictions = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        # Keras has no use for a batch size where the data have one.
        model.predict(examples, batch_size=None if way == "in_memory" else BATCH, verbose=0)
        predictions.append((time.perf_counter() - start) / steps)
    return {
        "training_ms": [1e3 * t for t in clock.times[1:]],
        "inference_ms": [1e3 * t for t in predictions[1:]],
        "gemm": [before, gemm_rate(product)],
        "flops": {"training": count.training, "inference": count.inference},
    }


def torch_model(table: str, layout: str) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    def mlp(width: int, *units: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for count in units:
            layers += [nn.Linear(width, count), nn.ReLU()]
            width = count
        return nn.Sequential(*layers[:-1])

    class Layer(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            out = FMB + LCB
            self.projection = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, RANK)))
            self.flat_norm = nn.LayerNorm(n * RANK)
            self.mlp = mlp(n * RANK, *MLP, FMB * DIM)
            self.compression = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, LCB)))
            self.residual = None
            if n != out:
                self.residual = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, out)))
            self.norm = nn.LayerNorm(DIM)

    class Rows(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            interactions = x @ (x.transpose(1, 2) @ self.projection)
            flat = self.flat_norm(interactions.flatten(1))
            fmb = self.mlp(flat).unflatten(1, (FMB, DIM))
            lcb = self.compression.T @ x
            residual = x if self.residual is None else self.residual.T @ x
            return self.norm(torch.cat([fmb, lcb], 1) + residual)

    class Columns(Layer):
        """The same with `x` transposed: one product mixes the embeddings of the whole batch."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kernels = [self.projection, self.compression]
            if self.residual is not None:
                kernels.append(self.residual)
            mixed = (x.flatten(0, 1) @ torch.cat(kernels, 1)).unflatten(0, (-1, DIM))
            projected, lcb, *rest = mixed.split([k.shape[1] for k in kernels], 2)
            flat = self.flat_norm((projected.transpose(1, 2) @ x).flatten(1))
            fmb = self.mlp(flat).unflatten(1, (DIM, FMB))
            out = torch.cat([fmb, lcb], 2) + (rest[0] if rest else x)
            centred = out - out.mean(1, keepdim=True)
            scale = (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()
            return centred * scale * self.norm.weight[:, None] + self.norm.bias[:, None]

    class Wukong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(FIELDS * VOCABULARY, DIM, sparse=table == "sparse")
            nn.init.normal_(self.table.weight, std=0.01)
            kind = Rows if layout == "rows" else Columns
            counts = [FIELDS] + [FMB + LCB] * (LAYERS - 1)
            self.layers = nn.Sequential(*[kind(n) for n in counts])
            self.head = mlp((FMB + LCB) * DIM, *HEAD)
            self.logit = nn.Linear(HEAD[-1], 1)

        def interact(self, x: torch.Tensor) -> torch.Tensor:
            x = x if layout == "rows" else x.transpose(1, 2).contiguous()
            return self.logit(F.relu(self.head(self.layers(x).flatten(1))))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.interact(self.table(ids))

    return Wukong()


def run_torch(way: str, dtype: str, steps: int, epochs: int) -> dict:
    import torch

    mode, table, layout = way.split()
    torch.manual_seed(0)
    model = torch_model(table, layout)
    dense = [p for name, p in model.named_parameters() if not name.startswith("table")]
    weights = sum(p.numel() for p in dense)
    assert weights == dense_weights(), f"{weights} weights instead of {dense_weights()}"
    if table == "sparse":
        optimizers = [
            torch.optim.SparseAdam(model.table.parameters(), lr=1e-3),
            torch.optim.Adam(dense, lr=1e-3, fused=True),
        ]
    else:
        optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def interact_and_loss(x: Any, y: Any) -> Any:
        with autocast:
            logit = model.interact(x)
        return torch.nn.functional.binary_cross_entropy_with_logits(logit.float(), y)

    def interact(x: Any) -> Any:
        with autocast:
            return model.interact(x).float()

    def whole_loss(ids: Any, y: Any) -> Any:
        return interact_and_loss(model.table(ids), y)

    # A sparse gradient cannot pass through a compiled graph: there the lookup stays outside.
    if mode == "compile":
        interact_and_loss, interact = torch.compile(interact_and_loss), torch.compile(interact)
        if table == "dense":
            whole_loss = torch.compile(whole_loss)

    ids, labels = map(torch.from_numpy, data(steps))
    ids = ids + VOCABULARY * torch.arange(FIELDS, dtype=torch.int32)

    def train() -> float:
        start = time.perf_counter()
        for first in range(0, len(ids), BATCH):
            x, y = ids[first : first + BATCH], labels[first : first + BATCH]
            loss = whole_loss(x, y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        loss.item()
        return (time.perf_counter() - start) / steps

    def predict() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            batches = range(0, len(ids), BATCH)
            torch.cat([interact(model.table(ids[first : first + BATCH])) for first in batches])
        return (time.perf_counter() - start) / steps

    a = torch.from_numpy(square()).to(getattr(torch, dtype))
    before = gemm_rate(lambda: a @ a)
    training = [train() for _ in range(epochs + 1)]
    inference = [predict() for _ in range(epochs + 1)]
    return {
        "training_ms": [1e3 * t for t in training[1:]],
        "inference_ms": [1e3 * t for t in inference[1:]],
        "gemm": [before, gemm_rate(lambda: a @ a)],
    }


def work(args: argparse.Namespace) -> None:
    """One measurement, in this process; its result is the last line of the output."""
    framework, way, dtype = args.worker
    if framework == "torch":
        import torch

        result = run_torch(way, dtype, args.steps, args.epochs)
        result["versions"] = {"torch": torch.__version__}
    else:
        result = run_keras(way, dtype, args.steps, args.epochs)
        result["versions"] = keras_versions()
    print(json.dumps(result))


def measure(
    args: argparse.Namespace, framework: str, way: str, dtype: str, memory: str
) -> dict | None:
    """The result of one process; `None` for a `torch.compile` that fails, which is reported."""
    python = args.torch_python if framework == "torch" else sys.executable
    command = [python, __file__, "--worker", framework, way, dtype]
    command += ["--steps", str(args.steps), "--epochs", str(args.epochs)]
    settings = KEPT if memory == "kept" else None
    return run_worker(command, framework, settings, may_fail=way.startswith("compile"))


def plan(args: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    jobs = []
    for dtype in args.dtypes:
        for memory in args.memory:
            jobs += [(*ours, dtype, memory) for ours in KERAS if ours[0] in args.backends]
            plain = (dtype, memory) == ("float32", "default")
            ways = [way for way in args.ways if plain or way in TORCH_MORE]
            if args.torch:
                jobs += [("torch", way, dtype, memory) for way in ways]
    return jobs


def summarize(raw: dict[tuple, list[dict]]) -> list[dict]:
    rows = []
    for (framework, way, dtype, memory), results in raw.items():
        row: dict[str, Any] = {
            "framework": framework,
            "way": way,
            "dtype": dtype,
            "memory": memory,
        }
        for what in ("training", "inference"):
            times = [t for result in results for t in result[f"{what}_ms"]]
            median = statistics.median(times)
            row[f"{what}_ms"] = round(median, 2)
            row[f"{what}_ms_best"] = round(min(times), 2)
            row[f"{what}_ms_worst"] = round(max(times), 2)
            row[f"{what}_ms_rounds"] = [
                round(statistics.median(result[f"{what}_ms"]), 2) for result in results
            ]
            row[f"{what}_examples_per_s"] = round(1e3 * BATCH / median)
        row["gemm_gflops"] = round(
            statistics.median(rate for result in results for rate in result["gemm"]), 1
        )
        rows.append(row)
    return rows


def claims(rows: list[dict], flops: dict[str, float]) -> list[dict]:
    """The ratios that the project promises, of float32, and the same of bfloat16 for the record."""
    out = []

    def claim(dtype: str, memory: str, text: str, value: float, bound: float) -> None:
        # Only float32 has a bound.
        promised = dtype == "float32"
        out.append(
            {
                "dtype": dtype,
                "memory": memory,
                "claim": text,
                "value": round(value, 3),
                "bound": f"at least {bound:g}" if promised else "",
                "met": value >= bound if promised else None,
            }
        )

    for dtype, memory in itertools.product(DTYPES, MEMORY):
        chosen = [r for r in rows if (r["dtype"], r["memory"]) == (dtype, memory)]
        found = {(r["framework"], r["way"]): r for r in chosen}
        theirs = [r for r in chosen if r["framework"] == "torch"]
        for what in ("training", "inference"):
            if ours := found.get(("jax", "arrays")):
                rate = flops[what] * ours[f"{what}_examples_per_s"] / 1e9
                text = f"jax, {what}: counted FLOP/s / GEMM FLOP/s"
                claim(dtype, memory, text, rate / ours["gemm_gflops"], 0.6)
            if theirs:
                best = min(theirs, key=lambda r: r[f"{what}_ms"])
                for framework, way in KERAS:
                    if ours := found.get((framework, way)):
                        text = f"{framework} ({way}), {what}: speed / best PyTorch ({best['way']})"
                        value = best[f"{what}_ms"] / ours[f"{what}_ms"]
                        claim(dtype, memory, text, value, 1.5 if framework == "jax" else 1.0)
    return out


def markdown(report: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    flops = report["flops"]
    lines = [
        "# Wukong: speed of training and inference",
        "",
        f"`{report['command']}`, {report['date']}, {report['cpu']} with {report['cores']} cores, "
        f"{versions}. {report['dense_weights']:,} dense weights, batch {BATCH}; counted GFLOP a "
        f"step: {flops['training'] * BATCH / 1e9:.1f} in training, "
        f"{flops['inference'] * BATCH / 1e9:.1f} in inference. Medians of {report['rounds']} "
        "rounds. How: the docstring of `benchmarks/wukong_speed.py`.",
    ]
    sections = itertools.product(report["dtypes"], report["memory"])
    for section in sections:
        lines += ["", "## {}, memory {}".format(*section), ""]
        lines.append(
            "| framework | way | training ms | best..worst | examples/s | GFLOP/s | inference ms "
            "| best..worst | examples/s | GEMM GFLOP/s |"
        )
        lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for r in report["results"]:
            if (r["dtype"], r["memory"]) != section:
                continue
            cells = [r["framework"], r["way"]]
            for what in ("training", "inference"):
                cells.append(f"{r[f'{what}_ms']:.1f}")
                cells.append(f"{r[f'{what}_ms_best']:.1f}..{r[f'{what}_ms_worst']:.1f}")
                cells.append(f"{r[f'{what}_examples_per_s']:,}")
                if what == "training":
                    rate = flops[what] * r[f"{what}_examples_per_s"] / 1e9
                    cells.append(f"{rate:.0f}")
            cells.append(f"{r['gemm_gflops']:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| claim | measured | bound | met |", "|---|--:|--:|---|"]
        for c in report["claims"]:
            if (c["dtype"], c["memory"]) == section:
                met = {True: "yes", False: "**no**", None: ""}[c["met"]]
                lines.append(f"| {c['claim']} | {c['value']:.2f} | {c['bound']} | {met} |")
    if report["failed"]:
        lines += ["", f"Did not run here: {', '.join(report['failed'])}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="steps an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--memory", nargs="+", default=list(MEMORY), choices=MEMORY)
    parser.add_argument(
        "--backends", nargs="*", default=["jax", "tensorflow"], choices=["jax", "tensorflow"]
    )
    parser.add_argument("--ways", nargs="+", default=list(TORCH), choices=TORCH)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/wukong-speed")
    parser.add_argument("--name", default="wukong-speed", help="of the two files")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    raw: dict[tuple, list[dict]] = {}
    versions: dict[str, str] = {"python": platform.python_version()}
    flops: dict[str, float] = {"training": float("nan"), "inference": float("nan")}
    failed: list[str] = []
    for turn in range(args.rounds):
        for job in plan(args):
            result = measure(args, *job)
            if result is None:
                failed = sorted({*failed, " ".join(job)})
                continue
            versions |= result.pop("versions")
            flops = result.pop("flops", flops)
            raw.setdefault(job, []).append(result)
            training, inference = (
                statistics.median(result[f"{what}_ms"]) for what in ("training", "inference")
            )
            rates = "/".join(f"{rate:.0f}" for rate in result["gemm"])
            print(
                turn + 1, *job, f"{training:.1f} ms, {inference:.1f} ms, GEMM {rates}", flush=True
            )
    results = summarize(raw)
    options = [a for a in sys.argv[1:] if "/" not in a and a not in ("--torch-python", "--out")]
    report = {
        "command": " ".join(["python benchmarks/wukong_speed.py", *options]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "versions": versions,
        "rounds": args.rounds,
        "dtypes": args.dtypes,
        "memory": args.memory,
        "dense_weights": dense_weights(),
        "flops": flops,
        "results": results,
        "claims": claims(results, flops),
        "failed": failed,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{args.name}.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
