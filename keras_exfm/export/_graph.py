"""The serving computation as a TensorFlow function."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_exfm.export._tables import Storage, StoredTable, looked_up_in, stored_tables
from keras_exfm.export.errors import ExportError
from keras_exfm.layers._hashing import portable_arithmetic

# TensorFlow's messages, which constants of a graph are part of, end at 2 GiB.
_LARGEST_CONSTANTS = 1_900_000_000


class ServingGraph:
    """A model with named inputs, one logit, and tables apart from the graph.

    Args:
        model: A functional model on the TensorFlow backend.
        inputs: Names of its inputs, in the order that the files have them.
        storage: Numbers that its tables are stored in.
        output: `"logit"` or `"probability"`.
        representation: Name of the layer whose output is a second output. `None`: none.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: Sequence[str],
        storage: Storage,
        output: str,
        representation: str | None,
    ) -> None:
        self.model = model
        self.output = output
        self.tables: list[StoredTable] = stored_tables(model, storage)
        self.inputs: dict[str, tf.TensorSpec] = {
            name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
            for name, tensor in _ordered(model, inputs).items()
        }
        self._both: keras.Model | None = None
        if representation is not None:
            vectors = model.get_layer(representation).output
            self._both = keras.Model(model.input, [model.output, vectors])
        self.outputs = (output, *(["representation"] if representation is not None else []))
        self._weights: list[tuple[Any, np.ndarray]] | None = None

    @property
    def parts(self) -> list[Any]:
        """The stored arrays of all tables."""
        return [part for table in self.tables for part in table.parts]

    def constants(self) -> None:
        """Makes the weights, but for the tables, constants of the graphs traced from here on."""
        apart = {id(v) for table in self.tables for v in table.layer.variables}
        kept = [v for v in self.model.variables if id(v) not in apart]
        size = sum(int(np.prod(v.shape)) * 4 for v in kept)
        if size > _LARGEST_CONSTANTS:
            raise ExportError(
                f"The model has {size / 1e9:.1f} GB of weights besides its tables, more than the "
                "2 GB that a graph's constants may have. Export a SavedModel."
            )
        self._weights = [(v, ops.convert_to_numpy(v.value)) for v in kept]

    def compute(self, features: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name, from tensors of features and of the tables' parts."""
        inputs = keras.tree.map_structure(lambda t: features[t.name], self.model.input)
        with contextlib.ExitStack() as stack:
            stack.enter_context(portable_arithmetic())
            stack.enter_context(looked_up_in(self.tables, tables))
            if self._weights is not None:
                mapping = [(v, tf.constant(value)) for v, value in self._weights]
                stack.enter_context(keras.StatelessScope(state_mapping=mapping))
            found = (self._both or self.model)(inputs, training=False)
        logit, *vectors = found if isinstance(found, (list, tuple)) else [found]
        logit = ops.cast(logit, "float32")
        first = ops.sigmoid(logit) if self.output == "probability" else logit
        outputs = {self.output: tf.identity(first, name=self.output)}
        if vectors:
            outputs["representation"] = tf.identity(
                ops.cast(vectors[0], "float32"), name="representation"
            )
        return outputs

    def function(self, names: Sequence[str] = ()) -> Any:
        """A function of the features, and of the tables' parts behind them if they are named.

        Otherwise the tables are constants.
        """
        specs = list(self.inputs.values())
        parts = {part.name: part for part in self.parts}
        specs += [tf.TensorSpec(parts[name].shape, parts[name].dtype, name=name) for name in names]
        held = {name: part.array() for name, part in parts.items() if name not in names}

        def serve(*arguments: Any) -> dict[str, Any]:
            given = dict(zip([spec.name for spec in specs], arguments))
            tables = {name: tf.constant(value) for name, value in held.items()}
            tables |= {name: given[name] for name in names}
            return self.compute(given, tables)

        return tf.function(serve, input_signature=specs, autograph=False)

    def reference(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the file should give for a batch, by TensorFlow itself."""
        tables = {part.name: tf.constant(part.array()) for part in self.parts}
        features = {name: tf.constant(batch[name]) for name in self.inputs}
        found = self.compute(features, tables)
        return {name: value.numpy() for name, value in found.items()}


def _ordered(model: keras.Model, names: Sequence[str]) -> dict[str, keras.KerasTensor]:
    by_name = {tensor.name: tensor for tensor in model.inputs}
    return {name: by_name[name] for name in names}
