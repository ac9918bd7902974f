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


def named_inputs(inputs: Any, expected: Any) -> Any:
    """A model's inputs by their names, without further columns.

    Keras matches a dict by sorted position: with a column more, or one of another name, the model
    would read other features than its own. Floats given as ids it would cut to integers.

    Args:
        inputs: What the model is called with; anything but a dict is left to Keras.
        expected: Its inputs by name; anything but a dict is left to Keras as well.

    Raises:
        ValueError: For a missing input, or ids that come as floats.
    """
    if not isinstance(inputs, Mapping) or not isinstance(expected, Mapping):
        return inputs
    missing = [name for name in expected if name not in inputs]
    if missing:
        raise ValueError(
            f"Expected the inputs {list(expected)}. Missing: {missing}. Received: {list(inputs)}"
        )
    for name, tensor in expected.items():
        dtype = str(getattr(inputs[name], "dtype", ""))
        if "int" in tensor.dtype and "float" in dtype:
            raise ValueError(
                f"Input {name!r}: expected integer ids. Received: {dtype}. `Schema.encode` makes "
                "ids of a column, missing values (NaN) included."
            )
    return {name: inputs[name] for name in expected}


def loop_inputs(x: Any, expected: Any) -> None:
    """Refuses what the first step of `fit`, `evaluate` or `predict` would fail on.

    Keras leaves a model broken whose first step fails: on JAX it has taken the values out of the
    variables and does not put them back, so all that was learned is lost.

    Args:
        x: A dict of arrays, or a `tf.data.Dataset` whose elements begin with a dict; anything else
            is left to Keras.
        expected: The model's inputs by name; anything but a dict is left to Keras as well.

    Raises:
        ValueError: As `named_inputs`, and for another shape.
    """
    spec = getattr(x, "element_spec", None)
    if isinstance(spec, (tuple, list)) and spec:
        spec = spec[0]
    x = named_inputs(x if spec is None else spec, expected)
    if not isinstance(x, Mapping) or not isinstance(expected, Mapping):
        return
    for name, tensor in expected.items():
        shape = getattr(x[name], "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            continue
        # Keras adds and drops a last axis of 1 by itself.
        own, wanted = ([s for s in tuple(of)[1:] if s != 1] for of in (shape, tensor.shape))
        if None not in (*own, *wanted) and own != wanted:
            raise ValueError(
                f"Input {name!r}: expected the shape {('batch', *tuple(tensor.shape)[1:])}. "
                f"Received: {tuple(shape)}"
            )
