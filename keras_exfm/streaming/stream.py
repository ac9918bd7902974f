"""The labelled stream on disk: a Delta Lake table with one partition an hour."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming._ahead import ahead
from keras_exfm.streaming._hour_writer import NOTE_KEY, HourWriter, commit_hour, is_ours
from keras_exfm.streaming.columns import (
    Columns,
    StreamError,
    of_a_teacher,
    own_column,
    prepare_hour,
    raw_feature,
    vector_size,
    with_nulls,
)

SCHEMA_KEY = "keras_exfm.schema"
"""Table property that holds the features, `Schema.to_dict` as JSON."""

# What a chunk's columns need on their way fits in a processor's cache.
_CHUNK_ROWS = 16_384
_COMMIT_ATTEMPTS = 5


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


def write_hour(
    path: str | os.PathLike[str],
    hour: int,
    data: Columns | Iterable[Columns],
    schema: Schema,
    *,
    app_id: str = "keras_exfm",
    source: str | None = None,
    storage_options: dict[str, str] | None = None,
    note: dict[str, Any] | None = None,
    other_teachers: bool = False,
) -> bool:
    """Appends one hour to a labelled stream, all or nothing, exactly once.

    The commit carries the Delta application transaction `(app_id, hour)`: a writer that was killed
    after its commit may repeat it, and two writers that race leave one copy. Hours are written in
    time order; an hour may be left out, but not filled in later. Rows are stored by
    `(timestamp, example_id)`.

    Args:
        path: Folder or URL of the Delta table; the first hour makes it.
        hour: `timestamp // 3_600_000` of every row.
        data: Arrow table or record batch, or column name -> array-like: `example_id`,
            `timestamp`, `vertical`, `label`, the features, and as far as known `group`, `weight`,
            `true_probability`, `teacher_logit` (null or NaN for none), `teacher_snapshot`,
            `teacher_age_s`. A multi-hot column holds lists, or a `(rows, length)` array that is
            padded with -1. `teacher_representation`, a vector a row (null or all NaN for none), is
            a `(rows, size)` array or an Arrow list column, kept as float16. Further tasks and
            teachers have their own `label_<task>`, `true_probability_<task>`,
            `teacher_logit_<name>`, `teacher_snapshot_<name>`, `teacher_age_s_<name>`,
            `teacher_representation_<name>`; nulls are allowed in all.
            Every hour has the same columns. An hour that does not fit in memory comes as an
            iterable of these, in the order of `(timestamp, example_id)`; that no id repeats in
            another batch is then the caller's to see to.
        schema: The features. It is stored with the table and should be the same for every hour.
        app_id: Name of the writer. Defaults to `"keras_exfm"`.
        source: What errors call the rows, such as the file they come from. Defaults to the path
            and the hour.
        storage_options: As in `Stream`. Defaults to `None`.
        note: Kept in the commit's metadata, as JSON, beside the row count and a digest of each
            column (`Stream.notes`). Defaults to nothing.
        other_teachers: Whether the hour's teachers may be others than the table's. Columns of a new
            one are added to the table, in a commit before the hour's, and are null in the hours
            before; those of one that is gone are null in this hour. Defaults to `False`: the hour
            is refused.

    Returns:
        `True` if the hour was committed, `False` if this writer had committed it before.

    Raises:
        StreamError: Before anything is written: a missing or unknown column, a wrong type, an id
            out of range, a label that is not 0 or 1, a repeated `example_id`, a timestamp of
            another hour, no rows, or columns that differ from the table's.
    """
    from deltalake import DeltaTable

    path = os.fspath(path)
    where = source or f"{path} (hour {hour})"
    hour = int(hour)
    stream = None
    if DeltaTable.is_deltatable(path, storage_options):
        stream = Stream(path, storage_options=storage_options)
        if _is_committed(stream, hour, app_id, where):
            return False
    whole = isinstance(data, (pa.Table, pa.RecordBatch, Mapping))
    batches = iter([data]) if whole else iter(data)
    first = _prepare(next(batches, {}), hour, schema, where)
    if stream is None:
        if "://" not in path:
            os.makedirs(path, exist_ok=True)
        # An empty table with its schema is a valid stream: a crash right here harms nothing.
        create_table(
            path, first.schema, {SCHEMA_KEY: json.dumps(schema.to_dict())}, storage_options
        )
        stream = Stream(path, storage_options=storage_options)
        if _is_committed(stream, hour, app_id, where):
            return False
    if other_teachers:
        stream = with_teachers(stream, first.schema)
        first = with_nulls(first, stream.arrow_schema)
    _check_same(stream, schema, first.schema, where)
    writer = HourWriter(path, stream.filesystem, hour)
    try:
        last: tuple[int, int] | None = None
        for rows in itertools.chain([first], (_prepare(b, hour, schema, where) for b in batches)):
            if other_teachers:
                rows = with_nulls(rows, stream.arrow_schema)
            if rows is not first and not _same_columns(rows.schema, first.schema):
                _check_same(stream, schema, rows.schema, where)
            last = _follows(rows, last, where)
            writer.write(rows.select(stream.columns))
        actions, about = writer.finish()
        return _commit(stream, actions, about | (note or {}), app_id, where, storage_options)
    except BaseException:
        # A commit that ended in an error may have been one all the same.
        with contextlib.suppress(StreamError):
            if set(writer.files) & set(Stream(path, None, storage_options).files(hour)):
                raise
        writer.abandon()
        raise


def create_table(
    path: str,
    columns: pa.Schema,
    configuration: dict[str, str | None] | None,
    storage_options: dict[str, str] | None,
) -> None:
    """Makes a Delta table partitioned by `hour`, unless another worker has."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        DeltaTable.create(
            path,
            columns,
            mode="ignore",
            partition_by=["hour"],
            configuration=configuration,
            storage_options=storage_options,
            raise_if_key_not_exists=False,
        )
    except (DeltaError, OSError) as error:
        if not DeltaTable.is_deltatable(path, storage_options):
            raise StreamError(f"{path}/_delta_log: cannot create the table: {error}") from error


def with_teachers(stream: Stream, rows: pa.Schema) -> Stream:
    """The stream with all columns that rows have of teachers."""
    from deltalake import Field
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(_COMMIT_ATTEMPTS):
        lacking = [f for f in rows if of_a_teacher(f.name) and f.name not in stream.columns]
        if not lacking:
            return stream
        lower = {name.lower(): name for name in stream.columns}
        for field in lacking:
            # The engines that read the table make no difference between upper and lower case.
            if (other := lower.get(field.name.lower())) is not None:
                raise StreamError(
                    f"{stream.path}: a column {field.name!r} cannot be added beside {other!r}, "
                    "from which it differs by case alone. Give the teacher another name."
                )
        try:
            stream.table.alter.add_columns([Field.from_arrow(field) for field in lacking])
        except (DeltaError, OSError) as error:
            # Another writer may have been faster, with these columns even.
            if not isinstance(error, CommitFailedError) or attempt + 1 == _COMMIT_ATTEMPTS:
                raise StreamError(
                    f"{stream.path}/_delta_log: cannot add columns: {error}"
                ) from error
        stream = stream.newest()
    return stream


def _prepare(data: Columns, hour: int, schema: Schema, where: str) -> pa.Table:
    try:
        return prepare_hour(data, hour, schema)
    except SchemaError as error:
        raise StreamError(f"{where}: {error}") from error


def _follows(rows: pa.Table, last: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """The last row's place, after a check that the first one's comes after `last`."""
    keys = [rows.column(name) for name in ("timestamp", "example_id")]
    first = keys[0][0].as_py(), keys[1][0].as_py()
    if last is not None and first <= last:
        raise StreamError(
            f"{where}: batches of an hour come in the order of (timestamp, example_id). Received "
            f"{first} after {last}."
        )
    return keys[0][-1].as_py(), keys[1][-1].as_py()


def _commit(
    stream: Stream,
    actions: list[Any],
    note: dict[str, Any],
    app_id: str,
    where: str,
    storage_options: dict[str, str] | None,
) -> bool:
    from deltalake.exceptions import CommitFailedError, DeltaError

    hour, table = note["hour"], stream.table
    for attempt in range(_COMMIT_ATTEMPTS):
        try:
            commit_hour(table, actions, note, app_id, hour)
            return True
        except CommitFailedError as error:
            # Another writer was faster; its commit decides.
            now = Stream(stream.path, storage_options=storage_options)
            ours = {action.path for action in actions}
            if ours & set(now.files(hour) if hour in now.hours else ()):
                return True
            through = now.table.transaction_version(app_id)
            if _is_committed(now, hour, app_id, where) or (through is not None and through >= hour):
                filesystem = stream.filesystem
                for path in ours:
                    filesystem.delete_file(path)
                return False
            # It did something else, such as making the table at the same time as we did.
            if attempt + 1 == _COMMIT_ATTEMPTS:
                raise StreamError(f"{where}: the commit failed: {error}") from error
            table = now.table
        except (DeltaError, OSError) as error:
            raise StreamError(f"{stream.path}/_delta_log: the commit failed: {error}") from error
    raise AssertionError("unreachable")


def skip_hour(
    path: str | os.PathLike[str],
    hour: int,
    *,
    app_id: str = "keras_exfm",
    storage_options: dict[str, str] | None = None,
) -> bool:
    """Commits that an hour has no rows, so that a writer need not look at it again.

    Args:
        path: The table.
        hour: An hour after those committed.
        app_id: Name of the writer. Defaults to `"keras_exfm"`.
        storage_options: As in `Stream`. Defaults to `None`.

    Returns:
        `True` if it was committed; `False` if there is no table yet, or this writer is past it.
    """
    through = committed_through(path, app_id, storage_options)
    if hours(path, storage_options=storage_options) and (through is None or through < hour):
        stream = Stream(path, storage_options=storage_options)
        return _commit(stream, [], {"hour": hour, "rows": 0}, app_id, stream.path, storage_options)
    return False


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


def _is_committed(stream: Stream, hour: int, app_id: str, where: str) -> bool:
    latest = stream.table.transaction_version(app_id)
    if hour in stream.hours:
        if latest is not None and latest >= hour:
            return True
        raise StreamError(
            f"{where}: the stream has hour {hour} already, from another writer than {app_id!r}."
        )
    if stream.hours and hour < stream.hours[-1]:
        raise StreamError(
            f"{where}: hours are written in time order. Received hour {hour} after "
            f"{stream.hours[-1]}."
        )
    return False


def _check_same(stream: Stream, schema: Schema, rows: pa.Schema, where: str) -> None:
    if schema != stream.schema:
        theirs = {f.name: f for f in stream.schema}
        ours = {f.name: f for f in schema}
        differ = [n for n in dict.fromkeys([*theirs, *ours]) if theirs.get(n) != ours.get(n)]
        detail = ", ".join(f"{n!r}: {ours.get(n)} (table: {theirs.get(n)})" for n in differ)
        raise StreamError(
            f"{where}: mixed schema: the features differ from the table's: {detail or 'order'}"
        )
    table: Mapping[str, Any] = {f.name: f.type for f in stream.arrow_schema}
    for name in dict.fromkeys([*table, *rows.names]):
        ours_type = rows.field(name).type if name in rows.names else None
        theirs_type = table.get(name)
        if ours_type is None or theirs_type is None or not _same_type(ours_type, theirs_type):
            raise StreamError(
                f"{where}: mixed schema: column {name!r} is {ours_type or 'missing'}; in the "
                f"table it is {theirs_type or 'missing'}."
            )
        size, held = vector_size(rows.field(name)), stream.vector_size(name)
        if size != held:
            raise StreamError(
                f"{where}: mixed schema: column {name!r} holds vectors of {size} numbers; in the "
                f"table they have {held}."
            )


def _same_columns(ours: pa.Schema, theirs: pa.Schema) -> bool:
    return ours.equals(theirs, check_metadata=True)


def _same_type(ours: pa.DataType, theirs: pa.DataType) -> bool:
    # Delta names a list's values "element", Arrow "item".
    if pa.types.is_list(ours) and pa.types.is_list(theirs):
        return ours.value_type == theirs.value_type
    return ours == theirs


def table_filesystem(uri: str, storage_options: dict[str, str] | None) -> pafs.FileSystem:
    """The folder of a Delta table, to read and write files in."""
    if "://" not in uri or uri.startswith("file://"):
        local, root = (
            pafs.FileSystem.from_uri(uri) if "://" in uri else (pafs.LocalFileSystem(), uri)
        )
        return pafs.SubTreeFileSystem(root, local)
    from deltalake.fs import DeltaStorageHandler

    return pafs.PyFileSystem(DeltaStorageHandler(uri, storage_options))
