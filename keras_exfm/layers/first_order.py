"""The linear term of the classic models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_exfm.features import Schema
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.layers.feature_embedding import FeatureEmbedding


@keras.saving.register_keras_serializable(package="keras_exfm")
class FirstOrder(keras.layers.Layer):
    """One weight for every id and every number: logistic regression's logit.

    Formula, with the weight `w_f[i]` of id `i` of the sparse feature `f` (pooled over the ids of a
    `MultiHot`) and the numbers `x_j`:

        FirstOrder(x) = b + sum_f w_f[i_f] + sum_j u_j x_j

    The weights `w` are a `FeatureEmbedding` of size 1, so ids, padding and hashing follow its
    rules. A feature of several `embeddings` gets as many weights, of which the sum counts.

    Number of weights: the rows of all tables, plus the number of numeric inputs, plus 1 for the
    bias.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives.
        use_bias: Whether to add `b`. Defaults to `True`.
        embeddings_initializer: Initializer of `w`. Defaults to `"zeros"`.
        bias_initializer: Initializer of `b`. Defaults to `"zeros"`.
        embeddings_regularizer: See `FeatureEmbedding`. Defaults to `None`.
        optimizer: See `FeatureEmbedding`. Defaults to `"rowwise_adagrad"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Dict of feature name to tensor. The output is `(batch, 1)`.

    Example:

    >>> import numpy as np
    >>> from keras_exfm import Categorical, Numeric, Schema
    >>> schema = Schema([Categorical("ad", 50), Numeric("age")])
    >>> tuple(FirstOrder(schema)(schema.encode({"ad": [3, -1], "age": [0.5, 1.0]})).shape)
    (2, 1)

    References:
        - Rendle, 2010, Factorization Machines, ICDM, equation 1.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        use_bias: bool = True,
        embeddings_initializer: Any = "zeros",
        bias_initializer: Any = "zeros",
        embeddings_regularizer: Any = None,
        optimizer: Any = "rowwise_adagrad",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(schema, Mapping):
            schema = Schema.from_dict(schema)
        if not isinstance(schema, Schema):
            raise ValueError(f"`schema` should be a Schema. Received: schema={schema!r}")
        self.schema = schema
        self.use_bias = use_bias
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embedding: FeatureEmbedding | None = None
        if schema.sparse:
            # Made here, not in `build`, so that it checks its own arguments at once.
            self.embedding = FeatureEmbedding(
                schema.select([feature.name for feature in schema.sparse]),
                1,
                embeddings_initializer=clone_initializer(self.embeddings_initializer),
                embeddings_regularizer=self.embeddings_regularizer,
                optimizer=optimizer,
                dtype=self.dtype_policy,
                name="embedding",
            )
        self.optimizer = optimizer
        self.numeric: keras.layers.Layer | None = None
        self.bias: Any = None

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Creates the weights."""
        if self.embedding is not None:
            self.embedding.build(input_shape)
        if self.schema.numeric:
            self.numeric = keras.layers.Dense(
                1, use_bias=False, dtype=self.dtype_policy, name="numeric"
            )
            self.numeric.build((None, sum(feature.size for feature in self.schema.numeric)))
        if self.use_bias:
            self.bias = self.add_weight(shape=(1,), initializer=self.bias_initializer, name="bias")
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Sums the weights of what is present."""
        terms = []
        if self.embedding is not None:
            terms.append(ops.sum(self.embedding(inputs), axis=1))
        if self.numeric is not None:
            numbers = [
                ops.cast(ops.reshape(inputs[f.name], (-1, f.size)), self.compute_dtype)
                for f in self.schema.numeric
            ]
            terms.append(self.numeric(ops.concatenate(numbers, axis=1)))
        if self.bias is not None:
            terms.append(ops.convert_to_tensor(self.bias))
        return sum(terms[1:], terms[0])

    def compute_output_shape(self, input_shape: Mapping[str, Any]) -> tuple[Any, ...]:
        """`(batch, 1)`."""
        return (input_shape[self.schema.names[0]][0], 1)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        embedding = {} if self.embedding is None else self.embedding.get_config()
        return {
            **super().get_config(),
            "schema": self.schema.to_dict(),
            "use_bias": self.use_bias,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            "optimizer": embedding.get("optimizer"),
        }
