"""What `ExternalDistillation` takes out of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

KEYS = ("label", "teacher_logit")


class Targets(NamedTuple):
    """The targets of a batch, in float32 and in fixed shapes."""

    label: Any
    """`(batch, 1)`."""
    teacher_logit: Any
    """`(batch, 1)`, NaN where the teacher is missing or the row is padding."""
    weight: Any
    """`(batch,)` or `None`."""


def _column(name: str, value: Any) -> Any:
    value = ops.cast(ops.convert_to_tensor(value), "float32")
    shape = tuple(value.shape)
    if len(shape) == 1:
        return ops.expand_dims(value, -1)
    if len(shape) == 2 and shape[1] == 1:
        return value
    raise ValueError(f"`{name}` should have shape (batch,) or (batch, 1). Received: shape={shape}")


def split(y: Any, sample_weight: Any) -> Targets:
    """Label, teacher logit and weight of a batch.

    Rows of weight 0 are padding: whatever stands in their label or teacher is replaced, because
    `0 * NaN` is NaN.
    """
    if isinstance(y, Mapping):
        unknown = sorted(set(y) - set(KEYS))
        if "label" not in y or unknown:
            raise ValueError(
                '`y` should be a dict {"label": ..., "teacher_logit": ...}, the second key '
                f"optional, or the labels alone. Received: keys={sorted(y)}"
            )
        label, teacher = _column("label", y["label"]), y.get("teacher_logit")
    elif y is None or isinstance(y, (list, tuple)):
        raise ValueError(
            '`y` should be a dict {"label": ..., "teacher_logit": ...} or the labels alone. '
            f"Received: y of type {type(y).__name__}"
        )
    else:
        label, teacher = _column("label", y), None
    nan = ops.full_like(label, float("nan"))
    teacher = nan if teacher is None else _column("teacher_logit", teacher)
    if sample_weight is None:
        return Targets(label, teacher, None)
    if isinstance(sample_weight, Mapping):
        # Keras copies the one weight array of `fit(x, y, sample_weight=...)` to every key of `y`.
        sample_weight = sample_weight["label"]
    weight = _column("sample_weight", sample_weight)
    used = weight > 0
    label = ops.where(used, label, ops.zeros_like(label))
    teacher = ops.where(used, teacher, nan)
    return Targets(label, teacher, ops.squeeze(weight, -1))


def unpack(data: Any) -> Targets:
    """The targets of `(x, y, sample_weight)`, as `train_step` receives it."""
    _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return split(y, sample_weight)
