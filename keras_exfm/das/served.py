"""Examples with what a teacher said of them, before their labels are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from keras_exfm.das._join import HourJoin
from keras_exfm.das._predictions import Predictions, named
from keras_exfm.das._scoring import encoded
from keras_exfm.das.job import Job, JobError
from keras_exfm.streaming.columns import own_column
from keras_exfm.streaming.reader import pad_batch

Batch = dict[str, np.ndarray]


def read_served(
    job: Job,
    vertical: str,
    *,
    hours: tuple[int | None, int | None] | None = None,
    batch_size: int = 4096,
) -> Iterator[tuple[int, Batch, Batch, np.ndarray]]:
    """A vertical's scored examples, whose labels may still be awaited.

    An hour is in the vertical's labelled stream when its tasks' windows have closed; its
    predictions are committed as soon as it has landed. What a teacher said can be learned from at
    once: a student that waits for the label learns it from a teacher that is older by as much.
    `ExternalDistillation` trains on such rows with the teacher's terms alone. Train on the labelled
    stream as well, as ever.

    Args:
        job: The job; it needs a teacher.
        vertical: Which of its verticals' examples; their tasks do not matter here.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all that
            all teachers have scored. To go on later, pass the hour after the last one that came.
        batch_size: Rows of a batch; the last one of an hour is filled up with rows of weight 0.
            Defaults to `4096`.

    Yields:
        `(hour, features, targets, weight)`, in time order. The targets are `label` (NaN) and,
        of each teacher, `teacher_logit`, `teacher_age_s` and, where it logs vectors,
        `teacher_representation`, with `_<name>` behind if it has a name; give a model those of its
        `target_columns`.

    Raises:
        JobError: If the job has no teacher or no such vertical.
        StreamError: For files that cannot be read.

    Example:

    >>> import keras, pyarrow as pa
    >>> from keras_exfm import Numeric, Schema
    >>> from keras_exfm.das import Job, SnapshotStore, Worker
    >>> from keras_exfm.streaming import partitions
    >>> inputs = Schema([Numeric("x")]).inputs()
    >>> double = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(2.0))
    >>> teacher = keras.Model(inputs, double(keras.layers.Reshape((1,))(inputs["x"])))
    >>> _ = SnapshotStore("snapshots").publish(teacher, published_at=0)
    >>> for hour in (0, 1):
    ...     rows = {"example_id": [2 * hour, 2 * hour + 1], "timestamp": [hour * 3_600_000 + 1] * 2,
    ...             "vertical": ["feed", "shop"], "x": [0.5, 1.5]}
    ...     _ = partitions.write_impressions("data", hour, pa.table(rows))
    >>> job = Job.parse({
    ...     "name": "ads", "source": "data", "output": "out",
    ...     "features": [{"kind": "numeric", "name": "x"}], "tasks": {"click": {"window": "1d"}},
    ...     "teacher": {"snapshots": "snapshots", "workers": 0},
    ...     "verticals": {"feed": {"tasks": ["click"], "verticals": ["feed"]}}})
    >>> [(step.kind, step.hour) for step in Worker(job).run()]  # labels are known a day later
    [('score', 0)]
    >>> for hour, x, y, weight in read_served(job, "feed", batch_size=2):
    ...     print(hour, x["x"].tolist(), y["teacher_logit"].tolist(), weight.tolist())
    0 [0.5, 0.0] [1.0, nan] [1.0, 0.0]
    """
    if not job.all_teachers:
        raise JobError(f"{job.name}: without a teacher nothing is said before the labels are known")
    job.stream(vertical)  # Refuses an unknown name.
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise JobError(
            f"`batch_size` should be an integer of at least 1. Received: batch_size={batch_size!r}"
        )
    return _served(job, vertical, hours or (None, None), batch_size)


def _served(
    job: Job, vertical: str, hours: tuple[int | None, int | None], batch_size: int
) -> Iterator[tuple[int, Batch, Batch, np.ndarray]]:
    schema, chosen = job.schema_of_features(), job.verticals[vertical]
    predictions = Predictions.of(job)
    join = HourJoin(
        job.source,
        schema,
        (),
        job.source_options or None,
        job.join.memory_limit,
        job.join.temp_directory,
        job.join.threads,
        batch_size,
        predictions,
    )
    columns = ["example_id", "timestamp", *schema.names]
    first, last = hours
    for hour in sorted(set.intersection(*(set(of.hours()) for of in predictions.values()))):
        if (first is not None and hour < first) or (last is not None and hour > last):
            continue
        said = {teacher: of.dataset(hour) for teacher, of in predictions.items()}
        tables = join.rows(hour, chosen.where, chosen.verticals, said, columns=columns)
        for table in tables:
            batch = encoded(table, schema, join.where(hour))
            y = _targets(table, predictions)
            weight = np.ones(len(table), np.float32)
            padded = pad_batch({**batch, **y, "weight": weight}, schema, batch_size)
            yield (
                hour,
                {name: padded[name] for name in schema.names},
                {name: padded[name] for name in y},
                padded["weight"],
            )


def _targets(table: pa.Table, predictions: Mapping[str, Predictions]) -> Batch:
    targets = {"label": np.full(len(table), np.nan, np.float32)}
    for teacher, of in predictions.items():
        for name in (named("teacher_logit", teacher), named("teacher_age_s", teacher)):
            targets[name] = own_column(table.column(name)).astype(np.float32)
        if of.representation_size is not None:
            name = named("teacher_representation", teacher)
            targets[name] = own_column(table.column(name), of.representation_size)
    return targets
