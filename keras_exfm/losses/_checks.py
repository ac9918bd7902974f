"""Argument checks of the losses and of the layers that use them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def scale(name: str, value: Any, *, positive: bool = False) -> float:
    """`value` as a finite `float` of at least zero (above zero if `positive`)."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"`{name}` should be a finite number {bound}. Received: {name}={value!r}")
    return float(value)
