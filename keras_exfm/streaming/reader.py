"""`tf.data` over a labelled stream."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from keras_exfm.features import Schema
from keras_exfm.streaming._blocks import Batch, BlockBuilder, Place, padding_of
from keras_exfm.streaming._progress import Position
from keras_exfm.streaming.columns import StreamError
from keras_exfm.streaming.stream import Stream, as_stream

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_exfm.streaming.stream_checkpoint import StreamCheckpoint


def read(
    path: str | os.PathLike[str] | Stream,
    schema: Schema | None = None,
    batch_size: int = 4096,
    *,
    hours: tuple[int | None, int | None] | None = None,
    vertical: str | Sequence[str] | None = None,
    version: int | None = None,
    columns: Sequence[str] = (),
    teacher_logit: bool = True,
    pad: Literal["hour", "end"] = "end",
    drop_remainder: bool = False,
    epochs: int = 1,
    prefetch: int = 2,
    checkpoint: StreamCheckpoint | None = None,
    follow: bool = False,
    poll_s: float = 10.0,
    stop: Callable[[], bool] | None = None,
) -> tf.data.Dataset:
    """A labelled stream as `tf.data` batches of one fixed size, in time order.

    Batches are `(features, {"label", "teacher_logit", *columns}, weight)`. A tail is filled up with
    rows of weight 0 (ids -1, numbers 0, label 0, teacher NaN), so that a compiled step sees one
    shape. The table version is fixed when the dataset is made: hours that are committed later do
    not show up in it. Autotuning is off, also in what follows it: give `map` a number for
    `num_parallel_calls`, or set `options().autotune` anew.

    Keras weights a loss by itself, but only those metrics that `compile` gets as
    `weighted_metrics`. A plain Keras model, with one output, wants the label alone:
    `dataset.map(lambda x, y, w: (x, y["label"], w))`.

    Args:
        path: The table, or an open `Stream`.
        schema: Features to read; the table may have more, which then are not read from disk.
            Defaults to the table's own.
        batch_size: Rows per batch. Defaults to `4096`.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all.
        vertical: Keep the rows of this vertical, or of these. Defaults to all.
        version: Table version to read. Defaults to the newest.
        columns: Further columns, which join the labels' dict; `teacher_representation` comes as
            float32 `(batch, size)`, NaN where there is none. Defaults to none.
        teacher_logit: Whether `teacher_logit` is in the labels' dict; a student whose teachers all
            have names takes none. Defaults to `True`.
        pad: Whether each `"hour"` starts a new batch, or batches run on across hours to the
            `"end"`. Defaults to `"end"`.
        drop_remainder: Drop a tail (of each hour or of the stream, see `pad`) instead of padding
            it. Defaults to `False`.
        epochs: How often to go through the stream. Defaults to `1`.
        prefetch: Batches that are read ahead. Defaults to `2`.
        checkpoint: A `StreamCheckpoint` that is also a callback of the `fit` which reads this
            dataset. If its folder holds a checkpoint, the first pass begins with the batch after
            it, at the table version that it was reading. Defaults to `None`.
        follow: Do not end: wait for hours that are committed later, and go on with them. A batch
            that is not full waits for the next hour's rows (or, with `pad="hour"`, is padded).
            The dataset ends after the last of `hours`, if there is one, or when `stop` says so.
            A `checkpoint` keeps the place, also of a run that was stopped: the same program goes
            on there. Keras on JAX fetches two batches ahead of the one that it trains on, so up to
            two wait with the rest. Defaults to `False`.
        poll_s: Seconds between looks for new hours. Defaults to `10.0`.
        stop: Asked while waiting and between hours, at least once a second: `True` ends the
            dataset. Defaults to `None`: never.

    Raises:
        StreamError: For a stream, hours, columns or features that do not exist. A corrupt file or
            a bad value shows while iterating, as a `tf.errors` error with `StreamError`'s text,
            which names file, rows, column and value.

    Example:

    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 10)])
    >>> rows = {"example_id": [1, 2], "timestamp": [0, 5], "vertical": ["feed", "feed"],
    ...         "ad": [3, 4], "label": [0.0, 1.0]}
    >>> kx.streaming.write_hour("labelled", 0, rows, schema)
    True
    >>> for x, y, weight in kx.streaming.read("labelled", batch_size=3):
    ...     print(x["ad"].numpy().tolist(), y["label"].numpy().tolist(), weight.numpy().tolist())
    [3, 4, -1] [0.0, 1.0, 0.0] [1.0, 1.0, 0.0]
    """
    import tensorflow as tf

    stream = as_stream(path, version)
    if checkpoint is not None:
        stream = checkpoint.pin(path, stream, version)
    schema = schema or stream.schema
    stream.check_columns(schema, columns)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("epochs", epochs, 1),
        ("prefetch", prefetch, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise StreamError(
                f"`{name}` should be an integer of at least {least}. Received: {name}={value!r}"
            )
    if pad not in ("hour", "end"):
        raise StreamError(f"`pad` should be 'hour' or 'end'. Received: pad={pad!r}")
    if follow:
        if version is not None or epochs != 1:
            raise StreamError(
                "`follow` reads each hour once, at the version that has it. Received: "
                f"version={version!r}, epochs={epochs!r}"
            )
        if isinstance(poll_s, bool) or not isinstance(poll_s, (int, float)) or not poll_s > 0:
            raise StreamError(f"`poll_s` should be a number above 0. Received: poll_s={poll_s!r}")
        bounds = (None, None) if hours is None else hours
        if len(bounds) != 2:
            raise StreamError(f"`hours` should be (first, last). Received: hours={hours!r}")
        chosen = []
    else:
        if stop is not None:
            raise StreamError("`stop` is for `follow=True`.")
        chosen = stream.select_hours(hours)

    verticals = [vertical] if isinstance(vertical, str) else vertical
    progress = None
    if checkpoint is not None:
        where = (
            # Where to end may change from run to run.
            {"version": None, "hours": [bounds[0], None], "follow": True}
            if follow
            else {"version": stream.version, "hours": [chosen[0], chosen[-1]]}
        )
        progress = checkpoint.attach(
            {
                "table": stream.table_id,
                **where,
                "vertical": None if verticals is None else sorted(verticals),
                "schema": schema.to_dict(),
                "batch_size": int(batch_size),
                "pad": pad,
                "drop_remainder": bool(drop_remainder),
                "epochs": int(epochs),
            }
        )

    def arriving(first: int | None) -> Iterator[tuple[Stream, int]]:
        """The hours as they are committed, each with a stream that has it."""
        low, last = bounds
        low = first if first is not None else low
        now, done = stream, None
        while True:
            for hour in now.hours:
                if (low is None or hour >= low) and (done is None or hour > done):
                    if last is not None and hour > last:
                        return
                    yield now, hour
                    done = hour
                    if stop is not None and stop():
                        return
            if done is not None and last is not None and done >= last:
                return
            if not _waited(poll_s, stop):
                return
            now = stream.newest()

    def blocks(start: Position) -> Iterator[tuple[list[Position], Batch]]:
        number = start.batches
        for repeat in range(start.repeat, epochs):
            first = start.hour if repeat == start.repeat else None
            for places, block in _blocks(
                (
                    arriving(first)
                    if follow
                    else ((stream, h) for h in chosen if first is None or h >= first)
                ),
                BlockBuilder(schema, batch_size),
                columns,
                verticals,
                pad,
                drop_remainder,
                0 if first is None else start.row,
                follow,
                None
                if follow or first is not None
                else f"{stream.path}: no row of vertical {vertical!r} in hours "
                f"{chosen[0]}..{chosen[-1]}",
            ):
                yield (
                    [
                        Position(number + i, repeat, hour, row)
                        for i, (hour, row) in enumerate(places, 1)
                    ],
                    block,
                )
                number += len(places)

    def generate() -> Iterator[tuple[Batch, Batch, np.ndarray]]:
        if progress is None:
            for _, block in blocks(Position()):
                yield split(block, schema, targets)
            return
        # One block is held back, so that the last one is known as such when it is handed out. Not
        # where more may come: the next block may be hours away.
        last: tuple[list[Position], Batch] | None = None
        for found in itertools.chain(blocks(progress.start), [None]):
            ready = found if follow else last
            last = found
            if ready is None:
                continue
            for place in ready[0]:
                progress.note(place)
            if found is None:
                progress.length = ready[0][-1].batches
            yield split(ready[1], schema, targets)

    features = {f.name: tf.TensorSpec((batch_size, *f.shape), f.dtype) for f in schema}
    targets = ("label", *(("teacher_logit",) if teacher_logit else ()), *columns)
    labels = {name: _tf_spec(stream, name, batch_size) for name in targets}
    one = (features, labels, tf.TensorSpec((batch_size,), tf.float32))
    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=tf.nest.map_structure(
            lambda spec: tf.TensorSpec((None, *spec.shape), spec.dtype), one
        ),
    ).unbatch()
    # The first pass after a restart is shorter than the others: it states no length.
    if not follow and vertical is None and (progress is None or progress.start.batches == 0):
        sizes = [stream.rows(hour) for hour in chosen]
        sizes = sizes if pad == "hour" else [sum(sizes)]
        count = sum(
            size // batch_size if drop_remainder else -(-size // batch_size) for size in sizes
        )
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count * epochs))
        if progress is not None:
            progress.stated = count * epochs
    return without_autotune(dataset.prefetch(prefetch))


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without the thread that tunes it, for one with nothing to tune.

    Where an iterator is given up, as after an error in `fit`, its destruction waits for that
    thread, which may sleep for a minute.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def pad_batch(batch: Batch, schema: Schema, size: int) -> Batch:
    """Fills a batch up to `size` rows with rows that weigh nothing."""
    rows = len(next(iter(batch.values())))
    if rows == size:
        return batch
    padded = {}
    for name, column in batch.items():
        fill = padding_of(name, column.dtype, schema)
        tail = np.full((size - rows, *column.shape[1:]), fill, column.dtype)
        padded[name] = np.concatenate([column, tail])
    return padded


def split(batch: Batch, schema: Schema, targets: Sequence[str]) -> tuple[Batch, Batch, np.ndarray]:
    """A flat batch as `(features, labels, weight)`."""
    features = {name: batch[name] for name in schema.names}
    labels = {name: batch[name] for name in targets}
    return features, labels, batch["weight"]


def _waited(seconds: float, stop: Callable[[], bool] | None) -> bool:
    """Waits; `False` as soon as `stop` says so, or the program ends."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (stop is not None and stop()) or not threading.main_thread().is_alive():
            return False
        time.sleep(min(left, 0.5))
    return stop is None or not stop()


