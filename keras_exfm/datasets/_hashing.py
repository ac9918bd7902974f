"""Hash draws that depend on what they are for and not on the order of drawing."""

from __future__ import annotations

import numpy as np


def splitmix64(x: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea and Flood 2014) from the state `x`.

    Example:

    >>> hex(int(splitmix64(np.array([0], np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash_of(*parts: np.ndarray | int) -> np.ndarray:
    """Hash of integers or arrays of them: `h = splitmix64(h ^ part)`, beginning with 0."""
    h = np.zeros((), np.uint64)
    for part in parts:
        h = splitmix64(h ^ np.asarray(part).astype(np.uint64))
    return h


def u01(hashed: np.ndarray) -> np.ndarray:
    """A hash as a number in `[0, 1)`, from its upper 53 bits."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
