"""FinalMLP's fusion of two streams."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class BilinearFusion(keras.layers.Layer):
    """One logit from two vectors that stand side by side in the input.

    Formula, with the input `(x, y)` cut after `first` numbers, and `x_h`, `y_h` the `num_heads`
    equal parts of `x` and of `y`:

        BilinearFusion(x, y) = b + u · x + v · y + sum_h x_hᵀ W_h y_h

    The streams come concatenated, not as a list, so that a model has one tensor to call its
    representation. FuxiCTR keeps a bias each for `u` and `v`; their sum is `b`.

    Number of weights, with `second` numbers in `y`:
    `1 + first + second + first * second / num_heads`.

    Args:
        first: Width of `x`. A multiple of `num_heads`, as must be the width of `y`.
        num_heads: Number of parts. Defaults to `1`.
        kernel_initializer: Initializer of `(u, v)` and of all `W_h` as one array. Defaults to
            `"glorot_uniform"`.
        bias_initializer: Initializer of `b`. Defaults to `"zeros"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, first + second)`. The output is `(batch, 1)`.

    Example:

    >>> import numpy as np
    >>> tuple(BilinearFusion(4, num_heads=2)(np.ones((2, 10), "float32")).shape)
    (2, 1)

    References:
        - [Mao et al., 2023, FinalMLP](https://arxiv.org/abs/2304.00902), equations 7 to 9.
    """

    def __init__(
        self,
        first: int,
        num_heads: int = 1,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.first = _checks.positive_int("first", first)
        self.num_heads = _checks.positive_int("num_heads", num_heads)
        if first % num_heads:
            raise ValueError(
                "`first` should be a multiple of `num_heads`. "
                f"Received: first={first}, num_heads={num_heads}"
            )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.linear: keras.layers.Layer | None = None
        self.bilinear: Any = None

    def build(self, input_shape: Any) -> None:
        """Creates the linear and the bilinear weights."""
        shape = tuple(input_shape)
        if len(shape) != 2 or shape[1] is None or shape[1] <= self.first:
            raise ValueError(
                f"BilinearFusion expects an input (batch, more than {self.first}). "
                f"Received: input_shape={shape}"
            )
        second = shape[1] - self.first
        if second % self.num_heads:
            raise ValueError(
                "The width of the second vector should be a multiple of `num_heads`. "
                f"Received: {second} numbers after the first {self.first}, "
                f"num_heads={self.num_heads}"
            )
        self.linear = keras.layers.Dense(
            1,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
            name="linear",
        )
        self.linear.build(shape)
        self.bilinear = self.add_weight(
            shape=(self.num_heads, self.first // self.num_heads, second // self.num_heads),
            initializer=clone_initializer(self.kernel_initializer),
            name="bilinear",
        )
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Fuses the vectors."""
        assert self.linear is not None
        x, y = ops.split(inputs, [self.first], axis=1)
        products = ops.sum(ops.matmul(self._heads(x), self.bilinear) * self._heads(y), axis=(0, 2))
        return self.linear(inputs) + ops.expand_dims(products, 1)

    def _heads(self, x: Any) -> Any:
        """`(batch, width)` as `(heads, batch, width / heads)`: one batched matmul for all heads."""
        x = ops.reshape(x, (-1, self.num_heads, x.shape[1] // self.num_heads))
        return ops.transpose(x, (1, 0, 2))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, 1)`."""
        return (input_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "first": self.first,
            "num_heads": self.num_heads,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
