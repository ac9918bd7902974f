"""Progressive validation: each hour is predicted first and trained on afterwards."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.features import Schema
from keras_exfm.metrics import functional
from keras_exfm.streaming.columns import StreamError
from keras_exfm.streaming.reader import pad_batch
from keras_exfm.streaming.stream import Stream, as_stream, read_hour

if TYPE_CHECKING:
    import keras

Arrays = dict[str, np.ndarray]
_OPTIONAL = ("group", "true_probability")
_SCORED = ("example_id", "label", "logit", "weight")


@dataclasses.dataclass(frozen=True)
class ValidationResult:
    """Figures of a progressive validation.

    Attributes:
        rows: One dict an hour, in time order: `hour`, `examples`, `clicks`, `logloss`, `ne`,
            `auc`, `calibration`, `coverage` (share of the hour's rows that have a score),
            `group_auc` (weighted by group size; `None` without a `group` column) and `bayes_ne`
            (`None` without `true_probability`). Figures that are not defined are NaN.
        whole: The same over all rows of the hours from `metrics_from` on, pooled; instead of
            `hour`, `first_hour`, `last_hour` and `hours`. `None` if there is no such hour.
        metrics_from: First hour that counts in `whole`.
    """

    rows: list[dict[str, Any]]
    whole: dict[str, Any] | None
    metrics_from: int | None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the figures to one small Parquet file."""
        table = pa.Table.from_pylist(
            [{"whole": False, **row} for row in self.rows]
            + ([{"whole": True, **self.whole}] if self.whole else []),
            _RESULT_TYPES,
        )
        extra = {"metrics_from": "" if self.metrics_from is None else str(self.metrics_from)}
        _write_whole(table.replace_schema_metadata(extra), Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ValidationResult:
        """The inverse of `save`."""
        table = pq.read_table(path)
        first = table.schema.metadata[b"metrics_from"].decode()
        rows = table.to_pylist()
        span = ("first_hour", "last_hour", "hours")
        hours = [
            {k: v for k, v in row.items() if k not in ("whole", *span)}
            for row in rows
            if not row["whole"]
        ]
        whole = [
            {k: v for k, v in row.items() if k not in ("whole", "hour")}
            for row in rows
            if row["whole"]
        ]
        return cls(hours, whole[0] if whole else None, int(first) if first else None)


_RESULT_TYPES = pa.schema(
    [("whole", pa.bool_())]
    + [(name, pa.int64()) for name in ("hour", "first_hour", "last_hour", "hours", "examples")]
    + [
        (name, pa.float64())
        for name in (
            "clicks",
            "logloss",
            "ne",
            "auc",
            "calibration",
            "coverage",
            "group_auc",
            "bayes_ne",
        )
    ]
)


def progressive_validation(
    model: keras.Model,
    path: str | os.PathLike[str] | Stream,
    schema: Schema | None = None,
    *,
    batch_size: int = 4096,
    hours: tuple[int | None, int | None] | None = None,
    metrics_from: int | None = None,
    label_lag: int = 0,
    vertical: str | Sequence[str] | None = None,
    train: bool = True,
    teacher: bool | None = None,
    on_window: Callable[[dict[str, Any], dict[str, float]], None] | None = None,
    predictions_path: str | os.PathLike[str] | None = None,
    start: int | None = None,
    version: int | None = None,
    task: str | None = None,
    teacher_batch_size: int | None = None,
) -> ValidationResult:
    """Predicts each hour with what the model learned from earlier hours, then trains on it.

    Training goes over each hour once, in time order, in batches of one fixed size whose tail is
    filled up with rows of weight 0; prediction uses the same batches, so each compiles once. It
    goes through `model.train_on_batch` and `model.predict_on_batch`: with a handful of batches an
    hour, a `fit` and a `predict` per hour cost as much again (JAX) or six times as much
    (TensorFlow). Keras callbacks do therefore not run; use a learning-rate schedule.

    A teacher's prediction is logged when an example is served, a label is known later. With
    `teacher_batch_size`, the model learns from the first as soon as it is there: every so many rows
    it predicts, and then trains on what the teacher said of them, their labels masked. When the
    labels are known it trains on the hour as without. While all gates of an `ExternalDistillation`
    are at 0, such steps without labels are left out.

    To resume, save the model in `on_window`, and pass the first hour that it has not seen as
    `start` and the same `predictions_path`: the result is that of the uninterrupted run.

    Args:
        model: A compiled model whose prediction is a logit, `(batch, 1)` or `(batch,)`.
        path: The table, or an open `Stream`.
        schema: Features that the model reads. Defaults to its inputs, if it is functional with
            inputs by name, else to the table's own.
        batch_size: Rows per batch. Defaults to `4096`.
        hours: First and last hour, both included; `None` leaves an end open. Defaults to all.
        metrics_from: First hour that counts in `ValidationResult.whole`; the hours before are
            predicted and trained on all the same. Defaults to the first.
        label_lag: Hours until labels are known: hour `h` is trained on once hour `h + label_lag`
            is predicted. Defaults to `0`.
        vertical: Use the rows of this vertical, or of these. Defaults to all.
        train: `False` only predicts. Defaults to `True`.
        teacher: Whether the model takes `{"label", "teacher_logit"}` or the label alone. Defaults
            to `None`: the dict, if its class has a `compute_loss` of its own, as
            `ExternalDistillation` has. A model that names its `target_columns`, as that one does,
            gets those of them that the stream has.
        on_window: Called after each hour is predicted and trained on, with the hour's row of
            `ValidationResult.rows` and the mean of the model's training logs (`loss`, ...) over
            the batches of the last hour trained on. Not called for an hour without rows.
            Defaults to `None`.
        predictions_path: Folder for the predictions, a Parquet file an hour: `example_id`,
            `label`, `logit`, `weight`, `group`, `true_probability`. Needed to resume.
            Defaults to `None`.
        start: First hour to predict; earlier ones come from `predictions_path`. Defaults to the
            first of `hours`.
        version: Table version to read. Defaults to the newest.
        task: Of a model that predicts a dict of logits by task, the one to judge, against the
            column `label_<task>`, or `label` if there is none; rows whose label is not known are
            left out. `bayes_ne` is of `true_probability_<task>`. The model trains on all tasks.
            Defaults to `None`: the model predicts one logit.
        teacher_batch_size: Rows after which the model trains on the teacher's part of them, without
            their labels; it must be one that takes rows whose label is NaN, as
            `ExternalDistillation`. Defaults to `None`: teacher and label come together, when
            the label is known.

    Returns:
        A `ValidationResult`.

    Raises:
        StreamError: For a stream, hours or features that do not exist, or predictions of a wrong
            shape.

    Example:

    >>> import keras, keras_exfm as kx
    >>> schema = kx.Schema([kx.Numeric("x")])
    >>> for hour in (0, 1):
    ...     rows = {"example_id": [2 * hour, 2 * hour + 1], "timestamp": [hour * 3_600_000] * 2,
    ...             "vertical": ["feed", "feed"], "x": [-1.0, 1.0], "label": [0.0, 1.0]}
    ...     committed = kx.streaming.write_hour("labelled", hour, rows, schema)
    >>> inputs = schema.inputs()
    >>> outputs = keras.layers.Dense(1, kernel_initializer="ones")(inputs["x"][:, None])
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    >>> result = kx.streaming.progressive_validation(model, "labelled", batch_size=2)
    >>> [round(row["ne"], 2) for row in result.rows], result.whole["auc"]
    ([0.45, 0.45], 1.0)
    """
    stream = as_stream(path, version)
    schema = schema or _schema_of(model, stream)
    stream.check_columns(schema)
    chosen = stream.select_hours(hours)
    if isinstance(label_lag, bool) or not isinstance(label_lag, int) or label_lag < 0:
        raise StreamError(
            f"`label_lag` should be an integer of at least 0. Received: label_lag={label_lag!r}"
        )
    for name, size in (("batch_size", batch_size), ("teacher_batch_size", teacher_batch_size)):
        given = name == "batch_size" or size is not None
        if given and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise StreamError(
                f"`{name}` should be an integer of at least 1. Received: {name}={size!r}"
            )
    folder = None if predictions_path is None else Path(predictions_path)
    scored: dict[int, Arrays] = {}
    first = chosen[0] if start is None else start
    if any(hour < first for hour in chosen):
        if folder is None:
            raise StreamError(
                "`start` leaves out hours whose predictions are unknown: pass `hours` to begin "
                f"later, or `predictions_path` to resume. Received: start={start}, hours={hours}"
            )
        known = load_predictions(folder)
        missing = [hour for hour in chosen if hour < first and hour not in known]
        if missing:
            raise StreamError(f"{folder}: no predictions of the hours {missing} before `start`.")
        scored = {hour: known[hour] for hour in chosen if hour < first}
    if teacher is None:
        teacher = _has_own_loss(model)
    targets = _target_columns(model, stream, teacher)
    if teacher_batch_size is not None and not _teachers(targets):
        raise StreamError(
            "`teacher_batch_size` needs a model that reads a teacher's columns, and a stream that "
            f"has them. Received: the model reads {targets or ['label']} of this stream"
        )
    columns = ["example_id", *(c for c in _OPTIONAL if c in stream.columns)]
    judged = f"label_{task}" if f"label_{task}" in stream.columns else "label"
    # The truth of another task is none of this one's.
    truth: str | None = f"true_probability_{task}"
    if truth not in stream.columns:
        truth = "true_probability" if judged == "label" else None
    columns = [c for c in columns if c != "true_probability" or c == truth]
    own_truth = [truth] if truth not in (None, "true_probability") else []
    wanted = list(dict.fromkeys([*columns, *_beside(targets), *_beside([judged]), *own_truth]))

    def load(hour: int) -> Arrays:
        return read_hour(stream, hour, schema, columns=wanted, vertical=vertical)

    earlier = [hour for hour in chosen if hour < first]
    waiting = [h for h in earlier if h > earlier[-1] - label_lag]
    warned = False
    for hour in (h for h in chosen if h >= first):
        data = load(hour)
        found = [np.empty(0, np.float32)]
        for batch in _fixed(data, schema, teacher_batch_size or batch_size):
            found.append(_predict(model, batch, schema, task))
            closed = getattr(model, "gates_closed", False)
            if teacher_batch_size is not None and train and not closed:
                _train(model, [_without_labels(batch, targets)], schema, targets)
        logit = np.concatenate(found)
        kept = {name: data[name] for name in ("label", "weight", *columns)}
        if judged != "label":
            unknown = np.isnan(data[judged])
            kept["label"] = np.where(unknown, 0, data[judged]).astype(np.float32)
            kept["weight"] = np.where(unknown, 0, data["weight"]).astype(np.float32)
        for name in own_truth:
            kept["true_probability"] = data[name]
        scored[hour] = {**kept, "logit": logit[: len(data["label"])]}
        if not warned:
            warned = _warn_of_nan(scored[hour], model, stream, hour)
        if folder is not None:
            _save_predictions(folder, hour, scored[hour])
        logs: dict[str, float] = {}
        if train:
            waiting.append(hour)
            due = [h for h in waiting if h <= hour - label_lag]
            waiting = waiting[len(due) :]
            for h in due:
                labelled = data if h == hour else load(h)
                batches = list(_fixed(labelled, schema, batch_size))
                logs = _train(model, batches, schema, targets) or logs
        # An hour without a row (of the vertical) has no figures.
        if on_window is not None and len(data["label"]):
            on_window(_row(hour, scored[hour]), logs)
    return score_predictions(scored, metrics_from)


def train_hour(
    model: keras.Model,
    path: str | os.PathLike[str] | Stream,
    hour: int,
    schema: Schema | None = None,
    *,
    batch_size: int = 4096,
    vertical: str | Sequence[str] | None = None,
    teacher: bool | None = None,
) -> dict[str, float]:
    """Trains on one hour as `progressive_validation` does, without a prediction.

    Args:
        model: A compiled model.
        path: The table, or an open `Stream`.
        hour: The hour.
        schema: As in `progressive_validation`.
        batch_size: As in `progressive_validation`. Defaults to `4096`.
        vertical: As in `progressive_validation`.
        teacher: As in `progressive_validation`.

    Returns:
        The mean of the model's training logs over the rows.
    """
    stream = as_stream(path)
    schema = schema or _schema_of(model, stream)
    targets = _target_columns(model, stream, _has_own_loss(model) if teacher is None else teacher)
    data = read_hour(stream, hour, schema, columns=_beside(targets), vertical=vertical)
    batches = list(_fixed(data, schema, batch_size))
    return _train(model, batches, schema, targets)


def score_column(
    path: str | os.PathLike[str] | Stream,
    column: str = "teacher_logit",
    *,
    hours: tuple[int | None, int | None] | None = None,
    metrics_from: int | None = None,
    vertical: str | Sequence[str] | None = None,
    version: int | None = None,
) -> ValidationResult:
    """Scores logits that the stream already holds, such as the logged teacher's.

    Rows without a value are left out; `coverage` says how many had one.

    Args:
        path: The table, or an open `Stream`.
        column: Column of logits. Defaults to `"teacher_logit"`.
        hours: As in `progressive_validation`. Defaults to all.
        metrics_from: As in `progressive_validation`. Defaults to the first hour.
        vertical: As in `progressive_validation`. Defaults to all.
        version: Table version to read. Defaults to the newest.

    Returns:
        A `ValidationResult`, as `progressive_validation` gives it.
    """
    stream = as_stream(path, version)
    schema = Schema(stream.schema.features[:1])
    columns = [c for c in ("example_id", *_OPTIONAL) if c in stream.columns]
    if column != "teacher_logit":
        columns.append(column)
    scored = {}
    for hour in stream.select_hours(hours):
        data = read_hour(stream, hour, schema, columns=columns, vertical=vertical)
        if data[column].dtype.kind != "f":
            raise StreamError(
                f"{stream.path}: column {column!r} should hold logits. Received dtype "
                f"{data[column].dtype}"
            )
        scored[hour] = {**data, "logit": data[column]}
    return score_predictions(scored, metrics_from, leave_out_missing=True)


def load_predictions(folder: str | os.PathLike[str]) -> dict[int, Arrays]:
    """The predictions that `progressive_validation` left in `predictions_path`, by hour."""
    files = {
        int(match[1]): file
        for file in Path(folder).glob("hour=*.parquet")
        if (match := re.fullmatch(r"hour=(-?\d+)\.parquet", file.name))
    }
    predictions = {}
    for hour in sorted(files):
        try:
            table = pq.read_table(files[hour], partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise StreamError(f"{files[hour]}: cannot read the predictions: {error}") from error
        predictions[hour] = {n: table.column(n).to_numpy() for n in table.column_names}
    return predictions


def score_predictions(
    predictions: Mapping[int, Arrays],
    metrics_from: int | None = None,
    leave_out_missing: bool = False,
) -> ValidationResult:
    """Figures of predictions by hour, such as `load_predictions` gives.

    Args:
        predictions: Hour -> `label`, `logit`, `weight` and as far as known `group` and
            `true_probability`.
        metrics_from: First hour that counts in `whole`. Defaults to the first.
        leave_out_missing: Leave out rows whose logit is NaN; else they make the figures NaN.
            Defaults to `False`.
    """
    hours = sorted(hour for hour, arrays in predictions.items() if len(arrays["label"]))
    if metrics_from is None and hours:
        metrics_from = hours[0]
    rows = [_row(hour, predictions[hour], leave_out_missing) for hour in hours]
    counted = [hour for hour in hours if metrics_from is not None and hour >= metrics_from]
    whole = None
    if counted:
        names = ("label", "logit", "weight", *_OPTIONAL)
        pooled = {
            name: np.concatenate([predictions[hour][name] for hour in counted])
            for name in names
            if all(name in predictions[hour] for hour in counted)
        }
        span = {"first_hour": counted[0], "last_hour": counted[-1], "hours": len(counted)}
        whole = span | _figures(pooled, leave_out_missing)
    return ValidationResult(rows, whole, metrics_from)


def _row(hour: int, arrays: Arrays, leave_out_missing: bool = False) -> dict[str, Any]:
    return {"hour": hour, **_figures(arrays, leave_out_missing)}


def _figures(arrays: Arrays, leave_out_missing: bool) -> dict[str, Any]:
    used = arrays["weight"] > 0
    rows = int(used.sum())
    if leave_out_missing:
        used = used & ~np.isnan(arrays["logit"])
    y, z, w = (arrays[name][used] for name in ("label", "logit", "weight"))
    group, p = (arrays[name][used] if name in arrays else None for name in _OPTIONAL)
    return {
        "examples": len(y),
        "clicks": float((w.astype(np.float64) * y).sum()),
        "logloss": functional.log_loss(y, z, w),
        "ne": functional.normalized_entropy(y, z, w),
        "auc": functional.auc(y, z, w),
        "calibration": functional.calibration(y, z, w),
        "coverage": len(y) / rows if rows else float("nan"),
        "group_auc": None if group is None else functional.grouped_auc(y, z, group, w),
        "bayes_ne": None if p is None else functional.bayes_normalized_entropy(y, p, w),
    }


def _fixed(data: Arrays, schema: Schema, size: int) -> Iterator[Arrays]:
    for start in range(0, len(data["label"]), size):
        yield pad_batch({n: c[start : start + size] for n, c in data.items()}, schema, size)


def _predict(
    model: keras.Model, batch: Arrays, schema: Schema, task: str | None = None
) -> np.ndarray:
    features = {name: batch[name] for name in schema.names}
    found = model.predict_on_batch(features)
    tasks = list(found) if isinstance(found, Mapping) else [None]
    if task not in tasks:
        what = "one logit" if tasks == [None] else f"the tasks {tasks}"
        raise StreamError(f"The model predicts {what}. Received: task={task!r}")
    logit = np.asarray(found if task is None else found[task], np.float32)
    rows = len(batch["label"])
    if logit.shape not in ((rows,), (rows, 1)):
        raise StreamError(
            f"The model should predict one logit a row, ({rows}, 1). Received: shape {logit.shape}"
        )
    return logit.reshape(-1)


def _schema_of(model: keras.Model, stream: Stream) -> Schema:
    """The stream's features that the model reads; all, where that is not known."""
    inputs = getattr(model, "input", None)
    if not isinstance(inputs, Mapping):
        return stream.schema
    unknown = [name for name in inputs if name not in stream.schema]
    if unknown:
        raise StreamError(
            f"{stream.path}: the model reads {unknown}, which the stream does not have. It has "
            f"{list(stream.schema.names)}."
        )
    return stream.schema.select([name for name in stream.schema.names if name in inputs])


def _warn_of_nan(scored: Arrays, model: keras.Model, stream: Stream, hour: int) -> bool:
    """Whether rows that count have no prediction; says so."""
    bad = int(np.count_nonzero(np.isnan(scored["logit"]) & (scored["weight"] > 0)))
    if not bad:
        return False
    own = getattr(model, "schema", None)
    sizes = {
        f.name: (f.vocabulary_size, getattr(stream.schema[f.name], "vocabulary_size", 0))
        for f in (own.sparse if isinstance(own, Schema) else ())
        if f.name in stream.schema and not f.hashed and f.admit_after is None
    }
    smaller = [
        f"{name!r} has {mine} ids in the model and {theirs} in the stream"
        for name, (mine, theirs) in sizes.items()
        if mine < theirs
    ]
    why = f" {'; '.join(smaller)}." if smaller else " The training may have diverged."
    warnings.warn(
        f"{stream.path}: the model predicts NaN for {bad} of {len(scored['label'])} rows of hour "
        f"{hour}: figures of this hour, and of all hours together, are NaN.{why}",
        stacklevel=3,
    )
    return True


def _train(
    model: keras.Model, batches: list[Arrays], schema: Schema, targets: Sequence[str] | None
) -> dict[str, float]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and model.built and not optimizer.built:
        # TensorFlow would make the optimizer's variables in the traced step, and keep a graph for
        # each of them for as long as the process lives.
        optimizer.build(model.trainable_variables)
    sums: dict[str, float] = {}
    total = 0.0
    for batch in batches:
        features = {name: batch[name] for name in schema.names}
        y = batch["label"] if targets is None else {name: batch[name] for name in targets}
        logs = model.train_on_batch(features, y, batch["weight"], return_dict=True)
        weight = float(batch["weight"].sum())
        total += weight
        for name, value in logs.items():
            sums[name] = sums.get(name, 0.0) + weight * float(value)
    return {name: value / total for name, value in sums.items()} if total else {}


def _has_own_loss(model: keras.Model) -> bool:
    import keras

    return type(model).compute_loss is not keras.Model.compute_loss


def _target_columns(model: keras.Model, stream: Stream, teacher: bool) -> list[str] | None:
    """Keys of the dict that the model trains on; `None` if it takes the label alone."""
    if not teacher:
        return None
    names = getattr(model, "target_columns", ("label", "teacher_logit"))
    return [name for name in names if name in stream.columns]


def _beside(targets: Sequence[str] | None) -> list[str]:
    return [name for name in targets or () if name not in ("label", "teacher_logit")]


def _teachers(targets: Sequence[str] | None) -> list[str]:
    """Those of the columns that a teacher logged."""
    return [name for name in targets or () if name.startswith("teacher_")]


def _without_labels(batch: Arrays, targets: Sequence[str] | None) -> Arrays:
    """The batch as it is before its labels are known."""
    unknown = {
        name: np.full_like(batch[name], np.nan, dtype=np.float32)
        for name in targets or ()
        if name == "label" or name.startswith("label_")
    }
    return {**batch, **unknown}


def _save_predictions(folder: Path, hour: int, arrays: Arrays) -> None:
    table = pa.table({n: arrays[n] for n in (*_SCORED, *_OPTIONAL) if n in arrays})
    _write_whole(table, folder / f"hour={hour}.parquet")


def _write_whole(table: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(table, partial)
    os.replace(partial, file)
