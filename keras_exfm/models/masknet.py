"""MaskNet: hidden layers masked by the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FeatureEmbedding, FieldwiseLayerNormalization, MaskBlock, _checks
from keras_exfm.layers._loud_relu import loud_relu
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit

STRUCTURES = ("serial", "parallel")


@keras.saving.register_keras_serializable(package="keras_exfm")
class MaskNet(EmbeddingModel):
    """Hidden layers whose inputs are masked by a function of the embeddings.

    Structure, with `X` from `FeatureEmbedding` and `v = flatten(X)`:

        u       = flatten(FieldwiseLayerNormalization(X))
        serial:   h_0 = u, h_{i+1} = MaskBlock_i(v, h_i)
        parallel: h_l = concat(MaskBlock_1(v, u), MaskBlock_2(v, u), ...)
        h       = DNN(h_l)                                           "representation"
        logit   = w · h + b                                          "serving"

    The masks always come from the embeddings as they are, not from the normalized ones. The
    paper's serial model has no MLP behind its blocks: `dnn_units=()`.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        structure: `"serial"` or `"parallel"`. Defaults to `"parallel"`.
        block_units: Output width of every mask block, at least one; blocks stand one behind the
            other or side by side. Defaults to `(64, 64, 64)`.
        reduction_ratio: Width of a mask's hidden layer over the width of what it masks; more than 1
            widens. Defaults to `1.0`.
        dnn_units: Widths of the ReLU layers behind the blocks. Defaults to `(400, 400, 400)`.
        dropout: Dropout rate after each block and each ReLU layer. Defaults to `0.0`.
        embedding_norm: Whether the embeddings are normalized before the first mask. Defaults to
            `True`.
        block_norm: Whether the blocks have a LayerNorm. Defaults to `True`.
        numeric_units: See `FeatureEmbedding`. Defaults to `(64,)`.
        numeric_embeddings: See `FeatureEmbedding`. Defaults to `1`.
        embeddings_initializer: See `FeatureEmbedding`. Defaults to `None`.
        embeddings_regularizer: See `FeatureEmbedding`. Defaults to `None`.
        prior: Mean label that the model starts with, such as the click rate: the serving head's
            kernel starts at zeros and its bias at `log(prior / (1 - prior))`. Defaults to `None`:
            a random kernel and a bias of 0.
        optimizer: Of the embedding table, see `FeatureEmbedding`. Defaults to `"rowwise_adagrad"`.
        dtype: Dtype policy of all layers; the logit is float32 in any case. Defaults to `None`,
            the global policy.
        name: Name of the model. Defaults to `None`, the class's name in snake case.
        trainable: Whether the weights train. Defaults to `True`.

    Call arguments:
        inputs: Dict of feature name to tensor, as `Schema.inputs` and `Schema.encode` give. The
            output is a logit `(batch, 1)`.

    Example:

    >>> from keras_exfm import Categorical, Numeric, Schema
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50), Numeric("age")])
    >>> model = MaskNet(schema, dim=4, block_units=(8, 8), dnn_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Wang et al., 2021, MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking
          Models by Instance-Guided Mask](https://arxiv.org/abs/2102.07619), section 4.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        structure: str = "parallel",
        block_units: tuple[int, ...] | list[int] = (64, 64, 64),
        reduction_ratio: float = 1.0,
        dnn_units: tuple[int, ...] | list[int] = (400, 400, 400),
        dropout: float = 0.0,
        embedding_norm: bool = True,
        block_norm: bool = True,
        numeric_units: tuple[int, ...] | list[int] = (64,),
        numeric_embeddings: int = 1,
        embeddings_initializer: Any = None,
        embeddings_regularizer: Any = None,
        prior: float | None = None,
        optimizer: Any = "rowwise_adagrad",
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        schema = as_schema(schema)
        if structure not in STRUCTURES:
            raise ValueError(
                f"`structure` should be one of {STRUCTURES}. Received: structure={structure!r}"
            )
        block_units = _checks.unit_counts("block_units", block_units, minimum_length=1)
        dnn_units = _checks.unit_counts("dnn_units", dnn_units)
        dropout = _checks.dropout_rate("dropout", dropout)
        embedding = FeatureEmbedding(
            schema,
            dim,
            numeric_units=numeric_units,
            numeric_embeddings=numeric_embeddings,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            optimizer=optimizer,
            dtype=dtype,
            name=EMBEDDING,
        )
        inputs = schema.inputs()
        x = embedding(inputs)
        v = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(x)
        u = v
        if embedding_norm:
            u = FieldwiseLayerNormalization(dtype=dtype, name="embedding-norm")(x)
            u = keras.layers.Flatten(dtype=dtype, name="flat-normalized-embeddings")(u)

        def block(i: int, hidden: Any, label: str | None = None) -> Any:
            return MaskBlock(
                block_units[i],
                reduction_ratio=reduction_ratio,
                activation=loud_relu,
                layer_norm=block_norm,
                dropout=dropout,
                dtype=dtype,
                name=label or f"mask-block-{i}",
            )([v, hidden])

        last = None if dnn_units else REPRESENTATION
        if structure == "serial":
            x = u
            for i in range(len(block_units)):
                x = block(i, x, last if i == len(block_units) - 1 else None)
        else:
            x = keras.layers.Concatenate(dtype=dtype, name=last or "mask-blocks")(
                [block(i, u) for i in range(len(block_units))]
            )
        x = dnn(x, dnn_units, "dnn", dropout, False, dtype, last=REPRESENTATION)
        outputs = summed_logit(x, [], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.structure = structure
        self.block_units = block_units
        self.reduction_ratio = reduction_ratio
        self.dnn_units = dnn_units
        self.dropout = dropout
        self.embedding_norm = embedding_norm
        self.block_norm = block_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "structure": self.structure,
            "block_units": plain(self.block_units),
            "reduction_ratio": self.reduction_ratio,
            "dnn_units": plain(self.dnn_units),
            "dropout": self.dropout,
            "embedding_norm": self.embedding_norm,
            "block_norm": self.block_norm,
        }
