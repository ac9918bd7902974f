"""Large tables piece by piece: no operation on a whole table needs a second one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

ELEMENTS = 2**22
"""Numbers in a piece (16 MiB of float32)."""

# Those whose values do not depend on the shape, so that a table may be drawn in pieces.
_PIECEWISE = (
    keras.initializers.RandomUniform,
    keras.initializers.RandomNormal,
    keras.initializers.TruncatedNormal,
)


def spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each piece of an array with this shape."""
    rows = shape[0]
    step = max(1, ELEMENTS // int(np.prod(shape[1:], dtype=int)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def pieces(
    initializer: Any, shape: tuple[int, ...], dtype: str, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, Any]] | None:
    """First row and values of the pieces of a large table, to be drawn one after the other.

    Keras' random initializers hold three to four times their result at once. Each piece has
    another seed, so a table drawn in pieces differs from one drawn by the initializer itself.

    Args:
        initializer: A Keras initializer.
        shape: Shape of the table.
        dtype: Its dtype.
        begin: Pieces that end before this row are left out. Defaults to `0`.
        end: Pieces that start at this row or after are left out. Defaults to `None`, the last row.

    Returns:
        `None` for a table of one piece, and for an initializer whose values depend on the shape
        or that is not known: these are to be called as they are.
    """
    seed = getattr(initializer, "seed", None)
    all_spans = list(spans(shape))
    if len(all_spans) == 1 or type(initializer) not in _PIECEWISE or not isinstance(seed, int):
        return None

    def draw() -> Iterator[tuple[int, Any]]:
        for number, (start, stop) in enumerate(all_spans):
            if stop <= begin or (end is not None and start >= end):
                continue
            config = {**initializer.get_config(), "seed": (seed + 1_000_003 * number) % 2**31}
            one = type(initializer).from_config(config)
            yield start, one((stop - start, *shape[1:]), dtype=dtype)

    return draw()


def save(store: Any, name: str, variable: Any, read: Any) -> None:
    """Writes a variable under `name`, or its pieces under `name.0`, `name.1` and so on.

    Args:
        store: What Keras hands to `save_own_variables`.
        name: Name of the entry.
        variable: The variable.
        read: Function of variable, start and stop to a NumPy array of these rows.
    """
    pieces = list(spans(tuple(variable.shape)))
    for number, (start, stop) in enumerate(pieces):
        key = name if len(pieces) == 1 else f"{name}.{number}"
        store[key] = read(variable, start, stop)


def names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The keys that `save` uses."""
    count = sum(1 for _ in spans(shape))
    return [name] if count == 1 else [f"{name}.{number}" for number in range(count)]


def load(store: Any, name: str, variable: Any, write: Any) -> None:
    """The inverse of `save`; `write` is a function of variable, start and a NumPy array."""
    shape = tuple(variable.shape)
    for key, (start, _) in zip(names(name, shape), spans(shape)):
        write(variable, start, np.asarray(store[key]))
