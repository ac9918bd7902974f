"""Writing a SavedModel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_exfm.export._graph import ServingGraph

METADATA = "assets.extra/keras_exfm.json"


def write(graph: ServingGraph, path: Path, metadata: dict[str, Any]) -> None:
    """Writes a folder with one signature, `serving_default`; weights and tables are variables."""
    specs = list(graph.inputs.values())

    class Serving(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = {
                part.name: tf.Variable(part.array(), trainable=False, name=part.name)
                for part in graph.parts
            }
            stored = {id(v) for table in graph.tables for v in table.layer.variables}
            self.weights = [v.value for v in graph.model.variables if id(v) not in stored]

        @tf.function(input_signature=specs, autograph=False)
        def serve(self, *arguments: Any) -> dict[str, Any]:
            features = dict(zip(graph.inputs, arguments))
            # As tensors, and gathered from without a copy: a SavedModel's variables do not change.
            return graph.compute(features, dict(self.tables))

    serving = Serving()
    tf.saved_model.save(serving, str(path), signatures={"serving_default": serving.serve})
    file = path / METADATA
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(metadata, indent=1) + "\n")


def read_metadata(path: Path) -> str | None:
    """The JSON that `write` left, or `None`."""
    file = path / METADATA
    return file.read_text() if file.is_file() else None
