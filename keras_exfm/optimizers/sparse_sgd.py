"""Gradient descent on the rows that were looked up."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.optimizers.row_optimizer import RowOptimizer, Slot


@keras.saving.register_keras_serializable(package="keras_exfm")
class SparseSGD(RowOptimizer):
    """Stochastic gradient descent on the rows that a batch looked up; no state.

        w_r = w_r - lr_t * (g_r + weight_decay * w_r)

    with `g_r` and `lr_t` as in `RowOptimizer`. Without weight decay and clipping this equals
    `keras.optimizers.SGD` on the dense table.

    Args:
        learning_rate: A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
            Defaults to `0.01`.
        weight_decay: Decoupled weight decay of the rows looked up. Defaults to `0.0`.
        clip_row_norm: Largest norm of a row's summed gradient; `None` does not clip.
            Defaults to `None`.
        warmup_steps: Steps of linear warm-up. Defaults to `0`.

    Example:

    >>> SparseSGD(0.1, clip_row_norm=1.0).get_config()["clip_row_norm"]
    1.0
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        weight_decay: float = 0.0,
        clip_row_norm: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_row_norm, warmup_steps)

    def slots(self) -> dict[str, Slot]:
        """None."""
        return {}

    def direction(self, gradients: Any, state: dict[str, Any], step: Any) -> tuple[Any, dict]:
        """The gradient itself."""
        return gradients, {}
