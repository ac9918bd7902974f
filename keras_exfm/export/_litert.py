"""Writing a LiteRT (TensorFlow Lite) model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_exfm.export._graph import ServingGraph
from keras_exfm.export.errors import ExportError

KEY = "keras_exfm"
_LARGEST = 1_900_000_000


def write(graph: ServingGraph, path: Path, metadata: dict[str, Any]) -> None:
    """Writes a model with one signature, `serving_default`."""
    total = sum(part.bytes for part in graph.parts)
    if total > _LARGEST:
        raise ExportError(
            f"The tables have {total / 1e9:.2f} GB, more than a LiteRT file can hold (2 GB). "
            "Smaller numbers (tables='int8') may fit; ONNX takes external data."
        )
    graph.constants()
    function = graph.function().get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    path.write_bytes(_with_metadata(converter.convert(), json.dumps(metadata)))


def _with_metadata(content: bytes, text: str) -> bytes:
    """The model with an entry in its own table of metadata."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    buffer = schema.BufferT()
    buffer.data = list(text.encode())
    entry = schema.MetadataT()
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content) + 2 * len(text) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def read_metadata(path: Path) -> str | None:
    """The JSON that `write` left, or `None`."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == KEY.encode():
            return model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().decode()
    return None
