"""Raw partitions: impressions and label events as Parquet, one folder an hour, `dataset.json`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError

IMPRESSIONS = "impressions"
LABELS = "labels"
DESCRIPTION = "dataset.json"
_REQUIRED = {
    IMPRESSIONS: ("example_id", "timestamp", "vertical"),
    LABELS: ("example_id", "timestamp", "label"),
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says of the partitions beside it; it is written last.

    Args:
        name: Name of the data set.
        description: What the rows are, and what is artificial about them.
        schema: The features of the impressions.
        first_hour: First hour that has impressions.
        last_hour: Last hour that has impressions.
        label_window_hours: Hours after an impression in which its label event may come.
        verticals: The values of `vertical`.
        parameters: Arguments that the data were made with.
        source: File name and SHA-256 of what the data were made from. Defaults to `None`.
        statistics: Counts of what was kept and left out. Defaults to none.

    Example:

    >>> from keras_exfm.features import Categorical
    >>> info = DatasetInfo("toy", "Two hours.", Schema([Categorical("ad", 9)]), 0, 1, 6, ("feed",))
    >>> info.write("toy")
    >>> DatasetInfo.read("toy") == info
    True
    """

    name: str
    description: str
    schema: Schema
    first_hour: int
    last_hour: int
    label_window_hours: float
    verticals: tuple[str, ...]
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, str] | None = None
    statistics: dict[str, float] = dataclasses.field(default_factory=dict)

    def write(self, root: str | os.PathLike[str]) -> None:
        """Writes `root/dataset.json`, whole or not at all."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"schema": self.schema.to_dict(), "verticals": list(self.verticals)}
        file = Path(root) / DESCRIPTION
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{DESCRIPTION}.{uuid.uuid4().hex}")
        partial.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(partial, file)

    @classmethod
    def read(cls, root: str | os.PathLike[str]) -> DatasetInfo:
        """Reads `root/dataset.json`.

        Raises:
            StreamError: If it is missing (the data set is not finished) or not as `write` left it.
        """
        file = Path(root) / DESCRIPTION
        try:
            values = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise StreamError(
                f"{file}: no such file. It is written last: the data set is not finished, or "
                f"{os.fspath(root)!r} is not its folder."
            ) from error
        except ValueError as error:
            raise StreamError(f"{file}: not valid JSON: {error}") from error
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            received = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise StreamError(f"{file}: expected the keys {sorted(names)}. Received: {received}")
        try:
            values["schema"] = Schema.from_dict(values["schema"])
        except (SchemaError, KeyError, TypeError) as error:
            raise StreamError(f"{file}: `schema`: {error!r}") from error
        return cls(**{**values, "verticals": tuple(values["verticals"])})


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
    folder = Path(root) / IMPRESSIONS / f"hour={hour}"
    table = _read(Path(root), IMPRESSIONS, hour, schema.names if schema else ())
    if table is None and not folder.is_dir():
        held = hours(root)
        span = f"{held[0]}..{held[-1]}" if held else "none"
        raise StreamError(f"{folder}: no such partition. There are hours: {span}")
    if table is None or not table.num_rows:
        lack = "no Parquet file" if table is None else "no rows"
        raise StreamError(f"{folder}: an empty partition: hour {hour} has {lack}.")
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
    # Made under a hidden name: a reader never sees half a file, nor a folder without its file.
    partial = root / kind / f".hour={hour}.{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    try:
        with open(partial / file.name, "wb") as sink:
            pq.write_table(table, sink, compression="zstd")
            sink.flush()
            os.fsync(sink.fileno())
        try:
            os.rename(partial, file.parent)
        except OSError:
            if not file.parent.is_dir():
                raise
            os.replace(partial / file.name, file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return file


def _read(root: Path, kind: str, hour: int, features: tuple[str, ...]) -> pa.Table | None:
    parts: list[pa.Table] = []
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
            f"{where}: Column 'label': expected numbers from 0 to 1. Received {bad[0]} "
            f"({len(bad)} such rows)."
        )
    return table
