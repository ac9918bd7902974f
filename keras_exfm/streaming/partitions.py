"""Raw partitions: impressions and label events as Parquet, one folder an hour."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.features import Schema
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError

IMPRESSIONS = "impressions"
LABELS = "labels"
_REQUIRED = {
    IMPRESSIONS: ("example_id", "timestamp", "vertical"),
    LABELS: ("example_id", "timestamp", "label"),
}


def write_impressions(root: str | os.PathLike[str], hour: int, table: pa.Table) -> Path:
    """Writes one hour of impressions, all or nothing; an earlier file of the hour is replaced.

    Args:
        root: Folder of the data set; the file is `root/impressions/hour=<hour>/part-0.parquet`.
        hour: `timestamp // 3_600_000` of every row.
        table: `example_id`, `timestamp`, `vertical`, optional `group` and `true_probability`, and
            the features.

    Raises:
        StreamError: For a missing column, no rows, or a timestamp of another hour.
    """
    return _write(Path(root), IMPRESSIONS, hour, table)


def write_labels(root: str | os.PathLike[str], hour: int, table: pa.Table) -> Path:
    """Writes one hour of label events: `example_id`, `timestamp` of the event, `label`.

    As `write_impressions`, but an hour without events may be empty.
    """
    return _write(Path(root), LABELS, hour, table)


def hours(root: str | os.PathLike[str], kind: str = IMPRESSIONS) -> list[int]:
    """The hours that have a folder, in time order."""
    found = (re.fullmatch(r"hour=(-?\d+)", f.name) for f in (Path(root) / kind).glob("hour=*"))
    return sorted(int(match[1]) for match in found if match)


def read_impressions(
    root: str | os.PathLike[str], hour: int, schema: Schema | None = None
) -> pa.Table:
    """One hour of impressions.

    Args:
        root: Folder of the data set.
        hour: The hour.
        schema: Features whose columns should be there. Defaults to `None`: any.

    Raises:
        StreamError: If the hour has no file or no row, a file cannot be read, or a column is
            missing; names the file.
    """
    table = _read(Path(root), IMPRESSIONS, hour, schema.names if schema else ())
    if table is None or not table.num_rows:
        raise StreamError(f"{Path(root) / IMPRESSIONS}: hour {hour} has no rows.")
    return table


def read_labels(root: str | os.PathLike[str], first: int, last: int) -> pa.Table:
    """The label events of the hours `first..last`, both included; hours without any are fine.

    Raises:
        StreamError: If a file cannot be read, a column is missing, or a label is no number from 0
            to 1; names the file.
    """
    kinds = pa.schema(
        [("example_id", pa.int64()), ("timestamp", pa.int64()), ("label", pa.float32())]
    )
    parts = []
    for hour in range(first, last + 1):
        table = _read(Path(root), LABELS, hour, ())
        if table is not None:
            parts.append(_cast(table.select(kinds.names), kinds, Path(root) / LABELS, hour))
    return pa.concat_tables(parts) if parts else kinds.empty_table()


def _write(root: Path, kind: str, hour: int, table: pa.Table) -> Path:
    file = root / kind / f"hour={hour}" / "part-0.parquet"
    missing = [name for name in _REQUIRED[kind] if name not in table.column_names]
    if missing:
        raise StreamError(
            f"{file}: missing columns {missing}. Received columns: {table.column_names}"
        )
    if kind == IMPRESSIONS and not table.num_rows:
        raise StreamError(f"{file}: an hour should have at least one row. Received none.")
    timestamp = table.column("timestamp").to_numpy()
    strangers = timestamp[timestamp // MS_PER_HOUR != hour]
    if len(strangers):
        raise StreamError(
            f"{file}: Column 'timestamp': expected milliseconds of hour {hour}. "
            f"Received {strangers[0]} ({len(strangers)} such rows)."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    # Hidden until complete: a reader never sees half a file, and a killed writer leaves none.
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, file)
    return file


def _read(root: Path, kind: str, hour: int, features: tuple[str, ...]) -> pa.Table | None:
    parts = []
    for file in sorted((root / kind / f"hour={hour}").glob("[!.]*.parquet")):
        try:
            table = pq.read_table(file, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise StreamError(f"{file}: cannot read the Parquet file: {error}") from error
        missing = [n for n in (*_REQUIRED[kind], *features) if n not in table.column_names]
        if missing:
            raise StreamError(
                f"{file}: missing columns {missing}. Received columns: {table.column_names}"
            )
        if parts and table.schema != parts[0].schema:
            raise StreamError(
                f"{file}: its columns differ from those of the hour's first file: "
                f"{_differences(parts[0].schema, table.schema)}"
            )
        parts.append(table)
    return pa.concat_tables(parts) if parts else None


def _differences(one: pa.Schema, other: pa.Schema) -> str:
    left, right = ({f.name: str(f.type) for f in schema} for schema in (one, other))
    return "; ".join(
        f"{name!r}: {left.get(name, 'absent')} and {right.get(name, 'absent')}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    )


def _cast(table: pa.Table, kinds: pa.Schema, root: Path, hour: int) -> pa.Table:
    where = root / f"hour={hour}"
    try:
        table = table.cast(kinds)
    except pa.ArrowInvalid as error:
        raise StreamError(f"{where}: {error}") from error
    for name in kinds.names:
        if table.column(name).null_count:
            raise StreamError(f"{where}: Column {name!r}: expected a value in every row.")
    label = table.column("label").to_numpy()
    # NaN fails this comparison as well.
    bad = label[~((label >= 0) & (label <= 1))]
    if len(bad):
        raise StreamError(
            f"{where}: Column 'label': expected numbers from 0 to 1. Received {bad[0]!r} "
            f"({len(bad)} such rows)."
        )
    return table
