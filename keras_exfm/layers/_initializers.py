"""Initializers of sublayers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def clone_initializer(initializer: Any) -> Any:
    """A fresh copy of a Keras initializer.

    A seeded initializer gives the same numbers at every call, so two weights that share one would
    start equal; a clone of an unseeded one draws its own seed.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    return type(initializer).from_config(initializer.get_config())


@keras.saving.register_keras_serializable(package="keras_exfm")
class StackedInitializer(keras.initializers.Initializer):
    """Initializer of tables that stand on top of each other in one weight.

    Args:
        sections: Pairs of a number of rows and the initializer of these rows.
    """

    def __init__(self, sections: Sequence[Any]) -> None:
        self.sections = [(int(rows), keras.initializers.get(one)) for rows, one in sections]

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        rows, *rest = shape
        if rows != sum(count for count, _ in self.sections):
            raise ValueError(f"The sections {self.sections} do not make {rows} rows.")
        return ops.concatenate([one((n, *rest), dtype=dtype) for n, one in self.sections], axis=0)

    def get_config(self) -> dict[str, Any]:
        return {"sections": [[n, keras.initializers.serialize(one)] for n, one in self.sections]}


def stacked(sections: Sequence[tuple[int, Any]]) -> Any:
    """One initializer for sections of rows; neighbours of the same initializer become one."""
    merged: list[list[Any]] = []
    for rows, initializer in sections:
        if merged and merged[-1][1] is initializer:
            merged[-1][0] += rows
        else:
            merged.append([rows, initializer])
    if len(merged) == 1:
        return clone_initializer(merged[0][1])
    return StackedInitializer([(rows, clone_initializer(one)) for rows, one in merged])
