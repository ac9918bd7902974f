"""Published states of the teacher."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from keras_exfm.das import _safe_keras, _safe_onnx, _safe_saved_model
from keras_exfm.das._snapshot_files import Files, LocalFiles, RemoteFiles, sha256
from keras_exfm.features import Schema

if TYPE_CHECKING:
    import keras

Format = Literal["keras", "saved_model", "onnx"]

_META = "snapshot.json"
_LAYOUT = 2
_PINS = "pins"
_WORK = ".unfinished-"
_MAIN = {"keras": "model.keras", "saved_model": "saved_model.pb", "onnx": "model.onnx"}
_UNREADABLE = (
    ValueError,
    TypeError,
    OSError,
    KeyError,
    AttributeError,
    ImportError,
    zipfile.BadZipFile,
)
_log = logging.getLogger(__name__)


class SnapshotError(ValueError):
    """A snapshot that is missing, damaged or cannot be loaded; names the file."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One published teacher.

    Attributes:
        id: Name, unique in its store; ids sort by publication.
        published_at: Milliseconds since the Unix epoch. The snapshot may score examples from
            then on.
        path: The `.keras` or `.onnx` file, or the folder of the SavedModel. Of a store at a URL:
            where `fetch` puts it.
        sha256: Checksum of its files.
        metadata: What the publisher noted, such as the last hour of training.
        made_with: Versions of Keras and keras_exfm, and the backend, that wrote it.
        schema: The features that the model reads, `Schema.to_dict`; `None` if it does not say.
        format: `"keras"`, `"saved_model"` or `"onnx"`. Defaults to `"keras"`.
        files: Path of each file below the snapshot's folder -> its SHA-256 and size.
        trusted_packages: Packages of registered Keras classes that `load` may use.
    """

    id: str
    published_at: int
    path: Path
    sha256: str
    metadata: dict[str, Any]
    made_with: dict[str, str]
    schema: dict[str, Any] | None
    format: Format = "keras"
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    trusted_packages: tuple[str, ...] = ("keras_exfm",)
    _remote: tuple[Files, str] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder of `files`."""
        return self.path if self.format == "saved_model" else self.path.parent

    def load(self, compile: bool = False) -> keras.Model:
        """The Keras model, after a check of the file against its checksum.

        Nothing in the file is run as code. It may name modelling parts of Keras, and the
        registered classes of `trusted_packages`; a file that names more is refused.

        Raises:
            SnapshotError: If the file is missing, was altered, is no Keras model, or names what
                is not trusted.
        """
        import keras

        self._keras_alone("load")
        self.verify()
        try:
            _safe_keras.check(self.path, self.trusted_packages)
            return keras.saving.load_model(self.path, compile=compile, safe_mode=True)
        except _UNREADABLE as error:
            raise SnapshotError(f"{self.path}: cannot load the model: {error}") from error

    def load_weights(self, model: keras.Model) -> None:
        """Puts the snapshot's weights into a model of the same `architecture`.

        Raises:
            SnapshotError: As `load`.
        """
        self._keras_alone("load_weights")
        self.verify()
        try:
            model.load_weights(self.path)
        except _UNREADABLE as error:
            raise SnapshotError(f"{self.path}: cannot load the weights: {error}") from error

    def architecture(self) -> str:
        """What the model is but for its weights: equal for two snapshots of one network."""
        self._keras_alone("architecture")
        self.fetch()
        try:
            config = _safe_keras.read_config(self.path)
        except _UNREADABLE as error:
            self.verify()  # says what is wrong, where the file is not as it was published
            raise SnapshotError(f"{self.path}: cannot read the model: {error}") from error
        # What it was compiled with, and its automatic name, do not change what it computes.
        for key in ("compile_config", "build_config"):
            config.pop(key, None)
        if isinstance(config.get("config"), dict):
            config["config"].pop("name", None)
        return json.dumps(config, sort_keys=True)

    def fetch(self) -> Path:
        """`path`, with its files on this machine: those of a store at a URL are downloaded once.

        Raises:
            SnapshotError: If a file is gone or cannot be read.
        """
        if self._remote is None or self.folder.is_dir():
            return self.path
        store, prefix = self._remote
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{self.id}.", dir=self.folder.parent))
        try:
            for name in self.files:
                file = partial / name
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    store.fetch(f"{prefix}/{name}", file)
                except FileNotFoundError as error:
                    raise SnapshotError(_gone(f"{store.root}/{prefix}/{name}")) from error
                except OSError as error:
                    raise SnapshotError(
                        f"{store.root}/{prefix}/{name}: cannot read: {error}"
                    ) from error
                self._check(name, file, f"{store.root}/{prefix}/{name}")
            try:
                os.rename(partial, self.folder)
            except OSError:
                if not self.folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return self.path

    def verify(self) -> None:
        """Raises `SnapshotError` unless its files are there and as they were published."""
        self.fetch()
        for name in self.files:
            file = self.folder / name
            self._check(name, file, str(file))
        if self.format == "saved_model":
            present = {
                str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()
            }
            strange = sorted(present - set(self.files))
            if strange:
                raise SnapshotError(
                    f"{self.folder}: holds files that were not published: {strange}"
                )

    def verify_program(self) -> None:
        """Raises `SnapshotError` if a SavedModel or ONNX snapshot would do more than compute.

        A SavedModel's graph may hold operations that read and write files or run Python, an ONNX
        model may name files; `load` does this for Keras.
        """
        self.verify()
        try:
            if self.format == "saved_model":
                _safe_saved_model.check(self.folder)
            elif self.format == "onnx":
                _safe_onnx.check(self.path, set(self.files))
            else:
                _safe_keras.check(self.path, self.trusted_packages)
        except ImportError:
            raise
        except Exception as error:
            raise SnapshotError(f"{self.path}: cannot load the model: {error}") from error

    def copy(self, to: str | os.PathLike[str]) -> Snapshot:
        """A copy that outlives the store's: its files are put into `to/<id>/`.

        Raises:
            SnapshotError: As `verify`.
        """
        self.verify()
        folder = Path(to) / self.id
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{self.id}.", dir=folder.parent))
        try:
            for name in self.files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(self.folder / name, partial / name)
                except FileNotFoundError as error:
                    raise SnapshotError(_gone(str(self.folder / name))) from error
            if folder.is_dir():
                shutil.rmtree(folder)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        path = folder if self.format == "saved_model" else folder / self.path.name
        copied = dataclasses.replace(self, path=path, _remote=None)
        copied.verify()
        return copied

    def _keras_alone(self, what: str) -> None:
        if self.format != "keras":
            raise SnapshotError(
                f"{self.path}: `{what}` is for Keras snapshots. This one's format is "
                f"{self.format!r}; das.SnapshotScorer scores with it."
            )

    def _check(self, name: str, file: Path, said: str) -> None:
        note = self.files[name]
        try:
            size = file.stat().st_size
            actual = sha256(file)
        except FileNotFoundError as error:
            raise SnapshotError(_gone(said)) from error
        if size != note["bytes"]:
            raise SnapshotError(
                f"{said}: damaged: expected {note['bytes']} bytes. Received: {size}"
            )
        if actual != note["sha256"]:
            raise SnapshotError(
                f"{said}: damaged: SHA-256 expected {note['sha256']}, received {actual}."
            )


