"""AUC that stays exact at low click rates."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics._sums import ratio
from keras_exfm.metrics._windowed import WindowedMetric, changes, used_rows, weight_below

_LARGEST = 1e9


@keras.saving.register_keras_serializable(package="keras_exfm")
class AUC(WindowedMetric):
    """Area under the ROC curve, off by less than 1e-4 at any click rate and spread of scores.

    How often a click scores above a non-click, ties half. `keras.metrics.AUC` counts at fixed
    thresholds, which is useless where most scores lie between two of them (off by 0.03 at a click
    rate of 0.6 %). Here the thresholds follow the scores: the state is `bins` triples (score,
    weight of clicks, weight of non-clicks) in order of score. A batch is sorted into them, and the
    whole is cut anew into `bins` parts of equal weight, each class weighing half. Equal scores stay
    together. What is lost is the order within a part: the error is of second order in `1 / bins`
    wherever the scores lie.

    Only the order of scores counts, so logits and probabilities both do. An update sorts
    `bins + batch` numbers. NaN as long as there is one class only. Give it to `compile` in
    `weighted_metrics`: Keras passes no weights to those in `metrics`.

    Args:
        bins: Number of triples kept, for the lifetime and for each update of the window.
            Defaults to `4096`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"auc"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = AUC()
    >>> metric.update_state([0, 1, 0, 1], [0.1, 0.3, 0.3, 0.9])
    >>> float(metric.result())
    0.875

    References:
        - The state is a quantile summary with merging, after
          [Ben-Haim & Tom-Tov, 2010](https://jmlr.org/papers/v11/ben-haim10a.html).
    """

    def __init__(
        self,
        bins: int = 4096,
        window: int | None = None,
        name: str = "auc",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, window)
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise ValueError(f"`bins` should be an integer of at least 2. Received: bins={bins!r}")
        self.bins = bins
        self._add_state((3, bins), (3, bins))

    def _rows(self, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        y, z, w = used_rows(self, y_true, y_pred, sample_weight)
        unknown = ops.isnan(z)
        score = ops.clip(ops.where(unknown, ops.zeros_like(z), z), -_LARGEST, _LARGEST)
        # A NaN score keeps its place in no order: it makes the metric NaN.
        positive = ops.where(unknown, ops.full_like(z, float("nan")), w * y)
        return ops.stack([score, positive, w * (1 - y)])

    def _summarize(self, rows: Any) -> Any:
        return _cut(rows, self.bins)

    def _absorb(self, state: Any, rows: Any, summary: Any) -> Any:
        return self._merge(state, rows)

    def _merge(self, state: Any, other: Any) -> Any:
        return _cut(ops.concatenate([state, other], axis=1), self.bins)

    def _merge_summaries(self, summary: Any, other: Any) -> Any:
        return self._merge(summary, other)

    def _value(self, state: Any) -> Any:
        return _area(state[1], state[2])

    def _window_value(self, ring: Any) -> Any:
        rows = ops.reshape(ops.transpose(ring, (1, 0, 2)), (3, -1))
        rows = ops.take(rows, ops.argsort(rows[0]), axis=1)
        credit = rows[1] * weight_below(changes(rows[0]), rows[2])
        pairs = ops.sum(rows[1]) * ops.sum(rows[2])
        return ratio(ops.sum(credit), pairs)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the metric."""
        return {**super().get_config(), "bins": self.bins}


def _cut(rows: Any, bins: int) -> Any:
    """Sorts weighted scores and cuts them into `bins` parts of about equal weight."""
    rows = ops.take(rows, ops.argsort(rows[0]), axis=1)
    score, positive, negative = rows[0], rows[1], rows[2]
    # Each class gets half of the parts: rare clicks stay apart from the mass of non-clicks.
    weight = _share(positive) + _share(negative)
    # The middle of all rows of equal score, so that ties share a part.
    middle = weight_below(changes(score), weight) / ops.maximum(ops.sum(weight), 0.5)
    part = ops.clip(ops.cast(middle * bins, "int32"), 0, bins - 1)
    sums = ops.segment_sum(
        ops.transpose(ops.stack([positive, negative, weight, weight * score])),
        part,
        num_segments=bins,
    )
    used = weight > 0
    out = ops.full_like(score, -2 * _LARGEST)
    ends = ops.segment_max(
        ops.transpose(ops.stack([ops.where(used, score, out), ops.where(used, -score, out)])),
        part,
        num_segments=bins,
    )
    empty = ops.equal(sums[:, 2], 0)
    mean = sums[:, 3] / ops.where(empty, ops.ones_like(sums[:, 2]), sums[:, 2])
    # The mean of equal numbers may differ from them in the last bit, which would untie them.
    mean = ops.clip(mean, -ends[:, 1], ends[:, 0])
    centre = ops.where(empty, ops.zeros_like(mean), mean)
    return ops.stack([centre, sums[:, 0], sums[:, 1]])


def _share(weight: Any) -> Any:
    """Weights that sum to 1 or, of an empty class, to 0; NaN counts as 0."""
    weight = ops.where(ops.isnan(weight), ops.zeros_like(weight), weight)
    total = ops.sum(weight)
    return weight / ops.where(total > 0, total, ops.ones_like(total))


def _area(positive: Any, negative: Any) -> Any:
    """Area under the ROC curve of parts in order of score."""
    clicks, others = ops.sum(positive), ops.sum(negative)
    below = ops.cumsum(negative) - negative / 2
    return ratio(ops.sum(positive * below), clicks * others)
