"""Teachers as actors of a Ray cluster, over Ray Data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.das.engines.engine import Scored, TeacherRunner
from keras_exfm.das.job import JobError
from keras_exfm.das.scorers import TeacherTimeout
from keras_exfm.das.snapshots import SnapshotError
from keras_exfm.streaming import StreamError
from keras_exfm.streaming.partitions import Partition

_BAD = "__not_finite"


class RayEngine:
    """Scores on a Ray cluster: a pool of actors, each of which loads the teacher once an hour.

    Ray Data hands the row groups of an hour's files to the actors, which read them themselves: the
    features do not pass through the service's own process, what the teacher says does. An actor
    that dies is started again by Ray and its row group scored again. Where Ray is not initialized,
    `ray.init` is called: at the cluster that `RAY_ADDRESS` names, or on this machine. Files must be
    where all of the cluster's machines see them.

    Args:
        settings: What `teacher_settings` gave.
        workers: Number of actors. Defaults to `1`.
        chunk_rows: Rows that an actor reads and scores at a time. Defaults to `65536`.

    Raises:
        JobError: If Ray is not installed.
    """

    def __init__(self, settings: str, workers: int = 1, chunk_rows: int = 65_536) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise JobError("The ray engine needs Ray: pip install 'keras-exfm[ray]'") from error
        self.settings = settings
        self.workers = workers
        self.chunk_rows = chunk_rows
        self.restarts = 0
        self._ray: Any = ray
        self._ours = False

    def score(self, chunks: Iterator[pa.Table], where: str) -> Iterator[Scored]:
        """Scores tables, which all go to Ray's object store first."""
        self.connect()
        refs = [self._ray.put(chunk) for chunk in chunks]
        if refs:
            yield from self._map(self._ray.data.from_arrow_refs(refs), None, None, where)

    def score_partition(self, part: Partition, columns: list[str], where: str) -> Iterator[Scored]:
        """Scores an hour's files, in any order."""
        self.connect()
        items = []
        for file in part.files:
            with part.filesystem.open_input_file(file) as source:
                groups = pq.ParquetFile(source).num_row_groups
            items += [{"file": file, "group": group} for group in range(groups)]
        dataset = self._ray.data.from_items(items, override_num_blocks=len(items))
        yield from self._map(dataset, part, columns, where)

    def close(self) -> None:
        """Leaves the cluster, if this engine joined it."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()
        self._ours = False

    def _map(
        self, dataset: Any, part: Partition | None, columns: list[str] | None, where: str
    ) -> Iterator[Scored]:
        scored = dataset.map_batches(
            _Actor,
            fn_constructor_args=(self.settings, part, columns, where, self.chunk_rows),
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            compute=self._ray.data.ActorPoolStrategy(size=self.workers),
        )
        try:
            for table in scored.iter_batches(batch_format="pyarrow", batch_size=None):
                if len(table):
                    bad = int(np.asarray(table.column(_BAD)).sum())
                    yield Scored(table.drop_columns([_BAD]).replace_schema_metadata(None), bad)
        except self._ray.exceptions.RayError as error:
            raise _explained(error, where) from error

    def connect(self) -> None:
        """Joins the cluster, or starts one on this machine, if that has not been done.

        One that is started here ends with the thread that started it: Ray's processes ask the
        kernel to be told of its end.
        """
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self._ray.is_initialized():
            return
        names = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
        self._ray.init(
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False,
            runtime_env={"env_vars": {n: os.environ[n] for n in names if n in os.environ}},
        )
        self._ours = True


class _Actor:
    """One teacher; maps row groups, or tables of rows, to what it says of them."""

    def __init__(
        self,
        settings: str,
        part: Partition | None,
        columns: list[str] | None,
        where: str,
        chunk_rows: int,
    ) -> None:
        self._runner = TeacherRunner(settings)
        self._part = part
        self._columns = columns
        self._where = where
        self._chunk_rows = chunk_rows

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        """What the teacher says."""
        for chunk in self._chunks(items):
            scored = self._runner.score(chunk, self._where)
            bad = np.zeros(len(chunk), np.int64)
            bad[:1] = scored.not_finite
            yield scored.rows.append_column(_BAD, pa.array(bad))

    def _chunks(self, items: pa.Table) -> Iterator[pa.Table]:
        part = self._part
        if part is None:
            yield items
            return
        for item in items.to_pylist():
            try:
                with part.filesystem.open_input_file(item["file"]) as source:
                    parquet = pq.ParquetFile(source, page_checksum_verification=True)
                    for batch in parquet.iter_batches(
                        self._chunk_rows, row_groups=[item["group"]], columns=self._columns
                    ):
                        yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError) as error:
                raise StreamError(
                    f"{part.name(item['file'])}: cannot read the Parquet file: {error}"
                ) from error


def _explained(error: Exception, where: str) -> Exception:
    """The teacher's own error, which Ray wraps in others."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for kind in (TeacherTimeout, StreamError, SnapshotError):
            if isinstance(cause, kind):
                return kind(str(getattr(cause, "cause", None) or cause).strip())
        cause = getattr(cause, "cause", None) or cause.__cause__
    return StreamError(f"{where}: scoring on Ray failed: {error}")
