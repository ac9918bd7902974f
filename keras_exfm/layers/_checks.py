"""Argument checks that the layers and the models share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def positive_int(name: str, value: Any) -> int:
    """`value` as an `int` of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` should be an integer of at least 1. Received: {name}={value!r}")
    return int(value)


def unit_counts(name: str, value: Any, *, minimum_length: int = 0) -> tuple[int, ...]:
    """`value` as a tuple of positive layer widths."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(
            f"`{name}` should be a list or tuple of positive integers. Received: {name}={value!r}"
        )
    units = tuple(value)
    if len(units) < minimum_length:
        raise ValueError(
            f"`{name}` should hold at least {minimum_length} width(s). Received: {name}={value!r}"
        )
    return tuple(positive_int(f"{name}[{i}]", u) for i, u in enumerate(units))


def probability(name: str, value: Any) -> float:
    """A number strictly between 0 and 1."""
    # Real, not float: the mean of float32 labels is a NumPy scalar.
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if isinstance(value, bool) or not 0 < number < 1:
        raise ValueError(
            f"`{name}` should be a probability between 0 and 1. Received: {name}={value!r}"
        )
    return number


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` should be one of {allowed}. Received: {name}={value!r}")
    return value


def dropout_rate(name: str, value: Any) -> float:
    """`value` as a dropout rate in [0, 1)."""
    number = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"`{name}` should be in [0, 1). Received: {name}={value!r}")
    return float(value)


def embedding_matrix_shape(layer: Any, input_shape: Any) -> tuple[int, int]:
    """`(n, dim)` of an input `(batch, n, dim)`."""
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[1] is None or shape[2] is None or 0 in shape[1:]:
        raise ValueError(
            f"{type(layer).__name__} expects an input of shape (batch, n, dim) with n and dim "
            f"known and positive. Received: input_shape={shape}"
        )
    return int(shape[1]), int(shape[2])


def integer_ids(inputs: Any, names: Iterable[str]) -> None:
    """Refuses numbers with a fraction where ids are read: Keras would cut them to integers.

    Args:
        inputs: What a model is called with; anything but a dict is left to Keras.
        names: Its inputs that hold ids.
    """
    if not isinstance(inputs, Mapping):
        return
    for name in names:
        dtype = str(getattr(inputs.get(name), "dtype", ""))
        if "float" in dtype:
            raise ValueError(
                f"Input {name!r}: expected integer ids. Received: {dtype}. `Schema.encode` makes "
                "ids of a column, missing values (NaN) included."
            )
