"""Random numbers that depend on what they are drawn for, not on the order of drawing."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL_64 = np.uint64(2**64 - 1)
_LOW_63 = np.uint64(2**63 - 1)


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit hash of broadcast integers: `h = splitmix64(h ^ part)`, from left to right.

    Example:

    >>> hash64(0)[()] == 0xE220A8397B1DCDAF  # the first output of splitmix64 with seed 0
    np.True_
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix((state ^ np.asarray(part, np.int64).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(*parts: int | np.ndarray) -> np.ndarray:
    """Numbers in `[0, 1)` from the upper 53 bits of `hash64`."""
    return (hash64(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scramble(ids: np.ndarray) -> np.ndarray:
    """Distinct non-negative int64 ids to distinct non-negative int64 ids without their order."""
    with np.errstate(over="ignore"):
        z = (ids.astype(np.uint64) + _GOLDEN) & _LOW_63
        # Every step of the mixer is one to one modulo 2**63 too.
        return _mix(z, _LOW_63).astype(np.int64)


def _mix(z: np.ndarray, mask: np.uint64 = _ALL_64) -> np.ndarray:
    z = ((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)) & mask
    z = ((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)) & mask
    return z ^ (z >> np.uint64(31))
