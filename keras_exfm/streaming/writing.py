"""Writing of labelled streams, hour by hour."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming._hour_writer import HourWriter, commit_hour
from keras_exfm.streaming.columns import (
    Columns,
    StreamError,
    of_a_teacher,
    prepare_hour,
    vector_size,
    with_nulls,
)
from keras_exfm.streaming.stream import SCHEMA_KEY, Stream, committed_through, hours

_COMMIT_ATTEMPTS = 5


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
