"""A function that a configuration names as a teacher."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from keras_exfm.das.scorers.callable_scorer import CallableScorer


class EntryPointScorer(CallableScorer):
    """Scores with the function that `"package.module:function"` names.

    An entry point is code: it comes from a job's configuration alone. Nothing in a snapshot can
    name one.

    Args:
        entry_point: Module and name, with a colon between; the name may have dots.
        arguments: If given, the entry point is called once with them, by name, and gives the
            function. Defaults to `None`: it is the function.
        representation_size: As in `CallableScorer`. Defaults to `None`.

    Raises:
        ValueError: For an entry point that cannot be found or is no function.

    Example:

    >>> import numpy as np
    >>> teacher = EntryPointScorer("operator:itemgetter", arguments=None)
    >>> teacher.entry_point
    'operator:itemgetter'
    """

    def __init__(
        self,
        entry_point: str,
        arguments: Mapping[str, Any] | None = None,
        representation_size: int | None = None,
    ) -> None:
        self.entry_point = entry_point
        self.arguments = arguments
        super().__init__(self._find(), representation_size)

    def _find(self) -> Any:
        module, colon, name = self.entry_point.partition(":")
        if not colon or not module or not name:
            raise ValueError(
                "`entry_point` should be 'package.module:function'. Received: "
                f"entry_point={self.entry_point!r}"
            )
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"Cannot find the teacher {self.entry_point!r}: {error}") from error
        if self.arguments is not None and callable(found):
            found = found(**self.arguments)
        if not callable(found):
            raise ValueError(
                f"The teacher {self.entry_point!r} should be a function. Received: {found!r}"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the function, which a worker process finds for itself."""
        return {**self.__dict__, "function": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.function = self._find()
