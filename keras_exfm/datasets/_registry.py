"""Data sets by name, for the command line."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from keras_exfm.datasets import globo
from keras_exfm.datasets._writing import Progress
from keras_exfm.datasets.synthetic import SyntheticAds
from keras_exfm.streaming.partitions import DatasetInfo


class Preparer(Protocol):
    """Writes a data set into `out` from the file or folder `path`, if it needs one."""

    def __call__(
        self,
        out: str | os.PathLike[str],
        path: str | os.PathLike[str] | None,
        options: Mapping[str, Any],
        progress: Progress | None,
    ) -> DatasetInfo:
        """Writes the data set and returns its description."""
        ...


def _synthetic(
    out: str | os.PathLike[str],
    path: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> DatasetInfo:
    if path is not None:
        raise ValueError(f"The data set 'synthetic' reads no files. Received: path={str(path)!r}")
    _check_options("synthetic", SyntheticAds, options)
    return SyntheticAds(**options).write(out, progress)


def _globo(
    out: str | os.PathLike[str],
    path: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> DatasetInfo:
    if path is None:
        raise ValueError(
            "The data set 'globo' is made from a file of clicks that does not come with this "
            "package. Pass its `path` (on the command line: --data DIR)."
        )
    _check_options("globo", globo.prepare, options, without=("path", "out", "progress"))
    return globo.prepare(path, out, progress=progress, **options)


DATASETS: dict[str, Preparer] = {"synthetic": _synthetic, "globo": _globo}
"""Name -> function that writes the data set."""


def prepare(
    name: str,
    out: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Writes a data set's impressions, label events and `dataset.json`.

    Args:
        name: A key of `DATASETS`.
        out: Folder to write to.
        path: File or folder that the data set is made from. Defaults to `None`.
        options: Further arguments: those of `SyntheticAds`, or of `globo.prepare`. Defaults to
            none.
        progress: Told how far it is. Defaults to `None`: silent.

    Raises:
        ValueError: For an unknown name or option.
        StreamError: For files that cannot be used, or if `out` holds other data.

    Example:

    >>> prepare("synthetic", "ads", options={"hours": 2, "examples_per_hour": 100}).name
    'synthetic'
    """
    if name not in DATASETS:
        raise ValueError(f"No data set {name!r}. There are: {sorted(DATASETS)}")
    return DATASETS[name](out, path, options or {}, progress)


def _check_options(
    name: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    without: tuple[str, ...] = (),
) -> None:
    known = [p for p in inspect.signature(function).parameters if p not in without]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"The data set {name!r} has no options {unknown}. It has: {known}")
