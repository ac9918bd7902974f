"""Exported files, each run by its own runtime."""

from __future__ import annotations

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
        self.inputs = tuple(put.name for put in self.session.get_inputs())
        self.outputs = tuple(put.name for put in self.session.get_outputs())

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        feed = {name: batch[name] for name in self.inputs}
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
        signature = self.interpreter.get_signature_list()["serving_default"]
        self.inputs = tuple(signature["inputs"])
        self.outputs = tuple(signature["outputs"])

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return self.runner(**{name: batch[name] for name in self.inputs})


class SavedModelRuntime:
    """A SavedModel under TensorFlow."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import tensorflow as tf

        try:
            self.model = tf.saved_model.load(str(path))
            self.function = self.model.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as error:
            raise ExportError(f"{path}: TensorFlow cannot load the model: {error}") from error
        self.inputs = tuple(self.function.structured_input_signature[1])
        self.outputs = tuple(self.function.structured_outputs)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        import tensorflow as tf

        found = self.function(**{name: tf.constant(batch[name]) for name in self.inputs})
        return {name: value.numpy() for name, value in found.items()}


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
