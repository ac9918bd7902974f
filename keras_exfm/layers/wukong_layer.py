"""One layer of Wukong's interaction stack."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._column_normalization import ColumnNormalization
from keras_exfm.layers._columns import mix_columns
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.layers.factorization_machine_block import FactorizationMachineBlock
from keras_exfm.layers.linear_compression_block import LinearCompressionBlock


@keras.saving.register_keras_serializable(package="keras_exfm")
class WukongLayer(keras.layers.Layer):
    """A factorization machine block and a linear compression block in parallel.

    Formula, with the input `X` of shape `(n, dim)`:

        Wukong(X) = LayerNorm(concat(FMB(X), LCB(X)) + R(X))        (n_fmb + n_lcb, dim)

    `R(X) = X` if `n = n_fmb + n_lcb`, else `R(X) = W_R X` without bias. The norm is over `dim`, the
    rows of the FMB come first. A stack of `l` such layers covers interactions of the orders 1 to
    `2 ** l`.

    Number of weights, with `m = n_fmb + n_lcb`: those of `FactorizationMachineBlock`, plus
    `n * n_lcb`, plus `2 * dim`, plus `n * m` if `n != m`.

    Args:
        n_fmb: Number of embeddings from the factorization machine block.
        n_lcb: Number of embeddings from the linear compression block.
        rank: Columns `k` of the FM's projection `Y`; `None` only for `form="dot"`.
        mlp_units: Widths of the hidden layers of the FMB's MLP. Defaults to `(512,)`.
        form: `"static"`, `"attentive"` or `"dot"`, see `FactorizationMachineBlock`. Defaults to
            `"static"`.
        attention_compression: See `FactorizationMachineBlock`. Defaults to `8`.
        attention_units: See `FactorizationMachineBlock`. Defaults to `(64,)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.
        dropout: Dropout rate after each hidden layer of the FMB's MLP. Defaults to `0.0`.
        epsilon: Of both LayerNorms. Defaults to `1e-5`.
        kernel_initializer: Initializer of every weight matrix. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, n_fmb + n_lcb, dim)`.
        training: Whether dropout is on.

    Example:

    >>> import numpy as np
    >>> layer = WukongLayer(n_fmb=4, n_lcb=2, rank=3, mlp_units=(16,))
    >>> tuple(layer(np.ones((2, 10, 8), "float32")).shape)
    (2, 6, 8)

    References:
        - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), section 3.3.
    """

    def __init__(
        self,
        n_fmb: int,
        n_lcb: int,
        rank: int | None,
        mlp_units: tuple[int, ...] | list[int] = (512,),
        form: str = "static",
        attention_compression: int = 8,
        attention_units: tuple[int, ...] | list[int] = (64,),
        activation: Any = "relu",
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.n_fmb = _checks.positive_int("n_fmb", n_fmb)
        self.n_lcb = _checks.positive_int("n_lcb", n_lcb)
        self.rank = rank
        self.mlp_units = _checks.unit_counts("mlp_units", mlp_units)
        self.form = form
        self.attention_compression = attention_compression
        self.attention_units = _checks.unit_counts("attention_units", attention_units)
        self.activation = keras.activations.get(activation)
        self.dropout = _checks.dropout_rate("dropout", dropout)
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # Made here, not in `build`, so that it checks its own arguments at once.
        self.fmb = FactorizationMachineBlock(
            self.n_fmb,
            rank=rank,
            mlp_units=self.mlp_units,
            form=form,
            attention_compression=attention_compression,
            attention_units=self.attention_units,
            activation=self.activation,
            dropout=self.dropout,
            epsilon=epsilon,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name="fmb",
        )
        self.lcb: keras.layers.Layer | None = None
        self.residual: keras.layers.Layer | None = None
        self.norm: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates both blocks, the residual projection if one is needed, and the norm."""
        n, dim = _checks.embedding_matrix_shape(self, input_shape)
        count = self.n_fmb + self.n_lcb
        self.fmb.build((None, n, dim))
        self.lcb = self._linear(self.n_lcb, "lcb")
        self.lcb.build((None, n, dim))
        if n != count:
            self.residual = self._linear(count, "residual")
            self.residual.build((None, n, dim))
        self.norm = ColumnNormalization(self.epsilon, dtype=self.dtype_policy, name="norm")
        self.norm.build((None, dim, count))
        hand_down_trainable(self)
        self.built = True

    def _linear(self, n_out: int, name: str) -> LinearCompressionBlock:
        return LinearCompressionBlock(
            n_out,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Interacts the embeddings."""
        assert self.lcb is not None
        assert self.norm is not None
        # The transposes of neighbouring layers cancel out in a compiled graph.
        columns = ops.transpose(inputs, (0, 2, 1))
        kernels = [self.lcb.kernel]
        if self.residual is not None:
            kernels.append(self.residual.kernel)
        compressed, *mixed = mix_columns(columns, [*kernels, *self.fmb.mixtures()])
        residual = columns if self.residual is None else mixed.pop(0)
        blocks = [self.fmb.call_columns(columns, mixed, training), compressed]
        out = self.norm(ops.concatenate(blocks, axis=2) + residual)
        return ops.transpose(out, (0, 2, 1))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, n_fmb + n_lcb, dim)`."""
        batch, _, dim = tuple(input_shape)
        return (batch, self.n_fmb + self.n_lcb, dim)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "n_fmb": self.n_fmb,
            "n_lcb": self.n_lcb,
            "rank": self.rank,
            "mlp_units": list(self.mlp_units),
            "form": self.form,
            "attention_compression": self.attention_compression,
            "attention_units": list(self.attention_units),
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
