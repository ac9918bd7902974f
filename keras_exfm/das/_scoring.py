"""Which snapshot scores which row, and what it said, as columns of the stream."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from keras_exfm.das.scorers import Scorer, checked_logits
from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming import StreamError
from keras_exfm.streaming.columns import raw_feature, stored_vectors

if TYPE_CHECKING:
    from keras_exfm.das.snapshots import Snapshot, SnapshotStore


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a teacher said of some rows.

    Attributes:
        logit: Float32, NaN where there is none.
        snapshot: Name of the snapshot, `None` where there is none.
        age_s: Float32 seconds from its publication to the row, NaN where there is none.
        not_finite: Outputs that were NaN or infinite: rows without a teacher.
        representation: Float16 `(rows, size)`, NaN where there is none; or `None`.
    """

    logit: np.ndarray
    snapshot: np.ndarray
    age_s: np.ndarray
    not_finite: int
    representation: np.ndarray | None = None

    def columns(self, as_bytes: bool = False) -> dict[str, pa.Array]:
        """The stream's columns; vectors as lists of numbers, or `as_bytes` as they are stored."""
        found: dict[str, pa.Array] = {
            "teacher_logit": pa.array(self.logit, from_pandas=True),
            "teacher_snapshot": pa.array(self.snapshot, pa.string()),
            "teacher_age_s": pa.array(self.age_s, from_pandas=True),
        }
        if self.representation is not None:
            size = self.representation.shape[1]
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(self.representation.astype(np.float32).ravel()), size
            )
            found["teacher_representation"] = stored_vectors(lists) if as_bytes else lists
        return found


def encoded(table: pa.Table, schema: Schema, where: str) -> dict[str, np.ndarray]:
    """The features as a teacher reads them, in arrays of its own.

    Raises:
        StreamError: For rows that do not fit `schema`; names `where`, column, row and value.
    """
    try:
        found = schema.encode({f.name: raw_feature(table.column(f.name), f) for f in schema})
    except SchemaError as error:
        raise StreamError(f"{where}: {error}") from error
    # A teacher is foreign code, which may change its input in place; Arrow's memory is read-only.
    return {n: column if column.flags.writeable else column.copy() for n, column in found.items()}


def score_rows(
    features: dict[str, np.ndarray],
    timestamp: np.ndarray,
    scorer: Scorer,
    snapshots: SnapshotStore | None,
    representation: bool = False,
) -> Scores:
    """Scores each row once, by the newest snapshot published at or before its time.

    Args:
        features: Encoded rows.
        timestamp: Milliseconds of each.
        scorer: The teacher.
        snapshots: Its snapshots; `None` for a fixed teacher of unknown age.
        representation: Whether to keep the teacher's vectors too. Defaults to `False`.

    Raises:
        StreamError: For a teacher that does not give one logit, and one vector, a row.
    """
    rows = len(timestamp)
    logit = np.full(rows, np.nan, np.float32)
    name = np.full(rows, None, object)
    age = np.full(rows, np.nan, np.float32)
    vectors = None
    if representation:
        if scorer.representation_size is None:
            raise StreamError(f"This {type(scorer).__name__} gives no vectors.")
        vectors = np.full((rows, scorer.representation_size), np.nan, np.float16)

    def score(mine: np.ndarray, snapshot: Snapshot | None) -> int:
        part = features if mine.all() else {n: column[mine] for n, column in features.items()}
        said = type(scorer).__name__ if snapshot is None else snapshot.id
        if vectors is None:
            found = scorer.score(part, snapshot)
        else:
            found, vectors[mine] = scorer.score_with_representation(part, snapshot)
        logit[mine], bad = checked_logits(found, int(mine.sum()), said)
        return bad

    if snapshots is None:
        bad = score(np.ones(rows, bool), None) if rows else 0
    else:
        published = np.array(snapshots.times(), np.int64)
        # 0: no snapshot is old enough.
        chosen = np.searchsorted(published, timestamp, side="right")
        bad = 0
        for index in np.unique(chosen[chosen > 0]):
            time = int(published[index - 1])
            snapshot = snapshots.latest(before=time)
            if snapshot is None or snapshot.published_at != time:
                raise StreamError(
                    f"{snapshots.path}: the snapshot published at {time} was removed while it "
                    "was needed."
                )
            mine = chosen == index
            bad += score(mine, snapshot)
            known = mine & np.isfinite(logit)
            name[known] = snapshot.id
            age[known] = (timestamp[known] - snapshot.published_at) / 1000
    if vectors is not None:
        vectors[~np.isfinite(logit)] = np.nan
    return Scores(logit, name, age, bad, vectors)
