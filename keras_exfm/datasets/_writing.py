"""Writes a data set hour by hour, so that a second run goes on where a killed one stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from keras_exfm.streaming import partitions
from keras_exfm.streaming.columns import StreamError
from keras_exfm.streaming.partitions import DatasetInfo

_UNFINISHED = ".unfinished.json"


class Progress(Protocol):
    """Where a data set tells how far it is; the command line's progress bar fits."""

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` steps starts."""
        ...

    def step(self, done: int, note: str = "") -> None:
        """`done` steps of the current stage are through."""
        ...


class Silent:
    """Progress that nobody watches."""

    def begin(self, label: str, total: int) -> None:
        """Nothing."""

    def step(self, done: int, note: str = "") -> None:
        """Nothing."""


class DatasetWriter:
    """One data set in one folder.

    A note of what is being written lies in the folder until `finish`, so that the hours of two
    data sets never mix.

    Args:
        root: Folder of the data set.
        name: Name of the data set.
        parameters: What the rows depend on, JSON values.
        source: File name and SHA-256 of what the data are made from. Defaults to `None`.

    Raises:
        StreamError: If the folder holds other data.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        parameters: dict[str, Any],
        source: dict[str, str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.finished: DatasetInfo | None = None
        # As JSON gives it back: tuples are lists.
        what = json.loads(json.dumps({"name": name, "parameters": parameters, "source": source}))
        self._note = self.root / _UNFINISHED
        if (self.root / partitions.DESCRIPTION).exists():
            self.finished = DatasetInfo.read(self.root)
            self._compare(what, {key: getattr(self.finished, key) for key in what})
        elif self._note.exists():
            self._compare(what, json.loads(self._note.read_text()))
        elif any(partitions.hours(root, k) for k in (partitions.IMPRESSIONS, partitions.LABELS)):
            raise StreamError(
                f"{self.root}: the folder holds partitions that this data set did not write. "
                "Choose another folder or empty it."
            )
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            partial = self._note.with_name(f"{_UNFINISHED}.{os.getpid()}")
            partial.write_text(json.dumps(what))
            os.replace(partial, self._note)
        self._impressions = set(partitions.hours(root))
        self._events: dict[str, set[int]] = {}

    def has(self, hour: int) -> bool:
        """Whether the hour's impressions, which are written last, are there."""
        return hour in self._impressions

    def put(
        self,
        hour: int,
        impressions: pa.Table | None,
        labels: pa.Table | None,
        more: Mapping[str, pa.Table] | None = None,
    ) -> None:
        """Writes what the hour lacks; `None` and no impressions write nothing.

        `more` holds label events of further tasks, by their folder.
        """
        events = {} if labels is None else {partitions.LABELS: labels}
        for folder, table in {**events, **(more or {})}.items():
            if folder not in self._events:
                self._events[folder] = set(partitions.hours(self.root, folder))
            if hour not in self._events[folder]:
                partitions.write_labels(self.root, hour, table, folder=folder)
        if impressions is not None and impressions.num_rows and hour not in self._impressions:
            partitions.write_impressions(self.root, hour, impressions)

    def finish(self, info: DatasetInfo) -> DatasetInfo:
        """Writes `dataset.json`."""
        info.write(self.root)
        self._note.unlink(missing_ok=True)
        # As read back, so that a first and a repeated call return the same.
        return DatasetInfo.read(self.root)

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        differ = []
        for key in ours:
            mine, other = ours[key] or {}, theirs[key] or {}
            if isinstance(mine, dict) and isinstance(other, dict):
                # A sum that was not computed, to save a pass over the files, is no other one.
                unknown = {"sha256"} - (mine.keys() & other.keys())
                differ += [
                    f"{key}.{k}: {mine.get(k)!r} (there: {other.get(k)!r})"
                    for k in {**mine, **other}
                    if mine.get(k) != other.get(k) and k not in unknown
                ]
            elif mine != other:
                differ.append(f"{key}: {mine!r} (there: {other!r})")
        if differ:
            raise StreamError(
                f"{self.root}: the folder holds another data set: {'; '.join(differ)}. "
                "Choose another folder or remove it."
            )
