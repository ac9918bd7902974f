"""Reads and writes of single elements of a weight, at a cost that does not grow with the weight."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def take_rows(variable: keras.Variable, rows: Any) -> Any:
    """`variable[rows]` for int32 `rows` of shape `(n,)`, all inside.

    On TensorFlow this gathers on the variable itself: reading a variable that scatter operations
    write to copies all of it.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(variable.value, rows)
    return ops.take(variable.value, rows, axis=0)


def put_elements(variable: keras.Variable, rows: Any, columns: Any, values: Any) -> None:
    """`variable[rows, columns] = values`, all inside; equal places should get equal values.

    On TensorFlow the elements are written in place. On JAX the new value is assigned, which a
    jitted step whose state is donated does in place as well.
    """
    places = ops.stack([rows, columns], axis=-1)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Within a stateless call the value is a tensor.
        if isinstance(variable.value, tf.Variable):
            variable.value.scatter_nd_update(places, values)
            return
    variable.assign(ops.scatter_update(variable.value, places, values))
