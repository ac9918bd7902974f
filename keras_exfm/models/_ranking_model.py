"""What the models of the zoo share: names, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import keras

from keras_exfm.features import Schema
from keras_exfm.layers import _checks
from keras_exfm.models.presets import PRESETS

REPRESENTATION = "representation"
LOGIT = "serving"
EMBEDDING = "feature-embedding"


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down, as JSON will have them."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_schema(schema: Schema | Mapping[str, Any]) -> Schema:
    """A schema that can be a model's: its feature names become input names, unique in the graph.

    The other layers have a hyphen in their names, which no feature's name (an identifier) has.
    """
    if isinstance(schema, Mapping):
        schema = Schema.from_dict(schema)
    if not isinstance(schema, Schema):
        raise ValueError(f"`schema` should be a Schema. Received: schema={schema!r}")
    taken = [name for name in schema.names if name in (REPRESENTATION, LOGIT)]
    if taken:
        raise ValueError(
            f"{REPRESENTATION!r} and {LOGIT!r} are layers of the model, so no feature may take "
            f"these names. Received features: {taken}. Rename the column."
        )
    return schema


class RankingModel(keras.Model):
    """A functional model that is saved by its own arguments, not by its graph of layers."""

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        prior: float | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        # Keras' functional models drop arguments that they do not know, so none is passed through.
        super().__init__(inputs=inputs, outputs=outputs, name=name, trainable=trainable)
        self.prior = None if prior is None else float(prior)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The logit, `(batch, 1)`, of a dict of features; further ones are left aside.

        Raises:
            ValueError: For a missing feature, or ids that come as floats.
        """
        inputs = _checks.named_inputs(inputs, self.input)
        if isinstance(mask, Mapping):
            mask = {name: mask[name] for name in inputs}
        return super().call(inputs, training=training, mask=mask)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; inputs are looked at before a step is made of them."""
        _checks.loop_inputs(x, self.input)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; inputs are looked at before."""
        _checks.loop_inputs(x, self.input)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; inputs are looked at before."""
        _checks.loop_inputs(x, self.input)
        return super().predict(x, *args, **kwargs)

    @classmethod
    def from_preset(cls, preset: str, schema: Schema | Mapping[str, Any], **overrides: Any) -> Self:
        """Builds the model with published hyper-parameters; its weights are new.

        Args:
            preset: Name of one of the class's entries of `keras_exfm.models.PRESETS`.
            schema: A `keras_exfm.Schema`, or what its `to_dict` gives.
            **overrides: Arguments of the model that replace or complete the preset's.

        Returns:
            The model.

        Raises:
            ValueError: If there is no such preset of the class.
        """
        found = PRESETS.get(preset)
        if found is None or found.model != cls.__name__:
            what = "is not one" if found is None else f"is one of {found.model}"
            names = [name for name, each in PRESETS.items() if each.model == cls.__name__]
            raise ValueError(
                f"`preset` should be a preset of {cls.__name__}, one of {names}. "
                f"Received: preset={preset!r}, which {what}"
            )
        return cls(schema, **{**found.config, **overrides})

    def get_config(self) -> dict[str, Any]:
        """The arguments that every model has."""
        return {
            "prior": self.prior,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RankingModel:
        """Builds the model from its arguments."""
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


class EmbeddingModel(RankingModel):
    """A model that begins with a `FeatureEmbedding`, whose arguments are its own too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        embedding = self.get_layer(EMBEDDING)
        self.schema = embedding.schema
        self.dim = embedding.dim
        self.numeric_units = embedding.numeric_units
        self.numeric_embeddings = embedding.numeric_embeddings
        self.embeddings_initializer = embedding.embeddings_initializer
        self.embeddings_regularizer = embedding.embeddings_regularizer

    def get_config(self) -> dict[str, Any]:
        """The arguments that these models have in common."""
        return {
            **super().get_config(),
            "schema": self.schema.to_dict(),
            "dim": self.dim,
            "numeric_units": plain(self.numeric_units),
            "numeric_embeddings": self.numeric_embeddings,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            # `Model.optimizer` is the one of `compile`, so this one is kept by its layer alone.
            "optimizer": self.get_layer(EMBEDDING).get_config()["optimizer"],
        }
