"""AFN and AFN+: interactions of learned orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FeatureEmbedding, LogarithmicTransformation, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


@keras.saving.register_keras_serializable(package="keras_exfm")
class AFN(EmbeddingModel):
    """Logarithmic neurons that learn the orders of their interactions (AFN+: with an MLP beside).

    Structure, with `X` and `E` from two `FeatureEmbedding`s of the same features, since the
    logarithm wants other embeddings than an MLP:

        z     = flatten(LogarithmicTransformation(X))
        h     = concat(DNN_afn(z), DNN(flatten(E)))                  "representation"
        logit = w · h + b                                            "serving"

    With `dnn_units=()` it is the plain AFN without `E`. The paper and FuxiCTR put a linear layer on
    each part and a linear layer on the two logits; that is the same function with four more
    weights.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        neurons: Number of logarithmic neurons. Defaults to `128`.
        afn_units: Widths of the ReLU layers on the neurons, at least one. Defaults to
            `(400, 400)`.
        dnn_units: Widths of the MLP's ReLU layers. Defaults to `(400, 400, 400)`.
        afn_dropout: Dropout rate after each ReLU layer on the neurons. Defaults to `0.0`.
        dnn_dropout: Dropout rate after each ReLU layer of the MLP. Defaults to `0.0`.
        batch_norm: Whether the logarithm, the exponential and all ReLU layers have a BatchNorm.
            Its statistics in training are those of the batch as it comes, rows of weight 0
            included. Defaults to `True`.
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
    >>> model = AFN(schema, dim=4, neurons=6, afn_units=(8,), dnn_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Cheng et al., 2020, Adaptive Factorization Network: Learning Adaptive-Order Feature
          Interactions](https://arxiv.org/abs/1909.03276), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        neurons: int = 128,
        afn_units: tuple[int, ...] | list[int] = (400, 400),
        dnn_units: tuple[int, ...] | list[int] = (400, 400, 400),
        afn_dropout: float = 0.0,
        dnn_dropout: float = 0.0,
        batch_norm: bool = True,
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
        afn_units = _checks.unit_counts("afn_units", afn_units, minimum_length=1)
        dnn_units = _checks.unit_counts("dnn_units", dnn_units)
        afn_dropout = _checks.dropout_rate("afn_dropout", afn_dropout)
        dnn_dropout = _checks.dropout_rate("dnn_dropout", dnn_dropout)

        def embed(label: str) -> FeatureEmbedding:
            return FeatureEmbedding(
                schema,
                dim,
                numeric_units=numeric_units,
                numeric_embeddings=numeric_embeddings,
                embeddings_initializer=embeddings_initializer,
                embeddings_regularizer=embeddings_regularizer,
                optimizer=optimizer,
                dtype=dtype,
                name=label,
            )

        inputs = schema.inputs()
        x = LogarithmicTransformation(
            neurons, batch_norm=batch_norm, dtype=dtype, name="logarithmic-transformation"
        )(embed(EMBEDDING)(inputs))
        x = keras.layers.Flatten(dtype=dtype, name="flat-neurons")(x)
        label = None if dnn_units else REPRESENTATION
        x = dnn(x, afn_units, "afn", afn_dropout, batch_norm, dtype, last=label)
        if dnn_units:
            flat = embed("dnn-feature-embedding")(inputs)
            flat = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(flat)
            deep = dnn(flat, dnn_units, "dnn", dnn_dropout, batch_norm, dtype)
            x = keras.layers.Concatenate(dtype=dtype, name=REPRESENTATION)([x, deep])
        outputs = summed_logit(x, [], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.neurons = neurons
        self.afn_units = afn_units
        self.dnn_units = dnn_units
        self.afn_dropout = afn_dropout
        self.dnn_dropout = dnn_dropout
        self.batch_norm = batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "neurons": self.neurons,
            "afn_units": plain(self.afn_units),
            "dnn_units": plain(self.dnn_units),
            "afn_dropout": self.afn_dropout,
            "dnn_dropout": self.dnn_dropout,
            "batch_norm": self.batch_norm,
        }
