"""Argument checks of the losses and of the layers that use them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops


def scale(name: str, value: Any, *, positive: bool = False) -> float:
    """`value` as a finite `float` of at least zero (above zero if `positive`)."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"`{name}` should be a finite number {bound}. Received: {name}={value!r}")
    return float(value)


def schedule(name: str, value: Any) -> Any:
    """`value` as a finite `float` of at least zero, or a schedule of such numbers.

    A dict is the config of a schedule, as `serialize_schedule` gives it.
    """
    if isinstance(value, Mapping):
        value = keras.saving.deserialize_keras_object(dict(value))
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    try:
        return scale(name, value)
    except ValueError as error:
        raise ValueError(
            f"`{name}` should be a finite number of at least 0 or a "
            f"keras.optimizers.schedules.LearningRateSchedule. Received: {name}={value!r}"
        ) from error


def is_schedule(value: Any) -> bool:
    """Whether `value`, as `schedule` returned it, changes with the step."""
    return not isinstance(value, float)


def at_step(value: Any, step: Any = None) -> Any:
    """The number at a training step (`None` is step 0); a `float` if it never changes."""
    if not is_schedule(value):
        return value
    step = ops.convert_to_tensor(0 if step is None else step, "int32")
    return ops.cast(value(step), "float32")


def serialize_schedule(value: Any) -> Any:
    """For `get_config`."""
    return keras.saving.serialize_keras_object(value) if is_schedule(value) else value
