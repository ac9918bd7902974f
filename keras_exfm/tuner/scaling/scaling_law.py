"""Loss as a power of compute."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

_EXPONENTS = (1e-3, 4.0)


class Prediction(NamedTuple):
    """What the law says of a size that it has not seen.

    Args:
        compute: The size.
        expected: The law's value.
        low: Lower end of the 95 % interval of one run of this size.
        high: Upper end.
        observed: Mean of the runs that were made; NaN if none was.
        holds: Whether the observed mean lies in the interval; `None` without one.
    """

    compute: float
    expected: float
    low: float
    high: float
    observed: float = float("nan")
    holds: bool | None = None


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """`L(C) = a + b * C ** -c`, fitted by least squares, with bootstrap intervals.

    Args:
        a: What is left of the loss at unlimited compute, at least 0.
        b: Scale, at least 0.
        c: Exponent, between 0.001 and 4. At these ends, or with `b = 0`, the data do not show a
            law of this form.
        samples: `(samples, 3)`, `a`, `b`, `c` of the bootstrap.
        noise: Standard deviation of a run about the law.

    Example:

    >>> compute = np.repeat(10.0 ** np.arange(4, 9), 3)
    >>> loss = 0.6 + 5 * compute ** -0.3 + np.random.default_rng(0).normal(0, 1e-4, 15)
    >>> law = ScalingLaw.fit(compute, loss)
    >>> round(law.a, 2), round(law.c, 2)
    (0.6, 0.3)
    >>> low, high = law.interval("c")
    >>> low < 0.3 < high
    True
    """

    a: float
    b: float
    c: float
    samples: np.ndarray
    noise: float

    @classmethod
    def fit(cls, compute: ArrayLike, loss: ArrayLike, samples: int = 500, seed: int = 0) -> Self:
        """Fits the law to runs.

        For a given `c` the best `a` and `b` are a linear least-squares problem, so one number is
        searched. Intervals come from refitting to the law plus redrawn residuals, which are scaled
        up by the degrees of freedom that the fit took.

        Args:
            compute: A value for each run, such as training FLOPs per example.
            loss: The runs' losses, lower is better.
            samples: Bootstrap samples. Defaults to `500`.
            seed: Seed of the bootstrap. Defaults to `0`.

        Raises:
            ValueError: For fewer than four sizes, or values that are not finite and positive.
        """
        x, y = (np.asarray(v, np.float64).reshape(-1) for v in (compute, loss))
        if x.shape != y.shape or not np.isfinite([*x, *y]).all() or (x <= 0).any():
            raise ValueError(
                "`compute` and `loss` should have one finite value a run, and compute should be "
                f"positive. Received: compute={compute!r}, loss={loss!r}"
            )
        if len(np.unique(x)) < 4:
            raise ValueError(
                "A law of three parameters needs runs of at least four sizes. "
                f"Received: {len(np.unique(x))}"
            )
        centre = math.exp(np.log(x).mean())
        best = _fit(x / centre, y)
        expected = _curve(x / centre, best)
        residuals = (y - expected) * math.sqrt(len(y) / max(1, len(y) - 3))
        rng = np.random.default_rng(seed)
        drawn = np.array(
            [
                _fit(x / centre, expected + rng.choice(residuals, len(y)), quick=True)
                for _ in range(samples)
            ]
        ).reshape(samples, 3)

        def uncentred(parameters: np.ndarray) -> np.ndarray:
            a, b, c = parameters.T
            return np.stack([a, b * centre**c, c], axis=-1)

        a, b, c = uncentred(best)
        return cls(float(a), float(b), float(c), uncentred(drawn), float(residuals.std()))

    def __call__(self, compute: ArrayLike) -> np.ndarray:
        """The law's loss."""
        return _curve(np.asarray(compute, np.float64), np.array([self.a, self.b, self.c]))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of `"a"`, `"b"` or `"c"`."""
        values = self.samples[:, "abc".index(name)]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def band(self, compute: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap interval of the law itself at each compute."""
        x = np.asarray(compute, np.float64).reshape(-1)
        curves = np.stack([_curve(x, sample) for sample in self.samples])
        low, high = np.quantile(curves, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def predict(self, compute: float, observed: ArrayLike | None = None) -> Prediction:
        """Extrapolates to a size, and compares with runs of it.

        Args:
            compute: The size.
            observed: Losses of runs of this size. Defaults to `None`.
        """
        low, high = self.band([compute])
        runs = np.asarray([] if observed is None else observed, np.float64).reshape(-1)
        spread = 1.96 * self.noise / math.sqrt(max(1, len(runs)))
        bottom, top = float(low[0]) - spread, float(high[0]) + spread
        expected = float(self(compute))
        if not len(runs):
            return Prediction(compute, expected, bottom, top)
        mean = float(runs.mean())
        return Prediction(compute, expected, bottom, top, mean, bottom <= mean <= top)

    @classmethod
    def check(cls, compute: ArrayLike, loss: ArrayLike, seed: int = 0) -> Prediction:
        """Fits without the largest size, predicts it and compares."""
        x, y = (np.asarray(v, np.float64).reshape(-1) for v in (compute, loss))
        last = x == x.max()
        return cls.fit(x[~last], y[~last], seed=seed).predict(float(x.max()), y[last])


def _curve(x: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    a, b, c = parameters
    return a + b * x**-c


def _linear(x: np.ndarray, y: np.ndarray, c: float) -> tuple[float, np.ndarray]:
    """Least squares for `a` and `b`, both at least 0, and its error."""
    z = x**-c
    zc = z - z.mean()
    b = max(0.0, float(zc @ (y - y.mean())) / max(float(zc @ zc), 1e-300))
    a = float(y.mean() - b * z.mean())
    if a < 0:
        a, b = 0.0, max(0.0, float(z @ y) / float(z @ z))
    found = np.array([a, b, c])
    return float(((y - _curve(x, found)) ** 2).sum()), found


def _fit(x: np.ndarray, y: np.ndarray, quick: bool = False) -> np.ndarray:
    # The error may have more than one minimum in c: a grid first.
    grid = np.log(np.geomspace(*_EXPONENTS, 40 if quick else 200))
    errors = [_linear(x, y, math.exp(g))[0] for g in grid]
    best = int(np.argmin(errors))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    options = {"xatol": 1e-4 if quick else 1e-9}
    result = minimize_scalar(
        lambda g: _linear(x, y, math.exp(g))[0],
        bounds=(low, high),
        method="bounded",
        options=options,
    )
    chosen = result.x if result.fun < errors[best] else grid[best]
    return _linear(x, y, math.exp(chosen))[1]
