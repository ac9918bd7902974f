"""Where files lie: a local folder, or any URL that fsspec knows."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.fs as pafs

from keras_exfm.streaming.columns import StreamError


def filesystem(
    root: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
) -> tuple[pafs.FileSystem, str]:
    """The file system of a folder, and the folder's path in it.

    Args:
        root: A local folder or a URL, such as `s3://bucket/folder`.
        storage_options: Arguments of fsspec's file system. Defaults to `None`.

    Raises:
        StreamError: For a URL whose protocol nothing here knows, naming what to install.
    """
    path = os.fspath(root)
    if "://" not in path:
        return pafs.LocalFileSystem(), path.rstrip("/") or "/"
    if path.startswith("file://"):
        local, inside = pafs.FileSystem.from_uri(path)
        return local, inside.rstrip("/")
    try:
        import fsspec
    except ImportError as error:
        raise StreamError(
            f"{path}: URLs are read through fsspec: pip install 'keras-exfm[das]'"
        ) from error
    try:
        found, inside = fsspec.core.url_to_fs(path, **(storage_options or {}))
    except (ImportError, ValueError) as error:
        raise StreamError(f"{path}: fsspec cannot open this URL: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(found)), inside.rstrip("/")


def is_local(files: pafs.FileSystem) -> bool:
    """Whether files are on this machine's own disk, where renaming a folder is atomic."""
    return isinstance(files, pafs.LocalFileSystem)


def join(root: str | os.PathLike[str], *names: str) -> str:
    """A place below `root`, for messages."""
    return "/".join([os.fspath(root).rstrip("/"), *names])


def listing(files: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies in a folder, by name; nothing if there is no such folder."""
    found = files.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(found, key=lambda info: info.base_name)
