"""Calibration error."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.metrics.calibration import Calibration


@keras.saving.register_keras_serializable(package="keras_exfm")
class CalibrationError(Calibration):
    """How far the calibration is from 1, `|log(sum(p) / sum(y))|`.

    `Calibration` is best at 1, so neither the larger nor the smaller value is the better one. This
    is best at 0, and promising twice as much as comes is as bad as promising half: for searches
    and early stopping. NaN as long as there is no click. Give it to `compile` in
    `weighted_metrics`: Keras passes no weights to those in `metrics`.

    Args:
        from_logits: Whether predictions are logits. Defaults to `True`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"calibration_error"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = CalibrationError(from_logits=False)
    >>> metric.update_state([0.0, 1.0], [0.25, 0.25])
    >>> round(float(metric.result()), 4)
    0.6931

    References:
        - [He et al., 2014](https://doi.org/10.1145/2648584.2648589), section 3, for the ratio.
    """

    def __init__(
        self,
        from_logits: bool = True,
        window: int | None = None,
        name: str = "calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(from_logits, window, name, dtype)

    def _figure(self, sums: Any) -> Any:
        return ops.abs(ops.log(super()._figure(sums)))
