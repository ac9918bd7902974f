"""Scoring again, on purpose: rows that have no teacher, or a range of hours into a new output."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import duckdb
import pyarrow as pa

from keras_exfm.das._predictions import TEACHER_COLUMNS, Predictions, files_of, named
from keras_exfm.das.job import Job, JobError
from keras_exfm.das.worker import Step, Worker
from keras_exfm.streaming import Stream, StreamError
from keras_exfm.streaming._hour_writer import NOTE_KEY, HourWriter
from keras_exfm.streaming.stream import table_filesystem
from keras_exfm.streaming.writing import with_teachers

Hours = tuple[int | None, int | None]
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Backfilled:
    """What a backfill did to one hour of one table.

    Attributes:
        table: Its path.
        hour: The hour.
        rows: Rows of the hour.
        missing: Rows without a teacher before.
        filled: Rows that have one now and had none.
        version: The version that holds them.
        teacher: The teacher's name; `""` for the one without a name.
    """

    table: str
    hour: int
    rows: int
    missing: int
    filled: int
    version: int
    teacher: str = ""


def backfill(job: Job, hours: Hours = (None, None)) -> list[Backfilled]:
    """Scores the rows that have no teacher, by the rule of the service, and nothing else.

    Such rows are left by a teacher that was not finite, or by snapshots that came late into the
    store, and in streams by a teacher that has joined the job since they were emitted. The rule
    stays: only a snapshot that was published before an example may score it. The hours become a
    **new version** of predictions and streams, whose commits say so (`Stream.notes`, key
    `backfill`); labels and all other values stay, and so do versions that are pinned. A backfill
    that was killed is completed by the next.

    Args:
        job: The job.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all.

    Raises:
        JobError: For a job without a teacher.
    """
    worker = Worker(job)
    try:
        if not worker.engines:
            raise JobError(f"{job.name}: a backfill needs a teacher; the job has none.")
        done = []
        for teacher, predictions in worker.predictions.items():
            for hour in _chosen(predictions.hours(), hours):
                done += _repeated(_fill_predictions, worker, teacher, hour)
                for name in job.verticals:
                    done += _repeated(_fill_stream, worker, name, teacher, hour)
        return done
    finally:
        worker.close()


def rescore(
    job: Job,
    output: str,
    hours: Hours = (None, None),
    on_step: Callable[[Step], None] | None = None,
) -> list[Step]:
    """Scores a range of hours by the teachers that the job has now, into **another output**.

    The streams that exist stay as they are. What is written is what a service would have written
    that has run with these teachers all the time; its commits name the output that it is a re-score
    of (`Stream.notes`, key `rescored_from`).

    Args:
        job: The job.
        output: Folder or URL of the new output.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all.
        on_step: Called after each unit of work. Defaults to `None`.

    Raises:
        JobError: For a job without a teacher, or an output that is the job's own.
    """
    if not job.all_teachers:
        raise JobError(f"{job.name}: a re-score needs a teacher; the job has none.")
    if output.rstrip("/") == job.output.rstrip("/"):
        raise JobError(f"A re-score goes into another output than the job's own, {job.output!r}.")
    copy = job.model_copy(update={"output": output, "side_output": None})
    worker = Worker(copy, on_step, hours=hours, note={"rescored_from": job.output})
    try:
        return worker.run(ended=True)
    finally:
        worker.close()


class _Changed(StreamError):
    """Somebody else has changed the hour since it was read."""


def _repeated(fill: Callable[..., list[Backfilled]], *args: Any) -> list[Backfilled]:
    """Fills an hour, from the start again where another backfill or a compaction was faster."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(_Changed):
            return fill(*args)
    return fill(*args)


def _fill_predictions(worker: Worker, teacher: str, hour: int) -> list[Backfilled]:
    predictions = worker.predictions[teacher]
    held = files_of(predictions.table(), hour)
    rows = pa.concat_tables(predictions.tables(hour, ["example_id", "teacher_logit"]))
    missing = rows.filter(rows.column("teacher_logit").is_null()).select(["example_id"])
    if not len(missing):
        return []
    database = duckdb.connect()
    database.register("missing", missing)

    def wanted() -> Iterator[pa.Table]:
        for chunk in worker.chunks(hour):
            database.register("chunk", chunk)
            kept = database.sql("SELECT c.* FROM chunk c SEMI JOIN missing USING (example_id)")
            table = kept.order("timestamp, example_id").to_arrow_table()
            if len(table):
                yield table

    engine, where = worker.engines[teacher], worker.join.where(hour)
    found = [scored.rows for scored in engine.score(wanted(), where)]
    scored = pa.concat_tables(found) if found else predictions.arrow_schema.empty_table()
    scored = scored.filter(scored.column("teacher_logit").is_valid())
    if not len(scored):
        return []
    version = _replace(
        predictions.path,
        predictions.storage_options,
        hour,
        held,
        _filled(predictions.tables(hour), scored, ""),
        {"backfill": {"missing": len(missing), "filled": len(scored)}},
    )
    return [
        Backfilled(predictions.path, hour, len(rows), len(missing), len(scored), version, teacher)
    ]


def _fill_stream(worker: Worker, name: str, teacher: str, hour: int) -> list[Backfilled]:
    path, options = worker.job.stream(name), worker.job.output_options or None
    try:
        stream = Stream(path, storage_options=options)
    except StreamError:
        return []  # Nothing was emitted yet.
    held = files_of(stream.table, hour)
    if hour not in stream.hours:
        return []
    known = pa.concat_tables(_bare(worker.predictions[teacher], hour))
    known = known.filter(known.column("teacher_logit").is_valid())
    if not len(known):
        return []
    stream = with_teachers(stream, worker.predictions[teacher].stream_schema)
    logit = named("teacher_logit", teacher)
    rows = pa.concat_tables(stream.tables(hour, ["example_id", logit]))
    missing = rows.filter(rows.column(logit).is_null())
    database = duckdb.connect()
    database.register("missing", missing)
    database.register("known", known)
    sql = "SELECT k.* FROM known k SEMI JOIN missing USING (example_id)"
    filling = database.sql(sql).to_arrow_table()
    if not len(filling):
        return []
    columns = [column for column in stream.columns if column != "hour"]
    version = _replace(
        path,
        options,
        hour,
        held,
        _filled(stream.tables(hour, columns), filling, teacher),
        {
            "backfill": {
                named("missing", teacher): len(missing),
                named("filled", teacher): len(filling),
            }
        },
    )
    return [Backfilled(path, hour, len(rows), len(missing), len(filling), version, teacher)]


def _bare(predictions: Predictions, hour: int) -> Iterator[pa.Table]:
    for table in predictions.tables(hour):
        yield table.drop_columns(["timestamp"])


def _filled(tables: Iterable[pa.Table], known: pa.Table, teacher: str) -> Iterator[pa.Table]:
    """Tables whose rows have what `known` says of them where they lack this teacher."""
    own = {named(column, teacher): column for column in TEACHER_COLUMNS}
    logit = named("teacher_logit", teacher)
    database = duckdb.connect()
    database.register("known", known)
    for table in tables:
        numbered = table.append_column("__row", pa.array(range(len(table)), pa.int64()))
        database.register("rows", numbered)
        columns = [
            f'CASE WHEN r.{logit} IS NULL THEN k.{own[n]} ELSE r."{n}" END AS "{n}"'
            if n in own
            else f'r."{n}"'
            for n in table.column_names
        ]
        joined = database.sql(
            f"SELECT {', '.join(columns)} FROM rows r LEFT JOIN known k USING (example_id) "
            "ORDER BY r.__row"
        ).to_arrow_table()
        # DuckDB names lists' values otherwise than the table does.
        yield joined.cast(table.schema)


def _replace(
    path: str,
    options: dict[str, str] | None,
    hour: int,
    held: list[str],
    tables: Iterable[pa.Table],
    note: dict[str, Any],
) -> int:
    """Makes a new version in which an hour has these rows.

    Raises:
        _Changed: If the hour's files are not those that were `held` when it was read.
    """
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import CommitFailedError

    table = DeltaTable(path, storage_options=options)
    writer = HourWriter(path, table_filesystem(table.table_uri, options), hour)
    try:
        for rows in tables:
            writer.write(rows)
        actions, about = writer.finish()
        for attempt in range(_TRIES):
            if files_of(table, hour) != held:
                raise _Changed(
                    f"{path} (hour {hour}): others changed it while it was filled, {_TRIES} times. "
                    "Nothing of this hour was written; give the command again."
                )
            try:
                table.create_write_transaction(
                    actions,
                    "overwrite",
                    table.schema(),
                    partition_by=["hour"],
                    partition_filters=[("hour", "=", str(hour))],
                    commit_properties=CommitProperties(
                        custom_metadata={NOTE_KEY: json.dumps(about | note)}
                    ),
                )
                break
            except CommitFailedError as error:
                # The service commits other hours meanwhile.
                if attempt == _TRIES - 1:
                    raise StreamError(f"{path} (hour {hour}): the commit failed: {error}") from (
                        error
                    )
                table = DeltaTable(path, storage_options=options)
        return DeltaTable(path, storage_options=options).version()
    except BaseException:
        now = pa.table(DeltaTable(path, storage_options=options).get_add_actions())
        if not set(writer.files) & set(now.column("path").to_pylist()):
            writer.abandon()
        raise


def _chosen(held: Iterable[int], hours: Hours) -> list[int]:
    first, last = hours
    return sorted(h for h in held if (first is None or h >= first) and (last is None or h <= last))
