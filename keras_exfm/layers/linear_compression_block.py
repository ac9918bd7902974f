"""Wukong's linear compression block."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._columns import mix_columns


@keras.saving.register_keras_serializable(package="keras_exfm")
class LinearCompressionBlock(keras.layers.Layer):
    """Linear combinations of the embeddings of an example.

    Formula, with the input `X` of shape `(n, dim)` and the weight `W_L` of shape `(n_out, n)`:

        LCB(X) = W_L X

    Every coordinate of the embeddings is mixed by the same weights; there is no bias and no
    activation. The weight is kept as `W_L` transposed, `(n, n_out)`, so that Keras initializers
    find the fan-in, `n`, where they look for it.

    Args:
        n_out: Number of embeddings that come out.
        kernel_initializer: Initializer of the weight. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, n_out, dim)`.

    Example:

    >>> import numpy as np
    >>> layer = LinearCompressionBlock(4)
    >>> tuple(layer(np.ones((2, 10, 8), "float32")).shape)
    (2, 4, 8)

    References:
        - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), section 3.5.
    """

    def __init__(
        self, n_out: int, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.n_out = _checks.positive_int("n_out", n_out)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel: Any = None

    def build(self, input_shape: Any) -> None:
        """Creates the weight."""
        n, _ = _checks.embedding_matrix_shape(self, input_shape)
        self.kernel = self.add_weight(
            shape=(n, self.n_out), initializer=self.kernel_initializer, name="kernel"
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Mixes the embeddings."""
        (mixed,) = mix_columns(ops.transpose(inputs, (0, 2, 1)), [self.kernel])
        return ops.transpose(mixed, (0, 2, 1))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, n_out, dim)`."""
        batch, _, dim = tuple(input_shape)
        return (batch, self.n_out, dim)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "n_out": self.n_out,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
