"""Whether a service's tables are whole: counts, keys, the log against the files, checksums."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.das._predictions import Predictions, named
from keras_exfm.das.job import Job
from keras_exfm.das.worker import Worker
from keras_exfm.streaming import Stream, StreamError
from keras_exfm.streaming._digest import RowDigest
from keras_exfm.streaming._hour_writer import NOTE_KEY
from keras_exfm.streaming.columns import of_a_teacher, prepare_hour
from keras_exfm.streaming.stream import table_filesystem


@dataclasses.dataclass
class Verification:
    """What was found in one table.

    Attributes:
        table: Its path.
        version: Version that was looked at.
        hours: Hours that were looked at.
        rows: Their rows.
        by_digest: Hours whose rows have the digests that their commit noted.
        by_source: Hours whose rows are those that a new join of the source gives.
        unnamed: Files in the table's folder that the log does not name: remains of killed workers
            and of races, and what `optimize` replaced. `vacuum` takes them.
        problems: What is wrong, each with the file or the hour; empty if the table is whole.
    """

    table: str
    version: int | None = None
    hours: int = 0
    rows: int = 0
    by_digest: int = 0
    by_source: int = 0
    unnamed: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(
    job: Job,
    vertical: str | None = None,
    hours: tuple[int | None, int | None] = (None, None),
    source: bool = True,
) -> list[Verification]:
    """Proves a job's tables whole, or says what is not.

    For each table: every file that the log names is there, as large as the log says, and every
    page of it reads, against its checksum; the log's counts are the files' and the notes'; no
    example id is there twice; each column's digest is the one that its commit noted, and, with
    `source`, the one of a new join of impressions, label events and predictions. Teachers are not
    asked again: what they said is held by the predictions, which their own digests cover. Columns
    of a teacher that an hour's commit does not name, or that the job has no longer, are passed
    over.

    Args:
        job: The job.
        vertical: Look at this vertical's stream only. Defaults to `None`: all, and predictions.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all.
        source: Whether to join the source again; hours whose impressions are gone are passed over.
            Defaults to `True`.
    """
    worker = Worker(job)
    try:
        found = []
        for teacher, predictions in worker.predictions.items() if vertical is None else ():
            # A teacher that has just joined has no table yet.
            if teacher == "" or predictions.table() is not None or _has_columns(worker, teacher):
                found.append(_verify_predictions(predictions, hours))
        for name in [vertical] if vertical is not None else list(job.verticals):
            found.append(_verify_stream(worker, name, hours, source))
        return found
    finally:
        worker.close()


def _verify_stream(
    worker: Worker, name: str, hours: tuple[int | None, int | None], source: bool
) -> Verification:
    path = worker.job.stream(name)
    options = worker.job.output_options or None
    found = Verification(path)
    try:
        stream = Stream(path, storage_options=options)
    except StreamError as error:
        found.problems.append(str(error))
        return found
    found.version = stream.version
    chosen = _chosen(stream.hours, hours)
    notes = stream.notes()
    columns = [column for column in stream.columns if column != "hour"]
    there = set(worker.join.hours()) if source else set()
    _check_files(found, stream.table, stream.filesystem)
    for hour in chosen:
        try:
            note = notes.get(hour)
            known = columns if note is None else [c for c in columns if c in note["digest"]]
            digest = _digest(stream.tables(hour, known))
            _compare_with_note(found, hour, stream.rows(hour), digest, note)
            if hour in there:
                schema = stream.schema
                # One that came later has not said anything of this hour, or not yet.
                teachers = [t for t in worker.predictions if named("teacher_logit", t) in known]
                again = _digest(
                    rows.select([c for c in known if c in rows.column_names])
                    for rows in (
                        prepare_hour(r, hour, schema) for r in worker.rows(hour, name, teachers)
                    )
                )
                gone = {c for c in known if c not in again[1] and of_a_teacher(c)}
                differ = sorted({*_differing(digest[1], again[1])} - gone)
                if differ or digest[0] != again[0]:
                    found.problems.append(
                        f"{path} (hour {hour}): {digest[0]} rows; a new join of the source gives "
                        f"{again[0]}, and other values in {differ}."
                    )
                else:
                    found.by_source += 1
        except StreamError as error:
            found.problems.append(str(error))
    _check_unique(found, ((h, stream.tables(h, ["example_id"])) for h in chosen))
    return found


def _has_columns(worker: Worker, teacher: str) -> bool:
    """Whether a stream of the job has columns of a teacher."""
    options = worker.job.output_options or None
    for vertical in worker.job.verticals:
        try:
            stream = Stream(worker.job.stream(vertical), storage_options=options)
        except StreamError:
            continue  # Its own verification tells of it.
        if named("teacher_logit", teacher) in stream.columns:
            return True
    return False


def _verify_predictions(
    predictions: Predictions, hours: tuple[int | None, int | None]
) -> Verification:
    found = Verification(predictions.path)
    table = predictions.table()
    if table is None:
        found.problems.append(f"{predictions.path}: no table of predictions.")
        return found
    found.version = table.version()
    notes: dict[int, dict[str, Any]] = {}
    for commit in table.history():
        if NOTE_KEY in commit:
            note = json.loads(commit[NOTE_KEY])
            notes.setdefault(note["hour"], note)
    options = predictions.storage_options
    _check_files(found, table, table_filesystem(table.table_uri, options))
    held = predictions.hours()
    chosen = _chosen(sorted(held), hours)
    for hour in chosen:
        try:
            digest = _digest(predictions.tables(hour))
            _compare_with_note(found, hour, held[hour], digest, notes.get(hour))
        except StreamError as error:
            found.problems.append(str(error))
    _check_unique(found, ((h, predictions.tables(h, ["example_id"])) for h in chosen))
    return found


def _chosen(held: list[int], hours: tuple[int | None, int | None]) -> list[int]:
    first, last = hours
    return [h for h in held if (first is None or h >= first) and (last is None or h <= last)]


def _digest(tables: Iterable[pa.Table]) -> tuple[int, dict[str, str]]:
    digest, rows = RowDigest(), 0
    for table in tables:
        digest.update(table)
        rows += len(table)
    return rows, digest.columns()


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _compare_with_note(
    found: Verification,
    hour: int,
    logged: int,
    digest: tuple[int, dict[str, str]],
    note: dict[str, Any] | None,
) -> None:
    rows, columns = digest
    found.hours += 1
    found.rows += rows
    where = f"{found.table} (hour {hour})"
    if rows != logged:
        found.problems.append(f"{where}: the log says {logged} rows, the files hold {rows}.")
    if note is None:
        return
    differ = _differing(columns, note["digest"])
    if note["rows"] != rows or differ:
        found.problems.append(
            f"{where}: {rows} rows; {note['rows']} were committed, and the columns {differ} have "
            "other values than those committed."
        )
    else:
        found.by_digest += 1


def _check_files(found: Verification, table: Any, filesystem: Any) -> None:
    actions = pa.table(table.get_add_actions(flatten=True)).to_pydict()
    for file, size, rows in zip(actions["path"], actions["size_bytes"], actions["num_records"]):
        name = f"{found.table}/{file}"
        try:
            with filesystem.open_input_file(file) as source:
                if source.size() != size:
                    found.problems.append(
                        f"{name}: the log says {size} bytes, the file has {source.size()}."
                    )
                count = pq.ParquetFile(source).metadata.num_rows
            if count != rows:
                found.problems.append(f"{name}: the log says {rows} rows, the file has {count}.")
        except (pa.ArrowException, OSError) as error:
            found.problems.append(f"{name}: cannot read the Parquet file: {error}")
    found.unnamed = len(
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=True, full=True)
    )


def _check_unique(found: Verification, hours: Iterable[tuple[int, Iterator[pa.Table]]]) -> None:
    database = duckdb.connect()
    database.execute("CREATE TABLE ids (hour BIGINT, example_id BIGINT)")
    for hour, tables in hours:
        try:
            for rows in tables:
                database.register("rows", rows)
                database.execute(f"INSERT INTO ids SELECT {hour}, example_id FROM rows")
        except StreamError:
            continue  # Named already.
    again = database.execute(
        "SELECT example_id, list(hour ORDER BY hour) FROM ids GROUP BY example_id "
        "HAVING count(*) > 1 ORDER BY example_id"
    ).fetchall()
    if again:
        example, hours_of = again[0]
        found.problems.append(
            f"{found.table}: example id {example} is there {len(hours_of)} times, in the hours "
            f"{hours_of} ({len(again)} such ids)."
        )
    database.close()
