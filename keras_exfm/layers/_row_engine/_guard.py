"""What a model's optimizer must not do to a table that trains itself."""

from __future__ import annotations

import sys
from typing import Any

import keras


def refuse_unsupported(optimizer: Any) -> None:
    """Raises for an optimizer that scales the loss, accumulates gradients or averages weights."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        reason = "scales the loss (a `LossScaleOptimizer`, as `compile` adds under float16)"
        remedy = 'Use the dtype policy "mixed_bfloat16", or compile with `auto_scale_loss=False`.'
    elif optimizer.loss_scale_factor is not None:
        reason = f"has loss_scale_factor={optimizer.loss_scale_factor!r}"
        remedy = "Leave `loss_scale_factor` out."
    elif optimizer.gradient_accumulation_steps is not None:
        reason = f"has gradient_accumulation_steps={optimizer.gradient_accumulation_steps!r}"
        remedy = "Use larger batches."
    elif optimizer.use_ema:
        reason = "has use_ema=True"
        remedy = "Leave `use_ema` out."
    else:
        return
    raise ValueError(
        f"The model's optimizer {optimizer.name!r} {reason}, which an EmbeddingTable with a "
        f"row-sparse optimizer cannot honour: its rows are updated at every step, outside the "
        f"model's optimizer. {remedy} Or train the table densely with `optimizer=None`."
    )


def calling_optimizers() -> list[Any]:
    """The Keras optimizers whose methods are running right now, innermost first.

    Keras gives a variable no word on who trains it before the gradients are applied, and `compile`
    and custom loops know nothing of our tables; but every Keras optimizer asks each variable for
    `overwrite_with_gradient` and calls its `assign`. Whoever asks stands on the call stack.
    """
    found: list[Any] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.optimizers.Optimizer) and owner not in found:
                found.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    return found


class RowVariable(keras.Variable):
    """A variable whose rows the lookup's backward pass updates.

    To a Keras optimizer it says `overwrite_with_gradient`, after a look at the optimizer's
    options; an `assign` that comes from an optimizer goes to `overwrite`.
    """

    def __init__(self, *args: Any, overwrite: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._overwrite = overwrite

    @property
    def overwrite_with_gradient(self) -> bool:
        for optimizer in calling_optimizers():
            refuse_unsupported(optimizer)
        return True

    def assign(self, value: Any) -> Any:
        if calling_optimizers():
            return self._overwrite(self, value)
        return super().assign(value)

    def assign_directly(self, value: Any) -> Any:
        """`assign`, whoever calls."""
        return super().assign(value)
