"""Numbers per example."""

from __future__ import annotations

import dataclasses

from keras_exfm.features import _checks


@dataclasses.dataclass(frozen=True)
class Numeric:
    """`size` real numbers per example, used as they are: scale them before.

    Args:
        name: Column name.
        size: Count of numbers; `1` is a scalar column. Defaults to `1`.

    Example:

    >>> Numeric("age_hours").shape
    ()
    """

    name: str
    size: int = 1

    def __post_init__(self) -> None:
        _checks.check_name(self.name)
        _checks.check_positive(self.name, size=self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return () if self.size == 1 else (self.size,)

    dtype = "float32"
