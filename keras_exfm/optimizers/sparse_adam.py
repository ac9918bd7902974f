"""Adam with lazy moments."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.optimizers.row_optimizer import RowOptimizer, Slot, number


@keras.saving.register_keras_serializable(package="keras_exfm")
class SparseAdam(RowOptimizer):
    """Adam whose moments move only for the rows that a batch looked up ("lazy Adam").

        m_r = beta_1 * m_r + (1 - beta_1) * g_r
        v_r = beta_2 * v_r + (1 - beta_2) * g_r ** 2
        c   = sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))
        w_r = w_r - lr_t * (c * m_r / (sqrt(v_r) + epsilon) + weight_decay * w_r)

    with `g_r`, `lr_t` and the step counter `t = 0, 1, ...` as in `RowOptimizer`. Two things differ
    from dense Adam: a row that is not looked up neither decays its moments nor moves, and the bias
    correction `c` counts the **training steps**, not the row's own lookups (as in PyTorch's
    `SparseAdam` and TensorFlow Addons' `LazyAdam`). A row first seen late in training thus starts
    with `c` near 1 and a first step of about `(1 - beta_1) / sqrt(1 - beta_2)` learning rates.

    Args:
        learning_rate: A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
            Defaults to `0.001`.
        beta_1: Decay of the first moment. Defaults to `0.9`.
        beta_2: Decay of the second moment. Defaults to `0.999`.
        epsilon: Added to the square root. Defaults to `1e-7`.
        weight_decay: Decoupled weight decay of the rows looked up. Defaults to `0.0`.
        clip_row_norm: Largest norm of a row's summed gradient; `None` does not clip.
            Defaults to `None`.
        warmup_steps: Steps of linear warm-up. Defaults to `0`.

    Example:

    >>> sorted(SparseAdam(1e-3).slots())
    ['momentum', 'velocity']

    References:
        - [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980), Algorithm 1 with the epsilon of
          the end of section 2.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float = 0.0,
        clip_row_norm: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clip_row_norm, warmup_steps)
        self.beta_1 = number("beta_1", beta_1, minimum=0.0, maximum=1.0)
        self.beta_2 = number("beta_2", beta_2, minimum=0.0, maximum=1.0)
        self.epsilon = number("epsilon", epsilon, minimum=0.0)

    def slots(self) -> dict[str, Slot]:
        """The two moments."""
        return {"momentum": Slot(), "velocity": Slot()}

    def direction(self, gradients: Any, state: dict[str, Any], step: Any) -> tuple[Any, dict]:
        """`c * m / (sqrt(v) + epsilon)`."""
        count = ops.cast(step + 1, "float32")
        correction = ops.sqrt(1.0 - ops.power(self.beta_2, count))
        correction = correction / (1.0 - ops.power(self.beta_1, count))
        momentum = state["momentum"] + (1.0 - self.beta_1) * (gradients - state["momentum"])
        squares = ops.square(gradients)
        velocity = state["velocity"] + (1.0 - self.beta_2) * (squares - state["velocity"])
        direction = correction * momentum / (ops.sqrt(velocity) + self.epsilon)
        return direction, {"momentum": momentum, "velocity": velocity}

    def get_config(self) -> dict[str, Any]:
        """Arguments of the optimizer."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
