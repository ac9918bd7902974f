"""One layer of DCN-V2's cross network."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._pairs import pair_shapes
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class CrossLayer(keras.layers.Layer):
    """One layer of DCN-V2's cross network, with a full or a low-rank matrix.

    Formula, with the network's input `x_0` and the previous cross layer's output `x`, both of
    `features` numbers:

        Cross(x_0, x) = x_0 * (W x + b) + x          rank=None, W (features, features)
        Cross(x_0, x) = x_0 * (U (V x) + b) + x      V (rank, features), U (features, rank)

    A stack of `l` such layers covers interactions of the orders 1 to `l + 1`.

    It is the function of `keras_rs.layers.FeatureCross` and of tensorflow-recommenders' `Cross`
    without `pre_activation` and `diag_scale`. Two things differ: both inputs come as one list,
    and `build` alone creates every weight (`FeatureCross` leaves its sublayers unbuilt: it has no
    weights until the first call).

    Number of weights: `features * (features + 1)`, or `features * (2 * rank + 1)`.

    Args:
        rank: Inner width of the low-rank matrix; `None` for a full one. Defaults to `None`.
        kernel_initializer: Initializer of the matrices. Defaults to `"glorot_uniform"`.
        bias_initializer: Initializer of `b`. Defaults to `"zeros"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: List `[x_0, x]` of tensors `(batch, features)`. The output has the same shape.

    Example:

    >>> import numpy as np
    >>> x0 = np.ones((2, 6), "float32")
    >>> x = CrossLayer()([x0, x0])
    >>> tuple(CrossLayer(rank=2)([x0, x]).shape)
    (2, 6)

    References:
        - [Wang et al., 2021, DCN V2](https://arxiv.org/abs/2008.13535), equations 1 and 2.
    """

    def __init__(
        self,
        rank: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rank = None if rank is None else _checks.positive_int("rank", rank)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.compression: keras.layers.Layer | None = None
        self.kernel: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the matrices."""
        expected = "[x_0, x] of one shape (batch, features)"
        first, second = pair_shapes(self, input_shape, expected)
        if first[1] != second[1]:
            raise ValueError(f"CrossLayer expects {expected}. Received: input_shape={input_shape}")
        features = first[1]
        if self.rank is not None:
            self.compression = keras.layers.Dense(
                self.rank,
                use_bias=False,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name="compression",
            )
            self.compression.build((None, features))
        self.kernel = keras.layers.Dense(
            features,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            dtype=self.dtype_policy,
            name="kernel",
        )
        self.kernel.build((None, features if self.rank is None else self.rank))
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Crosses `x` with `x_0`."""
        x0, x = inputs
        assert self.kernel is not None
        return x0 * self.kernel(x if self.compression is None else self.compression(x)) + x

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, features)`."""
        return tuple(input_shape[1])

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "rank": self.rank,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
