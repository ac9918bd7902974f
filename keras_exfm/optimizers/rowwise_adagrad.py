"""Adagrad with one accumulator a row."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.optimizers.row_optimizer import RowOptimizer, Slot, number


@keras.saving.register_keras_serializable(package="keras_exfm")
class RowwiseAdagrad(RowOptimizer):
    """Row-wise Adagrad: the default optimizer of large embedding tables.

    One accumulator a row, not one a component, so the state costs `1 / dim` of the table:

        a_r = a_r + mean_j(g_rj ** 2)
        w_r = w_r - lr_t * (g_r / (sqrt(a_r) + epsilon) + weight_decay * w_r)

    with `g_r` the sum of the gradients of all lookups of row `r` in the batch, after clipping, and
    `lr_t` after schedule and warm-up (see `RowOptimizer`). The accumulator takes the **mean** of
    the squares over the row, as FBGEMM's and torchrec's `EXACT_ROWWISE_ADAGRAD` do, so one
    learning rate suits every dimension.

    Args:
        learning_rate: A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
            Defaults to `0.05`.
        initial_accumulator_value: Value of every accumulator at the start. Defaults to `0.0`.
        epsilon: Added to the square root. Defaults to `1e-8`.
        weight_decay: Decoupled weight decay of the rows looked up. Defaults to `0.0`.
        clip_row_norm: Largest norm of a row's summed gradient; `None` does not clip.
            Defaults to `None`.
        warmup_steps: Steps of linear warm-up. Defaults to `0`.

    Example:

    >>> import numpy as np
    >>> from keras_exfm.layers import EmbeddingTable
    >>> table = EmbeddingTable(1000, 8, optimizer=RowwiseAdagrad(0.05, warmup_steps=100))
    >>> tuple(table(np.array([[3, 999]], "int32")).shape)
    (1, 2, 8)

    References:
        - [Gupta et al., 2014, Training Highly Multiclass Classifiers, section
          4.2](https://jmlr.org/papers/v15/gupta14a.html), where the idea is called AdaGrad with
          one step size a row.
        - FBGEMM, `OptimType.EXACT_ROWWISE_ADAGRAD`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.05,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-8,
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
        """One accumulator a row."""
        return {"accumulator": Slot(self.initial_accumulator_value, per_row=True)}

    def direction(self, gradients: Any, state: dict[str, Any], step: Any) -> tuple[Any, dict]:
        """`g / (sqrt(a) + epsilon)`."""
        accumulator = state["accumulator"] + ops.mean(ops.square(gradients), axis=-1)
        scale = 1.0 / (ops.sqrt(accumulator) + self.epsilon)
        return gradients * scale[:, None], {"accumulator": accumulator}

    def get_config(self) -> dict[str, Any]:
        """Arguments of the optimizer."""
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }
