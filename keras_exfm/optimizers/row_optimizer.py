"""What every row-sparse embedding optimizer shares."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class Slot:
    """State that an optimizer keeps for each row.

    Args:
        initial: Value at the start.
        per_row: If `True`, one number a row; otherwise one number a component.
    """

    initial: float = 0.0
    per_row: bool = False


def number(name: str, value: Any, *, minimum: float, maximum: float = float("inf")) -> float:
    """`value` as a finite float in `[minimum, maximum)`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not minimum <= value < maximum:
        upper = "" if maximum == float("inf") else f" and below {maximum:g}"
        raise ValueError(
            f"`{name}` should be a finite number of at least {minimum:g}{upper}. "
            f"Received: {name}={value!r}"
        )
    return float(value)


class RowOptimizer:
    """Base of the optimizers that train only the rows that a batch looked up.

    An optimizer of this kind belongs to one `keras_exfm.layers.EmbeddingTable`. The table sums the
    gradients of each distinct row `r` of the batch to `g_r`, whatever number of times `r` was
    looked up, and then calls `step` on the distinct rows only. With the learning rate `lr`, the
    step counter `t = 0, 1, ...` (one a training step, for all rows), and `d` given by the
    subclass:

        lr_t = lr(t) * min(1, (t + 1) / warmup_steps)
        g_r  = g_r * min(1, clip_row_norm / norm(g_r))
        w_r  = w_r - lr_t * (weight_decay * w_r + d(g_r, state_r))

    Rows that the batch did not look up keep their values and their state: weight decay and
    moments do not touch them. Arithmetic is in float32.

    A subclass gives `slots` and `direction`.

    Args:
        learning_rate: A float, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: Decoupled weight decay of the rows looked up. Defaults to `0.0`.
        clip_row_norm: Largest Euclidean norm of a row's summed gradient; `None` does not clip.
            Defaults to `None`.
        warmup_steps: Number of steps in which the learning rate grows linearly to its value.
            Defaults to `0`.

    Raises:
        ValueError: For an argument out of its range.
    """

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float = 0.0,
        clip_row_norm: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        if isinstance(learning_rate, dict):
            learning_rate = keras.saving.deserialize_keras_object(learning_rate)
        if not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            learning_rate = number("learning_rate", learning_rate, minimum=0.0)
        self.learning_rate: Any = learning_rate
        self.weight_decay = number("weight_decay", weight_decay, minimum=0.0)
        if clip_row_norm is not None:
            clip_row_norm = number("clip_row_norm", clip_row_norm, minimum=0.0)
            if clip_row_norm == 0:
                raise ValueError(
                    "`clip_row_norm` should be positive, or None. Received: clip_row_norm=0"
                )
        self.clip_row_norm: float | None = clip_row_norm
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, numbers.Integral):
            raise ValueError(
                "`warmup_steps` should be an integer of at least 0. "
                f"Received: warmup_steps={warmup_steps!r}"
            )
        self.warmup_steps: int = int(number("warmup_steps", warmup_steps, minimum=0))

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate is a schedule, not a number that callbacks may change."""
        return isinstance(self.learning_rate, keras.optimizers.schedules.LearningRateSchedule)

    def slots(self) -> dict[str, Slot]:
        """Name -> `Slot` of the state that each row has."""
        raise NotImplementedError

    def direction(self, gradients: Any, state: dict[str, Any], step: Any) -> tuple[Any, dict]:
        """The direction `d` and the new state.

        Args:
            gradients: float32 `(n, dim)`, one summed gradient for each distinct row.
            state: Slot name -> float32 `(n, dim)`, or `(n,)` for slots that are `per_row`.
            step: int32 scalar, `0` in the first step.

        Returns:
            Pair of `d`, `(n, dim)`, and the new state, in the shapes of `state`.
        """
        raise NotImplementedError

    def rate(self, learning_rate: Any, step: Any) -> Any:
        """float32 learning rate of a step.

        Args:
            learning_rate: The current base value; left aside if the learning rate is a schedule.
            step: int32 scalar, `0` in the first step.
        """
        if self.scheduled:
            learning_rate = self.learning_rate(step)
        learning_rate = ops.cast(learning_rate, "float32")
        if self.warmup_steps:
            share = ops.cast(step + 1, "float32") / float(self.warmup_steps)
            learning_rate = learning_rate * ops.minimum(1.0, share)
        return learning_rate

    def step(
        self, rows: Any, gradients: Any, state: dict[str, Any], learning_rate: Any, step: Any
    ) -> tuple[Any, dict[str, Any]]:
        """New values and state of distinct rows.

        Args:
            rows: float32 `(n, dim)`, the rows' values.
            gradients: As in `direction`.
            state: As in `direction`.
            learning_rate: float32 scalar, the base value.
            step: As in `direction`.

        Returns:
            Pair of the new rows, `(n, dim)`, and the new state.
        """
        if self.clip_row_norm is not None:
            squares = ops.sum(ops.square(gradients), axis=-1, keepdims=True)
            # The smallest normal float keeps the zero gradient zero, not NaN.
            norms = ops.sqrt(ops.maximum(squares, 1.2e-38))
            gradients = gradients * ops.minimum(1.0, self.clip_row_norm / norms)
        update, state = self.direction(gradients, state, step)
        if self.weight_decay:
            update = update + self.weight_decay * rows
        return rows - self.rate(learning_rate, step) * update, state

    def get_config(self) -> dict[str, Any]:
        """Arguments of the optimizer."""
        learning_rate = self.learning_rate
        if self.scheduled:
            learning_rate = keras.saving.serialize_keras_object(learning_rate)
        return {
            "learning_rate": learning_rate,
            "weight_decay": self.weight_decay,
            "clip_row_norm": self.clip_row_norm,
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RowOptimizer:
        """The inverse of `get_config`."""
        return cls(**config)
