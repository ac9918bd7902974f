"""Whether what a teacher gives is one logit a row, whether it reads what the stream has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Feature, Schema
from keras_exfm.streaming.columns import StreamError

_LARGEST = float(np.finfo(np.float16).max)


class TeacherTimeout(StreamError):
    """A teacher that did not answer in time; names it."""


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


def checked_vectors(vectors: Any, rows: int, size: int, teacher: str) -> np.ndarray:
    """Float16 `(rows, size)`; numbers beyond its range become its largest, infinities NaN.

    Raises:
        StreamError: For vectors of another shape or type.
    """
    vectors = np.asarray(vectors)
    # bfloat16 is no kind of NumPy's own.
    numbers = vectors.dtype.kind in "fiu" or vectors.dtype.name == "bfloat16"
    if not numbers or vectors.shape != (rows, size):
        raise StreamError(
            f"Teacher {teacher}: expected a vector of {size} numbers for each of {rows} rows. "
            f"Received shape {vectors.shape}, dtype {vectors.dtype}"
        )
    vectors = vectors.astype(np.float32)
    clipped = np.clip(vectors, -_LARGEST, _LARGEST)
    return np.where(np.isfinite(vectors), clipped, np.nan).astype(np.float16)


def logit_output(names: Sequence[str], representation: str | None, snapshot: Snapshot) -> str:
    """Which of a model's named outputs is the logit: the first that is not the representation.

    Raises:
        StreamError: For a model without either.
    """
    if representation is not None and representation not in names:
        raise StreamError(
            f"{snapshot.path}: the teacher has no output {representation!r}. It has: {list(names)}"
        )
    for name in names:
        if name != representation:
            return name
    raise StreamError(f"{snapshot.path}: the teacher has no output but the vectors.")


def check_inputs(names: Sequence[str], schema: Schema, snapshot: Snapshot) -> None:
    """Refuses a teacher that reads what the stream lacks, or reads it otherwise.

    Raises:
        StreamError: Names the snapshot and the features.
    """
    unknown = [name for name in names if name not in schema]
    if unknown:
        raise StreamError(
            f"{snapshot.path}: the teacher reads {unknown}, which the stream does not have. "
            f"It has {list(schema.names)}."
        )
    if snapshot.schema is not None:
        # Ids that mean another row to the teacher than to the stream would score nonsense.
        for feature in Schema.from_dict(snapshot.schema):
            if feature.name not in schema:
                continue
            ours = schema[feature.name]
            if _encoding(feature) != _encoding(ours):
                raise StreamError(
                    f"{snapshot.path}: the teacher was made for {feature}; in the stream it is "
                    f"{ours}."
                )


def _encoding(feature: Feature) -> tuple[Any, ...]:
    """What decides which numbers a model gets for a raw value."""
    keys = ("vocabulary_size", "hashed", "length", "size")
    return type(feature), *(getattr(feature, key, None) for key in keys)
