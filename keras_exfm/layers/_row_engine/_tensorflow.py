"""The TensorFlow engine: the table's gradient is sparse, and its `assign` updates the rows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from keras_exfm.layers._row_engine import _chunks, _rounding
from keras_exfm.layers._row_engine._guard import RowVariable


class TensorFlowRowEngine:
    """Variables and lookup of one table on TensorFlow."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.slots: dict[str, Any] = {}

    def build(self) -> None:
        """Creates the variables as attributes of the layer."""
        layer = self.layer
        shape = (layer.rows, layer.dim)
        # An initializer draws in float32, so that all storage dtypes start alike.
        pieces = _chunks.pieces(layer.initializer, shape, "float32")
        start = _Start(layer.initializer, zeros=pieces is not None)
        layer.table = RowVariable(
            start,
            shape=shape,
            dtype=layer.storage_dtype,
            trainable=True,
            autocast=False,
            name="table",
            overwrite=self._overwrite,
        )
        if start.gave_zeros and pieces is not None:
            for first, rows in pieces:
                self.write(layer.table, first, rows)
        start.zeros = False
        for name, slot in layer.optimizer.slots().items():
            self.slots[name] = layer.add_weight(
                shape=(layer.rows,) if slot.per_row else (layer.rows, layer.dim),
                initializer=functools.partial(_full, slot.initial),
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

    def lookup(self, ids: Any, training: bool | None, fresh: Any = None) -> Any:
        """Vectors of `ids`, whose gradient is `tf.IndexedSlices` without the ids that are no row.

        The gradients of several lookups in one step are joined by the tape. The rows of the ids
        marked `fresh` are renewed first.
        """
        table = self.layer.table.value
        rows, dim = self.layer.rows, self.layer.dim
        inside = tf.logical_and(ids >= 0, ids < rows)
        if not training:
            # What an exported graph holds: plain operations. Should somebody take its gradient,
            # the ids that are no row give zeros to a row that another id looked up.
            known = tf.where(inside, ids, 0)
            # A gather on the variable itself, not on its value: reading a variable that scatter
            # operations write to copies all of it.
            vectors = tf.gather(table, tf.where(inside, ids, tf.reduce_max(known)))
            return _masked(tf.cast(vectors, tf.float32), ids, inside)

        if fresh is not None and self.layer.trainable:
            self._renew(tf.boolean_mask(ids, tf.logical_and(fresh, inside)))

        @tf.custom_gradient
        def embed(ids: Any, handle: Any) -> Any:
            vectors = tf.raw_ops.ResourceGather(
                resource=handle, indices=tf.where(inside, ids, 0), dtype=table.dtype
            )

            def gradient(upstream: Any) -> Any:
                slices = tf.IndexedSlices(
                    tf.reshape(upstream, (-1, dim)),
                    tf.reshape(tf.where(inside, ids, -1), (-1,)),
                    tf.constant((rows, dim)),
                )
                return None, slices

            return _masked(tf.cast(vectors, tf.float32), ids, inside), gradient

        # `custom_gradient` reads the variables that its function uses. So the function gets the
        # handle, and the tape learns of the variable by a gather of nothing.
        tf.gather(table, tf.zeros((0,), "int32"))
        return embed(ids, table.handle)

    def _renew(self, rows: Any) -> None:
        """Zeros in these rows, and the state that every row has at the start."""
        optimizer = self.layer.optimizer
        initial = {name: slot.initial for name, slot in optimizer.slots().items()}
        variables = [(self.layer.table, 0.0), *((s, initial[n]) for n, s in self.slots.items())]
        for variable, value in variables:
            shape = tf.concat([tf.shape(rows), variable.shape[1:]], 0)
            values = tf.fill(shape, tf.constant(value, variable.value.dtype))
            variable.value.scatter_update(tf.IndexedSlices(values, rows))

    def read(self, variable: Any, start: int, stop: int) -> np.ndarray:
        """Rows of a variable."""
        # A gather, since reading a variable that scatter operations write to copies all of it.
        rows = tf.gather(variable.value, tf.range(start, stop))
        # TensorFlow's own bfloat16 arrays are of another type than those of ml_dtypes.
        return (tf.cast(rows, tf.float32) if rows.dtype == tf.bfloat16 else rows).numpy()

    def write(self, variable: Any, start: int, rows: Any) -> None:
        """Overwrites rows of a variable."""
        rows = tf.cast(tf.convert_to_tensor(rows), variable.value.dtype)
        places = tf.range(start, start + rows.shape[0])
        variable.value.scatter_update(tf.IndexedSlices(rows, places))

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
        summed = _sum(value.values, place[1:] - 1, tf.size(rows))
        state = {name: tf.gather(slot.value, rows) for name, slot in self.slots.items()}
        step = tf.identity(layer.step_counter.value)
        rate = 0.0 if layer.optimizer.scheduled else layer.rate_variable.value
        vectors = tf.cast(tf.gather(table, rows), tf.float32)
        new_rows, new_state = layer.optimizer.step(vectors, summed, state, rate, step)
        if layer.storage_dtype == "bfloat16":
            new_rows = tf.cast(_rounding.stochastic_round(new_rows, rows, step), tf.bfloat16)
        table.scatter_update(tf.IndexedSlices(new_rows, rows))
        for name, slot in self.slots.items():
            slot.value.scatter_update(tf.IndexedSlices(new_state[name], rows))
        layer.step_counter.assign_add(1)
        return table


def _sum(values: Any, places: Any, count: Any) -> Any:
    """Sums of the rows of each place `0 .. count - 1`; a negative place is left out."""
    if tf.config.list_logical_devices("GPU"):
        return tf.math.unsorted_segment_sum(values, places, count)
    # Five times as fast on a CPU as TensorFlow's own kernel. XLA compiles for each size of batch,
    # so as many sums as there are rows are made.
    return _compiled_sum(values.shape[1])(values, places)[:count]


@functools.cache
def _compiled_sum(dim: int) -> Any:
    return tf.function(
        lambda values, places: tf.math.unsorted_segment_sum(values, places, tf.shape(values)[0]),
        jit_compile=True,
        input_signature=[
            tf.TensorSpec((None, dim), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ],
    )


def _full(value: float, shape: tuple[int, ...], dtype: Any) -> Any:
    # Keras' Constant makes ones first, and the product beside them.
    return tf.fill(shape, tf.constant(value, dtype))


def _masked(vectors: Any, ids: Any, inside: Any) -> Any:
    # NaN stands only where it is the answer: an ONNX converter turns a selection into a sum of
    # products, where a NaN that was not selected would show.
    outside = tf.where(tf.logical_or(inside, tf.equal(ids, -1)), 0.0, float("nan"))
    return tf.where(inside[..., None], vectors, outside[..., None])


class _Start:
    """Initializer that gives zeros, to be overwritten piece by piece, if it is called at once.

    Keras calls it later for a layer that is built inside a symbolic call.
    """

    def __init__(self, initializer: Any, *, zeros: bool) -> None:
        self.initializer = initializer
        self.zeros = zeros
        self.gave_zeros = False

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        if self.zeros and tf.executing_eagerly():
            self.gave_zeros = True
            return tf.zeros(shape, dtype)
        return tf.cast(self.initializer(shape, dtype="float32"), dtype)
