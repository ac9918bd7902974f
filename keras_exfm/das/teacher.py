"""Teachers: whatever maps a batch of features to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Feature, Schema
from keras_exfm.streaming.columns import StreamError
from keras_exfm.streaming.reader import pad_batch

if TYPE_CHECKING:
    import keras

Batch = Mapping[str, np.ndarray]


class Scorer(Protocol):
    """Gives the logits of rows; `snapshot` is `None` for a teacher without snapshots."""

    def score(self, features: dict[str, np.ndarray], snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits, one a row, NaN where there is none."""
        ...


class KerasScorer:
    """Scores with the snapshots of a Keras model.

    A snapshot of the same architecture as the last one only brings new weights into the model
    that is already compiled, so a rotation costs a file read and no compilation.

    Args:
        schema: The stream's features; the model may read some of them only.
        batch_size: Rows per prediction; tails are filled up, so that one shape is compiled.
            Defaults to `1024`.
    """

    def __init__(self, schema: Schema, batch_size: int = 1024) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"`batch_size` should be an integer of at least 1. Received: {batch_size!r}"
            )
        self.schema = schema
        self.batch_size = batch_size
        self._model: keras.Model | None = None
        self._architecture = ""
        self._loaded = ""

    def score(self, features: dict[str, np.ndarray], snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits of the rows by this snapshot."""
        if snapshot is None:
            raise StreamError("A KerasScorer scores with a snapshot. Received: None")
        model = self._at(snapshot)
        names = _input_names(model, self.schema, snapshot)
        used = self.schema.select(names)
        rows = len(next(iter(features.values())))
        logits = []
        for start in range(0, rows, self.batch_size):
            part = {n: features[n][start : start + self.batch_size] for n in used.names}
            size = len(part[used.names[0]])
            padded = pad_batch(part, used, self.batch_size)
            whole, _ = checked_logits(
                model.predict_on_batch(padded), self.batch_size, str(snapshot.path)
            )
            logits.append(whole[:size])
        return np.concatenate(logits) if logits else np.empty(0, np.float32)

    def _at(self, snapshot: Snapshot) -> keras.Model:
        if self._model is not None and self._loaded == snapshot.sha256:
            return self._model
        architecture = snapshot.architecture()
        if self._model is None or architecture != self._architecture:
            self._model, self._architecture = snapshot.load(), architecture
        else:
            snapshot.load_weights(self._model)
        self._loaded = snapshot.sha256
        return self._model


class CallableScorer:
    """Scores with a function of the encoded features, such as a model of another framework.

    Args:
        function: Takes feature name -> array, gives one logit a row.
    """

    def __init__(self, function: Callable[[dict[str, np.ndarray]], Any]) -> None:
        self.function = function

    def score(self, features: dict[str, np.ndarray], snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits of the rows."""
        return np.asarray(self.function(features))


def checked_logits(logits: Any, rows: int, teacher: str) -> tuple[np.ndarray, int]:
    """Float32 `(rows,)` with NaN for what is not finite, and the count of those.

    Raises:
        StreamError: For logits of another shape or type.
    """
    if isinstance(logits, (dict, list, tuple)):
        raise StreamError(
            f"Teacher {teacher}: expected one array of logits. Received: {type(logits).__name__} "
            f"of {len(logits)}"
        )
    logits = np.asarray(logits)
    if logits.dtype.kind not in "fiu" or logits.shape not in ((rows,), (rows, 1)):
        raise StreamError(
            f"Teacher {teacher}: expected one logit for each of {rows} rows. "
            f"Received shape {logits.shape}, dtype {logits.dtype}"
        )
    logits = logits.reshape(-1).astype(np.float32)
    bad = ~np.isfinite(logits)
    return np.where(bad, np.float32("nan"), logits), int(bad.sum())


def _input_names(model: keras.Model, schema: Schema, snapshot: Snapshot) -> list[str]:
    names = [tensor.name for tensor in model.inputs]
    unknown = [name for name in names if name not in schema]
    if unknown:
        raise StreamError(
            f"{snapshot.path}: the teacher reads {unknown}, which the stream does not have. "
            f"It has {list(schema.names)}."
        )
    if snapshot.schema is not None:
        # Ids that mean another row to the teacher than to the stream would score nonsense.
        for feature in Schema.from_dict(snapshot.schema):
            ours = schema[feature.name]
            if _encoding(feature) != _encoding(ours):
                raise StreamError(
                    f"{snapshot.path}: the teacher was made for {feature}; in the stream it is "
                    f"{ours}."
                )
    return names


def _encoding(feature: Feature) -> tuple[Any, ...]:
    """What decides which numbers a model gets for a raw value."""
    keys = ("vocabulary_size", "hashed", "length", "size")
    return type(feature), *(getattr(feature, key, None) for key in keys)
