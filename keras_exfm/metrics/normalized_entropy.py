"""Normalized entropy."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics._sums import SumsMetric, crossentropies, ratio


@keras.saving.register_keras_serializable(package="keras_exfm")
class NormalizedEntropy(SumsMetric):
    """Log loss over the entropy of the label rate.

    With the label rate `r = mean(y)`:

        NE = log_loss / (-r log r - (1 - r) log(1 - r))

    1 is what the rate alone reaches, lower is better, and unlike the log loss it compares across
    rates. The rate is that of the same rows: of the whole lifetime in `result`, of the window in
    `window_result`. NaN as long as there is one class only. Give it to `compile` in
    `weighted_metrics`: Keras passes no weights to those in `metrics`.

    Args:
        from_logits: Whether predictions are logits. Probabilities are clipped to
            `keras.config.epsilon()`. Defaults to `True`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"normalized_entropy"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = NormalizedEntropy()
    >>> metric.update_state([0.0, 1.0], [0.0, 0.0])
    >>> float(metric.result())
    1.0

    References:
        - [He et al., 2014](https://doi.org/10.1145/2648584.2648589), section 3, Eq. 3.
    """

    def __init__(
        self,
        from_logits: bool = True,
        window: int | None = None,
        name: str = "normalized_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, from_logits, window, sums=3)

    def _summarize(self, rows: Any) -> Any:
        y, z, w = rows
        losses = crossentropies(y, z, self.from_logits)
        return ops.stack([ops.sum(w), ops.sum(w * y), ops.sum(w * losses)])

    def _figure(self, sums: Any) -> Any:
        rate = ratio(sums[1], sums[0])
        one_class = ops.logical_or(ops.equal(rate, 0), ops.equal(rate, 1))
        inner = ops.where(one_class, ops.full_like(rate, 0.5), rate)
        entropy = -inner * ops.log(inner) - (1 - inner) * ops.log1p(-inner)
        entropy = ops.where(one_class, ops.zeros_like(rate), entropy)
        return ratio(ratio(sums[2], sums[0]), entropy)
