"""Calibration."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics._sums import SumsMetric, probabilities, ratio


@keras.saving.register_keras_serializable(package="keras_exfm")
class Calibration(SumsMetric):
    """Predicted clicks over clicks, `sum(p) / sum(y)`; above 1 the model promises too much.

    NaN as long as there is no click. Give it to `compile` in `weighted_metrics`: Keras passes no
    weights to those in `metrics`.

    Args:
        from_logits: Whether predictions are logits. Defaults to `True`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"calibration"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = Calibration(from_logits=False)
    >>> metric.update_state([0.0, 1.0], [0.5, 0.75])
    >>> float(metric.result())
    1.25

    References:
        - [He et al., 2014](https://doi.org/10.1145/2648584.2648589), section 3.
    """

    def __init__(
        self,
        from_logits: bool = True,
        window: int | None = None,
        name: str = "calibration",
        dtype: Any = None,
    ) -> None:
        super().__init__(name, dtype, from_logits, window, sums=2)

    def _summarize(self, rows: Any) -> Any:
        y, z, w = rows
        return ops.stack([ops.sum(w * y), ops.sum(w * probabilities(z, self.from_logits))])

    def _figure(self, sums: Any) -> Any:
        return ratio(sums[1], sums[0])
