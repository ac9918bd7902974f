"""Reading ahead in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
# How often a thread that waits for its reader looks whether there still is one.
_LOOK_S = 0.5


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items, up to `depth` of them made before they are asked for, by a thread of their own.

    An error comes where it would without the thread. The thread ends with the items, with this
    iterator, or with the program.

    Args:
        items: Makes the items; only the thread uses it.
        depth: Items that wait, at most.

    Example:

    >>> list(ahead(iter("ab"), depth=1))
    ['a', 'b']
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    left = threading.Event()
    reader = threading.current_thread()
    thread = threading.Thread(target=_fill, args=(items, waiting, left, reader), name="read-ahead")
    thread.start()
    try:
        while True:
            kind, content = waiting.get()
            if kind == "item":
                yield content
            elif kind == "error":
                raise content
            else:
                return
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            waiting.get_nowait()  # It need not wait for room.
        # The thread itself is here if what it does drops the last reference to this iterator.
        if thread is not threading.current_thread():
            thread.join()


def _fill(
    items: Iterator[Any],
    waiting: queue.Queue[tuple[str, Any]],
    left: threading.Event,
    reader: threading.Thread,
) -> None:
    try:
        for item in items:
            if not _put(waiting, ("item", item), left, reader):
                return
    except BaseException as error:
        _put(waiting, ("error", error), left, reader)
    else:
        _put(waiting, ("end", None), left, reader)


def _put(
    waiting: queue.Queue[tuple[str, Any]],
    entry: tuple[str, Any],
    left: threading.Event,
    reader: threading.Thread,
) -> bool:
    """Waits for room; `False` if nobody will read."""
    while not left.is_set():
        # The program lives as long as its main thread, and then its threads that are no daemons;
        # those that Python did not start count as daemons.
        if not threading.main_thread().is_alive() and (reader.daemon or not reader.is_alive()):
            return False
        try:
            waiting.put(entry, timeout=_LOOK_S)
            return True
        except queue.Full:
            continue
    return False
