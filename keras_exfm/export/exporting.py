"""A serving model to files that other runtimes serve."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_exfm import __version__
from keras_exfm.distillation import ExternalDistillation
from keras_exfm.export import _runtimes, _worker
from keras_exfm.export._samples import sample
from keras_exfm.export._tables import STORAGES, Storage
from keras_exfm.export.errors import ExportError
from keras_exfm.export.export_report import ExportReport
from keras_exfm.features import Schema
from keras_exfm.losses._probabilities import probability_layer
from keras_exfm.metrics import functional

_ROWS = 256


def export_model(
    model: keras.Model,
    targets: Mapping[str, str | os.PathLike[str]],
    *,
    output: str = "logit",
    representation: str | None = None,
    tables: Storage = "float32",
    opset: int = 18,
    external_data: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    check: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    tolerance: float = 1e-4,
    imports: Sequence[str] = (),
) -> list[ExportReport]:
    """Exports a model to one or several formats, and proves each file.

    Every file is run by its own runtime and compared with the model, on batches of several sizes,
    before it appears at its place; the conversion is done once. On another backend than TensorFlow
    it is done on a copy of the model, in a process whose Keras runs on TensorFlow.

    Inputs have the names, types and shapes of the schema, with a free batch dimension; the output
    is called `"logit"` or `"probability"`, of shape `(batch, 1)`. Multi-hot pooling, hashing, and
    the rows that dynamic tables have given to ids so far, are in the graph.

    Args:
        model: A functional model that ends in a logit, or an `ExternalDistillation`, whose serving
            model is taken.
        targets: Format, `"onnx"`, `"litert"` or `"saved_model"`, -> path.
        output: `"logit"`, or `"probability"`: its sigmoid. Defaults to `"logit"`.
        representation: Name of a layer whose output is a second output, called
            `"representation"`. Defaults to `None`: none.
        tables: Numbers that embedding tables are stored in: `"float32"`, `"float16"`, or `"int8"`
            with a scale a row. They are computed with in float32. LiteRT has no `"float16"`.
            Defaults to `"float32"`.
        opset: ONNX opset; hashed and dynamic features need 18. Defaults to `18`.
        external_data: Whether ONNX tables lie in `<name>.data` beside the file. Defaults to
            `None`: where they are too large for one file (1.8 GB).
        metadata: JSON-serializable notes that travel inside, such as snapshot and metrics.
            Defaults to none.
        check: Encoded rows to compare on, such as real ones. Defaults to `None`: random rows of the
            schema.
        data: Batches `(features, labels, weight)`, as `streaming.read` gives, to measure the
            normalized entropy of model and file on. Defaults to `None`.
        tolerance: Largest difference that counts as none, absolute and relative. Defaults to
            `1e-4`.
        imports: Modules whose import registers custom classes of the model, for the process of the
            conversion. Defaults to none.

    Returns:
        A report for each target, in their order.

    Raises:
        ExportError: If the model cannot be exported, or a file computes something else; no file of
            that target is left then.
        ImportError: If a format's packages are not installed.

    Example:

    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 50, hashed=True), kx.Numeric("age")])
    >>> model = kx.models.LogisticRegression(schema)
    >>> report, = kx.export.export_model(model, {"saved_model": "served"})
    >>> report.inputs, report.outputs, report.max_difference < 1e-5
    (('ad', 'age'), ('logit',), True)
    """
    began = time.monotonic()
    model = serving_model(model)
    _check_arguments(model, targets, output, representation, tables, opset)
    schema = find_schema(model)
    if opset < 18 and "onnx" in targets and schema is not None:
        free = [f.name for f in schema.sparse if f.hashed or f.admit_after is not None]
        if free:
            raise ExportError(
                f"The hashed or dynamic features {free} need opset 18, the first one with bitwise "
                f"operations. Received: opset={opset}"
            )
    names = list(schema.names) if schema else [tensor.name for tensor in model.inputs]
    batch = _batch(model, schema, check)
    expected = _predict(model, batch, output, representation)
    noted = {
        "keras_exfm": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "model": type(model).__name__,
        "name": model.name,
        "parameters": int(model.count_params()),
        "schema": None if schema is None else schema.to_dict(),
        "output": output,
        "representation": representation,
        "tables": tables,
        "notes": dict(metadata or {}),
    }
    places = {format: Path(path) for format, path in targets.items()}
    work = {format: _beside(path) for format, path in places.items()}
    try:
        job: dict[str, Any] = {
            "inputs": names,
            "output": output,
            "representation": representation,
            "tables": tables,
            "opset": int(opset),
            "external_data": external_data,
            "imports": list(imports),
            "targets": [
                {
                    "format": format,
                    "path": str((work[format] / path.name).absolute()),
                    "metadata": {**noted, "format": format}
                    | ({"opset": int(opset)} if format == "onnx" else {}),
                }
                for format, path in places.items()
            ],
        }
        if keras.backend.backend() == "tensorflow":
            reference = _worker.convert(model, job, batch)
        else:
            with tempfile.TemporaryDirectory(prefix="keras-exfm-export-") as folder:
                reference = _worker.convert_elsewhere(model, job, batch, Path(folder))
        reports = []
        for target in job["targets"]:
            place = places[target["format"]]
            runtime = _runtimes.load(target["path"])
            _check_names(place, runtime, names, list(expected))
            differences = _compare(place, runtime, batch, expected, reference, tables, tolerance)
            reports.append(
                ExportReport(
                    path=place,
                    format=target["format"],
                    bytes=_size(work[target["format"]]),
                    inputs=tuple(names),
                    outputs=tuple(expected),
                    rows=len(next(iter(batch.values()))),
                    max_difference=differences[0],
                    graph_difference=differences[1],
                    tables=tables,
                    metadata=target["metadata"],
                    seconds=0.0,
                    normalized_entropy=None
                    if data is None
                    else _entropies(model, runtime, data, output),
                )
            )
            del runtime
        for format, place in places.items():
            _install(work[format], place)
    finally:
        for made in work.values():
            shutil.rmtree(made, ignore_errors=True)
    seconds = time.monotonic() - began
    return [ExportReport(**{**vars(report), "seconds": seconds}) for report in reports]


def onnx(model: keras.Model, path: str | os.PathLike[str], **options: Any) -> ExportReport:
    """Exports to ONNX, for ONNX Runtime; see `export_model`.

    Args:
        model: The model.
        path: The `.onnx` file.
        **options: Those of `export_model`.
    """
    return export_model(model, {"onnx": path}, **options)[0]


def litert(model: keras.Model, path: str | os.PathLike[str], **options: Any) -> ExportReport:
    """Exports to LiteRT (TensorFlow Lite); see `export_model`.

    Args:
        model: The model.
        path: The `.tflite` file.
        **options: Those of `export_model`.
    """
    return export_model(model, {"litert": path}, **options)[0]


def saved_model(model: keras.Model, path: str | os.PathLike[str], **options: Any) -> ExportReport:
    """Exports to a SavedModel, for TensorFlow Serving; see `export_model`.

    Args:
        model: The model.
        path: The folder.
        **options: Those of `export_model`.
    """
    return export_model(model, {"saved_model": path}, **options)[0]


def find_schema(model: keras.Model) -> Schema | None:
    """The features that a model reads: its own schema, or that of a layer which has all inputs.

    Args:
        model: A functional model.
    """
    found = [getattr(model, "schema", None)]
    found += [getattr(layer, "schema", None) for layer in model.layers]
    names = [tensor.name for tensor in model.inputs]
    for schema in found:
        if isinstance(schema, Schema) and set(names) <= set(schema.names):
            return schema.select(names)
    return None


def serving_model(model: Any) -> keras.Model:
    """The model that is served: a student without its heads, or the model itself.

    Args:
        model: An `ExternalDistillation` or a functional model.

    Raises:
        ExportError: For anything else.
    """
    if isinstance(model, ExternalDistillation):
        return model.serving_model()
    if not isinstance(model, keras.Model) or getattr(model, "inputs", None) is None:
        raise ExportError(
            "`model` should be a functional keras.Model or an ExternalDistillation. "
            f"Received: model={model!r}"
        )
    return model


def _check_arguments(
    model: keras.Model,
    targets: Mapping[str, Any],
    output: str,
    representation: str | None,
    tables: str,
    opset: Any,
) -> None:
    unknown = sorted(set(targets) - set(_runtimes.FORMATS))
    if unknown or not targets:
        raise ExportError(
            f"`targets` should have formats of {list(_runtimes.FORMATS)}. Received: {list(targets)}"
        )
    for name, value, known in (
        ("output", output, ("logit", "probability")),
        ("tables", tables, STORAGES),
    ):
        if value not in known:
            raise ExportError(f"`{name}` should be one of {list(known)}. Received: {value!r}")
    if isinstance(opset, bool) or not isinstance(opset, int) or not 13 <= opset <= 18:
        # tf2onnx knows no later one.
        raise ExportError(f"`opset` should be an integer from 13 to 18. Received: opset={opset!r}")
    for format, path in targets.items():
        _runtimes.need(format)
        _runtimes.check_name(format, Path(path))
    if "litert" in targets and tables == "float16":
        raise ExportError(
            "LiteRT looks nothing up in tables of float16: pass tables='int8', which is smaller, "
            "or 'float32'."
        )
    if len(model.outputs) != 1 or tuple(model.outputs[0].shape) != (None, 1):
        raise ExportError(
            "`model` should have one output, a logit (batch, 1). Received shapes: "
            f"{[tuple(tensor.shape) for tensor in model.outputs]}"
        )
    layer = probability_layer(model)
    if layer is not None:
        raise ExportError(
            f"`model` should end in a logit. Received: a model whose last layer, {layer!r}, makes "
            "it a probability. Export the model up to what that layer squashes; "
            "output='probability' puts the sigmoid into the file."
        )
    names = [layer.name for layer in model.layers]
    if representation is not None and representation not in names:
        raise ExportError(
            f"`representation` should name a layer. Received: {representation!r}, layers={names}"
        )
    taken = [t.name for t in model.inputs if t.name in ("logit", "probability", "representation")]
    if taken:
        raise ExportError(f"Inputs may not have the outputs' names. Received: {taken}")
    low = sorted({layer.name for layer in model.layers if layer.compute_dtype != "float32"})
    if low:
        raise ExportError(
            "Serving runtimes compute in float32, and these layers in "
            f"{model.get_layer(low[0]).compute_dtype}: {low[:5]}. Build the model with "
            "dtype='float32' and load the weights into it."
        )


def _batch(
    model: keras.Model, schema: Schema | None, check: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    if check is None:
        if schema is None:
            raise ExportError(
                "The model has no schema to make rows of: pass `check`, rows to compare on."
            )
        return sample(schema, _ROWS)
    missing = [tensor.name for tensor in model.inputs if tensor.name not in check]
    if missing:
        raise ExportError(f"`check` misses the inputs {missing}. Received: {sorted(check)}")
    batch = {t.name: np.asarray(check[t.name]).astype(str(t.dtype)) for t in model.inputs}
    if not len(next(iter(batch.values()))):
        raise ExportError("`check` should have at least one row. Received none.")
    return batch


def _predict(
    model: keras.Model, batch: dict[str, np.ndarray], output: str, representation: str | None
) -> dict[str, np.ndarray]:
    whole = model
    if representation is not None:
        vectors = model.get_layer(representation).output
        whole = keras.Model(model.input, [model.output, vectors])
    found = whole.predict_on_batch(batch)
    logit, *vectors = found if isinstance(found, (list, tuple)) else [found]
    expected = {output: _output(np.asarray(logit, np.float32), output)}
    if vectors:
        expected["representation"] = np.asarray(vectors[0], np.float32)
    return expected


def _output(logit: np.ndarray, output: str) -> np.ndarray:
    if output == "logit":
        return logit
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logit.astype(np.float64)))).astype(np.float32)


def _check_names(
    place: Path, runtime: _runtimes.Runtime, inputs: list[str], outputs: list[str]
) -> None:
    if set(runtime.inputs) != set(inputs) or set(runtime.outputs) != set(outputs):
        raise ExportError(
            f"{place}: the file has inputs {sorted(runtime.inputs)} and outputs "
            f"{sorted(runtime.outputs)}, not {sorted(inputs)} and {sorted(outputs)}."
        )


def _compare(
    place: Path,
    runtime: _runtimes.Runtime,
    batch: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    tables: str,
    tolerance: float,
) -> tuple[float, float]:
    """Largest differences from the model and from the graph, over batches of several sizes."""
    rows = len(next(iter(batch.values())))
    from_model = from_graph = 0.0
    for start, stop in sorted({(0, rows), (0, 1), (max(0, rows - 7), rows)}):
        part = {name: column[start:stop] for name, column in batch.items()}
        found = runtime(part)
        for name in expected:
            got = np.asarray(found[name])
            if got.shape != expected[name][start:stop].shape:
                raise ExportError(
                    f"{place}: {name!r} should have the shape "
                    f"{expected[name][start:stop].shape}. Received: {got.shape}"
                )
            graph = _difference(
                place, name, got, reference[name][start:stop], tolerance, "the graph"
            )
            # With smaller tables, what they cost is reported, not refused.
            limit = tolerance if tables == "float32" else np.inf
            whole = _difference(
                place, name, got, expected[name][start:stop], limit, "the Keras model"
            )
            from_graph, from_model = max(from_graph, graph), max(from_model, whole)
    return from_model, from_graph


def _difference(
    place: Path, name: str, got: np.ndarray, wanted: np.ndarray, tolerance: float, what: str
) -> float:
    off = np.isnan(got) != np.isnan(wanted)
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - wanted)
        # Infinities of one sign are the same.
        difference = np.where((got == wanted) | (np.isnan(got) & np.isnan(wanted)), 0, difference)
    beyond = off | ~(difference <= tolerance * (1 + np.abs(np.nan_to_num(wanted))))
    if beyond.any():
        row = int(np.argwhere(beyond)[0][0])
        raise ExportError(
            f"{place}: {name!r} differs from {what} in {int(beyond.any(axis=-1).sum())} of "
            f"{len(got)} rows: in row {row} it is {got[row].ravel()[:3]}, not "
            f"{wanted[row].ravel()[:3]}; tolerance={tolerance}. The file was removed."
        )
    return float(difference.max(initial=0.0))


def _entropies(
    model: keras.Model, runtime: _runtimes.Runtime, data: Iterable[Any], output: str
) -> dict[str, float]:
    """Normalized entropy of model and file on labelled batches."""
    names = [tensor.name for tensor in model.inputs]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for features, labels, *rest in data:
        batch = {name: np.asarray(features[name]) for name in names}
        label = labels["label"] if isinstance(labels, Mapping) else labels
        label = np.asarray(label).reshape(-1)
        weight = np.asarray(rest[0]) if rest and rest[0] is not None else np.ones(len(label))
        served = np.asarray(runtime(batch)[output], np.float64).reshape(-1)
        if output == "probability":
            served = np.clip(served, 1e-15, 1 - 1e-15)
            served = np.log(served) - np.log1p(-served)
        logit = np.asarray(model.predict_on_batch(batch), np.float64).reshape(-1)
        for column, values in zip(columns, (label, weight.reshape(-1), logit, served)):
            column.append(values)
    if not columns[0]:
        raise ExportError("`data` should have at least one batch. Received none.")
    label, weight, logit, served = (np.concatenate(column) for column in columns)
    own = functional.normalized_entropy(label, logit, weight)
    other = functional.normalized_entropy(label, served, weight)
    return {"model": own, "export": other, "cost_percent": 100 * (other - own) / own}


def _beside(path: Path) -> Path:
    """A hidden folder on the same disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _install(folder: Path, path: Path) -> None:
    """Moves what was made to its place; the file that names others last."""
    made = folder / path.name
    for file in sorted(folder.iterdir()):
        if file != made:
            os.replace(file, path.parent / file.name)
    if made.is_dir() and path.exists():
        old = folder / f"{path.name}.old"
        os.replace(path, old)
    os.replace(made, path)
