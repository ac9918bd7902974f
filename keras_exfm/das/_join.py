"""The join of impressions, label events and predictions of one hour, in DuckDB."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from keras_exfm.das._predictions import TEACHER_COLUMNS, named
from keras_exfm.features import Schema
from keras_exfm.streaming import MS_PER_HOUR, StreamError, _storage, partitions
from keras_exfm.streaming.partitions import Partition

REASONS = ("late", "early", "duplicate", "orphan", "out_of_order")
"""Why an event lies in the side output."""


@dataclasses.dataclass(frozen=True)
class LabelTask:
    """Where a task's events lie and how long they count.

    Attributes:
        name: The task.
        folder: Folder of its events below the source.
        window_ms: Milliseconds after an impression in which an event counts; 0: in its own hour.
    """

    name: str
    folder: str
    window_ms: int

    @property
    def lag(self) -> int:
        """Whole hours after an hour's end until all its labels are known."""
        return math.ceil(self.window_ms / MS_PER_HOUR)

    @property
    def reach(self) -> int:
        """Hours of label partitions that are read after an hour's own.

        One more than the window needs, so that late events are seen and counted.
        """
        return self.lag + 1


class HourJoin:
    """Joins hour after hour; what several hours need is kept in the database.

    Impressions, events and predictions are scanned, joined and sorted out of core: what does not
    fit in `memory_limit` goes to `temp_directory`. One thread may join labels while another one
    reads rows without labels, or checks an hour.

    Args:
        source: Folder or URL with `impressions/` and the tasks' folders.
        schema: Features of the impressions.
        tasks: The tasks.
        storage_options: Arguments of fsspec's file system. Defaults to `None`.
        memory_limit: DuckDB's, such as `"2GB"`. Defaults to `None`: its own, 80 % of the machine.
        temp_directory: Where DuckDB spills. Defaults to `None`: `.tmp` in the working directory.
        threads: DuckDB's threads. Defaults to `None`: one a core.
        chunk_rows: Rows of the tables that `rows` yields. Defaults to `65536`.
        teachers: Names of teachers; impressions cannot have their columns, nor those of a teacher
            without a name. Defaults to none.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        schema: Schema,
        tasks: Sequence[LabelTask],
        storage_options: dict[str, Any] | None = None,
        memory_limit: str | None = None,
        temp_directory: str | None = None,
        threads: int | None = None,
        chunk_rows: int = 65_536,
        teachers: Iterable[str] = (),
    ) -> None:
        self.source = os.fspath(source)
        self.schema = schema
        self.tasks = tuple(tasks)
        self.storage_options = storage_options
        self.chunk_rows = chunk_rows
        self._added = {"label", *(f"label_{task.name}" for task in self.tasks[1:])}
        self._added |= {named(name, of) for name in TEACHER_COLUMNS for of in ("", *teachers)}
        settings: dict[str, Any] = {"preserve_insertion_order": False}
        if memory_limit is not None:
            settings["memory_limit"] = memory_limit
        if temp_directory is not None:
            settings["temp_directory"] = temp_directory
        if threads is not None:
            settings["threads"] = threads
        try:
            self._database = duckdb.connect(config=settings)
        except (duckdb.Error, OSError) as error:
            raise StreamError(f"DuckDB refuses the settings {settings}: {error}") from error
        self._database.execute(
            "CREATE TABLE ids (hour BIGINT, example_id BIGINT, timestamp BIGINT)"
        )
        self._known: set[int] = set()
        # A connection serves one thread at a time.
        self._lock = threading.RLock()

    @property
    def reach(self) -> int:
        """The longest reach of the tasks."""
        return max((task.reach for task in self.tasks), default=1)

    def where(self, hour: int, kind: str = partitions.IMPRESSIONS) -> str:
        """The partition's name for messages."""
        return _storage.join(self.source, kind, f"hour={hour}")

    def partition(self, hour: int) -> Partition:
        """The hour's impressions, their columns checked."""
        part = partitions.impressions(self.source, hour, self.schema, self.storage_options)
        taken = sorted(self._added & {*part.schema.names})
        if taken:
            raise StreamError(
                f"{part.where}: impressions cannot have the columns that the service adds: {taken}"
            )
        for name in ("example_id", "timestamp"):
            if not pa.types.is_integer(part.schema.field(name).type):
                raise StreamError(
                    f"{part.where}: Column {name!r}: expected an integer in every row. "
                    f"Received type {part.schema.field(name).type}, 0 nulls."
                )
        return part

    def hours(self) -> list[int]:
        """The hours of impressions."""
        return partitions.hours(self.source, storage_options=self.storage_options)

    def check(self, hour: int) -> int:
        """Checks the hour's ids and times, alone and against the hours before.

        Returns:
            The number of impressions.

        Raises:
            StreamError: For a missing value, a time of another hour, or an id that an impression
                of this hour or of one within reach has as well.
        """
        with self._lock:
            part = self._remember(hour)
            oldest = hour - self.reach
            self._remember_before(hour, self.reach)
            self._refuse_repeats(hour, oldest, part)
        return part.rows

    def forget(self, before: int) -> None:
        """Drops what is kept of the hours before one."""
        with self._lock:
            self._database.execute("DELETE FROM ids WHERE hour < ?", [before])
            self._known = {h for h in self._known if h >= before}

    def audit(self, hour: int, task: LabelTask) -> tuple[dict[str, int], pa.Table]:
        """What became of the events that the hour's impressions could have.

        Each event is told of in one hour: an orphan in that of its partition, all others in their
        impression's.

        Returns:
            `late`, `early`, `duplicate`, `orphan`, `out_of_order` -> count; and those events:
            `example_id`, `timestamp`, `label`, `task`, `reason`, `partition`, `used`.
        """
        with self._lock:
            if hour in self.hours():
                self._remember(hour)
            self._remember_before(hour, task.reach)
            self._match(hour, task, orphans=True)
            found = self._database.sql(
                f"""
                SELECT example_id, timestamp, label, '{task.name}' AS task, reason,
                       part AS partition, false AS used
                FROM matched WHERE reason <> 'used'
                UNION ALL
                SELECT example_id, timestamp, label, '{task.name}', 'out_of_order', part,
                       reason = 'used'
                FROM matched WHERE timestamp // {MS_PER_HOUR} <> part
                ORDER BY ALL
                """
            ).to_arrow_table()
        reasons = found.column("reason").to_pylist()
        return {reason: reasons.count(reason) for reason in REASONS}, found

    def rows(
        self,
        hour: int,
        condition: str | None = None,
        verticals: Sequence[str] | None = None,
        predictions: Mapping[str, pads.Dataset] | None = None,
        tasks: Sequence[LabelTask] = (),
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """The hour's impressions with their labels, in the order of `(timestamp, example_id)`.

        Args:
            hour: The hour.
            condition: SQL over the impressions' columns: which rows. Defaults to all.
            verticals: Values of `vertical`: which rows. Defaults to all.
            predictions: Teacher -> what it said, to join by `example_id`. Defaults to `None`: no
                such columns.
            tasks: Whose labels to join; the first one's is the column `label`, a further one's is
                `label_<task>`. Defaults to none.
            columns: Columns of the impressions. Defaults to all.

        Raises:
            StreamError: For a file that cannot be read, or a condition that DuckDB refuses.
        """
        part = self.partition(hour)
        # A connection of its own, which can be left before the rows are all read.
        with self._lock:
            cursor = self._database.cursor()
        cursor.register("impressions", part.dataset())
        names = part.schema.names if columns is None else columns
        chosen = [f"i.{_quoted(name)}" for name in names if name != "hour"]
        joins = []
        for number, task in enumerate(tasks):
            with self._lock:
                self._remember(hour)
                self._match(hour, task, orphans=False)
                self._database.execute(
                    f"CREATE OR REPLACE TABLE labels{number} AS SELECT example_id, max(label) AS "
                    "label FROM matched WHERE reason = 'used' GROUP BY example_id"
                )
            name = "label" if number == 0 else f"label_{task.name}"
            chosen.append(f"coalesce(l{number}.label, 0)::FLOAT AS {_quoted(name)}")
            joins.append(
                f"LEFT JOIN labels{number} l{number} ON l{number}.example_id = i.example_id"
            )
        for number, (teacher, said) in enumerate((predictions or {}).items()):
            cursor.register(f"predictions{number}", said)
            chosen += [
                f"p{number}.{name} AS {_quoted(named(name, teacher))}"
                for name in TEACHER_COLUMNS
                if name in said.schema.names
            ]
            joins.append(
                f"LEFT JOIN predictions{number} p{number} ON p{number}.example_id = i.example_id"
            )
        conditions = []
        if condition is not None:
            conditions.append(f"({condition})")
        if verticals is not None:
            conditions.append(f"vertical IN ({', '.join(map(_literal, verticals))})")
        # Filtered before the joins, so that a condition sees the impressions' columns alone.
        kept = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = (
            f"SELECT {', '.join(chosen)} FROM (SELECT * FROM impressions {kept}) i "
            f"{' '.join(joins)} ORDER BY i.timestamp, i.example_id"
        )
        try:
            reader = cursor.sql(sql).to_arrow_reader(self.chunk_rows)
            yield from _chunks(reader, self.chunk_rows)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._explained(error, [part], part.where) from error
        finally:
            cursor.close()

    def verticals(self, hour: int) -> list[str]:
        """The values of `vertical` in the hour's impressions."""
        found: set[str] = set()
        for batch in self.partition(hour).dataset().to_batches(columns=["vertical"]):
            found |= {str(value) for value in batch.column("vertical").unique().to_pylist()}
        return sorted(found)

    def check_folder(self, task: LabelTask) -> None:
        """Refuses a source without the folder of a task's events, whose name may be misspelled.

        Raises:
            StreamError: Names the folders that are there.
        """
        files, root = _storage.filesystem(self.source, self.storage_options)
        if files.get_file_info(f"{root}/{task.folder}").type == pafs.FileType.Directory:
            return
        found = [
            info.base_name
            for info in _storage.listing(files, root)
            if info.type == pafs.FileType.Directory and info.base_name[:1] not in ("", ".", "_")
        ]
        raise StreamError(
            f"{_storage.join(self.source, task.folder)}: expected the folder of the events of "
            f"{task.name!r}, since every label would be 0 without it. The source has the folders "
            f"{found}. If there has been no event yet, write an hour without events "
            "(streaming.partitions.write_labels), or make the folder."
        )

    def _remember(self, hour: int) -> Partition:
        part = self.partition(hour)
        if hour in self._known:
            return part
        database = self._database
        database.register("impressions", part.dataset())
        try:
            database.execute(
                "INSERT INTO ids SELECT ?, example_id, timestamp FROM impressions", [hour]
            )
            for name in ("example_id", "timestamp"):
                ((nulls,),) = self._all(
                    f"SELECT count(*) FROM ids WHERE hour = ? AND {name} IS NULL", [hour]
                )
                if nulls:
                    raise StreamError(
                        f"{part.where}: Column {name!r}: expected an integer in every row. "
                        f"Received type {part.schema.field(name).type}, {nulls} nulls."
                    )
            ((strange, count),) = self._all(
                f"SELECT min(timestamp), count(*) FROM ids WHERE hour = ? AND "
                f"timestamp // {MS_PER_HOUR} <> hour",
                [hour],
            )
            if count:
                raise StreamError(
                    f"{part.where}: Column 'timestamp': expected milliseconds of hour {hour}. "
                    f"Received {strange} ({count} such rows)."
                )
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            database.execute("DELETE FROM ids WHERE hour = ?", [hour])
            raise self._explained(error, [part], part.where) from error
        except StreamError:
            database.execute("DELETE FROM ids WHERE hour = ?", [hour])
            raise
        self._known.add(hour)
        return part

    def _remember_before(self, hour: int, reach: int) -> None:
        for before in self.hours():
            if hour - reach <= before < hour:
                self._remember(before)

    def _refuse_repeats(self, hour: int, oldest: int, part: Partition) -> None:
        again = self._all(
            """
            SELECT example_id, hour, count(*) OVER () FROM (
                SELECT a.example_id, b.hour FROM ids a JOIN ids b USING (example_id)
                WHERE a.hour = ? AND b.hour >= ? AND b.hour < a.hour
                UNION ALL
                SELECT example_id, hour FROM ids WHERE hour = ? GROUP BY ALL HAVING count(*) > 1
            ) ORDER BY hour, example_id LIMIT 1
            """,
            [hour, oldest, hour],
        )
        if not again:
            return
        example, other, count = again[0]
        column = part.dataset().to_table(columns=["example_id"]).column("example_id")
        rows = [i for i, value in enumerate(column.to_pylist()) if value == example]
        elsewhere = f"which hour={other} has as well" if other != hour else f"and in {rows[1:]}"
        raise StreamError(
            f"{part.where}: Column 'example_id': expected ids that no other example has. "
            f"Received {example} in row {rows[0]}, {elsewhere} ({count} such rows)."
        )

    def _match(self, hour: int, task: LabelTask, orphans: bool) -> None:
        """The table `matched`: the hour's events, each with a reason, `used` where it counts."""
        database = self._database
        database.execute(
            "CREATE OR REPLACE TABLE events "
            "(part BIGINT, example_id BIGINT, timestamp BIGINT, label FLOAT)"
        )
        for at in range(hour, hour + task.reach + 1):
            self._events(at, task)
        late = (
            f"e.timestamp - i.timestamp > {task.window_ms}"
            if task.window_ms
            else f"e.timestamp // {MS_PER_HOUR} > {hour}"
        )
        database.execute(
            f"""
            CREATE OR REPLACE TABLE matched AS
            WITH found AS (
                SELECT e.*, CASE WHEN i.example_id IS NULL THEN 'orphan'
                                 WHEN e.timestamp < i.timestamp THEN 'early'
                                 WHEN {late} THEN 'late' ELSE 'used' END AS reason
                FROM events e
                LEFT JOIN (SELECT * FROM ids WHERE hour = {hour}) i USING (example_id)
                WHERE i.example_id IS NOT NULL OR ({orphans} AND e.part = {hour} AND NOT EXISTS (
                    SELECT 1 FROM ids o WHERE o.example_id = e.example_id AND o.hour < {hour}
                    AND o.hour >= {hour - task.reach}))
            )
            SELECT part, example_id, timestamp, label,
                   CASE WHEN reason = 'used' AND row_number() OVER (
                            PARTITION BY example_id, reason ORDER BY label DESC, timestamp, part
                        ) > 1 THEN 'duplicate' ELSE reason END AS reason
            FROM found
            """
        )

    def _events(self, hour: int, task: LabelTask) -> None:
        part = partitions.labels(self.source, hour, self.storage_options, task.folder)
        if part is None:
            return
        where = part.where
        for name in ("example_id", "timestamp"):
            if not pa.types.is_integer(part.schema.field(name).type):
                raise StreamError(
                    f"{where}: Column {name!r}: expected integers. "
                    f"Received type {part.schema.field(name).type}"
                )
        kind = part.schema.field("label").type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise StreamError(f"{where}: Column 'label': expected numbers. Received type {kind}")
        database = self._database
        database.register("arrived", part.dataset())
        try:
            bad = self._all(
                """
                SELECT example_id, timestamp, label, count(*) OVER () FROM arrived
                WHERE example_id IS NULL OR timestamp IS NULL OR label IS NULL
                      OR label NOT IN (0, 1) LIMIT 1
                """
            )
            if bad:
                example, time, label, count = bad[0]
                ids = (("example_id", example), ("timestamp", time))
                name = next((name for name, value in ids if value is None), "label")
                expected = "0 or 1" if name == "label" else "a value in every row"
                raise StreamError(
                    f"{where}: Column {name!r}: expected {expected}. Received "
                    f"{label if name == 'label' else None!r} for example {example} "
                    f"({count} such rows)."
                )
            database.execute(
                "INSERT INTO events SELECT ?, example_id, timestamp, label FROM arrived", [hour]
            )
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._explained(error, [part], where) from error

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._database.execute(sql, list(values)).fetchall()

    def _explained(self, error: Exception, parts: list[Partition], where: str) -> StreamError:
        """What went wrong, with the file's name if one cannot be read."""
        for part in parts:
            part.check_readable()
        return StreamError(f"{where}: the join failed: {error}")


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """DuckDB's batches may be small; these have `rows` rows, but for the last."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        held.append(batch)
        count += len(batch)
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows).combine_chunks()
            rest = table.slice(rows)
            held, count = rest.to_batches(), len(rest)
    if count:
        yield pa.Table.from_batches(held).combine_chunks()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