class SnapshotStore:
    """A store of teacher snapshots: a folder, or a URL that fsspec knows.

    A snapshot appears whole or not at all, and goes so: its files are written first, under a name
    of their own, then `<id>/snapshot.json`, which makes it visible, in one step. It holds the
    checksum of every file and of itself, the schema, and where the snapshot came from. Any number
    of processes may read; writers on one machine take turns, writers of a store at a URL must be
    one at a time.

    Args:
        path: The folder, made if it does not exist, or a URL such as `s3://bucket/teacher`.
        cache: Of a store at a URL: the folder that snapshots are downloaded to. Defaults to
            `None`, `keras_exfm/snapshots` in the user's cache folder.
        storage_options: Of a store at a URL: what fsspec's file system takes. Defaults to `None`.
        trusted_packages: Packages of `keras.saving.register_keras_serializable` whose classes a
            snapshot may hold, beside Keras's own. Defaults to `("keras_exfm",)`.

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

    def __init__(
        self,
        path: str | os.PathLike[str],
        cache: str | os.PathLike[str] | None = None,
        storage_options: dict[str, Any] | None = None,
        trusted_packages: Sequence[str] = ("keras_exfm",),
    ) -> None:
        self.trusted_packages = tuple(trusted_packages)
        self._files: Files
        if re.match(r"[a-z][a-z0-9+.-]+://", str(path)) and not str(path).startswith("file://"):
            self._files = RemoteFiles(str(path), storage_options)
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            name = hashlib.sha256(self._files.root.encode()).hexdigest()[:16]
            self._cache = Path(cache or Path(base) / "keras_exfm" / "snapshots") / name
        else:
            self._files = LocalFiles(str(path).removeprefix("file://"))
            self._cache = Path(self._files.root)
        self.path: str | Path = (
            Path(self._files.root) if isinstance(self._files, LocalFiles) else self._files.root
        )

    def publish(
        self,
        model: keras.Model | str | os.PathLike[str],
        published_at: int | None = None,
        metadata: dict[str, Any] | None = None,
        *,
        schema: Schema | None = None,
        trained_until: int | None = None,
    ) -> Snapshot:
        """Saves a model as the newest snapshot.

        Args:
            model: A Keras model whose prediction is a logit, or the path of a `.keras` or `.onnx`
                file (its external data beside it), or of a SavedModel's folder.
            published_at: Milliseconds since the Unix epoch, later than every snapshot's in the
                store. Publishing again at the newest one's time replaces it. Defaults to `None`:
                now; where the clock was put back, one millisecond after the newest snapshot, so
                that no snapshot is dated before it was there.
            metadata: JSON-serializable notes. Defaults to none.
            schema: The features that the model reads. Defaults to `None`, the model's own
                `schema`, as the models of the zoo have it.
            trained_until: Time of the last label that the model has learned from, milliseconds.
                Defaults to `None`, not known.

        Raises:
            SnapshotError: If the store holds a later snapshot, the model has learned from later
                than `published_at`, it is a model object that ends in a sigmoid, or its file is
                none that could be loaded.
        """
        import keras

        from keras_exfm import __version__
        from keras_exfm.losses._probabilities import probability_layer

        self._check_time("published_at", published_at)
        if trained_until is not None:
            self._check_time("trained_until", trained_until)
        # On the store's own disk, if it has one: from there the files only change their name.
        home = self.path if isinstance(self.path, Path) else None
        # Of several outputs, the job says which one is the logit.
        alone = isinstance(model, keras.Model) and len(getattr(model, "outputs", None) or ()) == 1
        layer = probability_layer(model) if alone else None
        if layer is not None:
            raise SnapshotError(
                "`model` should predict a logit. Received: a model whose last layer, "
                f"{layer!r}, makes it a probability. Publish the model up to what that layer "
                "squashes, such as a Dense without an activation."
            )
        with tempfile.TemporaryDirectory(prefix=f"{_WORK}{_process()}-", dir=home) as work:
            folder = Path(work)
            kind = self._materialize(model, folder)
            schema = schema or getattr(model, "schema", None)
            names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
            files = {
                name: {
                    "sha256": sha256(folder / name),
                    "bytes": (folder / name).stat().st_size,
                }
                for name in names
            }
            note = {
                "layout": _LAYOUT,
                "format": kind,
                "sha256": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
                "made_with": {
                    "keras": keras.__version__,
                    "keras_exfm": __version__,
                    "backend": keras.backend.backend(),
                },
                "schema": schema.to_dict() if isinstance(schema, Schema) else None,
                "metadata": metadata or {},
                "trained_until": trained_until,
                "files": files,
            }
            # Nothing that cannot be read back is published.
            draft = self._snapshot("draft", {**note, "published_at": 0}, folder)
            draft.verify_program()
            with self._files.lock():
                time = self._next_time(published_at)
                if trained_until is not None and trained_until > time:
                    raise SnapshotError(
                        f"{self.path}: a model that has learned from labels up to "
                        f"trained_until={trained_until} would leak them into examples from "
                        f"published_at={time} on."
                    )
                return self._install(f"{time:016d}", {**note, "published_at": time}, folder)

    def times(self) -> builtins.list[int]:
        """When each snapshot was published, in time order; reads no file."""
        return [int(name) for name in self._ids()]

    def list(self) -> builtins.list[Snapshot]:
        """All snapshots, oldest first."""
        return [self._read(name) for name in self._ids()]

    def latest(self, before: int | None = None) -> Snapshot | None:
        """The newest snapshot that may score an example of this time, or `None`.

        Args:
            before: Milliseconds since the Unix epoch; a snapshot counts if it was published then
                or earlier. Defaults to `None`: the newest of all.
        """
        for name in reversed(self._ids()):
            if before is None or int(name) <= before:
                return self._read(name)
        return None

    def get(self, id: str) -> Snapshot:
        """The snapshot of this id.

        Raises:
            SnapshotError: If there is none.
        """
        if id not in self._ids():
            raise SnapshotError(_gone(f"{self._files.root}/{id}/{_META}"))
        return self._read(id)

    def pin(self, snapshot: Snapshot | str, holder: str) -> Snapshot:
        """Keeps a snapshot from `retire` until `unpin`, by the name of who needs it.

        For a copy that outlives even a deletion by hand, see `Snapshot.copy`.

        Args:
            snapshot: The snapshot or its id.
            holder: Who needs it: letters, digits, `.`, `_` and `-`.

        Raises:
            SnapshotError: If it is gone.
        """
        name = snapshot if isinstance(snapshot, str) else snapshot.id
        file = self._pin_file(name, holder)
        self._files.write(file, b"")
        # After the pin, so that a `retire` that runs meanwhile is seen here, or sees the pin.
        try:
            return self.get(name)
        except SnapshotError:
            self._files.remove(file)
            raise

    def unpin(self, snapshot: Snapshot | str, holder: str) -> None:
        """Takes a pin away; none there is fine."""
        name = snapshot if isinstance(snapshot, str) else snapshot.id
        self._files.remove(self._pin_file(name, holder))
        if not self._files.list(f"{_PINS}/{name}"):
            self._files.remove(f"{_PINS}/{name}")

    def pins(self) -> dict[str, builtins.list[str]]:
        """Snapshot id -> who has pinned it."""
        found = {name: self._files.list(f"{_PINS}/{name}") for name in self._files.list(_PINS)}
        return {name: holders for name, holders in found.items() if holders}

    def retire(self, before: int) -> int:
        """Deletes snapshots that no example from `before` (milliseconds) on can need.

        The newest snapshot published at or before that time stays, and all later ones, and those
        that are pinned.

        Returns:
            The number of deleted snapshots.
        """
        with self._files.lock():
            self._sweep()
            times = self.times()
            needed = max((time for time in times if time <= before), default=None)
            old = [time for time in times if needed is not None and time < needed]
            gone = 0
            for time in old:
                name = f"{time:016d}"
                if self._files.list(f"{_PINS}/{name}"):
                    continue
                note = self._files.read(f"{name}/{_META}")
                # Invisible first: a reader, or a killed process, sees no half of it.
                self._files.remove(f"{name}/{_META}")
                if self._files.list(f"{_PINS}/{name}"):
                    self._files.write(f"{name}/{_META}", note)
                    continue
                self._files.remove(name)
                gone += 1
            return gone

    def _check_time(self, name: str, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise SnapshotError(
                f"{self.path}: `{name}` should be whole milliseconds since the epoch. "
                f"Received: {name}={value!r}"
            )

    def _next_time(self, published_at: int | None) -> int:
        times = self.times()
        if published_at is None:
            now = time.time_ns() // 1_000_000
            if times and now <= times[-1]:
                _log.warning(
                    "%s: the clock says %d, the newest snapshot %d: dated one millisecond after "
                    "it. Was the clock put back?",
                    self.path,
                    now,
                    times[-1],
                )
                return times[-1] + 1
            return now
        if times and times[-1] > published_at:
            raise SnapshotError(
                f"{self.path}: snapshots are published in time order: {times[-1]} is later than "
                f"published_at={published_at}."
            )
        return int(published_at)

    def _materialize(self, model: Any, folder: Path) -> Format:
        """Puts the model's files into a folder."""
        import keras

        if isinstance(model, keras.Model):
            try:
                model.save(folder / _MAIN["keras"])
            except OSError as error:
                raise SnapshotError(f"{self.path}: cannot write the snapshot: {error}") from error
            return "keras"
        source = Path(model)
        try:
            if source.is_dir() and (source / _MAIN["saved_model"]).is_file():
                shutil.copytree(source, folder, dirs_exist_ok=True)
                return "saved_model"
            if source.is_file() and source.suffix == ".keras":
                shutil.copyfile(source, folder / _MAIN["keras"])
                return "keras"
            if source.is_file() and source.suffix == ".onnx":
                shutil.copyfile(source, folder / _MAIN["onnx"])
                for name in _safe_onnx.external_files(source):
                    beside = (source.parent / name).resolve()
                    if not beside.is_relative_to(source.parent.resolve()):
                        raise SnapshotError(f"{source}: reads a file outside its folder: {name}")
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(beside, folder / name)
                return "onnx"
        except (OSError, ValueError) as error:
            if isinstance(error, SnapshotError):
                raise
            raise SnapshotError(f"{source}: cannot publish: {error}") from error
        raise SnapshotError(
            "`model` should be a Keras model, a .keras or .onnx file, or the folder of a "
            f"SavedModel. Received: {model!r}"
        )

    def _install(self, name: str, note: dict[str, Any], folder: Path) -> Snapshot:
        token = uuid.uuid4().hex[:8]
        earlier = [f for f in self._files.list(name) if f != _META]
        note = {**note, "folder": token}
        note["checksum"] = _checksum(note)
        self._sweep()
        try:
            for file in note["files"]:
                self._files.put(folder / file, f"{name}/{token}/{file}")
            self._files.write(f"{name}/{_META}", json.dumps(note, indent=1).encode())
        except OSError as error:
            self._files.remove(f"{name}/{token}")
            raise SnapshotError(f"{self.path}: cannot write the snapshot: {error}") from error
        for remains in earlier:
            self._files.remove(f"{name}/{remains}")
        return self._read(name)

    def _sweep(self) -> None:
        """Removes what killed writers left; only with the lock held."""
        if not isinstance(self._files, LocalFiles):
            return
        visible = set(self._ids())
        for name in self._files.list():
            if (name.isdigit() and name not in visible) or _is_remains(name):
                self._files.remove(name)

    def _ids(self) -> builtins.list[str]:
        return [n for n in self._files.holding(_META) if len(n) == 16 and n.isdigit()]

    @staticmethod
    def _pin_file(name: str, holder: str) -> str:
        if not re.fullmatch(r"\d{16}", name):
            raise SnapshotError(f"A snapshot id has 16 digits. Received: {name!r}")
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", holder):
            raise SnapshotError(
                f"`holder` should be letters, digits, '.', '_' and '-'. Received: holder={holder!r}"
            )
        return f"{_PINS}/{name}/{holder}"

    def _read(self, name: str) -> Snapshot:
        file = f"{self._files.root}/{name}/{_META}"
        try:
            note = json.loads(self._files.read(f"{name}/{_META}"))
            stated = note.pop("checksum")
            if stated != _checksum(note) or note["published_at"] != int(name):
                raise ValueError("its content does not fit its checksum or its name")
            if note["layout"] != _LAYOUT:
                raise ValueError(f"layout {note['layout']}, expected {_LAYOUT}")
            token = note["folder"]
            if isinstance(self._files, LocalFiles):
                return self._snapshot(name, note, self._files.path / name / token)
            folder = self._cache / f"{name}-{note['sha256'][:16]}"
            return self._snapshot(name, note, folder, (self._files, f"{name}/{token}"))
        except FileNotFoundError as error:
            raise SnapshotError(_gone(file)) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(f"{file}: cannot read the snapshot: {error!r}") from error

    def _snapshot(
        self,
        name: str,
        note: dict[str, Any],
        folder: Path,
        remote: tuple[Files, str] | None = None,
    ) -> Snapshot:
        kind: Format = note["format"]
        for file in note["files"]:
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"a file outside the snapshot: {file!r}")
        return Snapshot(
            id=name,
            published_at=note["published_at"],
            path=folder if kind == "saved_model" else folder / _MAIN[kind],
            sha256=note["sha256"],
            metadata=note["metadata"],
            made_with=note["made_with"],
            schema=note["schema"],
            format=kind,
            files=note["files"],
            trusted_packages=self.trusted_packages,
            _remote=remote,
        )


def _gone(file: str) -> str:
    return (
        f"{file}: the snapshot's file is missing: retired or deleted while in use? "
        "`SnapshotStore.pin` keeps one, `Snapshot.copy` takes a copy."
    )


def _process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _is_remains(name: str) -> bool:
    """Whether a working folder is that of a process of this machine that has ended."""
    found = re.fullmatch(rf"{re.escape(_WORK + socket.gethostname())}-(\d+)-.*", name)
    if not found:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _checksum(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()
