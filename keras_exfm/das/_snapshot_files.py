"""Where the files of a snapshot store lie: a folder, or an fsspec URL."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import importlib.util
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class Files(Protocol):
    """Files by their path below the root; a file appears whole or not at all."""

    root: str

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; none if there is no such folder."""
        ...

    def holding(self, name: str) -> builtins.list[str]:
        """The folders that hold a file of this name, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Content of a small file."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file; replaces the one there."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Moves a local file or copies it to here."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file or a folder; none there is fine."""
        ...

    def local(self, name: str) -> Path | None:
        """Path of a file, or `None` where files are not on this machine."""
        ...

    def fetch(self, name: str, to: Path) -> None:
        """Copies a file to this machine."""
        ...

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps other writers out, where that can be had."""
        ...


class LocalFiles:
    """Files of a folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.path = Path(root)
        self.root = str(root)
        self.path.mkdir(parents=True, exist_ok=True)

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder."""
        try:
            return sorted(f.name for f in (self.path / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def holding(self, name: str) -> builtins.list[str]:
        """Folders with such a file."""
        return sorted(f.parent.name for f in self.path.glob(f"*/{name}"))

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Writes under a hidden name, then renames."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            partial.write_bytes(content)
            sync(partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        sync(file.parent)

    def put(self, source: Path, name: str) -> None:
        """Moves a file within this file system, else copies it."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, file)
        sync(file)
        sync(file.parent)

    def remove(self, name: str) -> None:
        """Removes a file or a folder."""
        file = self.path / name
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)

    def local(self, name: str) -> Path | None:
        """The file itself."""
        return self.path / name

    def fetch(self, name: str, to: Path) -> None:
        """Copies a file."""
        shutil.copyfile(self.path / name, to)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time, over processes of this machine."""
        try:
            import fcntl
        except ImportError:  # Windows: one writer is the user's task there.
            yield
            return
        with open(self.path / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class RemoteFiles:
    """Files below an fsspec URL such as `s3://bucket/teacher`."""

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        if importlib.util.find_spec("fsspec") is None:
            raise ImportError(
                f"{url}: stores that are not on a local disk need the package fsspec, and the one "
                "of the service: pip install 'keras-exfm[das]'"
            )
        import fsspec

        self.fs, path = fsspec.core.url_to_fs(url, **(options or {}))
        self.path = path.rstrip("/")
        self.root = url.rstrip("/")

    def _at(self, name: str) -> str:
        return posixpath.join(self.path, name) if name else self.path

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder."""
        # Another machine may have written since this one looked.
        self.fs.invalidate_cache(self._at(folder))
        try:
            found = self.fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(f.rstrip("/")) for f in found)

    def holding(self, name: str) -> builtins.list[str]:
        """Folders with such a file, by one listing."""
        self.fs.invalidate_cache(self.path)
        found = self.fs.glob(self._at(f"*/{name}"))
        return sorted(posixpath.basename(posixpath.dirname(f)) for f in found)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return self.fs.cat_file(self._at(name))

    def write(self, name: str, content: bytes) -> None:
        """One put; object stores show it whole."""
        self.fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
        self.fs.pipe_file(self._at(name), content)

    def put(self, source: Path, name: str) -> None:
        """Copies a file to the service."""
        self.fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
        self.fs.put_file(str(source), self._at(name))

    def remove(self, name: str) -> None:
        """Removes a file or all below a folder."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._at(name), recursive=True)

    def local(self, name: str) -> Path | None:
        """Nowhere on this machine."""
        return None

    def fetch(self, name: str, to: Path) -> None:
        """Downloads a file."""
        self.fs.get_file(self._at(name), str(to))

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Object stores have no locks: one publisher at a time is the user's task there."""
        return contextlib.nullcontext()


def sync(path: Path) -> None:
    """Makes sure that a power failure does not undo what is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
