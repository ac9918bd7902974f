"""A labelled stream's rows as messages of a Kafka topic."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from keras_exfm.streaming import Stream, StreamError

_TIMEOUT = 30.0


class KafkaSink:
    """Publishes the committed hours of a labelled stream to a topic, each row once.

    A row is a JSON object with the table's columns, its key the `example_id`. Rows go out in
    transactions, each with a note of how far it comes, on a second topic: what a killed sink had
    begun is aborted, and the next one goes on behind the last note. Readers set
    `isolation.level=read_committed`, Kafka's default of most clients, to see each row once. A
    second sink of the same `transactional.id` fences the first one off.

    Args:
        stream: Folder or URL of the labelled stream.
        topic: Topic of the rows.
        config: Configuration of `confluent_kafka.Producer`, such as `bootstrap.servers`.
        progress_topic: Topic of the notes, best a compacted one. Defaults to `None`,
            `"<topic>.progress"`.
        columns: The columns to publish; `example_id` is always among them. Defaults to `None`: all.
        rows: Rows of one transaction. Defaults to `10000`.
        encode: Row -> message. Defaults to `None`: JSON.

    Raises:
        ImportError: If confluent-kafka is not installed (`pip install keras-exfm[kafka]`).
        StreamError: If an hour that was published in part has changed, or the broker refuses.

    Example:

    >>> sink = KafkaSink("labelled", "labelled", {"bootstrap.servers": "localhost:9092"})
    >>> sink.progress_topic
    'labelled.progress'
    """

    def __init__(
        self,
        stream: str | os.PathLike[str],
        topic: str,
        config: Mapping[str, Any],
        progress_topic: str | None = None,
        columns: Sequence[str] | None = None,
        rows: int = 10_000,
        encode: Callable[[dict[str, Any]], bytes] | None = None,
    ) -> None:
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ImportError("Kafka topics need confluent-kafka: pip install 'keras-exfm[kafka]'")
        if "bootstrap.servers" not in config:
            raise StreamError(
                "`config` should hold 'bootstrap.servers', the address of the brokers. Received: "
                f"{sorted(config)}"
            )
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise StreamError(f"`rows` should be an integer of at least 1. Received: {rows!r}")
        self.stream = os.fspath(stream)
        self.topic = topic
        self.config = dict(config)
        self.progress_topic = progress_topic or f"{topic}.progress"
        self.columns = None if columns is None else tuple(columns)
        self.rows = rows
        self.encode = encode or _json
        self._producer: Any = None
        self._at: dict[str, Any] | None = None

    def publish(self, hours: Sequence[int] | None = None) -> dict[int, int]:
        """Sends the rows that were not sent yet, in order of time.

        Args:
            hours: The hours to send, in order; each after those sent before. Defaults to `None`:
                every committed hour after the last one that was sent.

        Returns:
            Hour -> rows sent.
        """
        stream = Stream(self.stream)
        self._open(stream.table_id)
        at = self._at
        chosen = stream.hours if hours is None else sorted(hours)
        if at is not None:
            last, whole = at["hour"], at["rows"] == at["of"]
            chosen = [h for h in chosen if h > last or (h == last and not whole)]
            if not whole and (not chosen or chosen[0] != last):
                raise StreamError(
                    f"{self.stream}: hour {last} was sent up to row {at['rows']} of {at['of']}; "
                    f"the rest comes first. Received: hours={list(hours or ())}"
                )
        return {hour: self._send(stream, hour) for hour in chosen}

    def _send(self, stream: Stream, hour: int) -> int:
        if hour not in stream.hours:
            raise StreamError(f"{self.stream}: hour {hour} is not committed.")
        table: pa.Table = stream.table.to_pyarrow_table(partitions=[("hour", "=", str(hour))])
        # One order, whatever files the hour lies in.
        table = table.sort_by([("timestamp", "ascending"), ("example_id", "ascending")])
        if self.columns is not None:
            table = table.select(list(dict.fromkeys(("example_id", *self.columns))))
        total, start = table.num_rows, 0
        at = self._at
        if at is not None and at["hour"] == hour:
            if at["of"] != total:
                raise StreamError(
                    f"{self.stream}: hour {hour} had {at['of']} rows when a part of it was sent, "
                    f"and has {total} now."
                )
            start = at["rows"]
        for first in range(start, total, self.rows):
            part = table.slice(first, self.rows)
            # All of it before the transaction begins: a row that cannot be told sends nothing.
            keys = part.column("example_id").to_pylist()
            values = [self.encode(row) for row in part.to_pylist()]
            note = {
                "table": stream.table_id,
                "hour": hour,
                "rows": first + part.num_rows,
                "of": total,
            }
            self._transaction(keys, values, note)
            self._at = note
        return total - start

    def _transaction(
        self, keys: Sequence[int], values: Sequence[bytes], note: dict[str, Any]
    ) -> None:
        from confluent_kafka import KafkaException

        producer = self._producer
        try:
            producer.begin_transaction()
            for key, value in zip(keys, values):
                self._produce(self.topic, str(key).encode(), value)
            told = json.dumps(note).encode()
            self._produce(self.progress_topic, note["table"].encode(), told)
            producer.commit_transaction(_TIMEOUT)
        except (KafkaException, BufferError) as error:
            self._producer = None
            raise StreamError(
                f"Topic {self.topic!r}: hour {note['hour']} was sent up to row "
                f"{(self._at or {'rows': 0})['rows']}: {error}"
            ) from error

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                self._producer.produce(topic, key=key, value=value)
                return
            except BufferError:
                # The queue to the broker is full: wait for it.
                if time.monotonic() > deadline:
                    raise
                self._producer.poll(0.1)

    def _open(self, table_id: str) -> None:
        from confluent_kafka import KafkaException, Producer

        if self._producer is not None:
            return
        producer = Producer({"transactional.id": f"keras-exfm-das-{self.topic}", **self.config})
        try:
            # Ends what a sink before this one had begun, and keeps it from going on.
            producer.init_transactions(_TIMEOUT)
        except KafkaException as error:
            raise StreamError(f"Topic {self.topic!r}: {error}") from error
        self._at = self._last_note(table_id)
        self._producer = producer

    def _last_note(self, table_id: str) -> dict[str, Any] | None:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

        consumer = Consumer(
            {
                **{k: v for k, v in self.config.items() if not k.startswith("transaction")},
                "group.id": "keras-exfm-das-sink",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        try:
            known = consumer.list_topics(self.progress_topic, timeout=_TIMEOUT)
            numbers = list(known.topics[self.progress_topic].partitions)
            if not numbers:
                return None
            consumer.assign(
                [TopicPartition(self.progress_topic, n, OFFSET_BEGINNING) for n in numbers]
            )
            found: dict[str, Any] | None = None
            waiting = set(numbers)
            deadline = time.monotonic() + _TIMEOUT
            while waiting:
                if time.monotonic() > deadline:
                    raise StreamError(
                        f"Topic {self.progress_topic!r}: not read to its end in {_TIMEOUT} s."
                    )
                for message in consumer.consume(1000, timeout=0.1):
                    error = message.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            waiting.discard(message.partition())
                        continue
                    deadline = time.monotonic() + _TIMEOUT
                    note = json.loads(message.value() or b"{}")
                    if note.get("table") == table_id:
                        found = note
            return found
        finally:
            consumer.close()


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()
