"""DLRM: pairwise dot products of embeddings, then an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import DotInteraction, FeatureEmbedding, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


@keras.saving.register_keras_serializable(package="keras_exfm")
class DLRM(EmbeddingModel):
    """A small, fast ranking model: all pairwise dots of the embeddings, and an MLP.

    Structure, with `X` of shape `(n, dim)` from `FeatureEmbedding` (numeric embeddings included):

        z     = concat(flatten(X), [x_i · x_j for i < j])
        h     = ReLU layers of z                                "representation"
        logit = w · h + b                                       "serving"

    The published DLRM puts only the numeric embedding (the bottom MLP's output) beside the dots,
    since it is trained with wide embeddings in mind: `concat_embeddings=False`. With embeddings of
    4 to 16 numbers, as students have them, the first-order terms are cheap and a small MLP cannot
    win them back from the dots, so all of them are the default.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `8`.
        top_units: Widths of the ReLU layers, at least one. Defaults to `(64, 32)`.
        dropout: Dropout rate after each ReLU layer. Defaults to `0.0`.
        batch_norm: Whether the ReLU layers have a BatchNorm. Its statistics in training are
            those of the batch as it comes, rows of weight 0 included. Defaults to `False`.
        concat_embeddings: Whether every embedding stands beside the dots, or only the numeric
            ones. Defaults to `True`.
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

    Raises:
        ValueError: For a schema that gives fewer than two embeddings: there are no pairs.

    Example:

    >>> from keras_exfm import Categorical, Numeric, Schema
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50), Numeric("age")])
    >>> model = DLRM(schema, dim=4, top_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Naumov et al., 2019, Deep Learning Recommendation Model for Personalization and
          Recommendation Systems](https://arxiv.org/abs/1906.00091), section 2.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 8,
        top_units: tuple[int, ...] | list[int] = (64, 32),
        dropout: float = 0.0,
        batch_norm: bool = False,
        concat_embeddings: bool = True,
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
        top_units = _checks.unit_counts("top_units", top_units, minimum_length=1)
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
        if embedding.num_embeddings < 2:
            raise ValueError(
                "DLRM needs a schema with at least two embeddings, for there to be a pair. "
                f"Received: schema={schema!r}, which gives {embedding.num_embeddings}"
            )
        inputs = schema.inputs()
        x = embedding(inputs)
        z = DotInteraction(dtype=dtype, name="dot-interaction")(x)
        beside = x
        if not concat_embeddings:
            first_numeric = sum(feature.embeddings for feature in schema.sparse)
            beside = (
                keras.layers.Cropping1D((first_numeric, 0), dtype=dtype, name="numeric-embeddings")(
                    x
                )
                if schema.numeric
                else None
            )
        if beside is not None:
            flat = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(beside)
            z = keras.layers.Concatenate(dtype=dtype, name="top-inputs")([flat, z])
        z = dnn(z, top_units, "top", dropout, batch_norm, dtype, last=REPRESENTATION)
        outputs = summed_logit(z, [], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.top_units = top_units
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.concat_embeddings = concat_embeddings

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "top_units": plain(self.top_units),
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
            "concat_embeddings": self.concat_embeddings,
        }
