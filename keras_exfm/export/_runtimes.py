"""Exported files, each run by its own runtime."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_exfm.export import _litert, _onnx, _saved_model
from keras_exfm.export.errors import ExportError

FORMATS = ("onnx", "litert", "saved_model")
_SUFFIXES = {".onnx": "onnx", ".tflite": "litert", ".litert": "litert"}


class Runtime(Protocol):
    """A loaded file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        ...


@dataclasses.dataclass(frozen=True)
class Input:
    """What a file expects under a name.

    Attributes:
        dtype: Type of the numbers; `None` for one that NumPy has not, which the runtime checks.
        shape: Without the batch; `None` where any size will do.
    """

    dtype: np.dtype | None
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {('batch', *self.shape)}"


def checked(
    path: Path, batch: Mapping[str, Any], expected: Mapping[str, Input]
) -> dict[str, np.ndarray]:
    """The inputs of a batch, which may have further columns.

    Raises:
        ExportError: Names the file, the input, what was received and what was expected.
    """
    if not isinstance(batch, Mapping):
        raise ExportError(
            f"{path}: expected a dict of the inputs {list(expected)}. "
            f"Received: {type(batch).__name__}"
        )
    missing = [name for name in expected if name not in batch]
    if missing:
        raise ExportError(f"{path}: the batch misses the inputs {missing}. It has: {sorted(batch)}")
    found = {name: np.asarray(batch[name]) for name in expected}
    for name, value in found.items():
        kind = expected[name]
        fits = value.ndim == 1 + len(kind.shape) and all(
            size in (None, own) for own, size in zip(value.shape[1:], kind.shape)
        )
        if kind.dtype not in (None, value.dtype) or not fits:
            raise ExportError(
                f"{path}: input {name!r}: expected {kind}. Received {value.dtype} of shape "
                f"{value.shape}. `Schema.encode` gives what a model reads; the file's schema is "
                "`Schema.from_dict(export.metadata(path)['schema'])`."
            )
    rows = {name: len(value) for name, value in found.items()}
    if len(set(rows.values())) > 1:
        raise ExportError(f"{path}: inputs should have one value a row. Received rows: {rows}")
    return found


class OnnxRuntime:
    """An ONNX file under ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        need("onnx")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"{path}: ONNX Runtime cannot load the file: {error}") from error
        self.path = path
        self.expected = {
            put.name: Input(_onnx_dtype(put.type), tuple(map(_size, put.shape[1:])))
            for put in self.session.get_inputs()
        }
        self.inputs = tuple(self.expected)
        self.outputs = tuple(put.name for put in self.session.get_outputs())

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        feed = checked(self.path, batch, self.expected)
        return dict(zip(self.outputs, self.session.run(list(self.outputs), feed)))


class LiteRtRuntime:
    """A LiteRT file under its interpreter; it is made for each size of batch."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        need("litert")
        from ai_edge_litert.interpreter import Interpreter

        try:
            self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self.runner = self.interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{path}: LiteRT cannot load the file: {error}") from error
        self.path = path
        self.expected = {
            name: Input(np.dtype(of["dtype"]), tuple(map(_size, of["shape_signature"][1:])))
            for name, of in self.runner.get_input_details().items()
        }
        self.inputs = tuple(self.expected)
        signature = self.interpreter.get_signature_list()["serving_default"]
        self.outputs = tuple(signature["outputs"])

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return self.runner(**checked(self.path, batch, self.expected))


