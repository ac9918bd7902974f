"""Gradient of a function of one tensor, on either backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def gradient(function: Callable[[Any], Any], value: Any) -> Any:
    """The gradient of the scalar `function(value)`, zeros where it does not depend on `value`."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(value)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(value)
        result = function(value)
    return tape.gradient(result, value, unconnected_gradients="zero")
