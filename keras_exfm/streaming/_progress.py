"""How far the training on a stream has come: what reader and checkpoint share."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any


@dataclasses.dataclass(frozen=True)
class Position:
    """A place in a dataset of `read`, between two batches.

    Attributes:
        batches: Batches of the dataset before this place.
        repeat: Which of the dataset's own passes it lies in.
        hour: Hour of the next row, or the last row's if that hour is used up. `None`: the start.
        row: Rows of this hour (of the verticals that are read) before this place.
    """

    batches: int = 0
    repeat: int = 0
    hour: int | None = None
    row: int = 0


class Progress:
    """Where a dataset begins, and the places that its batches end at.

    A reader runs ahead of the training by what `tf.data` prefetches, so it notes the place after
    each batch, and the checkpoint asks for that of the last batch trained on.

    Args:
        stream: What tells this stream and the way it is read from any other, as JSON has it.
        start: Where the next pass over the dataset begins.
    """

    def __init__(self, stream: dict[str, Any], start: Position) -> None:
        self.stream = stream
        self.start = start
        # Batches of a whole pass that the dataset states, and as the reader found them.
        self.stated: int | None = None
        self.length: int | None = None
        self._places: dict[int, Position] = {}
        self._lock = threading.Lock()

    @property
    def follows(self) -> bool:
        """Whether the dataset waits for hours that are committed later."""
        return bool(self.stream.get("follow"))

    def note(self, place: Position) -> None:
        """Keeps the place after a batch, before the batch is handed out."""
        with self._lock:
            self._places[place.batches] = place

    def after(self, batches: int) -> Position | None:
        """The place after so many batches, and forgets those before it."""
        with self._lock:
            for number in [n for n in self._places if n < batches]:
                del self._places[number]
            return self._places.get(batches)
