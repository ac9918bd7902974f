"""Metrics that are a ratio of sums over rows."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics._windowed import WindowedMetric, used_rows
from keras_exfm.metrics.functional import ROUNDING


class SumsMetric(WindowedMetric):
    """A metric that needs nothing but sums over rows.

    The lifetime sums carry the rounding error of their last addition along (Kahan), since float32
    alone stops to count at 2**24 rows and JAX has no float64 by default.
    """

    def __init__(
        self, name: str, dtype: Any, from_logits: bool, window: int | None, sums: int
    ) -> None:
        super().__init__(name, dtype, window)
        self.from_logits = from_logits
        self._add_state((2, sums), (sums,))

    def _figure(self, sums: Any) -> Any:
        raise NotImplementedError

    def _rows(self, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        return used_rows(self, y_true, y_pred, sample_weight)

    def _absorb(self, state: Any, rows: Any, summary: Any) -> Any:
        return _add(state, self._summarize(rows) if summary is None else summary)

    def _merge(self, state: Any, other: Any) -> Any:
        return _add(_add(state, other[0]), -other[1])

    def _merge_summaries(self, summary: Any, other: Any) -> Any:
        return summary + other

    def _value(self, state: Any) -> Any:
        return self._figure(state[0])

    def _window_value(self, ring: Any) -> Any:
        return self._figure(ops.sum(ring, axis=0))

    def get_config(self) -> dict[str, Any]:
        """Arguments of the metric."""
        return {**super().get_config(), "from_logits": self.from_logits}


def _add(state: Any, summary: Any) -> Any:
    total, error = state[0], state[1]
    addend = summary - error
    new = total + addend
    return ops.stack([new, (new - total) - addend])


def probabilities(z: Any, from_logits: bool) -> Any:
    """Click probabilities."""
    return ops.sigmoid(z) if from_logits else _in_range(z)


def crossentropies(y: Any, z: Any, from_logits: bool) -> Any:
    """Crossentropy of each row in nats."""
    if from_logits:
        return ops.relu(z) - y * z + ops.log1p(ops.exp(-ops.abs(z)))
    eps = keras.config.epsilon()
    p = ops.clip(_in_range(z), eps, 1 - eps)
    return -y * ops.log(p) - (1 - y) * ops.log1p(-p)


def _in_range(p: Any) -> Any:
    """NaN for what is no probability: clipped, logits would look like a perfect prediction."""
    return ops.where(ops.abs(p - 0.5) <= 0.5 + ROUNDING, p, ops.full_like(p, float("nan")))


def ratio(numerator: Any, denominator: Any) -> Any:
    """The quotient, NaN for a denominator of 0 on either backend."""
    empty = ops.equal(denominator, 0)
    quotient = numerator / ops.where(empty, ops.ones_like(denominator), denominator)
    return ops.where(empty, ops.full_like(quotient, float("nan")), quotient)
