"""From a run's configuration to compiled Keras models."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_exfm import layers, models
from keras_exfm.distillation import ExternalDistillation
from keras_exfm.features import Schema
from keras_exfm.optimizers import RowwiseAdagrad
from keras_exfm.pipeline.config import ConfigError, Network, Student


def features_of(settings: Network, schema: Schema) -> Schema:
    """The features that a network reads."""
    return schema if settings.features is None else schema.select(settings.features)


def network(settings: Network, schema: Schema) -> keras.Model:
    """The zoo model that a configuration names, not compiled.

    Raises:
        ConfigError: For an unknown model, option or feature.
    """
    schema = features_of(settings, schema)
    cls: Any = getattr(models, settings.model, None)
    if not (inspect.isclass(cls) and issubclass(cls, keras.Model)):
        raise ConfigError(
            f"No model {settings.model!r} in keras_exfm.models. There are: {_model_names()}"
        )
    known = set(inspect.signature(cls).parameters) - {"schema", "optimizer", "kwargs"}
    unknown = sorted(set(settings.options) - known)
    if unknown:
        raise ConfigError(f"{settings.model} has no options {unknown}. It has: {sorted(known)}")
    table_optimizer = RowwiseAdagrad(
        settings.table_learning_rate, clip_row_norm=settings.clip_row_norm
    )
    build: Any = cls
    return build(schema, optimizer=table_optimizer, **settings.options)


def teacher(settings: Network, schema: Schema) -> keras.Model:
    """The foundation model, compiled to train on labels."""
    model = network(settings, schema)
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    return model


def student(settings: Network, distillation: Student, schema: Schema) -> ExternalDistillation:
    """A student network under one way of distillation, compiled."""
    model = ExternalDistillation.from_model(
        network(settings, schema),
        auxiliary_head=_layer(layers.AuxiliaryHead, distillation.auxiliary_head),
        student_adapter=_layer(layers.StudentAdapter, distillation.student_adapter),
        adapter_head=_layer(layers.AuxiliaryHead, distillation.adapter_head),
        shared_head_weight=distillation.shared_head_weight,
        shared_head_source=distillation.shared_head_source,
        gate=_layer(layers.TeacherGate, distillation.gate),
        strict=distillation.strict,
    )
    model.compile(optimizer=keras.optimizers.Adam(settings.learning_rate))
    return model


def _layer(cls: type[keras.Layer], options: dict[str, Any] | None) -> keras.Layer | None:
    if options is None:
        return None
    try:
        return cls(**options)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}({options}): {error}") from error


def _model_names() -> list[str]:
    return sorted(
        name
        for name, cls in vars(models).items()
        if inspect.isclass(cls) and issubclass(cls, keras.Model)
    )
