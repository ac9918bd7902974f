"""xDeepFM's compressed interaction network."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer


@keras.saving.register_keras_serializable(package="keras_exfm")
class CompressedInteractionNetwork(keras.layers.Layer):
    """Explicit interactions of growing order, compressed after each step.

    Formula, with the rows `x_1 .. x_n` of the input `X_0` of shape `(n, dim)`, products on each
    coordinate and the weights `W_k` of shape `(n, h_{k-1}, h_k)`, `h_0 = n`:

        X_k[u] = sum_ij W_k[i, j, u] X_0[i] * X_{k-1}[j] + b_k[u]        (h_k, dim)
        CIN(X_0) = concat_k(sum over dim of X_k)                         (h_1 + ... + h_l,)

    Layer `k` holds interactions of the order `k + 1`. There is no activation and each layer is
    connected to the output directly (the paper's section 4.4.3 prefers the identity; FuxiCTR
    does the same, and adds the biases `b_k`, which the paper's equation 6 lacks).

    Number of weights: the sum over `k` of `(n * h_{k-1} + 1) * h_k`.

    Args:
        units: `h_1 .. h_l`, the number of feature maps of every layer.
        kernel_initializer: Initializer of every `W_k`, seen as a matrix
            `(n * h_{k-1}, h_k)`. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, sum(units))`.

    Example:

    >>> import numpy as np
    >>> layer = CompressedInteractionNetwork((16, 8))
    >>> tuple(layer(np.ones((2, 10, 8), "float32")).shape)
    (2, 24)

    References:
        - [Lian et al., 2018, xDeepFM](https://arxiv.org/abs/1803.05170), equations 6 to 8.
    """

    def __init__(
        self,
        units: tuple[int, ...] | list[int],
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = _checks.unit_counts("units", units, minimum_length=1)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernels: list[Any] = []
        self.biases: list[Any] = []

    def build(self, input_shape: Any) -> None:
        """Creates the feature maps' weights."""
        n, _ = _checks.embedding_matrix_shape(self, input_shape)
        previous = n
        for k, units in enumerate(self.units):
            kernel = self.add_weight(
                shape=(n * previous, units),
                initializer=clone_initializer(self.kernel_initializer),
                name=f"kernel_{k}",
            )
            bias = self.add_weight(shape=(units,), initializer="zeros", name=f"bias_{k}")
            self.kernels.append(kernel)
            self.biases.append(bias)
            previous = units
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Interacts, compresses and pools."""
        _, n, dim = inputs.shape
        # Coordinates before rows, so that each layer is one matrix product.
        x0 = ops.transpose(inputs, (0, 2, 1))
        x = x0
        pooled = []
        for kernel, bias in zip(self.kernels, self.biases):
            outer = ops.expand_dims(x0, 3) * ops.expand_dims(x, 2)
            x = ops.matmul(ops.reshape(outer, (-1, dim, n * x.shape[2])), kernel) + bias
            pooled.append(ops.sum(x, axis=1))
        return pooled[0] if len(pooled) == 1 else ops.concatenate(pooled, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, sum(units))`."""
        return (input_shape[0], sum(self.units))

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
