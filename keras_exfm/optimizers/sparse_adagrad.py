"""Adagrad on the rows that were looked up."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.optimizers.row_optimizer import RowOptimizer, Slot, number


@keras.saving.register_keras_serializable(package="keras_exfm")
class SparseAdagrad(RowOptimizer):
    """Adagrad with one accumulator a component, on the rows that a batch looked up.

        a_rj = a_rj + g_rj ** 2
        w_rj = w_rj - lr_t * (g_rj / sqrt(a_rj + epsilon) + weight_decay * w_rj)

    with `g_r` and `lr_t` as in `RowOptimizer`. A row without gradient does not move under Adagrad,
    so without weight decay and clipping this equals a dense Adagrad in the form of
    `keras.optimizers.Adagrad`, given the summed gradients of duplicate ids.

    Args:
        learning_rate: A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
            Defaults to `0.05`.
        initial_accumulator_value: Value of every accumulator at the start. Defaults to `0.1`.
        epsilon: Added under the square root. Defaults to `1e-7`.
        weight_decay: Decoupled weight decay of the rows looked up. Defaults to `0.0`.
        clip_row_norm: Largest norm of a row's summed gradient; `None` does not clip.
            Defaults to `None`.
        warmup_steps: Steps of linear warm-up. Defaults to `0`.

    Example:

    >>> SparseAdagrad(0.1).slots()["accumulator"].initial
    0.1

    References:
        - [Duchi et al., 2011](https://jmlr.org/papers/v12/duchi11a.html)
    """

    def __init__(
        self,
        learning_rate: Any = 0.05,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: float = 0.0,
        clip_row_norm: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_row_norm, warmup_steps)
        self.initial_accumulator_value = number(
            "initial_accumulator_value", initial_accumulator_value, minimum=0.0
        )
        self.epsilon = number("epsilon", epsilon, minimum=0.0)

    def slots(self) -> dict[str, Slot]:
        """One accumulator a component."""
        return {"accumulator": Slot(self.initial_accumulator_value)}

    def direction(self, gradients: Any, state: dict[str, Any], step: Any) -> tuple[Any, dict]:
        """`g / sqrt(a + epsilon)`."""
        accumulator = state["accumulator"] + ops.square(gradients)
        return gradients * ops.rsqrt(accumulator + self.epsilon), {"accumulator": accumulator}

    def get_config(self) -> dict[str, Any]:
        """Arguments of the optimizer."""
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }
