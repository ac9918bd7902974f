"""The embedding table that trains like any Keras weight."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class DenseTable(keras.layers.Layer):
    """`(rows, dim)` weight, looked up by int32 row ids of any shape.

    Row -1 gives the zero vector and no gradient; any other row outside `0 .. rows - 1` gives NaN.
    """

    def __init__(self, rows: int, dim: int, initializer: Any = "uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.dim = dim
        self.initializer = keras.initializers.get(initializer)
        self.table: Any = None

    def build(self, input_shape: Any = None) -> None:
        self.table = self.add_weight(
            shape=(self.rows, self.dim),
            initializer=self.initializer,
            name="table",
            # A cast of the weight would copy the whole table; only the rows read are cast.
            autocast=False,
        )
        self.built = True

    def call(self, rows: Any) -> Any:
        inside = ops.logical_and(rows >= 0, rows < self.rows)
        # The backends disagree on what a bad index reads (an error, zeros, the last row), so none
        # is ever passed on.
        vectors = ops.take(self.table, ops.where(inside, rows, 0), axis=0)
        outside = ops.where(ops.equal(rows, -1), 0.0, float("nan"))
        outside = ops.cast(outside, vectors.dtype)
        return ops.where(inside[..., None], vectors, outside[..., None])

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (*tuple(input_shape), self.dim)
