"""Raw partitions: impressions and label events as Parquet, one folder an hour, `dataset.json`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming import _storage
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError

IMPRESSIONS = "impressions"
LABELS = "labels"
DESCRIPTION = "dataset.json"
_IMPRESSION_COLUMNS = ("example_id", "timestamp", "vertical")
_LABEL_COLUMNS = ("example_id", "timestamp", "label")
_Root = str | os.PathLike[str]
_Options = dict[str, Any] | None


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

    def write(self, root: _Root, storage_options: _Options = None) -> None:
        """Writes `root/dataset.json`, whole or not at all."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"schema": self.schema.to_dict(), "verticals": list(self.verticals)}
        content = json.dumps(values, indent=1) + "\n"
        files, folder = _storage.filesystem(root, storage_options)
        files.create_dir(folder, recursive=True)
        if not _storage.is_local(files):
            with files.open_output_stream(f"{folder}/{DESCRIPTION}") as sink:
                sink.write(content.encode())
            return
        file = Path(folder) / DESCRIPTION
        partial = file.with_name(f".{DESCRIPTION}.{uuid.uuid4().hex}")
        partial.write_text(content)
        os.replace(partial, file)

    @classmethod
    def read(cls, root: _Root, storage_options: _Options = None) -> DatasetInfo:
        """Reads `root/dataset.json`.

        Raises:
            StreamError: If it is missing (the data set is not finished) or not as `write` left it.
        """
        file = _storage.join(root, DESCRIPTION)
        files, folder = _storage.filesystem(root, storage_options)
        try:
            with files.open_input_file(f"{folder}/{DESCRIPTION}") as source:
                values = json.loads(source.read())
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


def write_impressions(
    root: _Root, hour: int, table: pa.Table, storage_options: _Options = None
) -> Path | str:
    """Writes one hour of impressions, all or nothing; an earlier file of the hour is replaced.

    Args:
        root: Folder or URL of the data set; the file is
            `root/impressions/hour=<hour>/part-0.parquet`.
        hour: `timestamp // 3_600_000` of every row.
        table: `example_id`, `timestamp`, `vertical`, optional `group`, `true_probability` and
            `true_probability_<task>`, and the features.
        storage_options: Arguments of fsspec's file system, for a URL. Defaults to `None`.

    Returns:
        The file: a `Path`, or its URL.

    Raises:
        StreamError: For a missing column, no rows, or a timestamp of another hour.
    """
    if not table.num_rows:
        file = _storage.join(root, IMPRESSIONS, f"hour={hour}", "part-0.parquet")
        raise StreamError(f"{file}: an hour should have at least one row. Received none.")
    return _write(root, IMPRESSIONS, _IMPRESSION_COLUMNS, hour, table, storage_options)


def write_labels(
    root: _Root,
    hour: int,
    table: pa.Table,
    storage_options: _Options = None,
    folder: str = LABELS,
) -> Path | str:
    """Writes one hour of label events: `example_id`, `timestamp` of the event, `label`.

    As `write_impressions`, but an hour without events may be empty. Each task has a `folder` of
    its own; it defaults to `"labels"`.
    """
    return _write(root, folder, _LABEL_COLUMNS, hour, table, storage_options)


def hours(root: _Root, kind: str = IMPRESSIONS, storage_options: _Options = None) -> list[int]:
    """The hours that have a folder, in time order."""
    files, folder = _storage.filesystem(root, storage_options)
    found = (
        re.fullmatch(r"hour=(-?\d+)", info.base_name)
        for info in _storage.listing(files, f"{folder}/{kind}")
        if info.type == pafs.FileType.Directory
    )
    return sorted(int(match[1]) for match in found if match)


def read_impressions(
    root: _Root, hour: int, schema: Schema | None = None, storage_options: _Options = None
) -> pa.Table:
    """One hour of impressions.

    Args:
        root: Folder or URL of the data set.
        hour: The hour.
        schema: Features whose columns should be there. Defaults to `None`: any.
        storage_options: Arguments of fsspec's file system, for a URL. Defaults to `None`.

    Raises:
        StreamError: If the hour has no file or no row, a file cannot be read, or a column is
            missing; names the file.
    """
    return _read(impressions(root, hour, schema, storage_options))


def read_labels(
    root: _Root,
    first: int,
    last: int,
    storage_options: _Options = None,
    folder: str = LABELS,
) -> pa.Table:
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
        part = labels(root, hour, storage_options, folder)
        if part is not None:
            table = _read(part).select(kinds.names)
            parts.append(_cast(table, kinds, _storage.join(root, folder, f"hour={hour}")))
    return pa.concat_tables(parts) if parts else kinds.empty_table()


@dataclasses.dataclass(frozen=True)
class Partition:
    """The files of one hour, whose columns were checked; no row is read yet.

    Attributes:
        where: The folder, for messages.
        files: Their paths, in order of name.
        sizes: Their sizes, bytes.
        schema: The columns, the same in every file.
        rows: Number of rows, from the files' footers.
        filesystem: What reads the paths.
    """

    where: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    schema: pa.Schema
    rows: int
    filesystem: pafs.FileSystem

    def dataset(self) -> pads.Dataset:
        """The rows, to scan; pages that carry a checksum are checked against it."""
        options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
        return pads.dataset(
            list(self.files),
            schema=self.schema,
            filesystem=self.filesystem,
            format=pads.ParquetFileFormat(default_fragment_scan_options=options),
        )

    def name(self, file: str) -> str:
        """A file's name for messages."""
        return f"{self.where}/{file.rsplit('/', 1)[-1]}"

    def check_readable(self) -> None:
        """Reads every page of every file.

        Raises:
            StreamError: Names the first file that cannot be read.
        """
        for file in self.files:
            try:
                with self.filesystem.open_input_file(file) as source:
                    parquet = pq.ParquetFile(source, page_checksum_verification=True)
                    for _ in parquet.iter_batches(65_536):
                        pass
            except (pa.ArrowException, OSError) as error:
                raise StreamError(
                    f"{self.name(file)}: cannot read the Parquet file: {error}"
                ) from error


