"""One size of one model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras

from keras_exfm import models
from keras_exfm.features import Schema
from keras_exfm.tuner.cost import Cost


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A model of the zoo with its arguments and what they cost.

    Args:
        model: Name of the class in `keras_exfm.models`.
        options: The model's arguments, all but schema and optimizer; lists, not tuples.
        cost: What it costs.
        label: What it is called in figures. Defaults to `""`, the model's name.
    """

    model: str
    options: Mapping[str, Any]
    cost: Cost
    label: str = ""

    @classmethod
    def of(
        cls, model: str, schema: Schema, options: Mapping[str, Any], label: str = ""
    ) -> Configuration:
        """Counts the cost; no weights are made."""
        make = getattr(models, model)
        cost = Cost.of(models.shapes_only(make, schema, **options))
        return cls(model, json.loads(json.dumps(dict(options))), cost, label)

    @property
    def name(self) -> str:
        """What it is called in figures."""
        return self.label or self.model

    @property
    def key(self) -> str:
        """Short name of its own, for files."""
        text = json.dumps([self.model, self.options, self.label], sort_keys=True)
        return f"{self.model}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def build(self, schema: Schema, optimizer: Any) -> keras.Model:
        """The model, not compiled; `optimizer` is the tables'."""
        make: Any = getattr(models, self.model)
        return make(schema, optimizer=optimizer, **self.options)
