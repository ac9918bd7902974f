"""The labelled stream on disk: a Delta Lake table with one partition an hour."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming._ahead import ahead
from keras_exfm.streaming._hour_writer import NOTE_KEY, is_ours
from keras_exfm.streaming.columns import (
    StreamError,
    of_a_teacher,
    own_column,
    raw_feature,
    vector_size,
    with_nulls,
)

SCHEMA_KEY = "keras_exfm.schema"
"""Table property that holds the features, `Schema.to_dict` as JSON."""

# What a chunk's columns need on their way fits in a processor's cache.
_CHUNK_ROWS = 16_384


class Stream:
    """A labelled stream at one version of its table; what it shows never changes.

    Args:
        path: Folder or URL of the Delta table.
        version: Table version to read. Defaults to the newest.
        storage_options: Options of the object store, as `deltalake.DeltaTable` takes them.
            Defaults to `None`.

    Raises:
        StreamError: If there is no such table, or it is none of ours.

    Example:

    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 10)])
    >>> rows = {"example_id": [1, 2], "timestamp": [0, 5], "vertical": ["feed", "feed"],
    ...         "ad": [3, 4], "label": [0.0, 1.0]}
    >>> kx.streaming.write_hour("labelled", 0, rows, schema)
    True
    >>> stream = kx.streaming.Stream("labelled")
    >>> stream.hours, stream.schema == schema
    ([0], True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        version: int | None = None,
        storage_options: dict[str, str] | None = None,
    ) -> None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        self.path = os.fspath(path)
        self.storage_options = storage_options
        try:
            table = DeltaTable(self.path, version=version, storage_options=storage_options)
        except (TableNotFoundError, DeltaError) as error:
            at = "" if version is None else f" at version {version}"
            raise StreamError(f"{self.path}: no labelled stream{at}: {error}") from error
        properties = table.metadata().configuration
        if SCHEMA_KEY not in properties:
            raise StreamError(
                f"{self.path}: this Delta table holds no labelled stream (it lacks the property "
                f"{SCHEMA_KEY!r}). `keras_exfm.streaming.write_hour` makes one."
            )
        needed = table.protocol().reader_features
        if needed:
            raise StreamError(
                f"{self.path}: the table needs the Delta reader features {sorted(needed)}, "
                "which this reader lacks."
            )
        self.table = table
        self.version: int = table.version()
        self.schema = Schema.from_dict(json.loads(properties[SCHEMA_KEY]))
        self.arrow_schema: pa.Schema = pa.schema(table.schema().to_arrow())
        self.filesystem = table_filesystem(table.table_uri, storage_options)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pydict()
        self._files: dict[int, list[str]] = {}
        self._rows: dict[int, int] = {}
        self._spans: dict[str, tuple[Any, Any]] = {}
        nothing = [None] * len(actions["path"])
        for hour, file, rows, low, high in zip(
            actions.get("partition.hour", []),
            actions["path"],
            actions["num_records"],
            actions.get("min.timestamp", nothing),
            actions.get("max.timestamp", nothing),
        ):
            self._files.setdefault(int(hour), []).append(file)
            self._rows[int(hour)] = self._rows.get(int(hour), 0) + int(rows)
            self._spans[file] = low, high

    @property
    def hours(self) -> list[int]:
        """The committed hours in time order, from the log alone."""
        return sorted(self._files)

    def newest(self) -> Stream:
        """The same table as it is now."""
        return Stream(self.path, storage_options=self.storage_options)

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return list(self.arrow_schema.names)

    def vector_size(self, column: str) -> int | None:
        """Numbers in each vector of a column, such as `teacher_representation`; else `None`."""
        return vector_size(self.arrow_schema.field(column))

    @property
    def table_id(self) -> str:
        """What tells this table from any other, wherever it is moved."""
        return str(self.table.metadata().id)

    def files(self, hour: int) -> list[str]:
        """Paths of an hour's files within the table."""
        self._check_hour(hour)
        return list(self._files[hour])

    def notes(self) -> dict[int, dict[str, Any]]:
        """What each hour's commit says of it, as far back as the log's history goes.

        Returns:
            Hour -> `rows`, `digest` (column -> checksum of its values in order), `app_id` and
            what the writer added.
        """
        found: dict[int, dict[str, Any]] = {}
        for commit in self.table.history():
            if NOTE_KEY in commit:
                note = json.loads(commit[NOTE_KEY])
                found.setdefault(note["hour"], note | {"version": commit.get("version")})
        return found

    def rows(self, hour: int) -> int:
        """Number of rows of an hour, from the log alone."""
        self._check_hour(hour)
        return self._rows[hour]

    def select_hours(self, hours: tuple[int | None, int | None] | None) -> list[int]:
        """The committed hours in `first..last`, both included; `None` leaves an end open."""
        if hours is None:
            first = last = None
        else:
            if len(hours) != 2:
                raise StreamError(f"`hours` should be (first, last). Received: hours={hours!r}")
            first, last = hours
        chosen = [
            h for h in self.hours if (first is None or h >= first) and (last is None or h <= last)
        ]
        if not chosen:
            held = f"{self.hours[0]}..{self.hours[-1]}" if self._files else "none"
            raise StreamError(f"{self.path}: no hour in {hours!r}. The stream has hours: {held}")
        return chosen

    def check_columns(self, schema: Schema, columns: Sequence[str] = ()) -> None:
        """Refuses features and columns that the table lacks."""
        missing = [name for name in (*schema.names, *columns) if name not in self.columns]
        if missing:
            raise StreamError(
                f"{self.path}: the stream lacks the columns {missing}. It has {self.columns}"
            )
        doubled = sorted({*columns} & {*schema.names, "label", "teacher_logit", "weight"})
        if doubled:
            raise StreamError(f"`columns` names what a batch has anyway: {doubled}")

    def chunks(
        self,
        hour: int,
        schema: Schema,
        columns: Sequence[str] = (),
        vertical: str | Sequence[str] | None = None,
        skip: int = 0,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Encoded rows of one hour in time order, some ten thousand rows at a time.

        The first `skip` rows (of the verticals asked for) are left out without being encoded, and
        as far as whole row groups go, without being read.

        Yields:
            The features, `label`, `teacher_logit` (NaN for none), `weight` and `columns`; arrays
            may be views of what was read, which is read-only: copy what you change.

        Raises:
            StreamError: For a file that cannot be read or rows that do not fit `schema`; names
                the file, the rows, the column and the value.
        """
        self._check_hour(hour)
        verticals = [vertical] if isinstance(vertical, str) else vertical
        own = ["label", "teacher_logit", *(c for c in columns if c != "hour")]
        own += ["weight"] if "weight" in self.columns else []
        wanted = dict.fromkeys([*schema.names, *own, *(["vertical"] if verticals else [])])
        # Which rows belong to a vertical shows only when they are read.
        unseen = 0 if verticals else skip
        found = self._batches(hour, list(wanted), unseen)
        if self.rows(hour) - unseen > _CHUNK_ROWS:
            # The next rows are decoded while these are encoded.
            found = ahead(found, depth=2)
        for file, start, batch in found:
            rows = f"{file} (hour {hour}, rows {start}..{start + len(batch) - 1})"
            if verticals:
                chosen = pc.is_in(batch.column("vertical"), pa.array(verticals, pa.string()))
                batch = batch.filter(chosen)
                left_out = min(skip, len(batch))
                skip -= left_out
                batch = batch.slice(left_out)
                if not len(batch):
                    continue
            try:
                chunk = schema.encode(
                    {f.name: raw_feature(batch.column(f.name), f) for f in schema}
                )
                for name in own:
                    chunk[name] = own_column(batch.column(name), self.vector_size(name))
            except SchemaError as error:
                raise StreamError(f"{rows}: {error}") from error
            bad = (chunk["label"] != 0) & (chunk["label"] != 1)
            if bad.any():
                received = chunk["label"][bad][0]
                raise StreamError(f"{rows}: Column 'label': expected 0 or 1. Received {received!r}")
            chunk.setdefault("weight", np.ones(len(batch), np.float32))
            if "hour" in columns:
                chunk["hour"] = np.full(len(batch), hour, np.int64)
            yield chunk

    def tables(self, hour: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of one hour as they are stored, in time order, some ten thousand at a time.

        Raises:
            StreamError: For a file that cannot be read; names it.
        """
        self._check_hour(hour)
        for _, _, batch in self._batches(hour, list(columns)):
            yield pa.Table.from_batches([batch])

    def _check_hour(self, hour: int) -> None:
        if hour not in self._files:
            raise StreamError(f"{self.path}: no hour {hour}. The stream has {self.hours}")

    def _batches(
        self, hour: int, columns: list[str], skip: int = 0
    ) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        files = self._in_order(hour)
        if files is not None:
            start = 0
            for file in files:
                for name, row, batch in self._file_batches(file, columns, skip - start):
                    yield name, start + row, batch
                start += self._file_rows(file) if len(files) > 1 else 0
            return
        # Another writer, or `optimize`: only all rows together have an order.
        files = self._files[hour]
        keys = ["timestamp", "example_id"]
        both = list(dict.fromkeys([*columns, *keys]))
        parts = [
            pa.Table.from_batches([b for _, _, b in self._file_batches(file, both)])
            for file in files
        ]
        whole = pa.concat_tables(parts).sort_by([(key, "ascending") for key in keys])
        start = skip
        name = f"{self.path}/{{{', '.join(sorted(files))}}}"
        for batch in whole.select(columns).slice(skip).to_batches(max_chunksize=_CHUNK_ROWS):
            yield name, start, batch
            start += len(batch)

    def _in_order(self, hour: int) -> list[str] | None:
        """The files of an hour such that their rows follow one another in time, if they can.

        Our own writer's files hold their rows in order, which their names tell; others are looked
        into.
        """
        files = self._files[hour]
        if len(files) > 1:
            spans = [self._spans[file] for file in files]
            if any(low is None or high is None for low, high in spans):
                return None
            files = sorted(files, key=lambda file: self._spans[file])
            for one, other in itertools.pairwise(files):
                if self._spans[one][1] >= self._spans[other][0]:
                    return None
        for file in files:
            if not is_ours(file) and not self._is_sorted(file):
                return None
        return files

    def _is_sorted(self, file: str) -> bool:
        last: tuple[int, int] | None = None
        for _, _, batch in self._file_batches(file, ["timestamp", "example_id"]):
            time, example = (batch.column(name).to_numpy() for name in ("timestamp", "example_id"))
            later, same = time[1:] > time[:-1], time[1:] == time[:-1]
            if not (later | (same & (example[1:] > example[:-1]))).all():
                return False
            if last is not None and (time[0], example[0]) <= last:
                return False
            last = time[-1], example[-1]
        return True

    def _file_rows(self, file: str) -> int:
        name = f"{self.path}/{file}"
        try:
            with self.filesystem.open_input_file(file) as source:
                return pq.ParquetFile(source).metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise StreamError(f"{name}: cannot read the Parquet file: {error}") from error

    def _file_batches(
        self, file: str, columns: list[str], skip: int = 0
    ) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        name = f"{self.path}/{file}"
        start = 0
        try:
            with self.filesystem.open_input_file(file) as source:
                parquet = pq.ParquetFile(source, page_checksum_verification=True)
                held = [c for c in columns if c in parquet.schema_arrow.names]
                lacking = [c for c in columns if c not in held and not of_a_teacher(c)]
                if lacking:
                    raise StreamError(f"{name}: the file lacks the columns {lacking}.")
                groups = list(range(parquet.num_row_groups))
                while groups and start + parquet.metadata.row_group(groups[0]).num_rows <= skip:
                    start += parquet.metadata.row_group(groups.pop(0)).num_rows
                for batch in parquet.iter_batches(_CHUNK_ROWS, row_groups=groups, columns=held):
                    if len(held) < len(columns):  # Written without that teacher.
                        wanted = pa.schema([self.arrow_schema.field(c) for c in columns])
                        batch = with_nulls(batch, wanted)
                    left_out = min(max(skip - start, 0), len(batch))
                    if left_out < len(batch):
                        yield name, start + left_out, batch.slice(left_out)
                    start += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise StreamError(f"{name}: cannot read the Parquet file: {error}") from error


def committed_through(
    path: str | os.PathLike[str],
    app_id: str = "keras_exfm",
    storage_options: dict[str, str] | None = None,
) -> int | None:
    """The last hour that a writer committed or skipped; `None` if there is none."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(os.fspath(path), storage_options):
        return None
    table = DeltaTable(os.fspath(path), storage_options=storage_options)
    return table.transaction_version(app_id)


def hours(
    path: str | os.PathLike[str],
    version: int | None = None,
    storage_options: dict[str, str] | None = None,
) -> list[int]:
    """The committed hours of a labelled stream in time order; `[]` if there is no table yet."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(os.fspath(path), storage_options):
        return []
    return Stream(path, version, storage_options).hours


def read_hour(
    path: str | os.PathLike[str] | Stream,
    hour: int,
    schema: Schema | None = None,
    *,
    columns: Sequence[str] = (),
    vertical: str | Sequence[str] | None = None,
    version: int | None = None,
) -> dict[str, np.ndarray]:
    """One hour of a labelled stream as NumPy arrays, in time order.

    Args:
        path: The table, or an open `Stream`.
        hour: A committed hour.
        schema: Features to read; the table may have more. Defaults to the table's own.
        columns: Further columns, such as `"group"`. Defaults to none.
        vertical: Keep the rows of this vertical, or of these. Defaults to all.
        version: Table version to read. Defaults to the newest.

    Returns:
        The features as `Schema.encode` gives them, `label` float32, `teacher_logit` float32 (NaN
        for none), `weight` float32 (1 if the table has no such column) and `columns`. No rows if
        the vertical had none in that hour.
    """
    stream = as_stream(path, version)
    schema = schema or stream.schema
    stream.check_columns(schema, columns)
    chunks = list(stream.chunks(hour, schema, columns, vertical))
    if not chunks:
        return empty_chunk(stream, schema, columns)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def as_stream(path: str | os.PathLike[str] | Stream, version: int | None = None) -> Stream:
    """The stream itself, or the one at `path`."""
    if isinstance(path, Stream):
        if version is not None and version != path.version:
            raise StreamError(
                f"{path.path}: the stream is open at version {path.version}. "
                f"Received: version={version}"
            )
        return path
    return Stream(path, version)


def empty_chunk(
    stream: Stream, schema: Schema, columns: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """What `read_hour` gives for no rows."""
    chunk = {f.name: np.empty((0, *f.shape), f.dtype) for f in schema}
    for name in ("label", "teacher_logit", "weight"):
        chunk[name] = np.empty(0, np.float32)
    for name in columns:
        kind = stream.arrow_schema.field(name).type
        chunk[name] = own_column(pa.array([], kind), stream.vector_size(name))
    return chunk


def table_filesystem(uri: str, storage_options: dict[str, str] | None) -> pafs.FileSystem:
    """The folder of a Delta table, to read and write files in."""
    if "://" not in uri or uri.startswith("file://"):
        local, root = (
            pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), uri)
        )
        return pafs.SubTreeFileSystem(root, local)
    from deltalake.fs import DeltaStorageHandler

    return pafs.PyFileSystem(DeltaStorageHandler(uri, storage_options))
