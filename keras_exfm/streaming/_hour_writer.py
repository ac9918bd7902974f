"""The files of one hour of a labelled stream, before and in their commit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from keras_exfm.streaming._digest import RowDigest
from keras_exfm.streaming.columns import StreamError

_FILE_BYTES = 256 * 2**20
_GROUP_ROWS = 131_072
_KEYS = ("timestamp", "example_id")
# The engine's own writers end their names with `-c000`.
_OURS = re.compile(r"part-\d{5}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.zstd\.parquet")

NOTE_KEY = "keras_exfm"
"""Key of a commit's metadata that holds, as JSON, what was committed: hour, rows, digests."""


class HourWriter:
    """Writes an hour's rows to Parquet files that no reader sees until they are committed.

    The engine (`deltalake`) commits; the files are ours, so that their pages carry checksums, rows
    keep their order, memory is bounded by a row group, and the digest of the rows is known in time
    to be part of the commit.

    Args:
        where: The table, for messages.
        filesystem: The table's folder.
        hour: The hour.
    """

    def __init__(self, where: str, filesystem: pafs.FileSystem, hour: int) -> None:
        self.where = where
        self.filesystem = filesystem
        self.hour = hour
        self.rows = 0
        self.digest = RowDigest()
        self.files: list[str] = []
        self._actions: list[Any] = []
        self._writer: pq.ParquetWriter | None = None
        self._sink: Any = None
        self._bounds: dict[str, tuple[int, int]] = {}
        self._held = 0

    def write(self, rows: pa.Table) -> None:
        """Appends rows, which follow those before them in time."""
        rows = rows.drop_columns([n for n in ("hour",) if n in rows.column_names])
        self.digest.update(rows)
        self.rows += len(rows)
        try:
            if self._writer is None:
                self._open(rows.schema)
            assert self._writer is not None
            self._writer.write_table(rows, row_group_size=_GROUP_ROWS)
            for key in _KEYS:
                if key in rows.column_names:
                    found = pc.min_max(rows.column(key)).as_py()
                    low, high = self._bounds.get(key, (found["min"], found["max"]))
                    self._bounds[key] = min(low, found["min"]), max(high, found["max"])
            self._held += len(rows)
            if self._sink.tell() >= _FILE_BYTES:
                self._close()
        except (OSError, pa.ArrowException) as error:
            raise self._failed(error) from error

    def finish(self) -> tuple[list[Any], dict[str, Any]]:
        """What to commit: `AddAction`s, and the note for the commit's metadata."""
        try:
            self._close()
        except (OSError, pa.ArrowException) as error:
            raise self._failed(error) from error
        note = {"hour": self.hour, "rows": self.rows, "digest": self.digest.columns()}
        return self._actions, note

    def abandon(self) -> None:
        """Deletes what was written."""
        with contextlib.suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
                self._sink.close()
        self._writer = None
        for file in self.files:
            with contextlib.suppress(OSError, pa.ArrowException):
                self.filesystem.delete_file(file)

    def _open(self, schema: pa.Schema) -> None:
        folder = f"hour={self.hour}"
        file = f"{folder}/part-{len(self.files):05d}-{uuid.uuid4()}.zstd.parquet"
        self.filesystem.create_dir(folder, recursive=True)
        self.files.append(file)
        self._sink = self.filesystem.open_output_stream(file)
        # A dictionary of ids that hardly repeat costs most of the time of writing and half of that
        # of reading, and zstd finds those that do repeat.
        words = [field.name for field in schema if pa.types.is_string(field.type)]
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            use_dictionary=words or False,
            write_page_checksum=True,
        )

    def _close(self) -> None:
        if self._writer is None:
            return
        from deltalake.transaction import AddAction

        file = self.files[-1]
        self._writer.close()
        self._sink.close()
        self._writer = None
        _flush(self.filesystem, file)
        stats = {
            "numRecords": self._held,
            "minValues": {key: low for key, (low, _) in self._bounds.items()},
            "maxValues": {key: high for key, (_, high) in self._bounds.items()},
            "nullCount": dict.fromkeys(self._bounds, 0),
        }
        self._actions.append(
            AddAction(
                path=file,
                size=self.filesystem.get_file_info(file).size,
                partition_values={"hour": str(self.hour)},
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps(stats),
            )
        )
        self._bounds, self._held = {}, 0

    def _failed(self, error: Exception) -> StreamError:
        file = self.files[-1] if self.files else f"hour={self.hour}"
        return StreamError(f"{self.where}/{file}: cannot write the Parquet file: {error}")


def is_ours(file: str) -> bool:
    """Whether a file was written here, its rows in order."""
    return _OURS.fullmatch(file.rsplit("/", 1)[-1]) is not None


def _flush(filesystem: pafs.FileSystem, file: str) -> None:
    """Waits until a local file is on the disk: the log must not name what a power cut takes."""
    if not isinstance(filesystem, pafs.SubTreeFileSystem):
        return
    path = os.path.join(filesystem.base_path, file)
    for place in (path, os.path.dirname(path)):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit_hour(table: Any, actions: Any, note: dict[str, Any], app_id: str, hour: int) -> None:
    """One commit of an hour's files: appended with the hour as the application's transaction.

    Raises:
        CommitFailedError: If another writer was faster.
    """
    from deltalake import CommitProperties, Transaction

    table.create_write_transaction(
        actions,
        "append",
        table.schema(),
        partition_by=["hour"],
        commit_properties=CommitProperties(
            custom_metadata={NOTE_KEY: json.dumps(note)},
            app_transactions=[Transaction(app_id, hour)],
        ),
    )
