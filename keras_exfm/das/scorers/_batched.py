"""Scoring in batches of one size, with a limit on a teacher's time."""

from __future__ import annotations

import abc
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_exfm.das.scorers.checks import (
    TeacherTimeout,
    check_inputs,
    checked_logits,
    checked_vectors,
)
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Schema
from keras_exfm.streaming.columns import StreamError

Batch = dict[str, np.ndarray]


class BatchedScorer(abc.ABC):
    """The part that all scorers of snapshots share; see the classes that derive from it."""

    def __init__(
        self,
        schema: Schema,
        batch_size: int = 1024,
        representation: str | None = None,
        representation_size: int | None = None,
        timeout: float | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("representation_size", 1)):
            _check_positive(name, value)
        if (representation is None) != (representation_size is None):
            raise ValueError(
                "`representation` and `representation_size` come together. Received: "
                f"representation={representation!r}, representation_size={representation_size!r}"
            )
        if representation_size is not None:
            _check_positive("representation_size", representation_size)
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`timeout` should be seconds above 0. Received: timeout={timeout!r}")
        self.schema = schema
        self.batch_size = batch_size
        self.representation = representation
        self.representation_size = representation_size
        self.timeout = timeout
        self._thread: _Thread | None = None

    @abc.abstractmethod
    def _prepare(self, snapshot: Snapshot) -> list[str]:
        """Makes the snapshot the one that `_predict` runs; the features that it reads."""

    @abc.abstractmethod
    def _predict(self, batch: Batch) -> tuple[Any, Any]:
        """Logits of a batch, and its vectors or `None`."""

    def score(self, features: Batch, snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits of the rows by this snapshot, NaN where they are not finite."""
        return self._score(features, snapshot)[0]

    def score_with_representation(
        self, features: Batch, snapshot: Snapshot | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and float16 `(rows, representation_size)` vectors."""
        if self.representation is None:
            raise StreamError(
                f"This {type(self).__name__} gives no vectors: pass `representation` and "
                "`representation_size`."
            )
        logits, vectors = self._score(features, snapshot)
        return logits, vectors

    def _score(self, features: Batch, snapshot: Snapshot | None) -> tuple[np.ndarray, np.ndarray]:
        if snapshot is None:
            raise StreamError(f"A {type(self).__name__} scores with a snapshot. Received: None")
        said = str(snapshot.path)
        names = self._within(lambda: self._prepare(snapshot), said, "loading")
        check_inputs(names, self.schema, snapshot)
        used = self.schema.select(names)
        rows = len(next(iter(features.values())))
        logits = np.empty(rows, np.float32)
        vectors = np.empty((rows, self.representation_size or 0), np.float16)
        for start in range(0, rows, self.batch_size):
            part = {n: features[n][start : start + self.batch_size] for n in used.names}
            size = len(part[used.names[0]])
            batch = {name: _filled(column, self.batch_size) for name, column in part.items()}
            found = self._within(lambda: self._predict(batch), said, "a batch")  # noqa: B023
            whole, _ = checked_logits(found[0], self.batch_size, said)
            logits[start : start + size] = whole[:size]
            if self.representation_size is not None:
                whole = checked_vectors(found[1], self.batch_size, self.representation_size, said)
                vectors[start : start + size] = whole[:size]
        return logits, vectors

    def _within(self, function: Callable[[], Any], teacher: str, what: str) -> Any:
        if self.timeout is None:
            return function()
        if self._thread is None:
            self._thread = _Thread()
        try:
            return self._thread.run(function, self.timeout)
        except TimeoutError:
            # Python cannot stop a thread: this one is left behind, and so is the model it may
            # still hold.
            self._thread = None
            self._forget()
            raise TeacherTimeout(
                f"Teacher {teacher}: no answer within timeout={self.timeout} s, for {what} of "
                f"{self.batch_size} rows."
            ) from None

    @abc.abstractmethod
    def _forget(self) -> None:
        """Drops the loaded model."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the model and the thread: a worker process loads its own."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, _thread=None)
        copied._forget()
        return copied.__dict__


class _Thread:
    """Runs functions one after the other; a daemon: a hanging one keeps no process from ending."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="teacher").start()

    def _work(self) -> None:
        while True:
            function, answer = self._tasks.get()
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))

    def run(self, function: Callable[[], Any], timeout: float) -> Any:
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks.put((function, answer))
        try:
            value, error = answer.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return value


def _filled(column: np.ndarray, size: int) -> np.ndarray:
    """One size of batch, so that a compiled teacher is compiled once.

    The last row is repeated: a teacher from elsewhere may know no row that means nothing.
    """
    return np.concatenate([column, np.repeat(column[-1:], size - len(column), axis=0)])


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` should be an integer of at least 1. Received: {value!r}")