def impressions(
    root: _Root, hour: int, schema: Schema | None = None, storage_options: _Options = None
) -> Partition:
    """One hour's files of impressions; arguments and errors as `read_impressions`."""
    columns = (*_IMPRESSION_COLUMNS, *(schema.names if schema else ()))
    found = _partition(root, IMPRESSIONS, hour, columns, storage_options)
    if isinstance(found, Partition) and found.rows:
        return found
    where = _storage.join(root, IMPRESSIONS, f"hour={hour}")
    if found is False:
        held = hours(root, IMPRESSIONS, storage_options)
        span = f"{held[0]}..{held[-1]}" if held else "none"
        raise StreamError(f"{where}: no such partition. There are hours: {span}")
    lack = "no Parquet file" if found is None else "no rows"
    raise StreamError(f"{where}: an empty partition: hour {hour} has {lack}.")


def labels(
    root: _Root, hour: int, storage_options: _Options = None, folder: str = LABELS
) -> Partition | None:
    """One hour's files of label events; `None` if there are none."""
    return _partition(root, folder, hour, _LABEL_COLUMNS, storage_options) or None


def _write(
    root: _Root,
    kind: str,
    required: tuple[str, ...],
    hour: int,
    table: pa.Table,
    storage_options: _Options,
) -> Path | str:
    where = _storage.join(root, kind, f"hour={hour}", "part-0.parquet")
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise StreamError(
            f"{where}: missing columns {missing}. Received columns: {table.column_names}"
        )
    timestamp = table.column("timestamp").to_numpy()
    strangers = timestamp[timestamp // MS_PER_HOUR != hour]
    if len(strangers):
        raise StreamError(
            f"{where}: Column 'timestamp': expected milliseconds of hour {hour}. "
            f"Received {strangers[0]} ({len(strangers)} such rows)."
        )
    files, folder = _storage.filesystem(root, storage_options)
    if not _storage.is_local(files):
        # An object appears when it is closed, whole.
        target = f"{folder}/{kind}/hour={hour}"
        files.create_dir(target, recursive=True)
        with files.open_output_stream(f"{target}/part-0.parquet") as sink:
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        return where
    # Made under a hidden name: a reader never sees half a file, nor a folder without its file.
    file = Path(folder) / kind / f"hour={hour}" / "part-0.parquet"
    partial = Path(folder) / kind / f".hour={hour}.{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    try:
        with open(partial / file.name, "wb") as sink:
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
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


def _partition(
    root: _Root, kind: str, hour: int, columns: tuple[str, ...], storage_options: _Options
) -> Partition | Literal[False] | None:
    """The hour's files; `None` if the folder has none, `False` if there is no folder."""
    files, base = _storage.filesystem(root, storage_options)
    folder = f"{base}/{kind}/hour={hour}"
    where = _storage.join(root, kind, f"hour={hour}")
    if files.get_file_info(folder).type != pafs.FileType.Directory:
        return False
    found = [
        info
        for info in _storage.listing(files, folder)
        if info.base_name.endswith(".parquet") and info.base_name[0] not in "._"
    ]
    schema = None
    rows = 0
    for info in found:
        file = f"{where}/{info.base_name}"
        try:
            with files.open_input_file(info.path) as source:
                parquet = pq.ParquetFile(source)
                kinds, count = parquet.schema_arrow.remove_metadata(), parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise StreamError(f"{file}: cannot read the Parquet file: {error}") from error
        missing = [name for name in columns if name not in kinds.names]
        if missing:
            raise StreamError(f"{file}: missing columns {missing}. Received columns: {kinds.names}")
        if schema is not None and kinds != schema:
            raise StreamError(
                f"{file}: its columns differ from those of the hour's first file: "
                f"{_differences(schema, kinds)}"
            )
        schema = kinds
        rows += count
    if schema is None:
        return None
    return Partition(
        where,
        tuple(info.path for info in found),
        tuple(info.size for info in found),
        schema,
        rows,
        files,
    )


def _read(part: Partition) -> pa.Table:
    tables = []
    for file in part.files:
        try:
            with part.filesystem.open_input_file(file) as source:
                parquet = pq.ParquetFile(source, page_checksum_verification=True)
                tables.append(parquet.read().replace_schema_metadata(None))
        except (pa.ArrowException, OSError) as error:
            raise StreamError(
                f"{part.name(file)}: cannot read the Parquet file: {error}"
            ) from error
    return pa.concat_tables(tables)


def _differences(one: pa.Schema, other: pa.Schema) -> str:
    left, right = ({f.name: str(f.type) for f in schema} for schema in (one, other))
    return "; ".join(
        f"{name!r}: {left.get(name, 'absent')} and {right.get(name, 'absent')}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    )


def _cast(table: pa.Table, kinds: pa.Schema, where: str) -> pa.Table:
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
