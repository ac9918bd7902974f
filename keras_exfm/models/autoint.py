"""AutoInt and AutoInt+: self-attention over the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FeatureEmbedding, FirstOrder, InteractingAttention, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


@keras.saving.register_keras_serializable(package="keras_exfm")
class AutoInt(EmbeddingModel):
    """Self-attention over the embeddings, beside an MLP (then called AutoInt+).

    Structure, with `X_0` from `FeatureEmbedding`:

        X_{i+1} = InteractingAttention(X_i)                          num_layers times
        h       = concat(flatten(X_l), DNN(flatten(X_0)))            "representation"
        logit   = w · h + b (+ FirstOrder(features))                 "serving"

    With `dnn_units=()` it is the plain AutoInt. FuxiCTR adds the logits of two separate linear
    layers, which is the same function with one more bias.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        num_layers: Number of attention layers. Defaults to `3`.
        attention_units: Width of their outputs. Defaults to `64`.
        num_heads: Number of heads. Defaults to `2`.
        scale: Whether to divide the scores by the root of the head width. Defaults to `False`.
        residual: Whether the attention layers have a residual. Defaults to `True`.
        layer_norm: Whether they have a LayerNorm. Defaults to `False`.
        dnn_units: Widths of the MLP's ReLU layers. Defaults to `(400, 400, 400)`.
        first_order: Whether to add a linear term (FuxiCTR's `use_wide`). Defaults to `False`.
        dropout: Dropout rate of the attention weights and after each ReLU layer. Defaults to
            `0.0`.
        batch_norm: Whether the ReLU layers of the MLP have a BatchNorm. Its statistics in training
            are those of the batch as it comes, rows of weight 0 included. Defaults to `False`.
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
    >>> model = AutoInt(schema, dim=4, num_layers=2, attention_units=8, dnn_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Song et al., 2019, AutoInt: Automatic Feature Interaction Learning via Self-Attentive
          Neural Networks](https://arxiv.org/abs/1810.11921), section 4.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        num_layers: int = 3,
        attention_units: int = 64,
        num_heads: int = 2,
        scale: bool = False,
        residual: bool = True,
        layer_norm: bool = False,
        dnn_units: tuple[int, ...] | list[int] = (400, 400, 400),
        first_order: bool = False,
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
        num_layers = _checks.positive_int("num_layers", num_layers)
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
        flat = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(x)

        for i in range(num_layers):
            x = InteractingAttention(
                attention_units,
                num_heads=num_heads,
                scale=scale,
                residual=residual,
                layer_norm=layer_norm,
                dropout=dropout,
                dtype=dtype,
                name=f"attention-{i}",
            )(x)
        label = "flat-interactions" if dnn_units else REPRESENTATION
        x = keras.layers.Flatten(dtype=dtype, name=label)(x)
        if dnn_units:
            deep = dnn(flat, dnn_units, "dnn", dropout, batch_norm, dtype)
            x = keras.layers.Concatenate(dtype=dtype, name=REPRESENTATION)([x, deep])
        linear = []
        if first_order:
            term = FirstOrder(
                schema,
                use_bias=False,
                embeddings_regularizer=embeddings_regularizer,
                optimizer=optimizer,
                dtype="float32",
                name="first-order",
            )
            linear.append(term(inputs))
        outputs = summed_logit(x, linear, prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.num_layers = num_layers
        self.attention_units = attention_units
        self.num_heads = num_heads
        self.scale = scale
        self.residual = residual
        self.layer_norm = layer_norm
        self.dnn_units = dnn_units
        self.first_order = first_order
        self.dropout = dropout
        self.batch_norm = batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "attention_units": self.attention_units,
            "num_heads": self.num_heads,
            "scale": self.scale,
            "residual": self.residual,
            "layer_norm": self.layer_norm,
            "dnn_units": plain(self.dnn_units),
            "first_order": self.first_order,
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
        }
