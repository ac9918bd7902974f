"""How long an answer takes: p50 and p99 of one batch, by batch size and runtime.

    python benchmarks/serving.py --torch-python PYTHON     # about 8 minutes on 2 cores
    python benchmarks/serving.py --no-torch
    python benchmarks/serving.py --only-onnx --threads 1 --torch-python PYTHON    # a minute

The student is the Wukong of `wukong_speed.py`: 39 categorical fields of 1,000 ids, dimension 16,
3 layers, 40 + 40 embeddings, rank 8, hidden layers 512-256; the teacher has 4 layers of 80 + 80
embeddings, rank 24, dimension 32 and hidden layers 1024-512. Weights are random, the biases too, so
that no runtime can leave any out. Contenders: Keras `predict_on_batch` on TensorFlow and JAX, and
the exports of `keras_exfm.export` under TensorFlow (SavedModel), ONNX Runtime and LiteRT. PyTorch's
model is the one of `wukong_speed.py` with the student's sizes, in both layouts, exported by
`torch.onnx` and run by the same ONNX Runtime; it reads one matrix of ids, or ("named") 39 inputs as
ours does.

Each measurement is a process of its own, and rounds go through all contenders in turn; but the
student and PyTorch's models under ONNX Runtime take turns of eight calls in one process, so that
what else the machine does is the same for all of them. Who comes first changes with each turn, and
their threads do not spin, which would take the cores from the others. The first three calls of a
turn, which bring a model's weights back into the caches, are not counted. "Inputs alone" are graphs
that only put the 39 inputs side by side, or hand on one matrix: what feeding them takes. The ratio
of Keras' time to ONNX Runtime's is one of unlike conditions: Keras has a process of its own there,
and ONNX Runtime takes turns.

A time is one call's, from NumPy arrays to a NumPy array, after `--warmup` calls; each batch size is
measured for at least `--seconds`. Reported are p50 and p99 over the calls of all rounds. Runtimes
have `--threads` threads; Keras has its own default. `--only-onnx` leaves out all but the student
and PyTorch's models in turns.

Writes `<out>/serving.json` and `<out>/serving.md`. PyTorch (with onnx and onnxscript) is looked for
in the Python that `--torch-python` names.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import wukong_speed
from _processes import cpu_model, keras_versions, run_worker

BATCHES = (1, 32, 128, 512)
FIELDS, VOCABULARY = wukong_speed.FIELDS, wukong_speed.VOCABULARY
NAMES = [f"f{i}" for i in range(FIELDS)]
SIZES = {
    "student": {
        "dim": wukong_speed.DIM,
        "num_layers": wukong_speed.LAYERS,
        "n_fmb": wukong_speed.FMB,
        "n_lcb": wukong_speed.LCB,
        "rank": wukong_speed.RANK,
        "mlp_units": wukong_speed.MLP,
        "head_units": wukong_speed.HEAD,
    },
    "teacher": {
        "dim": 32,
        "num_layers": 4,
        "n_fmb": 80,
        "n_lcb": 80,
        "rank": 24,
        "mlp_units": (1024, 512),
        "head_units": (1024, 512),
    },
}
FILES = {"SavedModel": "{}", "ONNX Runtime": "{}.onnx", "LiteRT": "{}.tflite"}
TORCH = ("rows", "columns", "columns named")
UNTIMED = 3
RUNTIMES = ("onnxruntime", "tf2onnx", "ai-edge-litert")
TURNS = "ONNX Runtime, in turns"
ALONE = {"inputs alone: named": False, "inputs alone: one matrix": True}


def features(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, VOCABULARY, rows).astype("int32") for name in NAMES}


def make(folder: Path, models: list[str]) -> dict:
    """Exports the models; what was compared, and their sizes."""
    import keras

    from keras_exfm import Categorical, Schema, export
    from keras_exfm.models import Wukong, flops

    schema = Schema([Categorical(name, VOCABULARY) for name in NAMES])
    found: dict[str, Any] = {}
    for name in models:
        sizes = SIZES[name]
        keras.utils.set_random_seed(1)
        model = Wukong(schema, **sizes)
        rng = np.random.default_rng(2)
        for weight in model.trainable_variables:
            if weight.path.endswith(("bias", "beta", "gamma")):
                value = rng.normal(size=weight.shape) / 10
                weight.assign(value + (1 if weight.path.endswith("gamma") else 0))
        reports = export.export_model(
            model,
            {
                "saved_model": folder / name,
                "onnx": folder / f"{name}.onnx",
                "litert": folder / f"{name}.tflite",
            },
        )
        model.save(folder / f"{name}.keras")
        found[name] = {
            "parameters": int(model.count_params()),
            "flops": int(flops(model).inference),
            "max_difference": {r.format: r.max_difference for r in reports},
            "bytes": {r.format: r.bytes for r in reports},
        }
    return found


def make_torch(folder: Path) -> dict:
    """Exports PyTorch's models with random weights."""
    import torch

    class Named(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, *ids: Any) -> Any:
            return self.model(torch.stack(ids, 1))

    batch = torch.export.Dim("batch")
    for way in TORCH:
        layout, *named = way.split()
        torch.manual_seed(1)
        model = wukong_speed.torch_model("dense", layout).eval()
        inputs: tuple[Any, ...] = (torch.zeros((2, FIELDS), dtype=torch.int32),)
        names, dynamic = ["ids"], ({0: batch},)
        if named:
            model = Named(model)
            inputs = tuple(torch.zeros(2, dtype=torch.int32) for _ in NAMES)
            names, dynamic = NAMES, (tuple({0: batch} for _ in NAMES),)
        torch.onnx.export(
            model,
            inputs,
            str(folder / f"torch {way}.onnx"),
            input_names=names,
            output_names=["logit"],
            dynamic_shapes=dynamic,
            dynamo=True,
            external_data=False,
            opset_version=18,
        )
    return {"torch": torch.__version__}


