"""A worker of a service: does what is due, in units that are each done exactly once."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa

from keras_exfm import streaming
from keras_exfm.das._join import HourJoin
from keras_exfm.das._predictions import APP_ID, Predictions
from keras_exfm.das._side_output import SideOutput
from keras_exfm.das._tally import Tally
from keras_exfm.das.engines import ConnectedEngine, Engine, PartitionEngine, Scored, make_engines
from keras_exfm.das.job import Job
from keras_exfm.das.snapshots import SnapshotError, SnapshotStore
from keras_exfm.streaming import StreamError, partitions

Kind = Literal["score", "emit", "audit", "missed"]


@dataclasses.dataclass(frozen=True)
class Step:
    """What one unit of work did.

    Attributes:
        kind: `"score"` (an hour's predictions by a teacher), `"emit"` (an hour of a vertical's
            stream), `"audit"` (an hour of a task's events, to the side output) or `"missed"` (an
            hour that landed after later ones were committed, to the side output).
        name: The teacher, vertical or task; `""` for a teacher without a name and `"missed"`.
        hour: The hour.
        committed: `False` if another worker had done it.
        rows: Rows scored, emitted or left out.
        scored: Teacher -> rows that have its logit.
        positives: Rows with label 1 (of the vertical's first task).
        not_finite: Rows whose teacher gave NaN or infinity.
        mean_age_s: Teacher -> its mean age over the rows that it scored, if it scored any.
        counts: Of an audit: reason -> events.
        remark: What may be a mistake in the job: a teacher that has published nothing yet or
            seems to give probabilities, a vertical that has not had a row yet.
        seconds: How long it took. Scoring runs beside other units, so the sum over units may be
            more than the time of the whole.
    """

    kind: Kind
    name: str
    hour: int
    committed: bool
    rows: int = 0
    scored: dict[str, int] = dataclasses.field(default_factory=dict)
    positives: int = 0
    not_finite: int = 0
    mean_age_s: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    remark: str = ""
    seconds: float = 0.0


class Worker:
    """Does a job's work.

    An hour goes through three kinds of units. It is **scored** as soon as it has landed, once by
    each teacher for all verticals, while its labels are awaited. It is **emitted** into a
    vertical's stream when the longest window among the vertical's tasks has closed. Its events are
    **audited**, a task at a time, an hour after the task's window, when late ones are known. Each
    unit is one Delta commit with an application transaction, or files of fixed names and content:
    so any number of workers may run one job, and one that is killed at any moment may be started
    again; nothing is lost or doubled. (Two workers that race may both score an hour; one of them
    commits.) The next hour that is to be scored is scored while those before it are emitted and
    audited.

    Args:
        job: The job.
        on_step: Called after each unit. Defaults to `None`.
        engines: Teacher -> what scores for it. Defaults to `None`: what the job asks for.
        hours: First and last hour to work on, both included; `None` leaves an end open. Defaults
            to all.
        note: Kept in the metadata of each commit. Defaults to nothing.

    Example:

    >>> import pyarrow as pa
    >>> from keras_exfm.das import Job
    >>> from keras_exfm.streaming import partitions, read_hour
    >>> rows = pa.table({"example_id": [1, 2], "timestamp": [5, 9], "vertical": ["feed", "shop"],
    ...                  "x": [0.5, 1.5]})
    >>> event = pa.table({"example_id": [2], "timestamp": [12], "label": [1.0]})
    >>> _ = partitions.write_impressions("data", 0, rows)
    >>> _ = partitions.write_labels("data", 0, event)
    >>> job = Job.parse({
    ...     "name": "ads", "source": "data", "output": "out",
    ...     "features": [{"kind": "numeric", "name": "x"}], "tasks": {"click": {"window": "90m"}},
    ...     "verticals": {"all": {"tasks": ["click"]}, "feed": {"tasks": ["click"],
    ...                   "verticals": ["feed"]}}})
    >>> [(step.kind, step.name, step.rows) for step in Worker(job).run(ended=True)]
    [('emit', 'all', 2), ('emit', 'feed', 1), ('audit', 'click', 0)]
    >>> read_hour("out/all", 0)["label"].tolist()
    [0.0, 1.0]
    """

    def __init__(
        self,
        job: Job,
        on_step: Callable[[Step], None] | None = None,
        engines: Mapping[str, Engine] | None = None,
        hours: tuple[int | None, int | None] = (None, None),
        note: dict[str, Any] | None = None,
    ) -> None:
        self.job = job
        self.on_step = on_step
        self.hours = hours
        self.note = note
        self.schema = job.schema_of_features()
        self.engines = dict(engines) if engines is not None else make_engines(job, self.schema)
        self.tasks = job.label_tasks
        self.join = HourJoin(
            job.source,
            self.schema,
            list(self.tasks.values()),
            job.source_options or None,
            job.join.memory_limit,
            job.join.temp_directory,
            job.join.threads,
            job.join.chunk_rows,
            self.engines,
        )
        self.predictions = Predictions.of(job)
        self.side = SideOutput(job.side, (job.side_options or None))
        self._checked: dict[int, int] = {}
        # Hours without a row of a vertical whose table has not begun: nothing can say so on disk.
        # Why verticals wait, of the last look at what is due.
        self._held_up: list[StreamError] = []
        self._without_rows: set[tuple[str, int]] = set()
        # Collecting an iterator that was dropped takes it, wherever that happens.
        self._lock = threading.RLock()
        self._under_way: _Scoring | None = None

    def close(self) -> None:
        """Gives up an hour that is being scored, and stops the engines' processes.

        Steps that are under way end with an error at the next one.
        """
        with self._lock:
            scoring, self._under_way = self._under_way, None
        if scoring is not None:
            scoring.give_up()
        for engine in self.engines.values():
            engine.close()

    def run(self, ended: bool = False) -> list[Step]:
        """Does all that is due, hour by hour.

        Args:
            ended: Whether the source has ended: `False` leaves out hours whose partitions or
                labels may still come. Defaults to `False`.

        Returns:
            What was done. None of a unit that fails; those before it stay committed, and so do the
            predictions of an hour that was being scored meanwhile.
        """
        return list(self.steps(ended))

    def steps(self, ended: bool = False) -> Iterator[Step]:
        """As `run`, a unit at a time, in the order of `due`.

        While a unit's step is looked at, and while rows are emitted and events audited, the next
        unit of kind `"score"` runs in a thread: a teacher leaves processors idle, or needs none.
        Left early, this gives that hour up; where a unit fails, it is ended and committed first.

        Raises:
            StreamError: For a unit that fails; at the end, if verticals wait for the folder of a
                task's events.
            RuntimeError: If other steps of this worker are under way.
        """
        scoring = _Scoring()
        with self._lock:
            if self._under_way is not None:
                raise RuntimeError(
                    f"{self.job.name}: this worker's steps are under way already. End or `close` "
                    "that iterator first, or make another Worker: any number may run one job."
                )
            self._under_way = scoring
        try:
            units = self.due(ended)
            held_up = self._held_up
            coming = collections.deque(unit for unit in units if unit[0] == "score")
            for engine in self.engines.values() if coming else ():
                if isinstance(engine, ConnectedEngine):
                    engine.connect()
            scored = self._ahead(scoring, coming)
            for unit in units:
                if scoring.left.is_set():
                    raise StreamError(f"{self.job.name}: the worker was closed meanwhile.")
                if unit[0] == "score":
                    assert scored is not None
                    step = scored.result()
                    scored = self._ahead(scoring, coming)
                else:
                    step = self._timed(*unit)
                if self.on_step is not None:
                    self.on_step(step)
                yield step
            if held_up:
                raise held_up[0]
        except Exception:
            # An engine that is left in the middle of an hour may have to load its teachers again.
            scoring.finish()
            raise
        finally:
            scoring.give_up()
            with self._lock:
                if self._under_way is scoring:
                    self._under_way = None

    def _ahead(
        self, scoring: _Scoring, coming: collections.deque[tuple[Kind, str, int]]
    ) -> Future[Step] | None:
        """Begins the next unit that scores."""
        if not coming:
            return None
        _, teacher, hour = coming.popleft()
        return scoring.submit(lambda: self._timed("score", teacher, hour, scoring.left))

    def _timed(self, kind: Kind, name: str, hour: int, *more: threading.Event) -> Step:
        begun = time.monotonic()
        step: Step = getattr(self, f"_{kind}")(hour, name, *more)
        return dataclasses.replace(step, seconds=time.monotonic() - begun)

    def due(self, ended: bool = False) -> list[tuple[Kind, str, int]]:
        """The units that can be done now, in the order in which they are."""
        impressions = self.join.hours()
        newest = self.newest(impressions)
        if newest is None:
            return []
        self._held_up = []
        found: list[tuple[Kind, str, int]] = []
        missed: set[int] = set()
        for teacher, predictions in self.predictions.items():
            through = predictions.through()
            found += [
                ("score", teacher, hour)
                for hour in impressions
                if (through is None or hour > through) and (ended or hour < newest)
            ]
            if through is not None:
                known = predictions.hours()
                # Hours before these may have been removed on purpose.
                oldest = min(known, default=0)
                missed |= {h for h in impressions if oldest < h <= through and h not in known}
        if missed:
            done = self.side.hours("impressions")
            found += [("missed", "", hour) for hour in missed if hour not in done]
        for name in self.job.verticals:
            path, options = self.job.stream(name), self.job.output_options or None
            past = streaming.committed_through(path, APP_ID, options)
            emits: list[tuple[Kind, str, int]] = [
                ("emit", name, hour)
                for hour in impressions
                if (past is None or hour > past)
                and (ended or hour + self.job.lag(name) < newest)
                and hour not in missed
                and (name, hour) not in self._without_rows
            ]
            try:
                for task in self.job.tasks_of(name) if emits else ():
                    self.join.check_folder(task)
                found += emits
            except StreamError as error:
                self._held_up.append(error)
        for name, task in self.tasks.items():
            events = partitions.hours(self.job.source, task.folder, self.job.source_options or None)
            audited = set(self.side.hours(name))
            found += [
                ("audit", name, hour)
                for hour in sorted({*impressions, *events})
                if hour not in audited and (ended or hour + task.reach < newest)
            ]
        first, last = self.hours
        found = [
            unit
            for unit in found
            if (first is None or unit[2] >= first) and (last is None or unit[2] <= last)
        ]
        order = {"score": 0, "missed": 1, "emit": 2, "audit": 3}
        return sorted(found, key=lambda unit: (unit[2], order[unit[0]]))

    def newest(self, impressions: list[int] | None = None) -> int | None:
        """The newest hour on disk; it, and no hour before it, may be unfinished."""
        found = self.join.hours() if impressions is None else impressions
        events = (
            partitions.hours(self.job.source, task.folder, self.job.source_options or None)
            for task in self.tasks.values()
        )
        return max(itertools.chain(found, *events), default=None)

    def _score(self, hour: int, name: str, left: threading.Event) -> Step:
        engine = self.engines[name]

        def stay() -> None:
            if left.is_set():
                raise StreamError(f"{self.join.where(hour)}: given up while it was scored.")

        stay()
        rows = self._check(hour)
        tally = Tally([name])

        def batches() -> Generator[pa.Table, None, None]:
            # Before an engine starts what would have to be stopped.
            stay()
            with contextlib.closing(self._scored(engine, hour)) as answers:
                for scored in answers:
                    stay()
                    tally.not_finite += scored.not_finite
                    tally.add_predictions(name, scored.rows)
                    yield scored.rows
            if tally.rows != rows:
                raise StreamError(
                    f"{self.join.where(hour)}: the engine scored {tally.rows} rows of {rows}."
                )

        # Where the commit fails, the engine must know that its answers are not taken.
        with contextlib.closing(batches()) as found:
            committed = self.predictions[name].append(hour, found, self.note or {})
        counts = tally.counts()
        remark = "" if tally.scored[name] else self._no_teacher(name)
        if tally.looks_like_probabilities:
            remark = (
                f"all {tally.scored[name]} predictions of the teacher {name!r} of hour {hour} lie "
                "between 0 and 1: if they are probabilities, it has to give logits, log(p / (1-p))"
            )
        return Step("score", name, hour, committed, **counts, remark=remark)

    def _no_teacher(self, name: str) -> str:
        path = self.job.all_teachers[name].snapshots if name in self.job.all_teachers else None
        try:
            if path is None or SnapshotStore(path).times():
                return ""
        except (OSError, SnapshotError):  # The hour is committed all the same.
            return ""
        return (
            f"{path} holds no snapshot: rows go without a teacher until one is published; "
            "`das backfill` fills them"
        )

    def _scored(self, engine: Engine, hour: int) -> Generator[Scored, None, None]:
        where = self.join.where(hour)
        if isinstance(engine, PartitionEngine):
            columns = ["example_id", "timestamp", *self.schema.names]
            return engine.score_partition(self.join.partition(hour), columns, where)
        return engine.score(self.chunks(hour), where)

    def chunks(self, hour: int) -> Iterator[pa.Table]:
        """What a teacher needs of an hour's impressions, in time order."""
        return self.join.rows(hour, columns=["example_id", "timestamp", *self.schema.names])

    def rows(
        self, hour: int, name: str, teachers: Iterable[str] | None = None
    ) -> Iterator[pa.Table]:
        """What a vertical's stream holds of an hour, joined from source and predictions.

        Args:
            hour: The hour.
            name: The vertical.
            teachers: Those whose predictions are joined. Defaults to `None`: all of the job.
        """
        vertical = self.job.verticals[name]
        joined = {
            teacher: predictions
            for teacher, predictions in self.predictions.items()
            if teachers is None or teacher in teachers
        }
        said = {teacher: predictions.dataset(hour) for teacher, predictions in joined.items()}
        try:
            for table in self.join.rows(
                hour, vertical.where, vertical.verticals, said, self.job.tasks_of(name)
            ):
                for predictions in joined.values():
                    table = predictions.with_vectors(table)
                yield table
        except StreamError:
            # The join does not say which of its inputs cannot be read.
            for predictions in joined.values():
                predictions.check_readable(hour)
            raise

    def _emit(self, hour: int, name: str) -> Step:
        if not self.engines:  # Else it was checked when it was scored.
            self._check(hour)
        # Without a teacher, rows have the columns of one without a name, all null.
        tally = Tally(self.engines or [""])
        path, options = self.job.stream(name), self.job.output_options or None
        note: dict[str, Any] = {"vertical": name, "tasks": self.job.verticals[name].tasks}
        note |= self.note or {}

        def rows() -> Iterator[pa.Table]:
            for table in self.rows(hour, name):
                tally.add(table)
                # Part of the commit, which comes after the last row.
                note.update(tally.figures())
                yield table

        found = rows()
        first = next(found, None)
        if first is None:
            committed = streaming.skip_hour(path, hour, app_id=APP_ID, storage_options=options)
            if streaming.committed_through(path, APP_ID, options) is None:
                self._without_rows.add((name, hour))
                return Step("emit", name, hour, True, remark=self._no_rows(hour, name))
        else:
            committed = streaming.write_hour(
                path,
                hour,
                itertools.chain([first], found),
                self.schema,
                app_id=APP_ID,
                source=self.join.where(hour),
                storage_options=options,
                note=note,
                other_teachers=True,
            )
        return Step("emit", name, hour, committed, **tally.counts())

    def _no_rows(self, hour: int, name: str) -> str:
        vertical = self.job.verticals[name]
        asked = [f"verticals = {vertical.verticals}"] if vertical.verticals is not None else []
        asked += [f"where = {vertical.where!r}"] if vertical.where is not None else []
        return (
            f"{name!r} has had no row yet. It asks for {' and '.join(asked)}; the column "
            f"`vertical` holds {self.join.verticals(hour)} in hour {hour}"
        )

    def _audit(self, hour: int, name: str) -> Step:
        self.join.forget(hour - self.join.reach)
        counts, events = self.join.audit(hour, self.tasks[name])
        self.side.write(hour, name, events, counts)
        return Step("audit", name, hour, True, rows=len(events), counts=counts)

    def _missed(self, hour: int, name: str = "") -> Step:
        part = self.join.partition(hour)
        rows = part.dataset().to_table(columns=["example_id", "timestamp", "vertical"])
        rows = rows.append_column("reason", pa.array(["missed_hour"] * len(rows)))
        self.side.write(hour, "impressions", rows, {"missed_hour": len(rows)})
        return Step("missed", "", hour, True, rows=len(rows), counts={"missed_hour": len(rows)})

    def _check(self, hour: int) -> int:
        """The hour's rows, which are checked once."""
        if hour not in self._checked:
            known = {h: rows for h, rows in self._checked.items() if h > hour - 10_000}
            self._checked = {**known, hour: self.join.check(hour)}
        return self._checked[hour]


class _Scoring:
    """The thread that scores, of one iterator over steps."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self._threads: list[int] = []
        self._pool = ThreadPoolExecutor(
            1, "score", initializer=lambda: self._threads.append(threading.get_ident())
        )

    def submit(self, function: Callable[[], Step]) -> Future[Step]:
        """Runs it in the thread, which sees the caller's context variables and Keras' settings."""
        return self._pool.submit(contextvars.copy_context().run, _with_keras_settings(function))

    def finish(self) -> None:
        """Waits for what was submitted."""
        self._pool.shutdown()

    def give_up(self) -> None:
        """Has what runs end early, and waits for that."""
        self.left.set()
        # A dropped iterator may be collected in any thread, and none can wait for itself.
        self._pool.shutdown(wait=threading.get_ident() not in self._threads)


def _with_keras_settings(function: Callable[[], Step]) -> Callable[[], Step]:
    """Keras keeps them a thread; a teacher made in a thread would not see the program's."""
    if "keras" not in sys.modules:  # Labels alone, or teachers of other processes, need none.
        return function
    import keras

    policy = keras.config.dtype_policy()
    distribution = keras.distribution.distribution()

    def run() -> Step:
        keras.config.set_dtype_policy(policy)
        keras.distribution.set_distribution(distribution)
        return function()

    return run


def summary(steps: list[Step]) -> dict[str, Any]:
    """Totals of what was done, by kind; `seconds` of kinds overlap, see `Step`."""
    found: dict[str, Any] = {}
    for step in steps:
        if step.committed:
            entry = found.setdefault(step.kind, {"units": 0, "rows": 0, "seconds": 0.0})
            entry["units"] += 1
            entry["rows"] += step.rows
            entry["seconds"] += step.seconds
            for reason, count in step.counts.items():
                entry[reason] = entry.get(reason, 0) + count
    return found
