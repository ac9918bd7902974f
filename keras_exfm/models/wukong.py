"""Wukong: stacked factorization machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import FeatureEmbedding, WukongLayer, _checks
from keras_exfm.models._ranking_model import (
    EMBEDDING,
    REPRESENTATION,
    EmbeddingModel,
    as_schema,
    plain,
)
from keras_exfm.models._towers import dnn, summed_logit


def _per_layer(name: str, value: Any, num_layers: int) -> list[Any]:
    """One setting for each layer, from one setting or a list of them."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return [value] * num_layers
    return _matching(name, list(value), num_layers)


def _units_per_layer(name: str, value: Any, num_layers: int) -> list[Any]:
    """As `_per_layer`, for a setting that is itself a list of widths."""
    values = list(value) if isinstance(value, Iterable) else value
    if isinstance(values, list) and any(isinstance(item, (list, tuple)) for item in values):
        return _matching(name, values, num_layers)
    return [values] * num_layers


def _matching(name: str, values: list[Any], num_layers: int) -> list[Any]:
    if len(values) != num_layers:
        raise ValueError(
            f"`{name}` should be one setting, or a list of num_layers={num_layers} settings. "
            f"Received: {name}={values!r}"
        )
    return values


@keras.saving.register_keras_serializable(package="keras_exfm")
class Wukong(EmbeddingModel):
    """A stack of factorization machines with a scaling law.

    Structure, with `X_0` from `FeatureEmbedding`:

        X_{i+1} = LayerNorm(concat(FMB_i(X_i), LCB_i(X_i)) + R_i(X_i))      num_layers times
        h       = ReLU layers of flatten(X_l)                               "representation"
        logit   = w · h + b                                                 "serving"

    The paper scales `num_layers` first, then `n_fmb`, `n_lcb`, `rank` and `mlp_units` together. Its
    scale-up, from 0.53 to 108 GFLOP an example, is `Wukong.from_preset("wukong_small", schema)` to
    `"wukong_4xlarge"`; see `keras_exfm.models.PRESETS`.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives. No feature may be called
            "representation" or "serving".
        dim: Size of every embedding. Defaults to `32`.
        num_layers: Number of `WukongLayer`s. Defaults to `3`.
        n_fmb: Embeddings from each factorization machine block; one number, or a list with one
            for each layer. Defaults to `16`.
        n_lcb: Embeddings from each linear compression block; as `n_fmb`. Defaults to `16`.
        rank: Columns of the projection `Y`; as `n_fmb`, `None` only for `form="dot"`. Defaults to
            `24`.
        mlp_units: Hidden widths of each FMB's MLP; one list of numbers, or a list of such lists
            with one for each layer. Defaults to `(512, 512)`.
        head_units: Widths of the head's ReLU layers, at least one. Defaults to `(256,)`.
        form: `"static"`, `"attentive"` or `"dot"`, see `FactorizationMachineBlock`. Defaults to
            `"static"`.
        attention_compression: See `FactorizationMachineBlock`. Defaults to `8`.
        attention_units: See `FactorizationMachineBlock`. Defaults to `(64,)`.
        dropout: Dropout rate after each hidden layer of the FMBs' MLPs. Defaults to `0.0`.
        head_dropout: Dropout rate after each ReLU layer of the head. Defaults to `0.0`.
        head_batch_norm: BatchNorm before each ReLU of the head; not in the paper, of use on small
            sets in many epochs. Defaults to `False`.
        numeric_units: See `FeatureEmbedding`. Defaults to `(64,)`.
        numeric_embeddings: See `FeatureEmbedding`. Defaults to `1`.
        embeddings_initializer: See `FeatureEmbedding`. Defaults to `None`.
        embeddings_regularizer: See `FeatureEmbedding`. Defaults to `None`.
        prior: Mean label that the model starts with, such as the click rate: the serving head's
            kernel starts at zeros and its bias at `log(prior / (1 - prior))`. Defaults to `None`:
            a random kernel and a bias of 0.
        optimizer: Of the embedding table, see `FeatureEmbedding`. On a stream, in a single pass,
            `RowwiseAdagrad(..., clip_row_norm=0.03)` is worth trying: the norms make the first
            gradients of small embeddings very large, and Adagrad never forgets them
            (docs/tuning.md). Defaults to `"rowwise_adagrad"`.
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
    >>> model = Wukong(schema, dim=8, num_layers=2, n_fmb=4, n_lcb=4, rank=3, mlp_units=(16,))
    >>> batch = schema.encode({"user": [3, 99], "ad": [7, -1], "age": [0.5, 1.0]})
    >>> tuple(model(batch).shape)
    (2, 1)

    References:
        - [Zhang et al., 2024, Wukong: Towards a Scaling Law for Large-Scale
          Recommendation](https://arxiv.org/abs/2403.02545), section 3.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int = 32,
        num_layers: int = 3,
        n_fmb: int | list[int] | tuple[int, ...] = 16,
        n_lcb: int | list[int] | tuple[int, ...] = 16,
        rank: int | list[int] | tuple[int, ...] | None = 24,
        mlp_units: Any = (512, 512),
        head_units: tuple[int, ...] | list[int] = (256,),
        form: str = "static",
        attention_compression: int = 8,
        attention_units: tuple[int, ...] | list[int] = (64,),
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        head_batch_norm: bool = False,
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
        head_units = _checks.unit_counts("head_units", head_units, minimum_length=1)
        head_dropout = _checks.dropout_rate("head_dropout", head_dropout)
        layers = zip(
            _per_layer("n_fmb", n_fmb, num_layers),
            _per_layer("n_lcb", n_lcb, num_layers),
            _per_layer("rank", rank, num_layers),
            _units_per_layer("mlp_units", mlp_units, num_layers),
        )
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
        for i, (fmb, lcb, columns, units) in enumerate(layers):
            x = WukongLayer(
                fmb,
                lcb,
                rank=columns,
                mlp_units=units,
                form=form,
                attention_compression=attention_compression,
                attention_units=attention_units,
                dropout=dropout,
                dtype=dtype,
                name=f"wukong-layer-{i}",
            )(x)
        x = keras.layers.Flatten(dtype=dtype, name="flat-interactions")(x)
        x = dnn(x, head_units, "head", head_dropout, head_batch_norm, dtype, last=REPRESENTATION)
        outputs = summed_logit(x, [], prior)
        super().__init__(inputs, outputs, prior, dtype=dtype, name=name, trainable=trainable)

        self.num_layers = num_layers
        self.n_fmb = n_fmb
        self.n_lcb = n_lcb
        self.rank = rank
        self.mlp_units = mlp_units
        self.head_units = head_units
        self.form = form
        self.attention_compression = attention_compression
        self.attention_units = attention_units
        self.dropout = dropout
        self.head_dropout = head_dropout
        self.head_batch_norm = head_batch_norm

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "n_fmb": plain(self.n_fmb),
            "n_lcb": plain(self.n_lcb),
            "rank": plain(self.rank),
            "mlp_units": plain(self.mlp_units),
            "head_units": plain(self.head_units),
            "form": self.form,
            "attention_compression": self.attention_compression,
            "attention_units": plain(self.attention_units),
            "dropout": self.dropout,
            "head_dropout": self.head_dropout,
            "head_batch_norm": self.head_batch_norm,
        }
