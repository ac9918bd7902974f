"""Reads the Globo.com click log from the files that the user has."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from keras_exfm.streaming.columns import StreamError

CONTEXT = {
    "click_environment": ("environment", 5),
    "click_deviceGroup": ("device", 6),
    "click_os": ("os", 23),
    "click_country": ("country", 12),
    "click_region": ("region", 29),
    "click_referrer_type": ("referrer", 8),
}
"""Column of the log -> feature name and number of ids."""

COLUMNS = ("user_id", "click_article_id", "click_timestamp", *CONTEXT)

_HINT = (
    "The Globo.com clicks do not come with this package (their terms forbid it): get 'News Portal "
    "User Interactions by Globo.com' from its publisher, then pass its Parquet or CSV file, or "
    "the folder of its clicks_hour_*.csv."
)


@dataclasses.dataclass
class Clicks:
    """The click log in time order; `article` counts articles by their first click."""

    user_id: np.ndarray
    article: np.ndarray
    time: np.ndarray
    context: dict[str, np.ndarray]
    article_id: np.ndarray
    first_click: np.ndarray


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The click files at `path`: itself, or those of a folder or of its `clicks/`."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise StreamError(f"{path}: no such file or folder. {_HINT}")
    for folder in (path, path / "clicks", path / "globo"):
        for pattern in ("clicks*.parquet", "clicks_hour_*.csv"):
            files = sorted(folder.glob(pattern))
            if files:
                return files
    raise StreamError(f"{path}: no clicks*.parquet or clicks_hour_*.csv there. {_HINT}")


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the files' contents one after another."""
    sha = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def read_clicks(files: Sequence[Path], start: int, end: int) -> Clicks:
    """The clicks of `start <= click_timestamp < end` (ms), in time order.

    Raises:
        StreamError: For a file that cannot be read, a missing column or a bad value; names the
            file, the column and the value.
    """
    columns = _concat([_read(file) for file in files])
    time = columns["click_timestamp"]
    keep = (time >= start) & (time < end)
    order = np.flatnonzero(keep)
    order = order[np.argsort(time[order], kind="stable")]
    if not len(order):
        found = f"{time.min()}..{time.max()}" if len(time) else "no clicks"
        raise StreamError(
            f"{files[0]}: no click between {start} and {end} ms. Received: {found}. {_HINT}"
        )
    time = time[order]
    article_id, first, article = np.unique(
        columns["click_article_id"][order], return_index=True, return_inverse=True
    )
    # By first click, so that clicks of the future change no number of the past.
    rank = np.empty(len(first), np.int64)
    by_time = np.argsort(first)
    rank[by_time] = np.arange(len(first))
    return Clicks(
        user_id=columns["user_id"][order],
        article=rank[article],
        time=time,
        context={
            feature: columns[column][order].astype(np.int32)
            for column, (feature, _) in CONTEXT.items()
        },
        article_id=article_id[by_time],
        first_click=time[first[by_time]],
    )


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        if file.suffix == ".csv":
            with open(file, "rb") as stream:
                header = stream.readline().decode("utf-8-sig").strip().split(",")
            names = [name.strip('"') for name in header]
        else:
            names = pq.read_schema(file).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise StreamError(
                f"{file}: missing columns {missing}. Expected: {list(COLUMNS)}. "
                f"Received: {names}. {_HINT}"
            )
        if file.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(include_columns=list(COLUMNS))
            table = pyarrow.csv.read_csv(file, convert_options=options)
        else:
            table = pq.read_table(file, columns=list(COLUMNS), partitioning=None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise StreamError(f"{file}: cannot be read: {error}") from error
    return {name: _integers(file, name, table.column(name)) for name in COLUMNS}


def _integers(file: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    if not pa.types.is_integer(column.type) and len(column):
        raise StreamError(
            f"{file}: column {name!r}: expected integers. Received type {column.type}"
        )
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise StreamError(
            f"{file}: column {name!r}: expected a value in every row; row {row} has none."
        )
    values = column.to_numpy().astype(np.int64)
    low, high = 0, CONTEXT[name][1] if name in CONTEXT else 2**53
    if name in ("user_id", "click_article_id"):
        high = 2**31
    bad = (values < low) | (values >= high)
    if bad.any():
        row = int(np.argmax(bad))
        raise StreamError(
            f"{file}: column {name!r}: expected values in {low}..{high - 1}. "
            f"Received {values[row]} in row {row} ({int(bad.sum())} such rows)."
        )
    return values


def _concat(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
