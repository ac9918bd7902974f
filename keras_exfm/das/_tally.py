"""Counts of the rows that pass through a service."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keras_exfm.das._predictions import named

# As `losses._probabilities` has it, which would load Keras where labels alone are joined.
_MANY = 100


class Tally:
    """What is told of an hour: rows, labels, coverage and age of each teacher.

    Args:
        teachers: Their names.
    """

    def __init__(self, teachers: Iterable[str]) -> None:
        self.rows = self.positives = self.not_finite = 0
        self.scored = dict.fromkeys(teachers, 0)
        self._least, self._most = math.inf, -math.inf
        self._aged = dict.fromkeys(self.scored, 0)
        self._age_s = dict.fromkeys(self.scored, 0.0)

    def add(self, rows: pa.Table) -> None:
        """Counts rows of a stream."""
        self.rows += len(rows)
        self.positives += pc.sum(pc.greater(rows.column("label"), 0)).as_py() or 0
        for teacher in self.scored:
            # A job without a teacher notes zeros for the one without a name.
            if named("teacher_logit", teacher) in rows.column_names:
                self._add_scores(teacher, rows, teacher)

    def add_predictions(self, teacher: str, rows: pa.Table) -> None:
        """Counts rows of a teacher's own table, whose columns do not have its name."""
        self.rows += len(rows)
        self._add_scores(teacher, rows, "")
        span = pc.min_max(rows.column("teacher_logit")).as_py()
        if span["min"] is not None:
            self._least = min(self._least, span["min"])
            self._most = max(self._most, span["max"])

    @property
    def looks_like_probabilities(self) -> bool:
        """Whether all of many predictions lie in 0..1, as logits of clicks hardly ever do."""
        return sum(self.scored.values()) >= _MANY and self._least >= 0 and self._most <= 1

    def _add_scores(self, teacher: str, rows: pa.Table, suffix: str) -> None:
        logit = rows.column(named("teacher_logit", suffix))
        self.scored[teacher] += len(logit) - logit.null_count
        ages = rows.column(named("teacher_age_s", suffix)).drop_null().to_numpy()
        self._aged[teacher] += len(ages)
        self._age_s[teacher] += float(ages.sum(dtype=np.float64))

    @property
    def mean_age_s(self) -> dict[str, float]:
        """Teacher -> its mean age over the rows that it scored, if it scored any."""
        return {name: self._age_s[name] / rows for name, rows in self._aged.items() if rows}

    def figures(self) -> dict[str, Any]:
        """What a commit notes."""
        ages = self.mean_age_s
        return {
            **{named("scored", name): rows for name, rows in self.scored.items()},
            "positives": self.positives,
            **{named("mean_age_s", name): ages.get(name) for name in self.scored},
        }

    def counts(self) -> dict[str, Any]:
        """All of it, under the names of `Step`."""
        return {
            "rows": self.rows,
            "scored": self.scored,
            "positives": self.positives,
            "not_finite": self.not_finite,
            "mean_age_s": self.mean_age_s,
        }