def session_of(file: Path | bytes, threads: int, shared: bool) -> Any:
    """A session of ONNX Runtime, in a process that other sessions share or of its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if shared:
        # Its threads would spin on while another session has its turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
    )


def in_turn(names: list[str], turn: int) -> list[str]:
    """The contenders, another one first each turn."""
    first = turn % len(names)
    return names[first:] + names[:first]


def caller(
    contender: str, size: str, folder: Path, threads: int, shared: bool
) -> Callable[[dict], Any]:
    """A function of a batch."""
    if contender == "Keras":
        import keras

        import keras_exfm  # noqa: F401

        model = keras.saving.load_model(folder / f"{size}.keras", compile=False)
        return model.predict_on_batch
    if contender.startswith(("PyTorch", "inputs alone")):
        way = contender.partition(": ")[2]
        file = (
            inputs_alone(ALONE[contender]) if contender in ALONE else folder / f"torch {way}.onnx"
        )
        session = session_of(file, threads, shared)
        return lambda batch: session.run(None, batch)[0]
    from keras_exfm import export

    file = folder / FILES[contender].format(size)
    runtime: Any = export.load(file, threads)
    if contender == "ONNX Runtime":
        runtime.session = session_of(file, threads, shared)
    return lambda batch: runtime(batch)["logit"]


def inputs_alone(matrix: bool) -> bytes:
    """A graph that does nothing but take the inputs."""
    from onnx import TensorProto, helper

    names, shape = (["ids"], ["batch", FIELDS]) if matrix else (NAMES, ["batch"])
    node = helper.make_node("Concat", names, ["out"], axis=0)
    graph = helper.make_graph(
        [node],
        "inputs",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in names],
        [helper.make_tensor_value_info("out", TensorProto.INT32, None)],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def batches_of(contender: str, rows: int) -> list[dict[str, np.ndarray]]:
    found = [features(rows, seed) for seed in range(8)]
    if contender.startswith(("PyTorch", "inputs alone")) and not contender.endswith("named"):
        # Its ids are rows of one table already.
        offsets = (VOCABULARY * np.arange(FIELDS)).astype("int32")
        return [{"ids": np.stack([b[name] for name in NAMES], 1) + offsets} for b in found]
    return found


def measure(args: argparse.Namespace) -> dict:
    names = [args.contender]
    if args.contender == TURNS:
        torch = [f"PyTorch under ONNX Runtime: {way}" for way in TORCH] if args.torch else []
        names = ["ONNX Runtime", *torch, *ALONE]
    shared = len(names) > 1
    calls = {name: caller(name, args.size, args.folder, args.threads, shared) for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for rows in BATCHES:
        batches = {name: batches_of(name, rows) for name in names}
        for name in names:
            for i in range(args.warmup):
                calls[name](batches[name][i % 8])
        times: dict[str, list[float]] = {name: [] for name in names}
        end = time.perf_counter() + args.seconds * len(names)
        turn = 0
        while time.perf_counter() < end or turn < 4:
            for name in in_turn(names, turn):
                for number, batch in enumerate(batches[name]):
                    start = time.perf_counter()
                    calls[name](batch)
                    taken = time.perf_counter() - start
                    if not shared or number >= UNTIMED:
                        times[name].append(1e3 * taken)
            turn += 1
        for name in names:
            found[name][str(rows)] = [round(t, 4) for t in times[name][:8000]]
    return {"times": found, "versions": keras_versions(*RUNTIMES)}


def contenders(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Name, size and backend."""
    turns = [(TURNS, "student", "tensorflow")] if "student" in args.models else []
    if args.only_onnx:
        return turns
    found = []
    for size in args.models:
        found += [("Keras", size, backend) for backend in ("tensorflow", "jax")]
        found += [
            (name, size, "tensorflow")
            for name in FILES
            if name != "ONNX Runtime" or size != "student"
        ]
    return found + turns


