"""Hyper-parameters as data, so that a caller can replace or fix each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras_tuner


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of some values, all of one type."""

    values: tuple[Any, ...]
    default: Any = None

    @property
    def first(self) -> Any:
        """The value of a search that was not told otherwise."""
        return self.values[0] if self.default is None else self.default


@dataclasses.dataclass(frozen=True)
class Range:
    """A number between two, both included; whole if both are."""

    low: float
    high: float
    default: Any = None
    log: bool = False

    @property
    def first(self) -> Any:
        """The value of a search that was not told otherwise."""
        return self.low if self.default is None else self.default


Parameter = Choices | Range


def parameter(name: str, given: Any, replaced: Parameter | None = None) -> Parameter:
    """What a caller wrote: a list of choices, or a tuple `(low, high)`.

    A range samples as the one that it replaces, else on a log scale if it spans a factor of 10.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(given, (Choices, Range)):
        return given
    if isinstance(given, list) and given:
        if len({type(value) for value in given}) == 1 and isinstance(
            given[0], (bool, int, float, str)
        ):
            first = replaced.first if replaced is not None else None
            return Choices(tuple(given), first if first in given else None)
    elif isinstance(given, tuple) and len(given) == 2:
        low, high = given
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in given):
            if isinstance(low, float) or isinstance(high, float):
                low, high = float(low), float(high)
            log = low > 0 and high / low >= 10
            if isinstance(replaced, Range):
                log = replaced.log and low > 0
            first = replaced.first if replaced is not None else None
            inside = isinstance(first, (int, float)) and low <= first <= high
            if low < high:
                return Range(low, high, type(low)(first) if inside else None, log)
    raise ValueError(
        f"`space` takes a list of choices of one type (bool, int, float or str), or a tuple "
        f"(low, high) of numbers. Received: {name}={given!r}"
    )


class Asker:
    """Asks KerasTuner for hyper-parameters, but for those that are fixed.

    Args:
        hp: KerasTuner's hyper-parameters.
        space: Name -> `Choices` or `Range`.
        fixed: Name -> value.
    """

    def __init__(
        self,
        hp: keras_tuner.HyperParameters,
        space: Mapping[str, Parameter],
        fixed: Mapping[str, Any],
    ) -> None:
        self._hp, self._space, self._fixed = hp, space, fixed

    def __call__(self, name: str, parent: str | None = None, active: Any = ()) -> Any:
        """A value; `None` where `parent` has none of the values `active`.

        A hyper-parameter below a parent exists for KerasTuner only where the parent has one of
        these values, so that searches do not vary what changes nothing.
        """
        if parent is None:
            return self._ask(name)
        wanted = list(active)
        if parent in self._fixed:
            return self._ask(name) if self._fixed[parent] in wanted else None
        if name in self._fixed:
            return self._fixed[name] if self._hp.get(parent) in wanted else None
        with self._hp.conditional_scope(parent, wanted):
            return self._ask(name)

    def _ask(self, name: str) -> Any:
        if name in self._fixed:
            return self._fixed[name]
        spec = self._space[name]
        if isinstance(spec, Choices):
            if set(map(type, spec.values)) == {bool}:
                if len(spec.values) == 1:
                    return self._hp.Fixed(name, spec.values[0])
                return self._hp.Boolean(name, default=spec.first)
            return self._hp.Choice(name, list(spec.values), default=spec.first)
        whole = isinstance(spec.low, int) and isinstance(spec.high, int)
        make = self._hp.Int if whole else self._hp.Float
        sampling = "log" if spec.log else "linear"
        return make(name, spec.low, spec.high, sampling=sampling, default=spec.first)
