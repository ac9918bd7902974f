"""Checks of what a feature is described by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from keras_exfm.features.conventions import RESERVED_COLUMNS
from keras_exfm.features.schema_error import SchemaError

if TYPE_CHECKING:
    from keras_exfm.features.categorical import Categorical
    from keras_exfm.features.multi_hot import MultiHot


def check_name(name: str) -> None:
    """Refuses what cannot be a column of a stream and an argument of a function."""
    if not isinstance(name, str) or not name.isidentifier():
        raise SchemaError(f"A feature name should be a Python identifier. Received: name={name!r}")
    if name in RESERVED_COLUMNS:
        raise SchemaError(
            f"The feature name {name!r} is reserved for the stream's own columns "
            f"{RESERVED_COLUMNS}. Choose another name."
        )


def check_positive(feature: str, **values: int) -> None:
    """Refuses what is no integer above 0, by the name it is given under."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SchemaError(
                f"Feature {feature!r}: `{key}` should be an integer of at least 1. "
                f"Received: {key}={value!r}"
            )


def check_admission(feature: Categorical | MultiHot) -> None:
    """Refuses an `admit_after` that is no count, or beside `hashed`."""
    if feature.admit_after is None:
        return
    check_positive(feature.name, admit_after=feature.admit_after)
    if feature.hashed:
        raise SchemaError(
            f"Feature {feature.name!r}: `hashed` and `admit_after` exclude each other: a dynamic "
            "table gives ids rows of their own. Received: hashed=True, "
            f"admit_after={feature.admit_after!r}"
        )
