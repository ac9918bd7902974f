"""Events that no label was made of: kept, never dropped silently."""

from __future__ import annotations

import json
import os
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from keras_exfm.streaming import StreamError, _storage


class SideOutput:
    """A folder of Parquet files, `reason=<reason>/hour=<hour>/<task>.parquet`.

    An hour's files have fixed names and their rows a fixed order, so that writing them again, after
    a crash or by a second worker, changes nothing. `counts/hour=<hour>/<task>.json` is written
    last: an hour that has it is whole.

    Args:
        path: The folder, or a URL.
        storage_options: Arguments of fsspec's file system. Defaults to `None`.
    """

    def __init__(
        self, path: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.storage_options = storage_options

    def write(self, hour: int, task: str, events: pa.Table, counts: dict[str, int]) -> None:
        """Writes what `HourJoin.audit` found of an hour."""
        files, root = _storage.filesystem(self.path, self.storage_options)
        for reason in counts:
            chosen = events.filter(pc.equal(events.column("reason"), reason))
            folder = f"{root}/reason={reason}/hour={hour}"
            if len(chosen):
                self._put(files, folder, f"{task}.parquet", chosen.drop_columns(["reason"]))
        self._put(files, f"{root}/counts/hour={hour}", f"{task}.json", counts)

    def counts(self, hour: int, task: str) -> dict[str, int] | None:
        """The hour's counts, or `None` if it is not whole."""
        files, root = _storage.filesystem(self.path, self.storage_options)
        file = f"{root}/counts/hour={hour}/{task}.json"
        try:
            with files.open_input_file(file) as source:
                return json.loads(source.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StreamError(f"{file}: cannot read the counts: {error}") from error

    def hours(self, task: str) -> list[int]:
        """The hours whose counts of this task are there."""
        files, root = _storage.filesystem(self.path, self.storage_options)
        return sorted(
            int(info.base_name.removeprefix("hour="))
            for info in _storage.listing(files, f"{root}/counts")
            if files.get_file_info(f"{info.path}/{task}.json").type == pafs.FileType.File
        )

    def _put(self, files: pafs.FileSystem, folder: str, name: str, content: Any) -> None:
        where = f"{folder}/{name}"
        hidden = f"{folder}/.{name}.{os.getpid()}"
        try:
            files.create_dir(folder, recursive=True)
            target = hidden if _storage.is_local(files) else where
            with files.open_output_stream(target) as sink:
                if isinstance(content, pa.Table):
                    pq.write_table(content, sink, compression="zstd", write_page_checksum=True)
                else:
                    sink.write(json.dumps(content).encode())
            if target != where:
                files.move(hidden, where)
        except (OSError, pa.ArrowException) as error:
            raise StreamError(f"{where}: cannot write the side output: {error}") from error
