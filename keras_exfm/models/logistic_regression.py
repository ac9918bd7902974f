"""Logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FirstOrder
from keras_exfm.models._ranking_model import LOGIT, RankingModel, as_schema
from keras_exfm.models._towers import head_initializers


@keras.saving.register_keras_serializable(package="keras_exfm")
class LogisticRegression(RankingModel):
    """One weight for every id and number: main effects, no interactions.

    Structure:

        logit = FirstOrder(features)                                 "serving"

    A yardstick. It has no hidden layer, and so no layer called "representation".

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        embeddings_regularizer: Of the weight table, see `FeatureEmbedding`. Defaults to `None`.
        prior: Mean label that the model starts with, such as the click rate: the bias starts at
            `log(prior / (1 - prior))`. Defaults to `None`: at 0.
        optimizer: Of the weight table, see `FeatureEmbedding`. Defaults to `"rowwise_adagrad"`.
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
    >>> model = LogisticRegression(schema)
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [McMahan et al., 2013, Ad Click Prediction: a View from the
          Trenches](https://doi.org/10.1145/2487575.2488200), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        embeddings_regularizer: Any = None,
        prior: float | None = None,
        optimizer: Any = "rowwise_adagrad",
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        schema = as_schema(schema)
        inputs = schema.inputs()
        outputs = FirstOrder(
            schema,
            embeddings_regularizer=embeddings_regularizer,
            bias_initializer=head_initializers(prior)["bias_initializer"],
            optimizer=optimizer,
            dtype="float32",
            name=LOGIT,
        )(inputs)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.schema = schema
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "schema": self.schema.to_dict(),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            # `Model.optimizer` is the one of `compile`, so this one is kept by its layer alone.
            "optimizer": self.get_layer(LOGIT).get_config()["optimizer"],
        }
