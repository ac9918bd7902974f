"""Teachers as actors of a Ray cluster."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.das.engines.engine import Scored, TeacherRunner
from keras_exfm.das.job import JobError
from keras_exfm.das.scorers import TeacherTimeout
from keras_exfm.das.snapshots import SnapshotError
from keras_exfm.streaming import StreamError
from keras_exfm.streaming.partitions import Partition

_DEATHS = 3
# A cluster may have to bring up a machine first.
_START_S = 1800.0
# The actor reads the rows itself.
_READ_S = 60.0


class RayEngine:
    """Scores on a Ray cluster, by a pool of actors that keep the teacher from hour to hour.

    The actors get row groups of an hour's files and read them themselves: the features do not pass
    through the service's own process, what the teacher says does. Each holds at most two row
    groups: the one it scores and the next. An actor that dies is started again and gets its row
    groups again; the third death over one is an error, and so is an answer that does not come in
    time. Where Ray is not initialized, `ray.init` is called: at the cluster that `RAY_ADDRESS`
    names, or on this machine. Files must be where all of the cluster's machines see them.

    Args:
        settings: What `teacher_settings` gave.
        workers: Number of actors. Defaults to `1`.
        chunk_rows: Rows that an actor reads and scores at a time. Defaults to `65536`.
        start_s: Seconds that an actor may take until its first answer, beside the time that the
            teacher has. Defaults to `1800.0`.

    Raises:
        JobError: If Ray is not installed.
    """

    def __init__(
        self,
        settings: str,
        workers: int = 1,
        chunk_rows: int = 65_536,
        start_s: float = _START_S,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise JobError("The ray engine needs Ray: pip install 'keras-exfm[ray]'") from error
        self.settings = settings
        self.workers = workers
        self.chunk_rows = chunk_rows
        self.start_s = start_s
        self.restarts = 0
        self._ray: Any = ray
        self._ours = False
        self._members: list[_Member] = []

    def score(self, chunks: Iterator[pa.Table], where: str) -> Generator[Scored, None, None]:
        """Scores tables in their order."""
        self.connect()

        def tasks() -> Iterator[_Task]:
            for chunk in chunks:
                yield _Task(len(chunk), "score", (self._ray.put(chunk), where))

        yield from self._scored(tasks(), where)

    def score_partition(
        self, part: Partition, columns: list[str], where: str
    ) -> Generator[Scored, None, None]:
        """Scores an hour's files, a row group at a time."""
        self.connect()

        def tasks() -> Iterator[_Task]:
            shared = self._ray.put(part)
            for file in part.files:
                with part.filesystem.open_input_file(file) as source:
                    groups = pq.ParquetFile(source).metadata
                for group in range(groups.num_row_groups):
                    rows = groups.row_group(group).num_rows
                    arguments = (shared, file, group, columns, self.chunk_rows, where)
                    if rows:
                        yield _Task(rows, "score_group", arguments)

        yield from self._scored(tasks(), where)

    def close(self) -> None:
        """Ends the actors, and leaves the cluster if this engine joined it."""
        self._end_actors(self._members)
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()
        self._ours = False

    def connect(self) -> None:
        """Joins the cluster, or starts one on this machine, if that has not been done.

        One that is started here ends with the thread that started it: Ray's processes ask the
        kernel to be told of its end.
        """
        if self._ray.is_initialized():
            return
        # They were of a cluster that another engine of this process has left.
        self._members = []
        names = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
        self._ray.init(
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False,
            runtime_env={"env_vars": {n: os.environ[n] for n in names if n in os.environ}},
        )
        self._ours = True

    def _scored(self, tasks: Iterable[_Task], where: str) -> Iterator[Scored]:
        if any(member.sent for member in self._members):
            # A call before was left and not closed: its answers are nobody's.
            self._end_actors(self._members)
        members = self._members
        waiting: collections.deque[_Member] = collections.deque()
        turn = 0
        try:
            while len(members) < self.workers:
                members.append(_Member(self._actor()))
            for task in tasks:
                member = members[turn % self.workers]
                turn += 1
                if len(waiting) == 2 * self.workers:
                    yield from self._answer(waiting.popleft(), where)
                member.send(task)
                waiting.append(member)
            while waiting:
                yield from self._answer(waiting.popleft(), where)
        except BaseException as error:
            # What is still on the way is nobody's.
            self._end_actors(members)
            if isinstance(error, self._ray.exceptions.RayError):
                raise _explained(error, where) from error
            raise

    def _answer(self, member: _Member, where: str) -> Iterator[Scored]:
        errors = self._ray.exceptions
        # Short of memory, or on a machine that went away: as good as dead.
        deaths = (
            errors.RayActorError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
        )
        task = member.sent[0][0]
        for _ in range(_DEATHS):
            limit = self._limit(task.rows) + (0 if member.answered else self.start_s)
            try:
                table, not_finite = self._ray.get(member.sent[0][1], timeout=limit)
            except errors.GetTimeoutError as error:
                raise TeacherTimeout(
                    f"{where}: the actor that scores gave no answer within {limit:.0f} s, for "
                    f"{task.rows} rows; it was ended."
                ) from error
            except deaths as error:
                self.restarts += 1
                self._kill(member)
                member.replace(self._actor())
                last = error
            else:
                member.sent.popleft()
                member.answered = True
                if len(table):
                    yield Scored(table, not_finite)
                return
        raise StreamError(
            f"{where}: the actor that scores died {_DEATHS} times over the same rows, at last: "
            f"{last}"
        )

    def _limit(self, rows: int) -> float:
        """Seconds; the teacher has its own limit, this one is for what it cannot interrupt."""
        teacher = json.loads(self.settings)["teacher"]
        batches = max(1, -(-rows // min(int(teacher["batch_size"]), self.chunk_rows)))
        return _READ_S + 2 * float(teacher["timeout"]) / 1000 * batches

    def _actor(self) -> Any:
        # Ray's default asks for a processor to be placed and holds none: teachers take turns.
        made = self._ray.remote(_Actor).options(scheduling_strategy="SPREAD")
        return made.remote(self.settings)

    def _end_actors(self, members: list[_Member]) -> None:
        for member in members:
            self._kill(member)
        if self._members is members:
            self._members = []

    def _kill(self, member: _Member) -> None:
        # One of a cluster that was left is gone, and its handle means nothing to the next.
        with contextlib.suppress(Exception):
            if self._ray.is_initialized():
                self._ray.kill(member.actor)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Rows to score: a method of an actor and its arguments."""

    rows: int
    method: str
    arguments: tuple[Any, ...]

    def ask(self, actor: Any) -> Any:
        """The reference to the actor's answer."""
        return getattr(actor, self.method).remote(*self.arguments)


class _Member:
    """An actor, and what it was asked for and has not answered yet."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.sent: collections.deque[tuple[_Task, Any]] = collections.deque()
        self.answered = False

    def send(self, task: _Task) -> None:
        self.sent.append((task, task.ask(self.actor)))

    def replace(self, actor: Any) -> None:
        """Asks another actor for all of it."""
        self.actor, self.answered = actor, False
        self.sent = collections.deque((task, task.ask(actor)) for task, _ in self.sent)


class _Actor:
    """One teacher."""

    def __init__(self, settings: str) -> None:
        self._settings = settings
        self._runner: TeacherRunner | None = None

    def score(self, chunk: pa.Table, where: str) -> tuple[pa.Table, int]:
        """What the teacher says of some rows, and how often it was not finite."""
        # Not when it is made: what goes wrong here is then told as any other error.
        if self._runner is None:
            self._runner = TeacherRunner(self._settings)
        scored = self._runner.score(chunk, where)
        return scored.rows, scored.not_finite

    def score_group(
        self, part: Partition, file: str, group: int, columns: list[str], rows: int, where: str
    ) -> tuple[pa.Table, int]:
        """As `score`, of a row group, which is read and scored `rows` rows at a time."""
        found = [self.score(chunk, where) for chunk in _chunks(part, file, group, columns, rows)]
        return pa.concat_tables(table for table, _ in found), sum(bad for _, bad in found)


def _chunks(
    part: Partition, file: str, group: int, columns: list[str], rows: int
) -> Iterator[pa.Table]:
    try:
        with part.filesystem.open_input_file(file) as source:
            parquet = pq.ParquetFile(source, page_checksum_verification=True)
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise StreamError(f"{part.name(file)}: cannot read the Parquet file: {error}") from error


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
