"""The part that all engines share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from keras_exfm.das._scoring import encoded, score_rows
from keras_exfm.das.job import Job, Teacher
from keras_exfm.das.scorers import EntryPointScorer, Scorer, SnapshotScorer
from keras_exfm.das.snapshots import SnapshotStore
from keras_exfm.features import Schema
from keras_exfm.streaming.partitions import Partition


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a teacher said of one table of rows.

    Attributes:
        rows: `example_id`, `timestamp` and the `teacher_` columns.
        not_finite: Rows whose output was NaN or infinite.
    """

    rows: pa.Table
    not_finite: int


class Engine(Protocol):
    """Scores tables of rows, each once, wherever its teachers run."""

    restarts: int

    def score(self, chunks: Iterator[pa.Table], where: str) -> Generator[Scored, None, None]:
        """Scores tables in their order; holds a bounded number of them.

        Close what this returns if it is left before its end.

        Args:
            chunks: `example_id`, `timestamp` and the features.
            where: The partition, for messages.
        """
        ...

    def close(self) -> None:
        """Stops what runs."""
        ...


@runtime_checkable
class PartitionEngine(Protocol):
    """An engine whose teachers read the files of an hour themselves."""

    def score_partition(
        self, part: Partition, columns: list[str], where: str
    ) -> Generator[Scored, None, None]:
        """Scores an hour's files, each row once, in any order."""
        ...


@runtime_checkable
class ConnectedEngine(Protocol):
    """An engine that is connected by the thread that owns it, before another one scores."""

    def connect(self) -> None:
        """Connects, if that has not been done."""
        ...


def make_engines(job: Job, schema: Schema) -> dict[str, Engine]:
    """Teacher -> the engine that the job asks for, one for each of its teachers."""
    return {name: _engine(job, of, schema) for name, of in job.all_teachers.items()}


def _engine(job: Job, teacher: Teacher, schema: Schema) -> Engine:
    settings = teacher_settings(teacher, schema)
    if job.engine == "ray":
        from keras_exfm.das.engines.ray import RayEngine

        return RayEngine(settings, max(1, teacher.workers), job.join.chunk_rows)
    if teacher.workers == 0:
        return InlineEngine(settings)
    from keras_exfm.das.engines.local import LocalEngine

    return LocalEngine(settings, teacher.workers)


def teacher_settings(teacher: Teacher, schema: Schema) -> str:
    """All that a process needs to know to score, as JSON."""
    return json.dumps({"schema": schema.to_dict(), "teacher": dict(teacher)})


class TeacherRunner:
    """A teacher of a job, in the process that makes this.

    Args:
        settings: What `teacher_settings` gave.
    """

    def __init__(self, settings: str) -> None:
        values = json.loads(settings)
        teacher: dict[str, Any] = values["teacher"]
        self.schema = Schema.from_dict(values["schema"])
        self.batch_size: int = teacher["batch_size"]
        self.timeout_s: float = teacher["timeout"] / 1000
        size = teacher["representation_size"]
        self._vectors = size is not None
        self.snapshots: SnapshotStore | None = None
        self.scorer: Scorer
        if teacher["snapshots"] is None:
            self.scorer = EntryPointScorer(teacher["entry_point"], teacher["arguments"], size)
        else:
            self.snapshots = SnapshotStore(
                teacher["snapshots"], trusted_packages=teacher["trusted_packages"]
            )
            self.scorer = SnapshotScorer(
                self.schema, self.batch_size, teacher["representation"], size, self.timeout_s
            )

    def score(self, table: pa.Table, where: str) -> Scored:
        """Scores rows, each once."""
        features = encoded(table, self.schema, where)
        timestamp = table.column("timestamp").to_numpy().astype(np.int64)
        scores = score_rows(features, timestamp, self.scorer, self.snapshots, self._vectors)
        rows = pa.table(
            {
                "example_id": table.column("example_id").cast(pa.int64()),
                "timestamp": pa.array(timestamp),
                **scores.columns(as_bytes=True),
            }
        )
        return Scored(rows, scores.not_finite)


class InlineEngine:
    """Scores in the service's own process.

    Args:
        settings: What `teacher_settings` gave.
    """

    restarts = 0

    def __init__(self, settings: str) -> None:
        self.settings = settings
        self._runner: TeacherRunner | None = None

    def score(self, chunks: Iterator[pa.Table], where: str) -> Generator[Scored, None, None]:
        """Scores tables in their order."""
        if self._runner is None:
            self._runner = TeacherRunner(self.settings)
        for chunk in chunks:
            yield self._runner.score(chunk, where)

    def close(self) -> None:
        """Drops the teacher."""
        self._runner = None
