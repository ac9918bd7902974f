"""Curves over windows: pooled, so that a rolling or cumulative value is one of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_exfm.report.results import TEACHER, Results


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean over seeds by hour, and the deviation (NaN for a single seed)."""

    mean: np.ndarray
    sd: np.ndarray


@dataclasses.dataclass(frozen=True)
class VerticalCurves:
    """The curves of one vertical, each model's over the same `hours`.

    Attributes:
        hours: Consecutive, from the first window to the last.
        counted_from: First hour that counts in the overall figures; equals `hours[0]` if all do.
        rolling_hours: Width of the rolling windows.
        ne: Model -> normalized entropy of each window.
        rolling_ne: Model -> normalized entropy of the last `rolling_hours` windows, pooled.
        cumulative_ne: Model -> normalized entropy of all counted windows so far, pooled.
        cumulative_gain: Student -> its gain over the baseline in them, percent.
        rolling_calibration: Model -> predicted clicks over clicks in the last windows.
        rolling_bayes: The Bayes line of the last windows; `None` if it is not known.
        cumulative_bayes: The Bayes line of all counted windows so far.
        coverage: Share of the windows' examples that the teacher scored.
    """

    hours: np.ndarray
    counted_from: int
    rolling_hours: int
    ne: dict[str, Curve]
    rolling_ne: dict[str, Curve]
    cumulative_ne: dict[str, Curve]
    cumulative_gain: dict[str, Curve]
    rolling_calibration: dict[str, Curve]
    rolling_bayes: np.ndarray | None
    cumulative_bayes: np.ndarray | None
    coverage: np.ndarray | None


def rolling_width(windows: int) -> int:
    """A day for long runs, else about a twelfth."""
    return 24 if windows >= 96 else max(1, round(windows / 12))


def vertical_curves(results: Results, vertical: str) -> VerticalCurves | None:
    """The curves of one vertical; `None` if it has no windows."""
    table = results.windows
    mine = table["vertical"] == vertical
    if not mine.any():
        return None
    first, last = int(table["hour"][mine].min()), int(table["hour"][mine].max())
    hours = np.arange(first, last + 1)
    start = _counted_from(results, first, last)
    width = rolling_width(len(hours))
    # Dense (hours,) arrays for each model and seed: sums can then slide.
    sums: dict[str, dict[int, _Sums]] = {}
    for model in results.models:
        for seed in np.unique(table["seed"][mine & (table["model"] == model)]).tolist():
            rows = mine & (table["model"] == model) & (table["seed"] == seed)
            part = {name: column[rows] for name, column in table.items()}
            sums.setdefault(model, {})[seed] = _Sums.of(part, first, len(hours))
    counted = hours >= start

    def each(make: Callable[[_Sums], np.ndarray]) -> dict[str, Curve]:
        return {m: _over_seeds([make(s) for s in seeds.values()]) for m, seeds in sums.items()}

    def rolling(x: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(x)])
        return total[1:] - total[np.maximum(np.arange(len(x)) + 1 - width, 0)]

    def cumulative(x: np.ndarray) -> np.ndarray:
        return np.cumsum(np.where(counted, x, 0.0))

    base = sums.get(results.baseline, {})
    gains = {}
    for model, seeds in sums.items():
        pairs = [
            (s.ne(cumulative), base[seed].ne(cumulative))
            for seed, s in seeds.items()
            if seed in base
        ]
        if model not in (TEACHER, results.baseline) and pairs:
            gains[model] = _over_seeds([100 * (b - own) / b for own, b in pairs])
    reference = next(iter(base.values())) if base else None
    has_bayes = reference is not None and reference.bayes_loss.any()
    return VerticalCurves(
        hours=hours,
        counted_from=start,
        rolling_hours=width,
        ne=each(lambda s: s.ne(lambda x: x)),
        rolling_ne=each(lambda s: s.ne(rolling)),
        cumulative_ne=each(lambda s: s.ne(cumulative)),
        cumulative_gain=gains,
        rolling_calibration=each(lambda s: s.calibration(rolling)),
        rolling_bayes=reference.bayes(rolling) if has_bayes and reference else None,
        cumulative_bayes=reference.bayes(cumulative) if has_bayes and reference else None,
        coverage=_coverage(sums, results.baseline),
    )


Pool = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums by hour; a window without figures adds nothing."""

    examples: np.ndarray
    clicks: np.ndarray
    loss: np.ndarray
    predicted: np.ndarray
    bayes_loss: np.ndarray
    bayes_examples: np.ndarray
    bayes_clicks: np.ndarray

    @classmethod
    def of(cls, rows: dict[str, np.ndarray], first: int, length: int) -> _Sums:
        examples, clicks = rows["examples"].astype(float), rows["clicks"]
        at = rows["hour"] - first

        def dense(values: np.ndarray, known: np.ndarray) -> np.ndarray:
            out = np.zeros(length)
            out[at[known]] = values[known]
            return out

        known = np.isfinite(rows["logloss"]) & (examples > 0)
        # A window without a click has no calibration, but its predictions are not known either.
        calibrated = np.isfinite(rows["calibration"]) & known
        bayes = rows["bayes_ne"] * _entropy(_ratio(clicks, examples)) * examples
        has_bayes = np.isfinite(bayes) & known
        return cls(
            dense(examples, known),
            dense(clicks, known),
            dense(rows["logloss"] * examples, known),
            dense(rows["calibration"] * clicks, calibrated),
            dense(bayes, has_bayes),
            dense(examples, has_bayes),
            dense(clicks, has_bayes),
        )

    def ne(self, pool: Pool) -> np.ndarray:
        examples = pool(self.examples)
        rate = _ratio(pool(self.clicks), examples)
        return _ratio(_ratio(pool(self.loss), examples), _entropy(rate))

    def calibration(self, pool: Pool) -> np.ndarray:
        return _ratio(pool(self.predicted), pool(self.clicks))

    def bayes(self, pool: Pool) -> np.ndarray:
        examples = pool(self.bayes_examples)
        rate = _ratio(pool(self.bayes_clicks), examples)
        return _ratio(_ratio(pool(self.bayes_loss), examples), _entropy(rate))


def _counted_from(results: Results, first: int, last: int) -> int:
    config = results.about.get("config")
    evaluation = config.get("evaluation") if isinstance(config, dict) else None
    warmup = evaluation.get("warmup_hours", 0) if isinstance(evaluation, dict) else 0
    dataset = results.about.get("dataset")
    begin = dataset.get("first_hour", first) if isinstance(dataset, dict) else first
    return int(np.clip(begin + warmup, first, last))


def _coverage(sums: dict[str, dict[int, _Sums]], baseline: str) -> np.ndarray | None:
    if TEACHER not in sums or baseline not in sums:
        return None
    shares = [
        np.where(all_rows.examples > 0, _ratio(part.examples, all_rows.examples), np.nan)
        for seed, part in sums[TEACHER].items()
        if (all_rows := sums[baseline].get(seed)) is not None
    ]
    return _over_seeds(shares).mean if shares else None


def _over_seeds(curves: list[np.ndarray]) -> Curve:
    stack = np.stack(curves)
    known = np.isfinite(stack)
    n = known.sum(axis=0)
    filled = np.where(known, stack, 0.0)
    mean = _ratio(filled.sum(axis=0), n)
    squares = np.where(known, (stack - np.where(n > 0, mean, 0.0)) ** 2, 0.0).sum(axis=0)
    return Curve(mean, np.sqrt(np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan)))


def _entropy(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0.0) - np.where(p < 1, (1 - p) * np.log1p(-p), 0.0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom != 0, top / bottom, np.nan)
