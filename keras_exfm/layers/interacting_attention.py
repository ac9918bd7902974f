"""AutoInt's interacting layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class InteractingAttention(keras.layers.Layer):
    """Multi-head self-attention over an example's embeddings.

    Formula, with the input `X` of shape `(n, dim)`, weights `W_q`, `W_k`, `W_v` of shape
    `(dim, units)` and heads `h` that each own `units / num_heads` of their columns:

        head_h = softmax(X W_q,h (X W_k,h)ᵀ / s) X W_v,h
        Attention(X) = ReLU(LayerNorm(concat(head_1, head_2, ...) + R(X)))        (n, units)

    `R(X) = X` if `dim = units`, else `R(X) = X W_r` without bias (the paper always projects;
    FuxiCTR, whose results BARS lists, does it as here). `s = 1` as in the paper, or the root of
    the head width with `scale=True`. The LayerNorm is an option too.
    A `keras.layers.MultiHeadAttention` would differ: biases, an output projection, always
    scaled, no residual, no ReLU.

    Number of weights: `3 * dim * units`, plus `dim * units` if `dim != units` and `residual`,
    plus `2 * units` with `layer_norm`.

    Args:
        units: Width of the output (`attention_dim` in FuxiCTR). A multiple of `num_heads`.
        num_heads: Number of heads. Defaults to `2`.
        scale: Whether to divide the scores by the root of the head width. Defaults to `False`.
        residual: Whether to add `R(X)`. Defaults to `True`.
        layer_norm: Whether to normalize before the ReLU. Defaults to `False`.
        dropout: Dropout rate of the attention weights. Defaults to `0.0`.
        epsilon: Of the LayerNorm. Defaults to `1e-5`.
        kernel_initializer: Initializer of every matrix. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, n, units)`.
        training: Whether dropout is on.

    Example:

    >>> import numpy as np
    >>> layer = InteractingAttention(6, num_heads=3)
    >>> tuple(layer(np.ones((2, 10, 8), "float32")).shape)
    (2, 10, 6)

    References:
        - [Song et al., 2019, AutoInt](https://arxiv.org/abs/1810.11921), equations 5 to 8.
    """

    def __init__(
        self,
        units: int,
        num_heads: int = 2,
        scale: bool = False,
        residual: bool = True,
        layer_norm: bool = False,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = _checks.positive_int("units", units)
        self.num_heads = _checks.positive_int("num_heads", num_heads)
        if units % num_heads:
            raise ValueError(
                "`units` should be a multiple of `num_heads`. "
                f"Received: units={units}, num_heads={num_heads}"
            )
        self.scale = scale
        self.residual = residual
        self.layer_norm = layer_norm
        self.dropout = _checks.dropout_rate("dropout", dropout)
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.query: keras.layers.Layer | None = None
        self.key: keras.layers.Layer | None = None
        self.value: keras.layers.Layer | None = None
        self.projection: keras.layers.Layer | None = None
        self.norm: keras.layers.Layer | None = None
        self.attention_dropout: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the projections and the norm."""
        n, dim = _checks.embedding_matrix_shape(self, input_shape)
        self.query = self._linear("query", dim)
        self.key = self._linear("key", dim)
        self.value = self._linear("value", dim)
        if self.residual and dim != self.units:
            self.projection = self._linear("residual", dim)
        if self.layer_norm:
            self.norm = keras.layers.LayerNormalization(
                epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
            )
            self.norm.build((None, n, self.units))
        if self.dropout:
            self.attention_dropout = keras.layers.Dropout(
                self.dropout, dtype=self.dtype_policy, name="attention_dropout"
            )
            self.attention_dropout.build((None, self.num_heads, n, n))
        hand_down_trainable(self)
        self.built = True

    def _linear(self, name: str, dim: int) -> keras.layers.Layer:
        layer = keras.layers.Dense(
            self.units,
            use_bias=False,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((None, None, dim))
        return layer

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Attends."""
        assert self.query is not None
        assert self.key is not None
        assert self.value is not None
        n = inputs.shape[1]
        query, key, value = (
            ops.transpose(
                ops.reshape(linear(inputs), (-1, n, self.num_heads, self.units // self.num_heads)),
                (0, 2, 1, 3),
            )
            for linear in (self.query, self.key, self.value)
        )
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        if self.scale:
            scores = scores / (self.units // self.num_heads) ** 0.5
        weights = ops.softmax(scores)
        if self.attention_dropout is not None:
            weights = self.attention_dropout(weights, training=training)
        heads = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        out = ops.reshape(heads, (-1, n, self.units))
        if self.residual:
            out = out + (inputs if self.projection is None else self.projection(inputs))
        if self.norm is not None:
            out = self.norm(out)
        return ops.relu(out)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, n, units)`."""
        batch, n, _ = tuple(input_shape)
        return (batch, n, self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": self.units,
            "num_heads": self.num_heads,
            "scale": self.scale,
            "residual": self.residual,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
