"""Published states of the teacher."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_MODEL = "model.keras"
_META = "snapshot.json"


class SnapshotError(ValueError):
    """A snapshot that is missing, damaged or cannot be loaded; names the file."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One published teacher.

    Attributes:
        id: Name, unique in its store; ids sort by publication.
        published_at: Milliseconds since the Unix epoch. The snapshot may score examples from
            then on.
        path: The `.keras` file.
        sha256: Checksum of the file.
        metadata: What the publisher noted, such as the last hour of training.
    """

    id: str
    published_at: int
    path: Path
    sha256: str
    metadata: dict[str, Any]

    def load(self, compile: bool = False) -> keras.Model:
        """The model, after a check of the file against its checksum.

        Keras loads in safe mode: nothing in the file is run as code.

        Raises:
            SnapshotError: If the file is missing, was altered, or is no Keras model.
        """
        import keras

        self.verify()
        try:
            return keras.saving.load_model(self.path, compile=compile, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise SnapshotError(f"{self.path}: cannot load the model: {error}") from error

    def verify(self) -> None:
        """Raises `SnapshotError` unless the file is there and as it was published."""
        if not self.path.is_file():
            raise SnapshotError(f"{self.path}: the snapshot's file is missing.")
        actual = _sha256(self.path)
        if actual != self.sha256:
            raise SnapshotError(
                f"{self.path}: damaged: SHA-256 expected {self.sha256}, received {actual}."
            )


class SnapshotStore:
    """A folder of teacher snapshots.

    A snapshot appears whole or not at all: it is written beside the store and renamed into it.

    Args:
        path: The folder; made if it does not exist.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> store = SnapshotStore("snapshots")
    >>> _ = store.publish(model, published_at=3_600_000)
    >>> store.latest(before=3_600_000).published_at
    3600000
    >>> store.latest(before=3_599_999) is None
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def publish(
        self, model: keras.Model, published_at: int, metadata: dict[str, Any] | None = None
    ) -> Snapshot:
        """Saves a model as the newest snapshot.

        Args:
            model: A Keras model whose prediction is a logit.
            published_at: Milliseconds since the Unix epoch, later than every snapshot's in the
                store. Publishing again at the newest one's time replaces it.
            metadata: JSON-serializable notes. Defaults to none.

        Raises:
            SnapshotError: If the store holds a later snapshot.
        """
        newest = self.latest()
        if newest is not None and newest.published_at > published_at:
            raise SnapshotError(
                f"{self.path}: snapshots are published in time order: {newest.id} is later than "
                f"published_at={published_at}."
            )
        name = f"{published_at:016d}"
        unfinished = self.path / f".{name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        model.save(unfinished / _MODEL)
        note = {
            "published_at": int(published_at),
            "sha256": _sha256(unfinished / _MODEL),
            "metadata": metadata or {},
        }
        (unfinished / _META).write_text(json.dumps(note, indent=1))
        final = self.path / name
        if final.exists():
            shutil.rmtree(final)
        os.replace(unfinished, final)
        return self._read(final)

    def list(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return [self._read(f) for f in sorted(self.path.glob("[0-9]*")) if f.is_dir()]

    def latest(self, before: int | None = None) -> Snapshot | None:
        """The newest snapshot that may score an example of this time, or `None`.

        Args:
            before: Milliseconds since the Unix epoch; a snapshot counts if it was published then
                or earlier. Defaults to `None`: the newest of all.
        """
        for folder in sorted(self.path.glob("[0-9]*"), reverse=True):
            if before is None or int(folder.name) <= before:
                return self._read(folder)
        return None

    def retire(self, before: int) -> int:
        """Deletes snapshots that no example from `before` (milliseconds) on can need.

        The newest snapshot published at or before that time stays, and all later ones.

        Returns:
            The number of deleted snapshots.
        """
        needed = self.latest(before)
        old = [s for s in self.list() if needed is not None and s.id < needed.id]
        for snapshot in old:
            shutil.rmtree(snapshot.path.parent)
        return len(old)

    @staticmethod
    def _read(folder: Path) -> Snapshot:
        try:
            note = json.loads((folder / _META).read_text())
            return Snapshot(
                id=folder.name,
                published_at=note["published_at"],
                path=folder / _MODEL,
                sha256=note["sha256"],
                metadata=note["metadata"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise SnapshotError(f"{folder / _META}: cannot read the snapshot: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