def rows_of(raw: dict[tuple[str, str, str], dict[str, list[float]]]) -> list[dict]:
    rows = []
    for (name, size, backend), times in raw.items():
        label = f"{name} ({backend})" if name == "Keras" else name
        row: dict[str, Any] = {"model": size, "runtime": label}
        for batch, values in times.items():
            row[f"p50_ms_{batch}"] = round(float(np.quantile(values, 0.5)), 3)
            row[f"p99_ms_{batch}"] = round(float(np.quantile(values, 0.99)), 3)
            row[f"calls_{batch}"] = len(values)
        rows.append(row)
    return rows


def claims(rows: list[dict]) -> list[dict]:
    """The ratios that the project promises, of medians in this run."""
    found = {row["runtime"]: row for row in rows if row["model"] == "student"}
    if not found:
        return []
    out = []
    for batch in BATCHES:
        key = f"p50_ms_{batch}"
        ours = found["ONNX Runtime"][key]
        alone, matrix = (found[name][key] for name in ALONE)
        out.append(
            {
                "batch": batch,
                "claim": "share of ONNX Runtime's time that its named inputs take, "
                "beyond one matrix's",
                "value": round((alone - matrix) / ours, 2),
            }
        )
        for backend in ("tensorflow", "jax") if batch <= 32 else ():
            if (keras := found.get(f"Keras ({backend})")) is None:
                continue
            value = keras[key] / ours
            out.append(
                {
                    "batch": batch,
                    "claim": f"Keras' time on {backend} over ONNX Runtime's",
                    "value": round(value, 2),
                    "goal": "at least 5",
                    "met": value >= 5,
                }
            )
        for kind, ways in (
            ("one matrix", ("rows", "columns")),
            ("named inputs", ("columns named",)),
        ):
            theirs = [
                found[name][key]
                for way in ways
                if (name := f"PyTorch under ONNX Runtime: {way}") in found
            ]
            if theirs:
                value = ours / min(theirs)
                out.append(
                    {
                        "batch": batch,
                        "claim": f"ONNX Runtime's time over PyTorch's model's, {kind}",
                        "value": round(value, 2),
                        "goal": "at most 1.1",
                        "met": value <= 1.1,
                    }
                )
    return out


def table(rows: list[dict], columns: list[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(
    args: argparse.Namespace,
    raw: dict[tuple[str, str, str], dict[str, list[float]]],
    models: dict,
    versions: dict[str, str],
    rounds: int,
    seconds: float,
) -> None:
    """Writes what the rounds so far have shown."""
    rows = rows_of(raw)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            # Other work on the machine: the processes that wanted a core, over 1, 5, 15 minutes.
            "load": os.getloadavg(),
        },
        "arguments": {
            "rounds": rounds,
            **{k: getattr(args, k) for k in ("models", "seconds", "warmup", "threads")},
        },
        "versions": versions,
        "sizes": SIZES,
        "models": models,
        "rows": rows,
        "claims": claims(rows),
        "seconds": round(seconds),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serving.json").write_text(json.dumps(result, indent=1) + "\n")
    heads = [f"{q}_ms_{b}" for b in BATCHES for q in ("p50", "p99")]
    page = [
        "# Serving latency",
        "",
        f"`benchmarks/serving.py`, {result['date']}, {cpu_model()}, {os.cpu_count()} cores, "
        f"{args.threads} threads, {rounds} rounds; load of the machine {os.getloadavg()[2]:.1f}. "
        "Milliseconds a batch.",
        "",
        table(rows, ["model", "runtime", *heads]),
        "",
        table(result["claims"], ["batch", "claim", "value", "goal", "met"]),
        "",
    ]
    (args.out / "serving.md").write_text("\n".join(page))
    print("\n".join(page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--only-onnx", action="store_true")
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--make", choices=("keras", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_onnx:
        args.models = ["student"]
    if args.make:
        keras = args.make == "keras"
        print(json.dumps(make(args.folder, args.models) if keras else make_torch(args.folder)))
        return
    if args.contender:
        print(json.dumps(measure(args)))
        return

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        common = ["--folder", folder]
        models = run_worker(
            [sys.executable, __file__, "--make", "keras", *common, "--models", *args.models],
            "tensorflow",
        )
        versions: dict[str, str] = {}
        if args.torch:
            versions |= (
                run_worker([args.torch_python, __file__, "--make", "torch", *common], "torch") or {}
            )
        raw: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        for number in range(args.rounds):
            for contender, size, backend in contenders(args):
                command = [sys.executable, __file__, "--contender", contender, "--size", size]
                command += ["--seconds", str(args.seconds), "--warmup", str(args.warmup)]
                command += ["--threads", str(args.threads), *common]
                command += [] if args.torch else ["--no-torch"]
                # PyTorch's files are run by our Python's ONNX Runtime.
                result = run_worker(command, backend)
                assert result is not None
                versions |= result["versions"]
                for name, by_batch in result["times"].items():
                    held = raw.setdefault((name, size, backend), {})
                    for batch, times in by_batch.items():
                        held.setdefault(batch, []).extend(times)
                print(f"round {number + 1}: {contender} {size} {backend}", flush=True)
            write(args, raw, models, versions, number + 1, time.monotonic() - started)


if __name__ == "__main__":
    main()
