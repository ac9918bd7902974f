"""Large tables piece by piece: no operation on a whole table needs a second one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_exfm.layers._initializers import StackedInitializer

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
    if len(list(spans(shape))) == 1:
        return None
    sections = [(shape[0], initializer)]
    if isinstance(initializer, StackedInitializer):
        sections = initializer.sections
    elif not _piecewise(initializer):
        return None

    def wanted(start: int, stop: int) -> bool:
        return stop > begin and (end is None or start < end)

    def draw() -> Iterator[tuple[int, Any]]:
        first = 0
        for rows, one in sections:
            section = (rows, *shape[1:])
            if _piecewise(one):
                for number, (start, stop) in enumerate(spans(section)):
                    if not wanted(first + start, first + stop):
                        continue
                    config = {**one.get_config(), "seed": (one.seed + 1_000_003 * number) % 2**31}
                    piece = type(one).from_config(config)
                    yield first + start, piece((stop - start, *shape[1:]), dtype=dtype)
            elif wanted(first, first + rows):
                yield first, one(section, dtype=dtype)
            first += rows

    return draw()


def _piecewise(initializer: Any) -> bool:
    seed = getattr(initializer, "seed", None)
    return type(initializer) in _PIECEWISE and isinstance(seed, int)


def save(store: Any, name: str, shape: tuple[int, ...], read: Any) -> None:
    """Writes an array under `name`, or its pieces under `name.0`, `name.1` and so on.

    Args:
        store: What Keras hands to `save_own_variables`.
        name: Name of the entry.
        shape: Shape of the array.
        read: Function of first and last row, exclusive, to a NumPy array of these rows.
    """
    for key, (start, stop) in zip(names(name, shape), spans(shape)):
        store[key] = read(start, stop)


def names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The keys that `save` uses."""
    count = sum(1 for _ in spans(shape))
    return [name] if count == 1 else [f"{name}.{number}" for number in range(count)]


def load(store: Any, name: str, shape: tuple[int, ...], write: Any) -> None:
    """The inverse of `save`; `write` is a function of the first row and a NumPy array."""
    pieces = [(key, start, stop) for key, (start, stop) in zip(names(name, shape), spans(shape))]
    # Looking at a shape reads the piece, so only those two are looked at that can differ.
    for key, start, stop in dict.fromkeys((pieces[0], pieces[-1])):
        expected = (stop - start, *shape[1:])
        if tuple(store[key].shape) != expected:
            raise ValueError(
                f"{key!r} should have the shape {expected}. Received: {tuple(store[key].shape)}. "
                "The file was written with another table."
            )
    for key, start, _ in pieces:
        write(start, np.asarray(store[key]))