class SavedModelRuntime:
    """A SavedModel under TensorFlow."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import tensorflow as tf

        try:
            self.model = tf.saved_model.load(str(path))
            self.function = self.model.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as error:
            raise ExportError(f"{path}: TensorFlow cannot load the model: {error}") from error
        self.path = path
        self.expected = {
            name: Input(np.dtype(spec.dtype.as_numpy_dtype), tuple(spec.shape[1:]))
            for name, spec in self.function.structured_input_signature[1].items()
        }
        self.inputs = tuple(self.expected)
        self.outputs = tuple(self.function.structured_outputs)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        import tensorflow as tf

        feed = checked(self.path, batch, self.expected)
        found = self.function(**{name: tf.constant(value) for name, value in feed.items()})
        return {name: value.numpy() for name, value in found.items()}


def _size(size: Any) -> int | None:
    """A fixed size; runtimes write a free one as a name, as -1 or as nothing."""
    return int(size) if isinstance(size, (int, np.integer)) and size >= 0 else None


def _onnx_dtype(name: str) -> np.dtype | None:
    kind = name.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    except TypeError:  # Strings and bfloat16, of models of others.
        return None


_RUNTIMES: dict[str, Any] = {
    "onnx": OnnxRuntime,
    "litert": LiteRtRuntime,
    "saved_model": SavedModelRuntime,
}


def need(format: str) -> None:
    """Refuses a format whose packages are not installed.

    Raises:
        ImportError: Names the extra.
    """
    packages = {
        "onnx": ("tf2onnx", "onnx", "onnxruntime"),
        "litert": ("ai_edge_litert",),
        "saved_model": (),
    }[format]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{missing} not installed: pip install 'keras-exfm[{format}]'")


def check_name(format: str, path: Path) -> None:
    """Refuses a name by which `load` would take the file for one of another format.

    Raises:
        ExportError: Says which ending was expected.
    """
    own = [suffix for suffix, of in _SUFFIXES.items() if of == format]
    if own and path.suffix not in own:
        raise ExportError(
            f"{path}: the name of a file of the format {format!r} should end in "
            f"{' or '.join(own)}. Received: {path.suffix!r}"
        )
    if not own and path.is_file():
        raise ExportError(f"{path}: a SavedModel is a folder. Received: a file of that name")


def format_of(path: Path) -> str:
    """The format of an exported file, by its name and what it is.

    Raises:
        ExportError: For a file of another kind, or none.
    """
    if (path / "saved_model.pb").is_file():
        return "saved_model"
    if not path.is_file():
        raise ExportError(f"{path}: no such file, nor the folder of a SavedModel.")
    if path.suffix not in _SUFFIXES:
        raise ExportError(
            f"{path}: expected .onnx, .tflite or the folder of a SavedModel. Received: "
            f"{path.suffix!r}"
        )
    return _SUFFIXES[path.suffix]


def load(path: str | os.PathLike[str], threads: int | None = None) -> Runtime:
    """Loads an exported file in its own runtime: a function of a batch, by input names.

    Args:
        path: An `.onnx` or `.tflite` file, or the folder of a SavedModel.
        threads: Threads that it may use. Defaults to `None`: the runtime's own choice.

    Returns:
        A function of a dict of arrays, encoded as `Schema.encode` does, that gives a dict of
        outputs by name. It raises `ExportError` for a missing input, and for one of another type
        or shape than the file's; what is no input is left aside.

    Raises:
        ExportError: If there is no such file, or none that was exported.

    Example:

    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 50), kx.Numeric("age")])
    >>> _ = kx.export.saved_model(kx.models.LogisticRegression(schema), "loaded")
    >>> serve = kx.export.load("loaded")
    >>> serve(schema.encode({"ad": [3, None], "age": [0.5, 1.0]}))["logit"].shape
    (2, 1)
    """
    path = Path(path)
    return _RUNTIMES[format_of(path)](path, threads)


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `export_model` left in a file: schema, output, versions and notes.

    Args:
        path: An `.onnx` or `.tflite` file, or the folder of a SavedModel.

    Raises:
        ExportError: If the file has none.
    """
    path = Path(path)
    format = format_of(path)
    if format == "onnx":
        # From the runtime, which serves without the package onnx.
        session = OnnxRuntime(path).session
        text = session.get_modelmeta().custom_metadata_map.get(_onnx.KEY)
    elif format == "litert":
        text = _litert.read_metadata(path)
    else:
        text = _saved_model.read_metadata(path)
    if text is None:
        raise ExportError(f"{path}: holds no metadata of keras_exfm: it was exported by others.")
    return json.loads(text)
