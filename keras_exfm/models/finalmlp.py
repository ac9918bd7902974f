"""FinalMLP: two MLPs with gated inputs, fused by a bilinear form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import BilinearFusion, FeatureEmbedding, FeatureSelection, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    LOGIT,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, head_initializers


@keras.saving.register_keras_serializable(package="keras_exfm")
class FinalMLP(EmbeddingModel):
    """Two MLP streams with gated inputs and a bilinear fusion.

    Structure, with `e` the flat embeddings:

        e_s   = FeatureSelection_s(e, context_s)                     s = 1, 2
        h     = concat(DNN_1(e_1), DNN_2(e_2))                       "representation"
        logit = BilinearFusion(h)                                    "serving"

    The context of a gate is the embedding of the features named in `fs1_context` or `fs2_context`,
    from tables of the gate's own; without names it is a learned vector.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `16`.
        mlp1_units: Widths of the first stream's ReLU layers, at least one. Defaults to
            `(400, 400, 400)`.
        mlp2_units: Widths of the second stream's, at least one. Defaults to `(400,)`.
        mlp1_dropout: Dropout rate after each ReLU layer of the first stream. Defaults to `0.0`.
        mlp2_dropout: The same of the second. Defaults to `0.0`.
        feature_selection: Whether the streams have gates. Defaults to `True`.
        fs_units: Widths of the gates' ReLU layers. Defaults to `(64,)`.
        fs1_context: Names of the features that the first gate looks at. Defaults to `()`.
        fs2_context: Names of the features that the second gate looks at. Defaults to `()`.
        num_heads: Number of parts of the bilinear fusion; divides the last width of both streams.
            Defaults to `1`.
        batch_norm: Whether the ReLU layers of the streams have a BatchNorm. Its statistics in
            training are those of the batch as it comes, rows of weight 0 included. Defaults to
            `False`.
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
    >>> model = FinalMLP(schema, dim=4, mlp1_units=(16, 8), mlp2_units=(6,), fs1_context=("user",))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Mao et al., 2023, FinalMLP: An Enhanced Two-Stream MLP Model for CTR
          Prediction](https://arxiv.org/abs/2304.00902), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 16,
        mlp1_units: tuple[int, ...] | list[int] = (400, 400, 400),
        mlp2_units: tuple[int, ...] | list[int] = (400,),
        mlp1_dropout: float = 0.0,
        mlp2_dropout: float = 0.0,
        feature_selection: bool = True,
        fs_units: tuple[int, ...] | list[int] = (64,),
        fs1_context: tuple[str, ...] | list[str] = (),
        fs2_context: tuple[str, ...] | list[str] = (),
        num_heads: int = 1,
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
        mlp1_units = _checks.unit_counts("mlp1_units", mlp1_units, minimum_length=1)
        mlp2_units = _checks.unit_counts("mlp2_units", mlp2_units, minimum_length=1)
        mlp1_dropout = _checks.dropout_rate("mlp1_dropout", mlp1_dropout)
        mlp2_dropout = _checks.dropout_rate("mlp2_dropout", mlp2_dropout)

        def embed(features: Schema, label: str) -> FeatureEmbedding:
            return FeatureEmbedding(
                features,
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
        x = embed(schema, EMBEDDING)(inputs)
        flat = keras.layers.Flatten(dtype=dtype, name="flat-embeddings")(x)

        def gate(stream: int, context: tuple[str, ...] | list[str]) -> Any:
            label = f"feature-selection-{stream}"
            if not context:
                return FeatureSelection(fs_units, context_dim=dim, dtype=dtype, name=label)(flat)
            own = embed(schema.select(list(context)), f"context-embedding-{stream}")(
                {name: inputs[name] for name in context}
            )
            own = keras.layers.Flatten(dtype=dtype, name=f"flat-context-{stream}")(own)
            return FeatureSelection(fs_units, dtype=dtype, name=label)([flat, own])

        x1 = gate(1, fs1_context) if feature_selection else flat
        x2 = gate(2, fs2_context) if feature_selection else flat
        x1 = dnn(x1, mlp1_units, "mlp1", mlp1_dropout, batch_norm, dtype)
        x2 = dnn(x2, mlp2_units, "mlp2", mlp2_dropout, batch_norm, dtype)
        x = keras.layers.Concatenate(dtype=dtype, name=REPRESENTATION)([x1, x2])
        outputs = BilinearFusion(
            mlp1_units[-1],
            num_heads=num_heads,
            **head_initializers(prior),
            dtype="float32",
            name=LOGIT,
        )(x)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.mlp1_units = mlp1_units
        self.mlp2_units = mlp2_units
        self.mlp1_dropout = mlp1_dropout
        self.mlp2_dropout = mlp2_dropout
        self.feature_selection = feature_selection
        self.fs_units = fs_units
        self.fs1_context = fs1_context
        self.fs2_context = fs2_context
        self.num_heads = num_heads
        self.batch_norm = batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "mlp1_units": plain(self.mlp1_units),
            "mlp2_units": plain(self.mlp2_units),
            "mlp1_dropout": self.mlp1_dropout,
            "mlp2_dropout": self.mlp2_dropout,
            "feature_selection": self.feature_selection,
            "fs_units": plain(self.fs_units),
            "fs1_context": plain(self.fs1_context),
            "fs2_context": plain(self.fs2_context),
            "num_heads": self.num_heads,
            "batch_norm": self.batch_norm,
        }
