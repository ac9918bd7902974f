"""The data augmentation service, on one machine."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from keras_exfm import streaming
from keras_exfm.das.snapshots import SnapshotStore
from keras_exfm.das.teacher import KerasScorer, Scorer, checked_logits
from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions
from keras_exfm.streaming.columns import raw_feature


@dataclasses.dataclass(frozen=True)
class HourReport:
    """What became of one hour.

    Attributes:
        hour: The hour.
        committed: `False` if it had been committed before; the counts are 0 then.
        rows: Examples.
        positives: Examples with label 1.
        scored: Examples with a teacher logit.
        not_finite: Teacher outputs that were NaN or infinite: rows without a teacher.
        mean_age_s: Mean age of the teacher over the scored rows, seconds; NaN without any.
        late_labels: Label events of this hour's examples that came after their window.
        duplicate_labels: Further label events of an example that has one; the largest label wins.
        early_labels: Label events of this hour's examples that are dated before them.
        orphan_labels: Label events of this hour (by their own time) of no example in any hour that
            they could belong to.
    """

    hour: int
    committed: bool
    rows: int = 0
    positives: int = 0
    scored: int = 0
    not_finite: int = 0
    mean_age_s: float = math.nan
    late_labels: int = 0
    duplicate_labels: int = 0
    early_labels: int = 0
    orphan_labels: int = 0

    @property
    def coverage(self) -> float:
        """Share of the rows that a teacher scored."""
        return self.scored / self.rows if self.rows else math.nan


class DataAugmentationService:
    """Joins labels and teacher predictions to impressions and commits them hour by hour.

    Each example is scored once, whichever verticals will read it, by the newest snapshot that was
    published at or before its own time, so that no teacher has seen the label that it predicts.
    Its label is the largest among the label events within `label_window_hours` of it, and 0 if
    there is none. An hour is committed whole, in one Delta transaction; repeating it does nothing,
    so a service that was killed goes on with `process_pending`.

    Args:
        source: Folder with `impressions/` and `labels/` (docs/architecture.md).
        stream: The labelled stream to append to.
        schema: Features of the impressions.
        snapshots: The teacher's snapshots. Defaults to `None`: none.
        scorer: How examples are scored. Defaults to `None`: a `KerasScorer`, if there are
            `snapshots`, else no teacher. A scorer without `snapshots` (`CallableScorer`) is a
            fixed teacher of unknown age.
        label_window_hours: Hours after an example in which its label may come. Defaults to `0`:
            within the example's own hour.

    Example:

    >>> import pyarrow as pa, keras_exfm as kx
    >>> from keras_exfm.streaming import partitions
    >>> rows = pa.table({"example_id": [1, 2], "timestamp": [5, 9], "vertical": ["feed", "feed"],
    ...                  "age": [0.5, 1.5]})
    >>> _ = partitions.write_impressions("data", 0, rows)
    >>> _ = partitions.write_labels(
    ...     "data", 0, pa.table({"example_id": [2], "timestamp": [12], "label": [1.0]}))
    >>> service = DataAugmentationService(
    ...     "data", "labelled", kx.Schema([kx.Numeric("age")]),
    ...     scorer=kx.das.CallableScorer(lambda features: 2 * features["age"]))
    >>> service.process_hour(0).positives
    1
    >>> kx.streaming.read_hour("labelled", 0)["teacher_logit"].tolist()
    [1.0, 3.0]
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        stream: str | os.PathLike[str],
        schema: Schema,
        snapshots: SnapshotStore | None = None,
        scorer: Scorer | None = None,
        label_window_hours: float = 0.0,
    ) -> None:
        if not label_window_hours >= 0:
            raise ValueError(
                "`label_window_hours` should be at least 0. "
                f"Received: label_window_hours={label_window_hours!r}"
            )
        self.source = Path(source)
        self.stream = Path(stream)
        self.schema = schema
        self.snapshots = snapshots
        self.scorer = scorer or (KerasScorer(schema) if snapshots is not None else None)
        self.label_window_hours = label_window_hours
        self._recent_ids: dict[int, np.ndarray] = {}

    @property
    def label_lag(self) -> int:
        """Whole hours after an hour's end until all its labels are known."""
        return math.ceil(self.label_window_hours)

    def pending(self) -> list[int]:
        """The hours of impressions after the last committed one."""
        done = streaming.hours(self.stream)
        return [h for h in partitions.hours(self.source) if not done or h > done[-1]]

    def process_pending(self, ended: bool = True) -> list[HourReport]:
        """Processes, in time order, the hours that are not committed yet.

        Args:
            ended: Whether the stream has ended. `False` leaves out hours whose labels may still
                come: those whose window reaches the newest hour on disk. Defaults to `True`.

        Returns:
            The hours' reports. None of an hour that fails, nor of those after it; those before it
            stay committed.
        """
        hours = self.pending()
        if not ended and hours:
            newest = max(hours[-1], *partitions.hours(self.source, partitions.LABELS)[-1:])
            hours = [hour for hour in hours if hour + self.label_lag < newest]
        return [self.process_hour(hour) for hour in hours]

    def process_hour(self, hour: int) -> HourReport:
        """Labels, scores and commits one hour, unless it is committed.

        Raises:
            StreamError: For rows or files that cannot be used; names the file, the column and the
                value. Nothing is written then.
            SnapshotError: For a damaged snapshot.
        """
        if hour in streaming.hours(self.stream):
            return HourReport(hour, committed=False)
        where = str(self.source / partitions.IMPRESSIONS / f"hour={hour}")
        table = partitions.read_impressions(self.source, hour, self.schema)
        taken = {"label", "teacher_logit", "teacher_snapshot", "teacher_age_s"}
        if taken & set(table.column_names):
            raise StreamError(
                f"{where}: impressions cannot have the columns that the service adds: "
                f"{sorted(taken & set(table.column_names))}"
            )
        rows = table.num_rows
        example_id, timestamp = (
            self._integers(table, n, where) for n in ("example_id", "timestamp")
        )
        earlier = self._earlier_ids(hour)
        self._refuse_repeats(example_id, earlier, where)
        label, counts = self._labels(hour, example_id, timestamp, earlier)
        logit, snapshot, age, not_finite = self._scores(table, timestamp, where)
        for name, column in (
            ("label", pa.array(label)),
            ("teacher_logit", pa.array(logit, from_pandas=True)),
            ("teacher_snapshot", pa.array(snapshot, pa.string())),
            ("teacher_age_s", pa.array(age, from_pandas=True)),
        ):
            table = table.append_column(name, column)
        committed = streaming.write_hour(
            self.stream, hour, table, self.schema, app_id="das", source=where
        )
        self._recent_ids = {**earlier, hour: example_id}
        scored = np.isfinite(logit)
        return HourReport(
            hour,
            committed,
            rows=rows,
            positives=int((label > 0).sum()),
            scored=int(scored.sum()),
            not_finite=not_finite,
            mean_age_s=float(age[scored].mean()) if scored.any() else math.nan,
            **counts,
        )

    @staticmethod
    def _integers(table: pa.Table, name: str, where: str) -> np.ndarray:
        column = table.column(name)
        if not pa.types.is_integer(column.type) or column.null_count:
            raise StreamError(
                f"{where}: Column {name!r}: expected an integer in every row. "
                f"Received type {column.type}, {column.null_count} nulls."
            )
        return column.to_numpy().astype(np.int64)

    @property
    def _reach(self) -> int:
        """Hours of label partitions that are read after an hour's own.

        One more than the window needs, so that late events are seen and counted.
        """
        return self.label_lag + 1

    def _earlier_ids(self, hour: int) -> dict[int, np.ndarray]:
        """Example ids of the hours before whose label partitions overlap this hour's."""
        there = partitions.hours(self.source)
        for h in range(hour - self._reach, hour):
            # Kept from hour to hour; after a restart they are read again.
            if h not in self._recent_ids and h in there:
                where = str(self.source / partitions.IMPRESSIONS / f"hour={h}")
                table = partitions.read_impressions(self.source, h)
                self._recent_ids[h] = self._integers(table, "example_id", where)
        return {h: ids for h, ids in self._recent_ids.items() if hour - self._reach <= h < hour}

    @staticmethod
    def _refuse_repeats(example_id: np.ndarray, earlier: dict[int, np.ndarray], where: str) -> None:
        for hour, ids in earlier.items():
            again = np.isin(example_id, ids)
            if again.any():
                row = int(np.argmax(again))
                raise StreamError(
                    f"{where}: Column 'example_id': expected ids that no other example has. "
                    f"Received {example_id[row]} in row {row}, which hour={hour} has as well "
                    f"({int(again.sum())} such rows)."
                )

    def _labels(
        self,
        hour: int,
        example_id: np.ndarray,
        timestamp: np.ndarray,
        earlier: dict[int, np.ndarray],
    ) -> tuple[np.ndarray, dict[str, int]]:
        events = partitions.read_labels(self.source, hour, hour + self._reach)
        event_id, event_time, value = (
            events.column(name).to_numpy() for name in ("example_id", "timestamp", "label")
        )
        odd = (value != 0) & (value != 1)
        if odd.any():
            bad = int(np.argmax(odd))
            raise StreamError(
                f"{self.source / partitions.LABELS / f'hour={event_time[bad] // MS_PER_HOUR}'}: "
                f"Column 'label': expected 0 or 1. Received {value[bad]!r} for example "
                f"{event_id[bad]} ({int(odd.sum())} such rows in the hours {hour}.."
                f"{hour + self._reach})."
            )
        order = np.argsort(example_id, kind="stable")
        ids = example_id[order]
        at = np.minimum(np.searchsorted(ids, event_id), len(ids) - 1)
        ours = ids[at] == event_id
        row, time, value = order[at[ours]], event_time[ours], value[ours]
        delay = time - timestamp[row]
        if self.label_window_hours:
            late = delay > self.label_window_hours * MS_PER_HOUR
        else:
            late = time // MS_PER_HOUR > hour
        early = delay < 0
        used = row[~late & ~early]
        label = np.zeros(len(example_id), np.float32)
        np.maximum.at(label, used, value[~late & ~early])
        # Each event is of one hour, so that the orphans of all hours add up.
        strange = ~ours & (event_time // MS_PER_HOUR == hour)
        for known in earlier.values():
            strange[strange] = ~np.isin(event_id[strange], known)
        return label, {
            "late_labels": int(late.sum()),
            "early_labels": int(early.sum()),
            "duplicate_labels": len(used) - len(np.unique(used)),
            "orphan_labels": int(strange.sum()),
        }

    def _scores(
        self, table: pa.Table, timestamp: np.ndarray, where: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        rows = len(timestamp)
        logit = np.full(rows, np.nan, np.float32)
        name = np.full(rows, None, object)
        age = np.full(rows, np.nan, np.float32)
        if self.scorer is None:
            return logit, name, age, 0
        try:
            raw = {f.name: raw_feature(table.column(f.name), f) for f in self.schema}
            features = self.schema.encode(raw)
        except SchemaError as error:
            raise StreamError(f"{where}: {error}") from error
        if self.snapshots is None:
            scores = self.scorer.score(features, None)
            logit, bad = checked_logits(scores, rows, type(self.scorer).__name__)
            return logit, name, age, bad
        published = np.array(self.snapshots.times(), np.int64)
        # 0: no snapshot is old enough.
        chosen = np.searchsorted(published, timestamp, side="right")
        bad = 0
        for index in np.unique(chosen[chosen > 0]):
            snapshot = self.snapshots.latest(before=int(published[index - 1]))
            assert snapshot is not None
            mine = chosen == index
            part = {n: column[mine] for n, column in features.items()}
            scores, broken = checked_logits(
                self.scorer.score(part, snapshot), int(mine.sum()), snapshot.id
            )
            bad += broken
            logit[mine] = scores
            known = mine & np.isfinite(logit)
            name[known] = snapshot.id
            age[known] = (timestamp[known] - snapshot.published_at) / 1000
        return logit, name, age, bad
