"""What a model of a search may cost."""

from __future__ import annotations

import dataclasses
import math

from keras_exfm.tuner.cost import Cost


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a model of a search may cost; `None` leaves a figure free.

    Parameters alone, KerasTuner's measure, say little about a ranking model: nearly all of them are
    rows of embedding tables, of which an example reads a few. This counts what an example costs,
    and the weights beside the tables.

    Args:
        training_flops: Operations of a training step for one example. Defaults to `None`.
        inference_flops: Operations of a prediction for one example. Defaults to `None`.
        parameters: Trained weights that are not rows of a table. Defaults to `None`.

    Raises:
        ValueError: For a figure that is not a positive number.

    Example:

    >>> budget = Budget(training_flops=20e6)
    >>> budget.allows(Cost(training_flops=19_000_000, inference_flops=1, parameters=1))
    True
    >>> budget.excess(Cost(training_flops=21_000_000, inference_flops=1, parameters=1))
    ['training_flops=21,000,000 exceeds 20,000,000']
    """

    training_flops: float | None = None
    inference_flops: float | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"`{name}` should be a number or None. Received: {name}={value!r}")
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` should be positive. Received: {name}={value!r}")

    def allows(self, cost: Cost) -> bool:
        """Whether a model of this cost is within the budget."""
        return not self.excess(cost)

    def excess(self, cost: Cost) -> list[str]:
        """What the cost exceeds, in words; empty within the budget."""
        found = []
        for name, limit in dataclasses.asdict(self).items():
            value = getattr(cost, name)
            if limit is not None and value > limit:
                found.append(f"{name}={value:,.0f} exceeds {limit:,.0f}")
        return found
