"""Published states of the teacher."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.features import Schema

if TYPE_CHECKING:
    import keras

_MODEL = "model.keras"
_META = "snapshot.json"
_UNREADABLE = (
    ValueError,
    TypeError,
    OSError,
    KeyError,
    AttributeError,
    ImportError,
    zipfile.BadZipFile,
)


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
        made_with: Versions of Keras and keras_exfm, and the backend, that wrote it.
        schema: The features that the model reads, `Schema.to_dict`; `None` if it does not say.
    """

    id: str
    published_at: int
    path: Path
    sha256: str
    metadata: dict[str, Any]
    made_with: dict[str, str]
    schema: dict[str, Any] | None

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
        except _UNREADABLE as error:
            raise SnapshotError(f"{self.path}: cannot load the model: {error}") from error

    def load_weights(self, model: keras.Model) -> None:
        """Puts the snapshot's weights into a model of the same `architecture`.

        Raises:
            SnapshotError: As `load`.
        """
        self.verify()
        try:
            model.load_weights(self.path)
        except _UNREADABLE as error:
            raise SnapshotError(f"{self.path}: cannot load the weights: {error}") from error

    def architecture(self) -> str:
        """What the model is but for its weights: equal for two snapshots of one network."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                config = json.loads(archive.read("config.json"))
        except _UNREADABLE as error:
            raise SnapshotError(f"{self.path}: cannot read the model: {error}") from error
        # What it was compiled with, and its automatic name, do not change what it computes.
        for key in ("compile_config", "build_config"):
            config.pop(key, None)
        if isinstance(config.get("config"), dict):
            config["config"].pop("name", None)
        return json.dumps(config, sort_keys=True)

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

    A snapshot appears whole or not at all, and goes so: it is written under a hidden name and
    renamed. One process publishes and retires at a time; any number may read.

    Each is a folder `<published_at>/` with `model.keras` and `snapshot.json`.

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
            model: A Keras model whose prediction is a logit. Its features are noted if it has a
                `schema`, as the models of the zoo have.
            published_at: Milliseconds since the Unix epoch, later than every snapshot's in the
                store. Publishing again at the newest one's time replaces it.
            metadata: JSON-serializable notes. Defaults to none.

        Raises:
            SnapshotError: If the store holds a later snapshot.
        """
        import keras

        from keras_exfm import __version__

        if isinstance(published_at, bool) or not isinstance(published_at, (int, np.integer)):
            raise SnapshotError(
                "`published_at` should be whole milliseconds. "
                f"Received: published_at={published_at!r}"
            )
        times = self.times()
        if published_at < 0 or (times and times[-1] > published_at):
            than = f"{times[-1]} is later" if times else "the epoch is later"
            raise SnapshotError(
                f"{self.path}: snapshots are published in time order: {than} than "
                f"published_at={published_at}."
            )
        name = f"{published_at:016d}"
        for remains in self.path.glob(f".{name}.*"):
            shutil.rmtree(remains)
        unfinished = self.path / f".{name}.{os.getpid()}"
        unfinished.mkdir()
        model.save(unfinished / _MODEL)
        schema = getattr(model, "schema", None)
        note = {
            "published_at": int(published_at),
            "sha256": _sha256(unfinished / _MODEL),
            "bytes": (unfinished / _MODEL).stat().st_size,
            "made_with": {
                "keras": keras.__version__,
                "keras_exfm": __version__,
                "backend": keras.backend.backend(),
            },
            "schema": schema.to_dict() if isinstance(schema, Schema) else None,
            "metadata": metadata or {},
        }
        (unfinished / _META).write_text(json.dumps(note, indent=1))
        for file in (unfinished / _MODEL, unfinished / _META, unfinished):
            _sync(file)
        final = self.path / name
        if final.exists():
            self._remove(final)
        os.replace(unfinished, final)
        _sync(self.path)
        return self._read(final)

    def times(self) -> builtins.list[int]:
        """When each snapshot was published, in time order; reads no file."""
        return sorted(int(f.name) for f in self._folders())

    def list(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return [self._read(f) for f in self._folders()]

    def latest(self, before: int | None = None) -> Snapshot | None:
        """The newest snapshot that may score an example of this time, or `None`.

        Args:
            before: Milliseconds since the Unix epoch; a snapshot counts if it was published then
                or earlier. Defaults to `None`: the newest of all.
        """
        for folder in reversed(self._folders()):
            if before is None or int(folder.name) <= before:
                return self._read(folder)
        return None

    def retire(self, before: int) -> int:
        """Deletes snapshots that no example from `before` (milliseconds) on can need.

        The newest snapshot published at or before that time stays, and all later ones.

        Returns:
            The number of deleted snapshots.
        """
        times = self.times()
        needed = max((time for time in times if time <= before), default=None)
        old = [time for time in times if needed is not None and time < needed]
        for time in old:
            self._remove(self.path / f"{time:016d}")
        return len(old)

    def _folders(self) -> builtins.list[Path]:
        return sorted(f for f in self.path.glob("[0-9]*") if f.name.isdigit() and f.is_dir())

    @staticmethod
    def _remove(folder: Path) -> None:
        """Out of sight first: a reader, or a killed process, sees no half of it."""
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
        shutil.rmtree(gone)

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
                made_with=note.get("made_with", {}),
                schema=note.get("schema"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(f"{folder / _META}: cannot read the snapshot: {error}") from error


def _sync(path: Path) -> None:
    """Makes sure that a power failure does not undo what is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
