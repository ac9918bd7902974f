"""Chunks of rows cut into batches, some batches together in one array a column."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_exfm.features import PADDING, Numeric, Schema
from keras_exfm.streaming.columns import empty_array

Batch = dict[str, np.ndarray]
Place = tuple[int, int]
# Rows and batches that are handed on at once, at most; one batch if it is larger.
_ROWS = 65_536
_BATCHES = 64


class BlockBuilder:
    """Copies rows, as they come, to where TensorFlow takes them from.

    A block holds several batches as `(batches, batch_size, ...)`: each step from Python to
    TensorFlow costs about as much as reading a thousand rows.

    Args:
        schema: The features.
        batch_size: Rows per batch.
    """

    def __init__(self, schema: Schema, batch_size: int) -> None:
        self.schema = schema
        self.batch_size = batch_size
        self.capacity = batch_size * max(1, min(_BATCHES, _ROWS // batch_size))
        self._block: Batch = {}
        self._filled = 0
        self._places: list[Place] = []

    @property
    def batches(self) -> int:
        """Whole batches that can be taken."""
        return len(self._places)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another row."""
        return self._filled == self.capacity

    @property
    def rest(self) -> int:
        """Rows after the last whole batch."""
        return self._filled - len(self._places) * self.batch_size

    def add(self, chunk: Batch, start: int, hour: int, row: int) -> int:
        """Copies as many rows of a chunk as there is room for.

        Args:
            chunk: Column -> rows.
            start: The first one to copy.
            hour: Hour of the rows.
            row: Place of the chunk's first row within the hour.

        Returns:
            The number of rows copied.
        """
        count = min(len(chunk["label"]) - start, self.capacity - self._filled)
        if not self._block:
            self._block = {
                name: empty_array((self.capacity, *column.shape[1:]), column.dtype)
                for name, column in chunk.items()
            }
        for name, column in chunk.items():
            self._block[name][self._filled : self._filled + count] = column[start : start + count]
        # The ends of batches among these rows.
        for end in range(self.batch_size - self.rest, count + 1, self.batch_size):
            self._places.append((hour, row + start + end))
        self._filled += count
        return count

    def end(self, hour: int, row: int, drop: bool) -> None:
        """Fills the last batch up with rows that weigh nothing, or drops it."""
        rest = self.rest
        if not rest:
            return
        if drop:
            self._filled -= rest
            return
        until = self._filled + self.batch_size - rest
        for name, column in self._block.items():
            column[self._filled : until] = padding_of(name, column.dtype, self.schema)
        self._filled = until
        self._places.append((hour, row))

    def take(self) -> tuple[list[Place], Batch]:
        """The whole batches, and the place after each; what is left of a batch stays."""
        places, block, rest = self._places, self._block, self.rest
        whole = self._filled - rest
        self._places, self._block, self._filled = [], {}, 0
        if rest:
            self.add(
                {name: column[whole : whole + rest] for name, column in block.items()}, 0, 0, 0
            )
        size = self.batch_size
        return places, {
            name: column[:whole].reshape(whole // size, size, *column.shape[1:])
            for name, column in block.items()
        }


def padding_of(name: str, dtype: np.dtype, schema: Schema) -> Any:
    """What a column holds in a row that weighs nothing."""
    if name in ("label", "weight") or (name in schema and isinstance(schema[name], Numeric)):
        return 0
    return np.nan if dtype.kind == "f" else "" if dtype.hasobject else PADDING
