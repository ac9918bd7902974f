"""Initializers of sublayers."""

from __future__ import annotations

from typing import Any

import keras


def clone_initializer(initializer: Any) -> Any:
    """A fresh copy of a Keras initializer.

    A seeded initializer gives the same numbers at every call, so two weights that share one would
    start equal; a clone of an unseeded one draws its own seed.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    return type(initializer).from_config(initializer.get_config())
