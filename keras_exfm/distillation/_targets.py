"""What `ExternalDistillation` takes out of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_exfm.losses._probabilities import looks_like_probabilities


class Columns(NamedTuple):
    """The keys that a model reads from `y`."""

    labels: dict[str | None, str]
    """Task -> key; the one task of a simple student is `None`."""
    scalars: tuple[str, ...]
    """Keys of `(batch,)` columns of the teachers; each may be missing from a batch."""
    vectors: dict[str, int]
    """Keys of `(batch, size)` columns of the teachers -> size; each may be missing."""

    @property
    def names(self) -> tuple[str, ...]:
        """All keys."""
        # With several tasks, `label` may stand for the first one's.
        other = ("label",) if len(self.labels) > 1 else ()
        return (*self.labels.values(), *self.scalars, *self.vectors, *other)


class Label(NamedTuple):
    """One task's label in a batch, in float32 and in fixed shapes."""

    value: Any
    """`(batch, 1)`."""
    weight: Any
    """`(batch,)` or `None`: weight of the rows, 0 where the task's label is unknown."""
    row_weight: Any
    """`(batch,)` or `None`: the same without regard to whether the label is known."""


class Targets(NamedTuple):
    """The targets of a batch."""

    labels: dict[str | None, Label]
    teachers: dict[str, Any]
    """Key -> `(batch, 1)` or `(batch, size)` float32, NaN where missing or the row is padding."""


def _column(name: str, value: Any) -> Any:
    value = ops.cast(ops.convert_to_tensor(value), "float32")
    shape = tuple(value.shape)
    if len(shape) == 1:
        return ops.expand_dims(value, -1)
    if len(shape) == 2 and shape[1] == 1:
        return value
    raise ValueError(f"`{name}` should have shape (batch,) or (batch, 1). Received: shape={shape}")


def _vectors(name: str, value: Any, size: int) -> Any:
    value = ops.cast(ops.convert_to_tensor(value), "float32")
    if len(value.shape) != 2 or value.shape[1] != size:
        raise ValueError(
            f"`{name}` should have shape (batch, {size}). Received: shape={tuple(value.shape)}"
        )
    return value


def _expected(columns: Columns) -> str:
    keys = ", ".join(f'"{name}": ...' for name in columns.names)
    alone = ", or the labels alone" if len(columns.labels) == 1 else ""
    return f"`y` should be a dict {{{keys}}}, the teachers' keys optional{alone}"


def split(y: Any, sample_weight: Any, columns: Columns) -> Targets:
    """Labels, teachers' columns and weights of a batch.

    Rows of weight 0 are padding: whatever stands in their label or teacher is replaced, because
    `0 * NaN` is NaN.
    """
    keys = list(columns.labels.values())
    if not isinstance(y, Mapping):
        if y is None or isinstance(y, (list, tuple)) or len(keys) > 1:
            raise ValueError(f"{_expected(columns)}. Received: y of type {type(y).__name__}")
        y = {keys[0]: y}
    if len(keys) > 1 and keys[0] not in y and "label" in y:
        y = {**y, keys[0]: y["label"]}
        if isinstance(sample_weight, Mapping) and keys[0] not in sample_weight:
            sample_weight = {**sample_weight, keys[0]: sample_weight.get("label")}
    unknown = sorted(set(y) - set(columns.names))
    if unknown or any(key not in y for key in keys):
        raise ValueError(f"{_expected(columns)}. Received: keys={sorted(y)}")
    # Labels alone: a NaN among them is a fault of the data, and the loss should show it.
    may_lack_label = len(keys) > 1 or set(y) != set(keys)
    labels: dict[str | None, Label] = {}
    used = None
    for task, key in columns.labels.items():
        value, weight = _column(key, y[key]), _weight(sample_weight, key)
        if weight is not None:
            real = weight > 0
            used = real if used is None else ops.logical_or(used, real)
            value = ops.where(real, value, ops.zeros_like(value))
        row_weight = weight
        if may_lack_label:
            known = ops.logical_not(ops.isnan(value))
            value = ops.where(known, value, ops.zeros_like(value))
            known = ops.cast(known, "float32")
            weight = known if weight is None else known * weight
        labels[task] = Label(value, *(w if w is None else w[:, 0] for w in (weight, row_weight)))
    teachers = {}
    for name in (*columns.scalars, *columns.vectors):
        size = columns.vectors.get(name, 1)
        if y.get(name) is None:
            nan = ops.full_like(next(iter(labels.values())).value, float("nan"))
            value = ops.repeat(nan, size, axis=1)
        elif name in columns.vectors:
            value = _vectors(name, y[name], size)
        else:
            value = _column(name, y[name])
        if used is not None:
            value = ops.where(used, value, ops.full_like(value, float("nan")))
        teachers[name] = value
    return Targets(labels, teachers)


def check_arrays(y: Any, weight: Any, columns: Columns, of_clicks: bool) -> None:
    """Looks at targets that come as arrays, before a step is made of them.

    Args:
        y: The targets.
        weight: Weights of the rows, `None` or anything else than an array: all count.
        columns: The keys.
        of_clicks: Whether labels are to lie in 0..1.

    Raises:
        ValueError: For a label outside of 0..1.
    """
    keys = list(columns.labels.values())
    if not isinstance(y, Mapping):
        y = {keys[0]: y}
    if keys[0] not in y:  # With several tasks, `label` may stand for the first one's.
        keys[0] = "label"
    weights = _numbers(weight)
    for key in keys if of_clicks else ():
        label = _numbers(y.get(key))
        counts = weights > 0 if weights.shape == label.shape else True
        bad = np.flatnonzero(((label < 0) | (label > 1)) & counts)
        if bad.size:
            raise ValueError(
                f"`{key}` should hold numbers from 0 to 1, or NaN where a label is not known. "
                f"Received: {label[bad[0]]:g} in row {bad[0]} ({bad.size} such rows)"
            )
    for name in columns.scalars:
        logit = _numbers(y.get(name))
        logit = logit[~np.isnan(logit)]
        if looks_like_probabilities(logit):
            warnings.warn(
                f"All {logit.size} values of `{name}` lie between 0 and 1. If they are "
                "probabilities, pass logits: log(p / (1 - p)).",
                stacklevel=3,
            )


def _numbers(value: Any) -> np.ndarray:
    """One number a row, where it is an array of such; else none."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return value.reshape(-1)
    return np.empty(0)


def _weight(sample_weight: Any, key: str) -> Any:
    if isinstance(sample_weight, Mapping):
        # Keras copies the one weight array of `fit(x, y, sample_weight=...)` to every key of `y`.
        sample_weight = sample_weight.get(key)
    return None if sample_weight is None else _column("sample_weight", sample_weight)


def unpack(data: Any, columns: Columns) -> Targets:
    """The targets of `(x, y, sample_weight)`, as `train_step` receives it."""
    _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return split(y, sample_weight, columns)
