"""DCN-V2: a cross network and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import CrossLayer, FeatureEmbedding, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


@keras.saving.register_keras_serializable(package="keras_exfm")
class DCNv2(EmbeddingModel):
    """A cross network of explicit interactions, with MLPs behind and beside it.

    Structure, with `x_0` the flat embeddings:

        x_{i+1} = CrossLayer(x_0, x_i)                              num_cross_layers times
        h       = concat(DNN_stacked(x_l), DNN_parallel(x_0))       "representation"
        logit   = w · h + b                                         "serving"

    The two tuples of units choose among the paper's structures (figure 1; FuxiCTR's
    `model_structure`):

    | `stacked_units` | `parallel_units` | structure |
    |---|---|---|
    | `()` | given | parallel: `h = concat(x_l, DNN_parallel(x_0))` |
    | given | `()` | stacked: `h = DNN_stacked(x_l)` |
    | given | given | stacked and parallel |
    | `()` | `()` | the cross network alone: `h = x_l` |

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        num_cross_layers: Number of cross layers. Defaults to `3`.
        rank: Inner width of the cross layers' matrices; `None` for full ones. Defaults to `None`.
        stacked_units: Widths of the ReLU layers behind the cross network. Defaults to `()`.
        parallel_units: Widths of the ReLU layers beside it. Defaults to `(400, 400, 400)`.
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
    >>> model = DCNv2(schema, dim=4, num_cross_layers=2, parallel_units=(16, 8))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Wang et al., 2021, DCN V2: Improved Deep & Cross Network and Practical Lessons for
          Web-scale Learning to Rank Systems](https://arxiv.org/abs/2008.13535), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        num_cross_layers: int = 3,
        rank: int | None = None,
        stacked_units: tuple[int, ...] | list[int] = (),
        parallel_units: tuple[int, ...] | list[int] = (400, 400, 400),
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
        num_cross_layers = _checks.positive_int("num_cross_layers", num_cross_layers)
        stacked_units = _checks.unit_counts("stacked_units", stacked_units)
        parallel_units = _checks.unit_counts("parallel_units", parallel_units)
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
        x0 = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(x)

        x = x0
        for i in range(num_cross_layers):
            is_last = i == num_cross_layers - 1 and not stacked_units and not parallel_units
            label = REPRESENTATION if is_last else f"cross-layer-{i}"
            x = CrossLayer(rank=rank, dtype=dtype, name=label)([x0, x])
        if stacked_units:
            last = None if parallel_units else REPRESENTATION
            x = dnn(x, stacked_units, "stacked", dropout, batch_norm, dtype, last=last)
        if parallel_units:
            beside = dnn(x0, parallel_units, "parallel", dropout, batch_norm, dtype)
            x = keras.layers.Concatenate(dtype=dtype, name=REPRESENTATION)([x, beside])
        outputs = summed_logit(x, [], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.num_cross_layers = num_cross_layers
        self.rank = rank
        self.stacked_units = stacked_units
        self.parallel_units = parallel_units
        self.dropout = dropout
        self.batch_norm = batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "num_cross_layers": self.num_cross_layers,
            "rank": self.rank,
            "stacked_units": plain(self.stacked_units),
            "parallel_units": plain(self.parallel_units),
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
        }
