"""MaskNet's building block."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._pairs import pair_shapes
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class MaskBlock(keras.layers.Layer):
    """A hidden layer whose input is masked by the instance's embeddings.

    Formula, with the flat embeddings `v` of `features` numbers and the block's input `h` of
    `width` numbers:

        mask = W_2 ReLU(W_1 v + b_1) + b_2           W_1 (t, features), W_2 (width, t)
        MaskBlock(v, h) = ReLU(LayerNorm(W_3 (mask * h)))              (units,)

    `t = int(reduction_ratio * width)`, at least 1. The first block of a MaskNet gets the normalized
    embeddings for `h` (the paper's block on feature embeddings), later ones of a serial net the
    output of the block before (the paper's block on a MaskBlock). `W_3` has no bias.

    Number of weights: `(features + 1) * t + (t + 1) * width + width * units`, plus `2 * units`
    with `layer_norm`.

    Args:
        units: Width of the output.
        reduction_ratio: The paper's name for `t / width`: more than 1 widens. Defaults to `1.0`.
        activation: Activation after the norm. Defaults to `"relu"`.
        layer_norm: Whether to normalize. Defaults to `True`.
        dropout: Dropout rate of the output. Defaults to `0.0`.
        epsilon: Of the LayerNorm. Defaults to `1e-5`.
        kernel_initializer: Initializer of every matrix. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: List `[v, h]` of tensors `(batch, features)` and `(batch, width)`. The output is
            `(batch, units)`.
        training: Whether dropout is on.

    Example:

    >>> import numpy as np
    >>> v = np.ones((2, 12), "float32")
    >>> tuple(MaskBlock(5, reduction_ratio=0.5)([v, v]).shape)
    (2, 5)

    References:
        - [Wang et al., 2021, MaskNet](https://arxiv.org/abs/2102.07619), equations 4 to 8.
    """

    def __init__(
        self,
        units: int,
        reduction_ratio: float = 1.0,
        activation: Any = "relu",
        layer_norm: bool = True,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = _checks.positive_int("units", units)
        if not reduction_ratio > 0:
            raise ValueError(
                "`reduction_ratio` should be positive. "
                f"Received: reduction_ratio={reduction_ratio!r}"
            )
        self.reduction_ratio = reduction_ratio
        self.activation = keras.activations.get(activation)
        self.layer_norm = layer_norm
        self.dropout = _checks.dropout_rate("dropout", dropout)
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.mask: keras.layers.Layer | None = None
        self.hidden: keras.layers.Layer | None = None
        self.norm: keras.layers.Layer | None = None
        self.output_dropout: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the mask's MLP, the hidden layer and its norm."""
        v, (_, width) = pair_shapes(self, input_shape, "[(batch, features), (batch, width)]")
        self.mask = MLP(
            (max(1, int(self.reduction_ratio * width)),),
            width,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="mask",
        )
        self.mask.build(v)
        self.hidden = keras.layers.Dense(
            self.units,
            use_bias=False,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name="hidden",
        )
        self.hidden.build((None, width))
        if self.layer_norm:
            self.norm = keras.layers.LayerNormalization(
                epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
            )
            self.norm.build((None, self.units))
        if self.dropout:
            self.output_dropout = keras.layers.Dropout(
                self.dropout, dtype=self.dtype_policy, name="dropout"
            )
            self.output_dropout.build((None, self.units))
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Masks and transforms."""
        v, h = inputs
        assert self.mask is not None
        assert self.hidden is not None
        out = self.hidden(self.mask(v) * h)
        if self.norm is not None:
            out = self.norm(out)
        out = self.activation(out)
        if self.output_dropout is not None:
            out = self.output_dropout(out, training=training)
        return out

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, units)`."""
        return (input_shape[0][0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": self.units,
            "reduction_ratio": self.reduction_ratio,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
