"""What a teacher said of each example, once: a Delta table that all verticals join."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads

from keras_exfm.streaming import StreamError
from keras_exfm.streaming._hour_writer import HourWriter, commit_hour
from keras_exfm.streaming.columns import own_column, sized
from keras_exfm.streaming.stream import table_filesystem
from keras_exfm.streaming.writing import create_table

if TYPE_CHECKING:
    from keras_exfm.das.job import Job

APP_ID = "das"
_VECTOR = "teacher_representation"
TEACHER_COLUMNS = ("teacher_logit", "teacher_snapshot", "teacher_age_s", _VECTOR)
"""What a table of predictions says of an example; a stream has them once a teacher, `named`."""


def named(column: str, teacher: str) -> str:
    """What a column of a teacher's predictions is called where there are several teachers."""
    return f"{column}_{teacher}" if teacher else column


class Predictions:
    """A teacher's predictions, one partition an hour, appended to in time order exactly once.

    Columns, whatever the teacher's name: `hour`, `example_id`, `timestamp`, `teacher_logit`,
    `teacher_snapshot`, `teacher_age_s`, and `teacher_representation` (bytes of float16) where
    vectors are logged.

    Args:
        path: Folder or URL of the table.
        representation_size: Length of the vectors. Defaults to `None`: none.
        storage_options: Options of the object store. Defaults to `None`.
        teacher: The teacher's name. Defaults to `""`: none.
    """

    def __init__(
        self,
        path: str,
        representation_size: int | None = None,
        storage_options: dict[str, str] | None = None,
        teacher: str = "",
    ) -> None:
        self.path = path
        self.representation_size = representation_size
        self.storage_options = storage_options
        self.teacher = teacher

    @classmethod
    def of(cls, job: Job) -> dict[str, Predictions]:
        """Teacher -> its predictions, for each teacher of a job."""
        return {
            name: cls(
                job.predictions(name),
                teacher.representation_size,
                job.output_options or None,
                name,
            )
            for name, teacher in job.all_teachers.items()
        }

    @property
    def arrow_schema(self) -> pa.Schema:
        """The table's columns."""
        fields = [
            ("hour", pa.int64()),
            ("example_id", pa.int64()),
            ("timestamp", pa.int64()),
            ("teacher_logit", pa.float32()),
            ("teacher_snapshot", pa.string()),
            ("teacher_age_s", pa.float32()),
        ]
        if self.representation_size is not None:
            fields.append((_VECTOR, pa.binary()))
        return pa.schema(fields)

    @property
    def stream_schema(self) -> pa.Schema:
        """What a stream has of them."""
        said = [field for field in self.arrow_schema if field.name in TEACHER_COLUMNS]
        fields = [field.with_name(named(field.name, self.teacher)) for field in said]
        size = self.representation_size
        return pa.schema([*fields] if size is None else [*fields[:-1], sized(fields[-1], size)])

    def table(self) -> Any:
        """The Delta table as it is now; `None` if there is none yet."""
        from deltalake import DeltaTable

        if not DeltaTable.is_deltatable(self.path, self.storage_options):
            return None
        table = DeltaTable(self.path, storage_options=self.storage_options)
        held = pa.schema(table.schema().to_arrow()).names
        if held != self.arrow_schema.names:
            raise StreamError(
                f"{self.path}: the predictions have the columns {held}; expected "
                f"{self.arrow_schema.names}. A service that logs other columns needs another "
                "output."
            )
        return table

    def through(self) -> int | None:
        """The last hour that was committed."""
        table = self.table()
        return None if table is None else table.transaction_version(APP_ID)

    def hours(self) -> dict[int, int]:
        """Hour -> rows."""
        table = self.table()
        found: dict[int, int] = {}
        if table is not None:
            actions = pa.table(table.get_add_actions(flatten=True)).to_pydict()
            for hour, rows in zip(actions.get("partition.hour", []), actions["num_records"]):
                found[int(hour)] = found.get(int(hour), 0) + int(rows)
        return found

    def append(self, hour: int, batches: Iterable[pa.Table], note: dict[str, Any]) -> bool:
        """Commits an hour; `False` if another worker has.

        Args:
            hour: The hour.
            batches: Its rows.
            note: Kept in the commit's metadata; may be filled while `batches` run.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        table = self.table()
        if table is None:
            if "://" not in self.path:
                os.makedirs(self.path, exist_ok=True)
            create_table(self.path, self.arrow_schema, None, self.storage_options)
            table = self.table()
        through = table.transaction_version(APP_ID)
        if through is not None and through >= hour:
            return False
        files = table_filesystem(table.table_uri, self.storage_options)
        writer = HourWriter(self.path, files, hour)
        try:
            for batch in batches:
                writer.write(batch.select([n for n in self.arrow_schema.names if n != "hour"]))
            actions, about = writer.finish()

            try:
                commit_hour(table, actions, about | note, APP_ID, hour)
            except CommitFailedError:
                # Another worker was faster. With another hour, or as it made the table at the same
                # time as we did, this hour is still ours to commit.
                through = self.through()
                if self._has(hour, writer) or (through is not None and through >= hour):
                    raise
                commit_hour(self.table(), actions, about | note, APP_ID, hour)
        except CommitFailedError as error:
            if self._has(hour, writer):
                return True
            writer.abandon()
            through = self.through()
            if through is not None and through >= hour:
                return False
            raise StreamError(f"{self.path} (hour {hour}): the commit failed: {error}") from error
        except BaseException as error:
            if not self._has(hour, writer):
                writer.abandon()
            if isinstance(error, (DeltaError, OSError)):
                raise StreamError(f"{self.path}/_delta_log: the commit failed: {error}") from error
            raise
        return True

    def dataset(self, hour: int) -> pads.Dataset:
        """One hour's rows to scan.

        Raises:
            StreamError: If it has none.
        """
        table = self.table()
        files = files_of(table, hour)
        if not files:
            raise StreamError(
                f"{self.path}: no predictions of hour {hour}: the teacher has not scored it."
            )
        options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
        return pads.dataset(
            files,
            schema=pa.schema([f for f in self.arrow_schema if f.name != "hour"]),
            filesystem=table_filesystem(table.table_uri, self.storage_options),
            format=pads.ParquetFileFormat(default_fragment_scan_options=options),
        )

    def tables(self, hour: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """One hour's rows as they are stored, in their order.

        Raises:
            StreamError: If it has none; names a file that cannot be read.
        """
        for fragment in self.dataset(hour).get_fragments():
            try:
                for batch in fragment.to_batches(columns=columns):
                    yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError) as error:
                raise StreamError(
                    f"{self.path}/{fragment.path}: cannot read the Parquet file: {error}"
                ) from error

    def check_readable(self, hour: int) -> None:
        """Reads every page of an hour.

        Raises:
            StreamError: Names the first file that cannot be read.
        """
        for _ in self.tables(hour):
            pass

    def with_vectors(self, rows: pa.Table) -> pa.Table:
        """Rows of a join whose vectors are the lists that `write_hour` takes, not bytes."""
        if self.representation_size is None:
            return rows
        size, name = self.representation_size, named(_VECTOR, self.teacher)
        vectors = own_column(rows.column(name), size)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)
        return rows.set_column(rows.column_names.index(name), name, lists)

    def _has(self, hour: int, writer: HourWriter) -> bool:
        """Whether a commit that ended in an error was one all the same."""
        try:
            return bool(set(writer.files) & set(files_of(self.table(), hour)))
        except Exception:
            # Unknown: files that are nobody's go with the next `vacuum`.
            return True


def files_of(table: Any, hour: int) -> list[str]:
    """The files of a Delta table that hold an hour."""
    if table is None:
        return []
    actions = pa.table(table.get_add_actions(flatten=True)).to_pydict()
    hours = actions.get("partition.hour", [])
    return sorted(path for at, path in zip(hours, actions["path"]) if int(at) == hour)
