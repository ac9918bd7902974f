"""The TensorFlow engine: the table's gradient is sparse, and its `assign` updates the rows."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_exfm.layers._row_engine._guard import RowVariable


class TensorFlowRowEngine:
    """Variables and lookup of one table on TensorFlow."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.slots: dict[str, Any] = {}

    def build(self) -> None:
        """Creates the variables as attributes of the layer."""
        layer = self.layer
        layer.table = RowVariable(
            layer.initializer,
            shape=(layer.rows, layer.dim),
            dtype="float32",
            trainable=layer.trainable,
            autocast=False,
            name="table",
            overwrite=self._overwrite,
        )
        for name, slot in layer.optimizer.slots().items():
            self.slots[name] = layer.add_weight(
                shape=(layer.rows,) if slot.per_row else (layer.rows, layer.dim),
                initializer=keras.initializers.Constant(slot.initial),
                dtype="float32",
                trainable=False,
                autocast=False,
                name=name,
            )
            setattr(layer, f"slot_{name}", self.slots[name])
        layer.step_counter = layer.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="step"
        )

    def get_step(self) -> int:
        """Number of training steps that the table has seen."""
        return int(self.layer.step_counter.numpy())

    def set_step(self, step: int) -> None:
        """Sets the number of training steps."""
        self.layer.step_counter.assign(step)

    def lookup(self, ids: Any) -> Any:
        """Vectors of `ids`, whose gradient is `tf.IndexedSlices` without the ids that are no row.

        The gradients of several lookups in one step are joined by the tape.
        """
        table = self.layer.table.value
        rows, dim = self.layer.rows, self.layer.dim

        @tf.custom_gradient
        def embed(ids: Any) -> Any:
            inside = tf.logical_and(ids >= 0, ids < rows)
            # A gather on the variable itself, not on its value: reading a variable that scatter
            # operations write to copies the whole of it.
            vectors = tf.gather(table, tf.where(inside, ids, 0))
            outside = tf.where(tf.equal(ids, -1), 0.0, float("nan"))
            vectors = tf.where(inside[..., None], vectors, outside[..., None])

            def gradient(upstream: Any, variables: Any = None) -> Any:
                slices = tf.IndexedSlices(
                    tf.reshape(upstream, (-1, dim)),
                    tf.reshape(tf.where(inside, ids, -1), (-1,)),
                    tf.constant((rows, dim)),
                )
                return None, [slices]

            return vectors, gradient

        return embed(ids)

    def _overwrite(self, variable: RowVariable, value: Any) -> Any:
        if not isinstance(value, tf.IndexedSlices):
            raise RuntimeError(
                f"The table of the EmbeddingTable {self.layer.name!r} received a dense gradient. "
                "It may be read by lookups only; for a penalty on its rows use the row "
                "optimizer's `weight_decay`."
            )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise NotImplementedError(
                "A row-sparse EmbeddingTable does not train under a tf.distribute strategy with "
                "several replicas. Use the JAX backend with `keras.distribution`, or "
                "`optimizer=None`."
            )
        layer = self.layer
        table = variable.value
        # With -1 in front, the ids that are no row are the first distinct id, always there.
        distinct, place = tf.unique(tf.concat([[-1], value.indices], 0))
        rows = distinct[1:]
        # A negative segment is left out of the sums.
        summed = tf.math.unsorted_segment_sum(value.values, place[1:] - 1, tf.size(rows))
        state = {name: tf.gather(slot.value, rows) for name, slot in self.slots.items()}
        step = tf.identity(layer.step_counter.value)
        rate = 0.0 if layer.optimizer.scheduled else layer.rate_variable.value
        new_rows, new_state = layer.optimizer.step(
            tf.gather(table, rows), summed, state, rate, step
        )
        table.scatter_update(tf.IndexedSlices(new_rows, rows))
        for name, slot in self.slots.items():
            slot.value.scatter_update(tf.IndexedSlices(new_state[name], rows))
        layer.step_counter.assign_add(1)
        return table
