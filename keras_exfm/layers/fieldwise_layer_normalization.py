"""MaskNet's normalization of embeddings."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.layers import _checks
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class FieldwiseLayerNormalization(keras.layers.Layer):
    """A LayerNorm for each of an example's embeddings, with its own scale and shift.

    Formula, with the rows `x_i` of the input, their mean `m_i` and variance `s_i` over `dim`:

        y_i = g_i * (x_i - m_i) / sqrt(s_i + epsilon) + b_i

    `keras.layers.LayerNormalization` would share one `g` and `b` among all rows.

    Number of weights: `2 * n * dim`.

    Args:
        epsilon: Added to the variance. Defaults to `1e-5`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output has the same shape.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> y = FieldwiseLayerNormalization()(np.array([[[1.0, 3.0], [5.0, 1.0]]], "float32"))
    >>> keras.ops.convert_to_numpy(y).round(3).tolist()
    [[[-1.0, 1.0], [1.0, -1.0]]]

    References:
        - [Wang et al., 2021, MaskNet](https://arxiv.org/abs/2102.07619), equation 3.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.norm: keras.layers.Layer | None = None
        self.gamma: Any = None
        self.beta: Any = None

    def build(self, input_shape: Any) -> None:
        """Creates the scales and shifts."""
        n, dim = _checks.embedding_matrix_shape(self, input_shape)
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, center=False, scale=False, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, n, dim))
        self.gamma = self.add_weight(shape=(n, dim), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(n, dim), initializer="zeros", name="beta")
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Normalizes each embedding."""
        assert self.norm is not None
        return self.norm(inputs) * self.gamma + self.beta

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {**super().get_config(), "epsilon": self.epsilon}
