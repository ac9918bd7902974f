"""Layers that take two tensors."""

from __future__ import annotations

from typing import Any


def pair_shapes(layer: Any, input_shape: Any, expected: str) -> tuple[tuple[Any, ...], ...]:
    """The shapes of an input `[(batch, a), (batch, b)]` with `a` and `b` known."""
    shapes = input_shape if isinstance(input_shape, (list, tuple)) else ()
    matrices = [
        tuple(shape)
        for shape in shapes
        if isinstance(shape, (list, tuple)) and len(shape) == 2 and shape[1] is not None
    ]
    if len(matrices) != 2 or len(shapes) != 2:
        raise ValueError(
            f"{type(layer).__name__} expects a list of two inputs {expected}. "
            f"Received: input_shape={input_shape}"
        )
    return tuple(matrices)
