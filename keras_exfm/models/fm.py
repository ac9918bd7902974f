"""The factorization machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FactorizationMachine, FeatureEmbedding, FirstOrder
from keras_exfm.models._ranking_model import EMBEDDING, LOGIT, EmbeddingModel, as_schema
from keras_exfm.models._towers import head_initializers


@keras.saving.register_keras_serializable(package="keras_exfm")
class FM(EmbeddingModel):
    """The factorization machine: all pairwise interactions, nothing higher.

    Structure, with `X` from `FeatureEmbedding`:

        logit = FirstOrder(features) + FactorizationMachine(X)       "serving"

    A yardstick. It has no hidden layer, and so no layer called "representation". Numeric features
    join the pairs through an embedding that is linear in them, with a bias.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        numeric_embeddings: See `FeatureEmbedding`. Defaults to `1`.
        embeddings_initializer: See `FeatureEmbedding`. Defaults to `None`.
        embeddings_regularizer: See `FeatureEmbedding`. Defaults to `None`.
        prior: Mean label that the model starts with, such as the click rate: the bias starts at
            `log(prior / (1 - prior))`. Defaults to `None`: at 0.
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
    >>> model = FM(schema, dim=4)
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - Rendle, 2010, Factorization Machines, ICDM.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
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
        embedding = FeatureEmbedding(
            schema,
            dim,
            numeric_units=(),
            numeric_embeddings=numeric_embeddings,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            optimizer=optimizer,
            dtype=dtype,
            name=EMBEDDING,
        )
        inputs = schema.inputs()
        x = embedding(inputs)

        pairs = FactorizationMachine(dtype="float32", name="factorization-machine")(x)
        linear = FirstOrder(
            schema,
            embeddings_regularizer=embeddings_regularizer,
            bias_initializer=head_initializers(prior)["bias_initializer"],
            optimizer=optimizer,
            dtype="float32",
            name="first-order",
        )(inputs)
        outputs = keras.layers.Add(dtype="float32", name=LOGIT)([linear, pairs])
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        config = super().get_config()
        del config["numeric_units"]  # No argument here: numbers have no hidden layer.
        return config
