"""Wukong's factorization machine block."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._column_products import column_products
from keras_exfm.layers._columns import mix_columns
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._trainable import hand_down_trainable

FORMS = ("static", "attentive", "dot")


@keras.saving.register_keras_serializable(package="keras_exfm")
class FactorizationMachineBlock(keras.layers.Layer):
    """Pairwise interactions of an example's embeddings, as new embeddings.

    Formula, with the input `X` of shape `(n, dim)`:

        FMB(X) = reshape(MLP(LayerNorm(flatten(FM(X)))))        (n_out, dim)

    | `form` | `FM(X)` | shape |
    |---|---|---|
    | `"dot"` | `X Xᵀ` | `(n, n)` |
    | `"static"` | `X (Xᵀ Y)`, `Y` a weight | `(n, rank)` |
    | `"attentive"` | `X (Xᵀ Y(X))`, `Y(X) = reshape(MLP_Y(flatten(W_c X)))` | `(n, rank)` |

    The product in brackets comes first, so the last two cost `n * dim * rank` and never form
    `X Xᵀ`. The MLP has an activation on its hidden layers and none on its output. Numbers are
    flattened and reshaped column by column (all embeddings' first numbers, then their second ...),
    as they lie in memory where the products are fastest.

    Section 3.6 of the paper calls `X Xᵀ Y` with a learnable `Y` "optimized FM" and says of the
    attention only that `Y` "can be made attentive to the input by processing linearly compressed
    input through a MLP"; sizes are not given and it is not said whether the reported runs had
    it. `"static"` is therefore the default: it is the form that the paper writes as an
    equation, the one of all other open implementations, and the cheaper one. In `"attentive"`,
    `W_c` mixes the `n` embeddings into `attention_compression` ones and `MLP_Y` has the hidden
    widths `attention_units`; the bias of its last layer has the shape and the initial values of
    the static `Y`, so that the block starts near the static form also on tiny embeddings.

    Number of weights, with `c = attention_compression`, hidden widths `h_1 .. h_m` of `mlp_units`
    and `w = n * rank` (`n * n` for `"dot"`):

        2 w + (w + 1) h_1 + (h_1 + 1) h_2 + ... + (h_m + 1) n_out dim
        + n rank                                                     "static", "attentive"
        + n c + (c dim + 1) a_1 + (a_1 + 1) a_2 + ... + a_p n rank   "attentive", widths a

    Args:
        n_out: Number of embeddings that come out.
        rank: Columns `k` of `Y`. Required unless `form` is `"dot"`, which has no `Y` and ignores
            it. Defaults to `None`.
        mlp_units: Widths of the MLP's hidden layers. Defaults to `(512,)`.
        form: `"static"`, `"attentive"` or `"dot"`. Defaults to `"static"`.
        attention_compression: Number of embeddings that `W_c` leaves for `MLP_Y`. Used by
            `"attentive"` alone. Defaults to `8`.
        attention_units: Widths of the hidden layers of `MLP_Y`. Used by `"attentive"` alone.
            Defaults to `(64,)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.
        dropout: Dropout rate after each hidden layer of the MLP. Defaults to `0.0`.
        epsilon: Of the LayerNorm. Defaults to `1e-5`, as in the open PyTorch implementations
            (Keras' own is 0.001).
        kernel_initializer: Initializer of `Y`, `W_c` and the kernels. Defaults to
            `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, n_out, dim)`.
        training: Whether dropout is on.

    Example:

    >>> import numpy as np
    >>> layer = FactorizationMachineBlock(4, rank=3, mlp_units=(16,), form="attentive")
    >>> tuple(layer(np.ones((2, 10, 8), "float32")).shape)
    (2, 4, 8)

    References:
        - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), sections 3.4 and 3.6.
    """

    def __init__(
        self,
        n_out: int,
        rank: int | None = None,
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
        if form not in FORMS:
            raise ValueError(f"`form` should be one of {FORMS}. Received: form={form!r}")
        if rank is None and form != "dot":
            raise ValueError(
                f"`rank` should be given: form={form!r} projects the interactions to (n, rank). "
                "Received: rank=None"
            )
        self.n_out = _checks.positive_int("n_out", n_out)
        self.rank = None if rank is None else _checks.positive_int("rank", rank)
        self.mlp_units = _checks.unit_counts("mlp_units", mlp_units)
        self.form = form
        self.attention_compression = _checks.positive_int(
            "attention_compression", attention_compression
        )
        self.attention_units = _checks.unit_counts("attention_units", attention_units)
        self.activation = keras.activations.get(activation)
        self.dropout = _checks.dropout_rate("dropout", dropout)
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.projection: Any = None
        self.compression: Any = None
        self.attention_mlp: keras.layers.Layer | None = None
        self.norm: keras.layers.Layer | None = None
        self.mlp: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the projection, the norm and the MLP."""
        n, dim = _checks.embedding_matrix_shape(self, input_shape)
        width = n * n
        if self.form != "dot":
            assert self.rank is not None
            width = n * self.rank
            self.projection = self.add_weight(
                shape=(n, self.rank),
                initializer=clone_initializer(self.kernel_initializer),
                name="projection",
            )
        if self.form == "attentive":
            count = self.attention_compression
            self.compression = self.add_weight(
                shape=(n, count),
                initializer=clone_initializer(self.kernel_initializer),
                name="compression",
            )
            # The last bias of this MLP is `projection`.
            self.attention_mlp = MLP(
                self.attention_units,
                width,
                activation=self.activation,
                kernel_initializer=self.kernel_initializer,
                output_bias=False,
                dtype=self.dtype_policy,
                name="attention_mlp",
            )
            self.attention_mlp.build((None, count * dim))
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, width))
        self.mlp = MLP(
            self.mlp_units,
            self.n_out * dim,
            activation=self.activation,
            dropout=self.dropout,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="mlp",
        )
        self.mlp.build((None, width))
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Interacts the embeddings."""
        columns = ops.transpose(inputs, (0, 2, 1))
        products = mix_columns(columns, self.mixtures())
        return ops.transpose(self.call_columns(columns, products, training), (0, 2, 1))

    def mixtures(self) -> list[Any]:
        """Matrices `(n, m)`; `call_columns` wants the embeddings' products with them."""
        if self.form == "dot":
            return []
        return [self.projection] if self.form == "static" else [self.compression]

    def call_columns(self, columns: Any, products: list[Any], training: bool | None = None) -> Any:
        """`call` on embeddings that lie in columns, given their products with `mixtures`.

        Args:
            columns: `(batch, dim, n)`.
            products: `columns @ mixture` for each of `mixtures`.
            training: Whether dropout acts.

        Returns:
            `(batch, dim, n_out)`.
        """
        assert self.norm is not None
        assert self.mlp is not None
        _, dim, _ = columns.shape
        interactions = self._interactions(columns, products)
        _, rank, n = interactions.shape
        flat = self.norm(ops.reshape(interactions, (-1, rank * n)))
        return ops.reshape(self.mlp(flat, training=training), (-1, dim, self.n_out))

    def _interactions(self, columns: Any, products: list[Any]) -> Any:
        """The transpose of `FM(X)`, `(batch, rank, n)`."""
        _, dim, n = columns.shape
        if self.form == "dot":
            projected = columns
        elif self.form == "static":
            (projected,) = products
        else:
            assert self.attention_mlp is not None
            y = self.attention_mlp(ops.reshape(products[0], (-1, dim * products[0].shape[2])))
            y = ops.reshape(y, (-1, n, self.rank)) + ops.convert_to_tensor(self.projection)
            projected = ops.matmul(columns, y)
        # (X^T Y)^T X^T, the transpose of X X^T Y: both factors are read as they lie.
        return column_products(projected, columns)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, n_out, dim)`."""
        batch, _, dim = tuple(input_shape)
        return (batch, self.n_out, dim)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "n_out": self.n_out,
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
