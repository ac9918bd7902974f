"""Kafka topics of impressions and labels as hour partitions."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.das._messages import Decoder, MessageParser
from keras_exfm.das._snapshot_files import LocalFiles, sync
from keras_exfm.features import Schema
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions

_log = logging.getLogger(__name__)
_HOME = ".kafka"
_STATE = "state.json"
_TIMEOUT = 30.0
_PLACE = pa.schema([("_partition", pa.int32()), ("_offset", pa.int64())])


@dataclasses.dataclass(frozen=True)
class KafkaProgress:
    """What one `poll` of a `KafkaSource` did.

    Attributes:
        messages: Messages that were taken up and committed.
        rejected: Those of them that are no rows; they are in `rejected/`, with the reason.
        late: Rows of hours that were closed before; they are in `late/`.
        closed: Folder (`"impressions"`, `"labels"`) -> hours that were written.
    """

    messages: int = 0
    rejected: int = 0
    late: int = 0
    closed: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)


class KafkaSource:
    """Consumes topics into the hour partitions that the data augmentation service reads.

    Each message is one row: a JSON object, or what `decode` makes of it. Rows are kept in segment
    files under `.kafka/` until their hour closes: when every partition of the topic has shown an
    event `lateness_s` after its end. Then the hour is written whole, in order of time, by
    `streaming.partitions`; an example that came twice is written once.

    **Exactly once.** The place in each topic is stored with the names of the segments, in one file
    that is replaced in one step, not in Kafka: whenever the process is killed, the next one goes on
    from the last such step, and every message is in the partitions once. An hour that has been
    closed never changes: rows that come for it later go to `late/`. Messages that are no rows go
    to `rejected/`, with topic, partition, offset and reason. Nothing is dropped.

    The broker's own copy of the offsets is kept up to date for those who watch the lag.

    Args:
        root: Local folder of the data set.
        schema: Features of the impressions.
        impressions: Topic of impressions: `example_id`, `timestamp` (ms), `vertical`, features.
        labels: Topic of label events (`example_id`, `timestamp`, `label`), or topic -> folder for
            several tasks. Defaults to `"labels"`.
        config: Configuration of `confluent_kafka.Consumer`, such as `bootstrap.servers`.
        columns: Further columns of impressions: `"group"`, `"weight"`, `"true_probability"`.
            Defaults to none.
        string_ids: Hashed features whose ids are strings. Defaults to none.
        decode: Message value -> column name -> value. Defaults to `None`: JSON.
        lateness_s: Seconds of event time that rows may come late. Defaults to `300.0`.
        idle_s: Seconds without a message after which a partition that was read to its end no longer
            holds hours open. Defaults to `60.0`.
        ahead_s: Rows dated this many seconds after now are rejected: one wrong clock would close
            all hours. Defaults to `3600.0`.
        batch: Most messages of one `poll`. Defaults to `50000`.

    Raises:
        ImportError: If confluent-kafka is not installed (`pip install keras-exfm[kafka]`).
        StreamError: If another process consumes into `root`, a topic does not exist, or messages
            that were not read yet are gone from the broker.

    Example:

    >>> import keras_exfm as kx
    >>> source = KafkaSource(
    ...     "data", kx.Schema([kx.Numeric("x")]), "impressions",
    ...     config={"bootstrap.servers": "localhost:9092"})
    >>> source.topics
    {'impressions': 'impressions', 'labels': 'labels'}
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        schema: Schema,
        impressions: str,
        labels: str | Mapping[str, str] = "labels",
        config: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        string_ids: Sequence[str] = (),
        decode: Decoder | None = None,
        lateness_s: float = 300.0,
        idle_s: float = 60.0,
        ahead_s: float = 3600.0,
        batch: int = 50_000,
    ) -> None:
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ImportError("Kafka topics need confluent-kafka: pip install 'keras-exfm[kafka]'")
        if "bootstrap.servers" not in (config or {}):
            raise StreamError(
                "`config` should hold 'bootstrap.servers', the address of the brokers. Received: "
                f"{sorted(config or {})}"
            )
        for name, value in (("lateness_s", lateness_s), ("idle_s", idle_s), ("ahead_s", ahead_s)):
            if not value >= 0:
                raise StreamError(f"`{name}` should be at least 0. Received: {name}={value!r}")
        self.root = Path(root)
        self.schema = schema
        self.config = dict(config or {})
        self.lateness_s = lateness_s
        self.idle_s = idle_s
        self.ahead_s = ahead_s
        self.batch = batch
        labels = {labels: partitions.LABELS} if isinstance(labels, str) else dict(labels)
        self.topics: dict[str, str] = {impressions: partitions.IMPRESSIONS, **labels}
        if impressions in labels or len(set(self.topics.values())) < len(self.topics):
            raise StreamError(
                "Each topic should have a folder of its own. Received: "
                f"impressions={impressions!r}, labels={labels}"
            )
        own = ("example_id", "timestamp", "vertical", *columns)
        self._parsers = {
            topic: MessageParser(("example_id", "timestamp", "label"), decode=decode)
            for topic in labels
        }
        self._parsers[impressions] = MessageParser(own, schema, decode, string_ids)
        self._home = self.root / _HOME
        self._consumer: Any = None
        self._lock: Any = None
        self._ended: dict[tuple[str, int], float] = {}

    def __enter__(self) -> KafkaSource:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Takes up the work where it was left; `poll` does it by itself."""
        if self._consumer is not None:
            return
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

        self._home.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._files = LocalFiles(self._home)
            self._state = self._load_state()
            self._clear_strays()
            self._write_pending()
            consumer = Consumer(
                {
                    "group.id": "keras-exfm-das",
                    "isolation.level": "read_committed",
                    **self.config,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,
                    # Messages that the broker has dropped are not jumped over.
                    "auto.offset.reset": "error",
                }
            )
            places = []
            for topic in self.topics:
                try:
                    known = consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic]
                except KafkaException as error:
                    raise StreamError(
                        f"Topic {topic!r}: no answer from the brokers: {error}"
                    ) from error
                if known.error is not None or not known.partitions:
                    raise StreamError(f"Topic {topic!r}: {known.error or 'it has no partitions'}")
                state = self._state["topics"].setdefault(topic, {"next": {}, "latest": {}})
                for number in known.partitions:
                    start = state["next"].get(str(number), OFFSET_BEGINNING)
                    places.append(TopicPartition(topic, number, start))
                    state["next"].setdefault(str(number), OFFSET_BEGINNING)
            consumer.assign(places)
            self._consumer = consumer
        except BaseException:
            self._release_lock()
            raise

    def close(self) -> None:
        """Leaves the topics; what was committed stays."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
            self._ended.clear()
        self._release_lock()

    def poll(self, timeout: float = 1.0) -> KafkaProgress:
        """Takes up the messages that are there, up to `batch`, and closes hours that are over.

        Args:
            timeout: Seconds to wait for messages. Defaults to `1.0`.

        Raises:
            StreamError: For an error of the broker that waiting does not mend.
        """
        self.open()
        batches: dict[str, list[Any]] = {topic: [] for topic in self.topics}
        for message in self._consumer.consume(self.batch, timeout=timeout):
            if message.error() is None:
                batches[message.topic()].append(message)
                self._ended.pop((message.topic(), message.partition()), None)
            else:
                self._note_error(message)
        taken = sum(len(messages) for messages in batches.values())
        rejected = late = 0
        if taken:
            for topic, messages in batches.items():
                if messages:
                    bad, behind = self._stage(topic, messages)
                    rejected, late = rejected + bad, late + behind
            self._save_state()
            self._tell_broker()
        closed = self._close_hours(self._watermarks())
        return KafkaProgress(taken, rejected, late, closed)

    def run(self, stop: Callable[[], bool], timeout: float = 1.0) -> None:
        """Polls until `stop()`.

        Args:
            stop: Asked after each poll.
            timeout: As in `poll`. Defaults to `1.0`.
        """
        with self:
            while True:
                progress = self.poll(timeout)
                if progress.messages or progress.closed:
                    _log.info("kafka: %s", progress)
                if stop():
                    return

    def finish(self, timeout: float = 1.0) -> KafkaProgress:
        """Reads to the present end of the topics and closes all hours: the stream has ended.

        Args:
            timeout: As in `poll`. Defaults to `1.0`.
        """
        self.open()
        total = KafkaProgress()
        while True:
            step = self.poll(timeout)
            total = _sum(total, step)
            ends = {(t, int(p)) for t in self.topics for p in self._state["topics"][t]["next"]}
            if not step.messages and ends <= set(self._ended):
                break
        held = [int(h) for f in self._state["segments"].values() for h in f]
        last = max([*held, *self._state["closed_through"].values()], default=None)
        if last is None:
            return total
        everything = dict.fromkeys(self.topics.values(), (last + 1) * MS_PER_HOUR)
        return _sum(total, KafkaProgress(closed=self._close_hours(everything)))

    @property
    def counts(self) -> dict[str, int]:
        """Rows, late rows, repeated examples and rejected messages since the beginning."""
        if self._consumer is None:
            return dict(self._load_state()["counts"])
        return dict(self._state["counts"])

    # Taking up.

    def _note_error(self, message: Any) -> None:
        from confluent_kafka import KafkaError

        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            self._ended.setdefault((message.topic(), message.partition()), time.monotonic())
            return
        fatal = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
        if error.code() in fatal:
            raise StreamError(
                f"Topic {message.topic()!r}, partition {message.partition()}: the broker no "
                f"longer has the messages after the last committed one: {error.str()}. Is its "
                f"retention too short? The place is kept in {self._home / _STATE}."
            )
        if error.fatal() or not error.retriable():
            lost = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}
            if error.code() not in lost:
                raise StreamError(f"Topic {message.topic()!r}: {error.str()}")
        _log.warning("kafka: %s", error.str())

    def _stage(self, topic: str, messages: list[Any]) -> tuple[int, int]:
        """Writes a batch's rows as segments and notes them in the state, which is saved later."""
        folder, state = self.topics[topic], self._state["topics"][topic]
        place = pa.table(
            [
                pa.array([m.partition() for m in messages], pa.int32()),
                pa.array([m.offset() for m in messages], pa.int64()),
            ],
            schema=_PLACE,
        )
        table, kept, rejected = self._parsers[topic].parse([m.value() for m in messages])
        horizon = int(time.time() * 1000 + self.ahead_s * 1000)
        stamps = table.column("timestamp").to_numpy()
        ahead = stamps > horizon
        reasons = [(r.index, r.reason) for r in rejected]
        reasons += [
            (int(kept[i]), f"timestamp {stamps[i]} is after now, {horizon}, and `ahead_s`")
            for i in np.flatnonzero(ahead)
        ]
        table, kept = table.filter(pa.array(~ahead)), kept[~ahead]
        table = table.append_column(_PLACE.field(0), place.column(0).take(pa.array(kept)))
        table = table.append_column(_PLACE.field(1), place.column(1).take(pa.array(kept)))
        hours = table.column("timestamp").to_numpy() // MS_PER_HOUR
        closed = self._state["closed_through"].get(folder)
        late = hours <= closed if closed is not None else np.zeros(len(hours), bool)
        if late.any():
            self._segment(table.filter(pa.array(late)), self.root / "late" / folder)
        for hour in np.unique(hours[~late]).tolist():
            own = table.filter(pa.array((hours == hour) & ~late))
            name = self._segment(own, self._home / folder / f"hour={hour}")
            held = self._state["segments"].setdefault(folder, {})
            held.setdefault(str(hour), []).append(name)
        if reasons:
            self._reject(topic, messages, reasons)
        counts = self._state["counts"]
        counts["rows"] += len(hours)
        counts["late"] += int(late.sum())
        counts["rejected"] += len(reasons)
        for message in messages:
            state["next"][str(message.partition())] = message.offset() + 1
        numbers = table.column("_partition").to_numpy()
        stamps = table.column("timestamp").to_numpy()
        for number in np.unique(numbers).tolist():
            latest = int(stamps[numbers == number].max())
            state["latest"][str(number)] = max(latest, state["latest"].get(str(number), latest))
        return len(reasons), int(late.sum())

    def _segment(self, table: pa.Table, folder: Path) -> str:
        """Writes rows to a new file, which counts once the state has its number."""
        self._state["sequence"] += 1
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"segment-{self._state['sequence']:012d}.parquet"
        partial = file.with_name(f".{file.name}")
        with open(partial, "wb") as sink:
            pq.write_table(table, sink, compression="zstd")
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(partial, file)
        sync(folder)
        return file.name

    def _reject(self, topic: str, messages: list[Any], reasons: list[tuple[int, str]]) -> None:
        chosen = [messages[index] for index, _ in reasons]
        table = pa.table(
            {
                "topic": [topic] * len(chosen),
                "partition": pa.array([m.partition() for m in chosen], pa.int32()),
                "offset": pa.array([m.offset() for m in chosen], pa.int64()),
                "key": pa.array([m.key() for m in chosen], pa.binary()),
                "value": pa.array([m.value() for m in chosen], pa.binary()),
                "reason": [reason for _, reason in reasons],
            }
        )
        self._segment(table, self.root / "rejected" / topic)

    def _tell_broker(self) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        places = [
            TopicPartition(topic, int(number), offset)
            for topic in self.topics
            for number, offset in self._state["topics"][topic]["next"].items()
            if offset >= 0
        ]
        # For those who watch the lag; this source itself never asks for it.
        with contextlib.suppress(KafkaException):
            self._consumer.commit(offsets=places, asynchronous=True)

    # Closing.

    def _watermarks(self) -> dict[str, int]:
        """Folder -> event time that no row is expected to be older than."""
        found = {}
        now = time.monotonic()
        for topic, folder in self.topics.items():
            state = self._state["topics"][topic]
            marks = []
            for number in state["next"]:
                ended = self._ended.get((topic, int(number)))
                idle = ended is not None and now - ended >= self.idle_s
                if not idle:
                    marks.append(state["latest"].get(number))
            if not marks:
                marks = list(state["latest"].values())
            known = [mark for mark in marks if mark is not None]
            if known and len(known) == len(marks):
                found[folder] = min(known) - int(self.lateness_s * 1000)
        return found

    def _close_hours(self, watermarks: Mapping[str, int]) -> dict[str, list[int]]:
        state = self._state
        decided = False
        for folder, watermark in watermarks.items():
            through = watermark // MS_PER_HOUR - 1
            before = state["closed_through"].get(folder)
            held = sorted(int(hour) for hour in state["segments"].get(folder, {}))
            first = min(held, default=None) if before is None else before + 1
            if first is None or through < first:
                continue
            # Decided first: from here on the hour's rows are these, whenever this is killed.
            labels = folder != partitions.IMPRESSIONS
            hours = range(first, through + 1) if labels else [h for h in held if h <= through]
            state["pending"] += [[folder, hour] for hour in hours]
            state["closed_through"][folder] = through
            decided = True
        if decided:
            self._save_state()
        return self._write_pending()

    def _write_pending(self) -> dict[str, list[int]]:
        """Writes the hours that are closed; again where that was interrupted, to the same end."""
        state = self._state
        done: dict[str, list[int]] = {}
        for folder, hour in list(state["pending"]):
            names = state["segments"].get(folder, {}).get(str(hour), [])
            files = [self._home / folder / f"hour={hour}" / name for name in names]
            repeats = self._write_hour(folder, hour, files)
            state["counts"]["repeated"] += repeats
            state["pending"].remove([folder, hour])
            state["segments"].get(folder, {}).pop(str(hour), None)
            self._save_state()
            self._files.remove(f"{folder}/hour={hour}")
            done.setdefault(folder, []).append(hour)
        return done

    def _write_hour(self, folder: str, hour: int, files: list[Path]) -> int:
        topic = next(topic for topic, own in self.topics.items() if own == folder)
        try:
            parts = [pq.read_table(file, partitioning=None) for file in files]
        except (OSError, pa.ArrowException) as error:
            raise StreamError(f"{self._home}: cannot read a segment: {error}") from error
        arrow = self._parsers[topic].arrow
        empty = pa.schema([*arrow, *_PLACE]).empty_table()
        table = pa.concat_tables(parts) if parts else empty
        keys = ("timestamp", "example_id", "_partition", "_offset")
        table = table.sort_by([(key, "ascending") for key in keys])
        repeats = 0
        if folder == partitions.IMPRESSIONS:
            ids = table.column("example_id").to_numpy()
            _, first = np.unique(ids, return_index=True)
            repeats = len(ids) - len(first)
            table = table.take(pa.array(np.sort(first)))
            partitions.write_impressions(self.root, hour, table.select(arrow.names))
        else:
            named: Any = {} if folder == partitions.LABELS else {"folder": folder}
            partitions.write_labels(self.root, hour, table.select(arrow.names), **named)
        return repeats

    # State.

    def _load_state(self) -> dict[str, Any]:
        file = self._home / _STATE
        fresh: dict[str, Any] = {
            "topics": {},
            "segments": {},
            "pending": [],
            "closed_through": {},
            "sequence": 0,
            "counts": {"rows": 0, "late": 0, "repeated": 0, "rejected": 0},
        }
        try:
            state = json.loads(file.read_text())
        except FileNotFoundError:
            return fresh
        except ValueError as error:
            raise StreamError(f"{file}: not valid JSON: {error}") from error
        if not isinstance(state, dict) or set(state) != set(fresh):
            raise StreamError(f"{file}: expected the keys {sorted(fresh)}.")
        return state

    def _save_state(self) -> None:
        self._files.write(_STATE, json.dumps(self._state, indent=1).encode())

    def _clear_strays(self) -> None:
        """Removes what was written after the last commit: its messages are read once more."""
        named = {
            self._home / folder / f"hour={hour}" / name
            for folder, hours in self._state["segments"].items()
            for hour, names in hours.items()
            for name in names
        }
        for file in self._home.rglob("*segment-*.parquet"):
            if file not in named:
                file.unlink()
        for place in ("late", "rejected"):
            for file in (self.root / place).rglob("*segment-*.parquet"):
                number = int(file.stem.rpartition("-")[2])
                if file.name[0] == "." or number > self._state["sequence"]:
                    file.unlink()

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: one source at a time is the user's task there.
            return
        file = open(self._home / ".lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StreamError(
                f"{self._home}: another process consumes into this folder."
            ) from error
        self._lock = file

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _sum(one: KafkaProgress, other: KafkaProgress) -> KafkaProgress:
    closed = {
        folder: [*one.closed.get(folder, []), *other.closed.get(folder, [])]
        for folder in {**one.closed, **other.closed}
    }
    return KafkaProgress(
        one.messages + other.messages,
        one.rejected + other.rejected,
        one.late + other.late,
        closed,
    )
