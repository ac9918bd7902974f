"""Data sets by name, for the command line."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from keras_exfm.datasets import globo
from keras_exfm.datasets._formats import FORMATS
from keras_exfm.datasets._writing import Progress
from keras_exfm.datasets.public_table import PublicTable
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
    path = _needed("globo", path)
    _check_options("globo", globo.prepare, options, without=("path", "out", "progress"))
    return globo.prepare(path, out, progress=progress, **options)


def _public(
    name: str,
    out: str | os.PathLike[str],
    path: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> DatasetInfo:
    path = _needed(name, path)
    _check_options(name, PublicTable, options, without=("name",), more=("check",))
    table = PublicTable(name, **{k: v for k, v in options.items() if k != "check"})
    return table.write(path, out, check=options.get("check", True), progress=progress)


def _needed(name: str, path: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    if path is None:
        raise ValueError(
            f"The data set {name!r} is made from files that do not come with this package. Pass "
            "their `path` (on the command line: --data DIR)."
        )
    return path


DATASETS: dict[str, Preparer] = {
    "synthetic": _synthetic,
    "globo": _globo,
    **{name: functools.partial(_public, name) for name in FORMATS},
}
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
        options: Further arguments: those of `SyntheticAds`, of `globo.prepare`, or of
            `PublicTable` and `check` of its `write`. Defaults to none.
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
    more: tuple[str, ...] = (),
) -> None:
    known = [p for p in (*inspect.signature(function).parameters, *more) if p not in without]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"The data set {name!r} has no options {unknown}. It has: {known}")
