"""xDeepFM: a compressed interaction network and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import CompressedInteractionNetwork, FeatureEmbedding, FirstOrder, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


@keras.saving.register_keras_serializable(package="keras_exfm")
class XDeepFM(EmbeddingModel):
    """A compressed interaction network beside an MLP and a linear term.

    Structure, with `X` from `FeatureEmbedding`:

        h     = concat(CIN(X), DNN(flatten(X)))                      "representation"
        logit = w · h + b + FirstOrder(features)                     "serving"

    With `dnn_units=()` the CIN and the linear term remain. FuxiCTR adds the logits of two separate
    linear layers on the CIN and the MLP, which is the same function with one more bias.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        cin_units: Number of feature maps of every CIN layer, at least one. Defaults to
            `(16, 16, 16)`.
        dnn_units: Widths of the MLP's ReLU layers. Defaults to `(400, 400, 400)`.
        dropout: Dropout rate after each ReLU layer. Defaults to `0.0`.
        batch_norm: Whether the ReLU layers have a BatchNorm. Its statistics in training are
            those of the batch as it comes, rows of weight 0 included. Defaults to `False`.
        numeric_units: See `FeatureEmbedding`. Defaults to `(64,)`.
        numeric_embeddings: See `FeatureEmbedding`. Defaults to `1`.
        embeddings_initializer: See `FeatureEmbedding`. Defaults to `None`.
        embeddings_regularizer: See `FeatureEmbedding`. Defaults to `None`.
        prior: Mean label that the model starts with, such as the click rate: the serving head's
            kernel starts at zeros and its bias at `log(prior / (1 - prior))`. Defaults to `None`:
            a random kernel and a bias of 0.
        optimizer: Of the embedding tables, see `FeatureEmbedding`. Defaults to `"rowwise_adagrad"`.
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
    >>> model = XDeepFM(schema, dim=4, cin_units=(6, 5), dnn_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Lian et al., 2018, xDeepFM: Combining Explicit and Implicit Feature Interactions for
          Recommender Systems](https://arxiv.org/abs/1803.05170), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        cin_units: tuple[int, ...] | list[int] = (16, 16, 16),
        dnn_units: tuple[int, ...] | list[int] = (400, 400, 400),
        dropout: float = 0.0,
        batch_norm: bool = False,
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

        label = "cin-pooled" if dnn_units else REPRESENTATION
        h = CompressedInteractionNetwork(cin_units, dtype=dtype, name=label)(x)
        if dnn_units:
            flat = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(x)
            deep = dnn(flat, dnn_units, "dnn", dropout, batch_norm, dtype)
            h = keras.layers.Concatenate(dtype=dtype, name=REPRESENTATION)([h, deep])
        linear = FirstOrder(
            schema,
            use_bias=False,
            embeddings_regularizer=embeddings_regularizer,
            optimizer=optimizer,
            dtype="float32",
            name="first-order",
        )
        outputs = summed_logit(h, [linear(inputs)], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.cin_units = cin_units
        self.dnn_units = dnn_units
        self.dropout = dropout
        self.batch_norm = batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "cin_units": plain(self.cin_units),
            "dnn_units": plain(self.dnn_units),
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
        }
