"""AFN's logarithmic transformation layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class LogarithmicTransformation(keras.layers.Layer):
    """Products of powers of an example's embeddings, with learned exponents.

    Formula, with the rows `x_1 .. x_n` of the input `X` of shape `(n, dim)` and the weight `W` of
    shape `(n, neurons)`; `log`, `exp` and the product act on each coordinate:

        y_k = exp(sum_j W_jk log(max(|x_j|, minimum))) = prod_j max(|x_j|, minimum) ** W_jk

    So the orders of the interactions are learned, and need not be whole numbers. With `batch_norm`
    one BatchNorm with a mean and a variance per row of `X` stands behind the logarithm, and one
    per neuron behind the exponential, both with the momentum and epsilon of FuxiCTR (0.9, 1e-5).

    Logarithm to exponential are computed in the dtype of the weights, float32 in mixed precision:
    in bfloat16 a logarithm near -11 is off by up to 0.03, which is 3 % after the exponential.

    Number of weights: `n * neurons`, plus `2 * n + 2 * neurons` with `batch_norm` (and as many
    that are not trained).

    Args:
        neurons: Number of logarithmic neurons, the rows that come out.
        batch_norm: Whether to normalize. Defaults to `True`.
        minimum: Smallest absolute value that goes into the logarithm; no gradient flows below it.
            The paper says 1e-7, FuxiCTR found this value better. Defaults to `1e-5`.
        kernel_initializer: Initializer of `W`. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, neurons, dim)`.
        training: Whether the norms use the statistics of the batch.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> layer = LogarithmicTransformation(1, batch_norm=False, kernel_initializer="ones")
    >>> y = layer(np.array([[[2.0, -3.0], [0.5, 4.0]]], "float32"))
    >>> keras.ops.convert_to_numpy(y).round(4).tolist()
    [[[1.0, 12.0]]]

    References:
        - [Cheng et al., 2020, Adaptive Factorization
          Network](https://arxiv.org/abs/1909.03276), equations 6 and 7.
    """

    def __init__(
        self,
        neurons: int,
        batch_norm: bool = True,
        minimum: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.neurons = _checks.positive_int("neurons", neurons)
        self.batch_norm = batch_norm
        if not minimum > 0:
            raise ValueError(f"`minimum` should be positive. Received: minimum={minimum!r}")
        self.minimum = float(minimum)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel: Any = None
        self.log_norm: keras.layers.Layer | None = None
        self.exp_norm: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the exponents and the norms."""
        n, dim = _checks.embedding_matrix_shape(self, input_shape)
        self.kernel = self.add_weight(
            shape=(n, self.neurons),
            initializer=clone_initializer(self.kernel_initializer),
            name="kernel",
            autocast=False,
        )
        if self.batch_norm:
            self.log_norm = self._norm("log_norm", (None, n, dim))
            self.exp_norm = self._norm("exp_norm", (None, self.neurons, dim))
        hand_down_trainable(self)
        self.built = True

    def _norm(self, name: str, shape: tuple[Any, ...]) -> keras.layers.Layer:
        # `variable_dtype`, not the policy: see the class docstring on mixed precision.
        norm = keras.layers.BatchNormalization(
            axis=1, momentum=0.9, epsilon=1e-5, dtype=self.variable_dtype, name=name
        )
        norm.build(shape)
        return norm

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Multiplies powers."""
        x = ops.cast(inputs, self.variable_dtype)
        x = ops.log(ops.maximum(ops.abs(x), self.minimum))
        if self.log_norm is not None:
            x = self.log_norm(x, training=training)
        x = ops.exp(ops.einsum("bnd,nk->bkd", x, self.kernel))
        if self.exp_norm is not None:
            x = self.exp_norm(x, training=training)
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, neurons, dim)`."""
        batch, _, dim = tuple(input_shape)
        return (batch, self.neurons, dim)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "neurons": self.neurons,
            "batch_norm": self.batch_norm,
            "minimum": self.minimum,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
