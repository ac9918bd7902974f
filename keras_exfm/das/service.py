"""The data augmentation service as a program calls it: one stream, one task, hour by hour."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from keras_exfm import streaming
from keras_exfm.das._join import HourJoin, LabelTask
from keras_exfm.das._scoring import encoded, score_rows
from keras_exfm.das._side_output import SideOutput
from keras_exfm.das._tally import Tally
from keras_exfm.das.scorers import Scorer, SnapshotScorer
from keras_exfm.das.snapshots import SnapshotStore
from keras_exfm.features import Schema
from keras_exfm.streaming import MS_PER_HOUR, partitions


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
        orphan_labels: Label events of this hour's partition of no example in any hour that they
            could belong to.
        out_of_order_labels: Label events whose time is of another hour than their partition.
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
    out_of_order_labels: int = 0

    @property
    def coverage(self) -> float:
        """Share of the rows that a teacher scored."""
        return self.scored / self.rows if self.rows else math.nan


class DataAugmentationService:
    """Joins labels and teacher predictions to impressions and commits them hour by hour.

    This class is for a program that trains the teacher between hours, as the pipeline does. A
    `Job` describes a service that runs by itself, for several verticals and tasks.

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
        scorer: How examples are scored. Defaults to `None`: a `SnapshotScorer`, if there are
            `snapshots`, else no teacher. A scorer without `snapshots` (`CallableScorer`) is a
            fixed teacher of unknown age. Vectors of one with a `representation_size` are kept
            too, as `teacher_representation`; a stream that was begun without them cannot get any.
        label_window_hours: Hours after an example in which its label may come. Defaults to `0`:
            within the example's own hour.
        side_output: Folder or URL for the label events that made no label, Parquet by reason and
            hour. Defaults to `None`: they are only counted.
        memory_limit: What the join may hold, such as `"2GB"`; more goes to `temp_directory`.
            Defaults to `None`: 80 % of the machine.
        temp_directory: Where the join spills. Defaults to `None`: `.tmp` in the working directory.
        storage_options: Arguments of fsspec's file system, for a `source` or `side_output` that
            is a URL. Defaults to `None`.

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
        side_output: str | os.PathLike[str] | None = None,
        memory_limit: str | None = None,
        temp_directory: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if not label_window_hours >= 0:
            raise ValueError(
                "`label_window_hours` should be at least 0. "
                f"Received: label_window_hours={label_window_hours!r}"
            )
        self.source = source if isinstance(source, str) and "://" in source else Path(source)
        self.stream = Path(stream)
        self.schema = schema
        self.snapshots = snapshots
        self.scorer = scorer or (SnapshotScorer(schema) if snapshots is not None else None)
        self.label_window_hours = label_window_hours
        self.side_output = side_output
        self.memory_limit = memory_limit
        self.temp_directory = temp_directory
        self.storage_options = storage_options
        self._task = LabelTask("label", partitions.LABELS, round(label_window_hours * MS_PER_HOUR))
        self._join = HourJoin(
            self.source,
            schema,
            [self._task],
            storage_options,
            memory_limit=memory_limit,
            temp_directory=temp_directory,
        )

    @property
    def label_lag(self) -> int:
        """Whole hours after an hour's end until all its labels are known."""
        return math.ceil(self.label_window_hours)

    def pending(self) -> list[int]:
        """The hours of impressions after the last committed one."""
        done = streaming.hours(self.stream)
        found = partitions.hours(self.source, storage_options=self.storage_options)
        return [h for h in found if not done or h > done[-1]]

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
            events = partitions.hours(self.source, partitions.LABELS, self.storage_options)
            newest = max(hours[-1], *events[-1:])
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
        self._join.forget(hour - self._join.reach)
        self._join.check(hour)
        counts, events = self._join.audit(hour, self._task)
        if self.side_output is not None:
            SideOutput(self.side_output, self.storage_options).write(
                hour, self._task.name, events, counts
            )
        tally = Tally([] if self.scorer is None else [""])
        committed = streaming.write_hour(
            self.stream,
            hour,
            self._rows(hour, tally),
            self.schema,
            app_id="das",
            source=self._join.where(hour),
        )
        return HourReport(
            hour,
            committed,
            rows=tally.rows,
            positives=tally.positives,
            scored=tally.scored.get("", 0),
            not_finite=tally.not_finite,
            mean_age_s=tally.mean_age_s.get("", math.nan),
            **{f"{reason}_labels": count for reason, count in counts.items()},
        )

    def _rows(self, hour: int, tally: Tally) -> Iterator[pa.Table]:
        where = self._join.where(hour)
        for table in self._join.rows(hour, tasks=[self._task]):
            if self.scorer is not None:
                scores = score_rows(
                    encoded(table, self.schema, where),
                    table.column("timestamp").to_numpy().astype(np.int64),
                    self.scorer,
                    self.snapshots,
                    representation=self.scorer.representation_size is not None,
                )
                for name, column in scores.columns().items():
                    table = table.append_column(name, column)
                tally.not_finite += scores.not_finite
            tally.add(table)
            yield table
