"""Layer normalization of embeddings that lie in columns."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class ColumnNormalization(keras.layers.Layer):
    """`keras.layers.LayerNormalization` over the middle axis of `(batch, dim, n)`.

    Its derivative is written out. What XLA makes of the automatic one on a CPU repeats the
    forward pass in each of its consumers, three times the work in a Wukong layer.

    Private: its owner keeps the arguments and their config.
    """

    def __init__(self, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.gamma: Any = None
        self.beta: Any = None

    def build(self, input_shape: Any) -> None:
        dim = tuple(input_shape)[1]
        # As in Keras' layer: at least float32 for all arithmetic, no autocast of the weights.
        self.gamma = self.add_weight(shape=(dim,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(dim,), initializer="zeros", name="beta", autocast=False)
        self.built = True

    def call(self, x: Any) -> Any:
        dtype = keras.backend.result_type(x.dtype, "float32")
        normal = _normalize(self.epsilon)(ops.cast(x, dtype))
        gamma, beta = (ops.cast(w, dtype)[:, None] for w in (self.gamma, self.beta))
        return ops.cast(normal * gamma + beta, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return tuple(input_shape)


def _normalize(epsilon: float) -> Any:
    @ops.custom_gradient
    def normalize(x: Any) -> Any:
        centred = x - ops.mean(x, axis=1, keepdims=True)
        scale = ops.rsqrt(ops.mean(ops.square(centred), axis=1, keepdims=True) + epsilon)
        normal = centred * scale

        def gradient(*args: Any, upstream: Any = None) -> Any:
            if upstream is None:
                (upstream,) = args
            along = ops.mean(upstream * normal, axis=1, keepdims=True)
            return scale * (upstream - ops.mean(upstream, axis=1, keepdims=True) - normal * along)

        return normal, gradient

    return normalize
