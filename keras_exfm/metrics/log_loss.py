"""Log loss."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics._sums import SumsMetric, crossentropies, ratio


@keras.saving.register_keras_serializable(package="keras_exfm")
class LogLoss(SumsMetric):
    """Mean crossentropy, `mean(log(1 + exp(z)) - y z)` with the logit `z`, in nats.

    Unlike a training loss it divides by the weights' sum, so padded rows do not dilute it. Give it
    to `compile` in `weighted_metrics`: Keras passes no weights to those in `metrics`.

    Args:
        from_logits: Whether predictions are logits. Probabilities are clipped to
            `keras.config.epsilon()`. Defaults to `True`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"log_loss"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = LogLoss(window=1)
    >>> metric.update_state([0.0, 1.0], [0.0, 0.0])
    >>> metric.update_state([0.0, 1.0], [-9.0, 9.0])
    >>> round(float(metric.result()), 4), round(float(metric.window_result()), 4)
    (0.3466, 0.0001)
    """

    def __init__(
        self,
        from_logits: bool = True,
        window: int | None = None,
        name: str = "log_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, from_logits, window, sums=2)

    def _summarize(self, rows: Any) -> Any:
        y, z, w = rows
        return ops.stack([ops.sum(w), ops.sum(w * crossentropies(y, z, self.from_logits))])

    def _figure(self, sums: Any) -> Any:
        return ratio(sums[1], sums[0])
