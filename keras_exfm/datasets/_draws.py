"""Random numbers that the synthetic ad stream is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def standard(rng: np.random.Generator, count: int) -> np.ndarray:
    """Normal numbers with exactly mean 0 and deviation 1, so that few of them shift nothing."""
    x = rng.normal(0, 1, count)
    return (x - x.mean()) / x.std()


def drift(rng: np.random.Generator, x: np.ndarray, keep: float) -> np.ndarray:
    """One step of an Ornstein-Uhlenbeck process with variance 1."""
    noise = rng.standard_normal(x.shape, np.float32).astype(x.dtype)
    return (x * keep + noise * (1 - keep**2) ** 0.5).astype(x.dtype)


def pick(ends: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Places in a line of cumulative weights."""
    return np.minimum(np.searchsorted(ends, share * ends[-1], side="right"), len(ends) - 1)


def delays(share: np.ndarray, mean: float, window: float | np.ndarray) -> np.ndarray:
    """Exponential delays in ms, given that they are within the window."""
    return (-mean * np.log1p(share * np.expm1(-window / mean))).astype(np.int64)


def sigmoid_mean(mean: float | np.ndarray, deviation: float) -> np.ndarray:
    """`E[sigmoid(mean + deviation * normal)]`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    middle = np.asarray(mean, np.float64)[..., None]
    return (weights / (1 + np.exp(-middle - deviation * nodes))).sum(-1) / weights.sum()


def solve(rising: Callable[[float], float], value: float) -> float:
    """Where a rising function has a value, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return low


def intercept(rate: float, deviation: float) -> float:
    """`b` with `E[sigmoid(b + deviation * normal)] = rate`."""
    return solve(lambda b: float(sigmoid_mean(b, deviation)), rate)