def _blocks(
    hours: Iterable[tuple[Stream, int]],
    builder: BlockBuilder,
    columns: Sequence[str],
    verticals: Sequence[str] | None,
    pad: str,
    drop_remainder: bool,
    skip: int,
    at_once: bool,
    needs_rows: str | None,
) -> Iterator[tuple[list[Place], Batch]]:
    """Blocks of batches, each batch with the place after it: its hour and this hour's rows so far.

    Args:
        hours: The hours, each with the stream that has it.
        builder: What the batches are built in.
        columns: As in `read`.
        verticals: As in `read`.
        pad: As in `read`.
        drop_remainder: As in `read`.
        skip: Rows of the first hour that are left out.
        at_once: Whether batches are handed out before the next hour is asked for.
        needs_rows: Error if there are no rows; `None`: none.
    """
    found = False
    hour = row = 0
    try:
        for stream, hour in hours:
            row, skip = skip, 0
            for chunk in stream.chunks(hour, builder.schema, columns, verticals, row):
                rows, start, found = len(chunk["label"]), 0, True
                while start < rows:
                    start += builder.add(chunk, start, hour, row)
                    if builder.is_full:
                        yield builder.take()
                row += rows
            if pad == "hour":
                builder.end(hour, row, drop_remainder)
            if builder.batches and (at_once or builder.is_full):
                yield builder.take()
    except Exception:
        # What was read before the fault is good.
        if builder.batches:
            yield builder.take()
        raise
    builder.end(hour, row, drop_remainder)
    if builder.batches:
        yield builder.take()
    if not found and needs_rows is not None:
        raise StreamError(needs_rows)


def _tf_spec(stream: Stream, name: str, rows: int) -> tf.TensorSpec:
    import tensorflow as tf

    size = stream.vector_size(name)
    if size is not None:
        return tf.TensorSpec((rows, size), tf.float32)
    kind = stream.arrow_schema.field(name).type
    string = pa.types.is_string(kind)
    return tf.TensorSpec((rows,), tf.string if string else tf.as_dtype(kind.to_pandas_dtype()))
