"""What distillation gained: students against the undistilled one, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from keras_exfm.report.results import TEACHER, ReportError, columns

Overall: TypeAlias = "pa.Table | Sequence[Mapping[str, Any]]"

MEASURES = (
    "ne",
    "gain",
    "logloss",
    "auc",
    "auc_gain",
    "group_auc",
    "calibration",
    "transfer_ratio",
    "bayes_distance",
)
"""Every row of `gain_table` has `<measure>_mean` and `<measure>_sd` of these."""


def gain_table(
    overall: Overall, baseline: str, mean_over_verticals: bool = False
) -> list[dict[str, Any]]:
    """Figures of every model in every vertical, means and deviations over seeds.

    Compared are models of the same seed, so that what the seeds have in common cancels:

        gain           = 100 (NE_base - NE) / NE_base                          in percent
        transfer ratio = (NE_base - NE) / (NE_base - NE_teacher)
        bayes_distance = NE - bayes_ne

    Over verticals, the transfer ratio is that of the mean gains, the student's to the teacher's: a
    vertical where the teacher gains next to nothing says nothing about transfer.

    A deviation is that of a sample (over n - 1), NaN for a single seed. What has no meaning is
    NaN: the baseline's own gain, the teacher's own transfer ratio, any transfer ratio where the
    teacher is no better than the baseline, the distance to a Bayes line that is not known. Seeds
    where a figure is NaN are left out of its mean.

    Args:
        overall: A row for each seed, model and vertical: `seed`, `model` (`"teacher"` or a
            student's name), `vertical`, `examples`, `clicks`, `logloss`, `ne`, `auc`,
            `calibration`, and as far as known `group_auc` and `bayes_ne`.
        baseline: Name of the undistilled student.
        mean_over_verticals: Whether to give, instead of a row for each vertical, each model's mean
            over the verticals (`vertical` is `""` then): of each seed first, then over seeds. Only
            models that have every vertical. Defaults to `False`.

    Returns:
        Dicts with `vertical`, `model`, `seeds` (how many of the model's seeds the baseline has as
        well), `examples`, `clicks` (means over seeds), and `<measure>_mean`, `<measure>_sd` for
        `ne`, `gain`, `logloss`, `auc`, `auc_gain`, `group_auc`, `calibration`, `transfer_ratio`,
        `bayes_distance`. By vertical; the teacher first, then the baseline.

    Raises:
        ReportError: For a missing column, no rows, or a baseline that has none.

    Example:

    >>> rows = [
    ...     dict(seed=1, model=model, vertical="feed", examples=1000, clicks=99.0, logloss=ne / 3,
    ...          ne=ne, auc=0.7, calibration=1.0)
    ...     for model, ne in (("teacher", 0.76), ("alone", 0.8), ("ExFM", 0.79))
    ... ]
    >>> exfm = gain_table(rows, "alone")[-1]
    >>> exfm["model"], round(exfm["gain_mean"], 4), round(exfm["transfer_ratio_mean"], 4)
    ('ExFM', 1.25, 0.25)

    References:
        - He et al., 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section
          3: normalized entropy.
    """
    pairs = by_seed(overall, baseline)
    if mean_over_verticals:
        models = dict.fromkeys(model for _, model in pairs)
        verticals = dict.fromkeys(vertical for vertical, _ in pairs)
        return [
            _summary("", model, _mean(parts))
            for model in models
            if all(parts := [pairs[vertical, model] for vertical in verticals])
        ]
    return [_summary(*key, seeds) for key, seeds in pairs.items() if seeds]


Cell: TypeAlias = dict[str, float]


def by_seed(overall: Overall, baseline: str) -> dict[tuple[str, str], dict[int, Cell]]:
    """(vertical, model) -> seed -> what `gain_table` summarizes; arguments as there."""
    table = overall if isinstance(overall, pa.Table) else pa.Table.from_pylist(list(overall))
    found = columns(table, "overall results")
    if baseline not in found["model"]:
        raise ReportError(
            f"overall results: no rows of the baseline {baseline!r}. The models are "
            f"{sorted(set(found['model'].tolist()))}."
        )
    cells = _cells(found)
    models = list(dict.fromkeys(found["model"].tolist()))
    models.sort(key=lambda m: (m != TEACHER, m != baseline))
    return {
        (vertical, model): _paired(cells, vertical, model, baseline)
        for vertical in dict.fromkeys(found["vertical"].tolist())
        for model in models
    }


def _cells(found: dict[str, np.ndarray]) -> dict[tuple[str, str], dict[int, Cell]]:
    """(vertical, model) -> seed -> figures."""
    cells: dict[tuple[str, str], dict[int, Cell]] = {}
    names = [name for name in found if name not in ("seed", "model", "vertical")]
    for row, (vertical, model, seed) in enumerate(
        zip(found["vertical"].tolist(), found["model"].tolist(), found["seed"].tolist())
    ):
        figures = {name: float(found[name][row]) for name in names}
        cells.setdefault((vertical, model), {})[seed] = figures
    return cells


def _paired(
    cells: dict[tuple[str, str], dict[int, Cell]], vertical: str, model: str, baseline: str
) -> dict[int, Cell]:
    """Seed -> measures, for the seeds that the model and the baseline have in common."""
    base = cells.get((vertical, baseline), {})
    teacher = cells.get((vertical, TEACHER), {})
    paired = {}
    for seed, own in cells.get((vertical, model), {}).items():
        if seed not in base:
            continue
        against = base[seed]
        better = against["ne"] - own["ne"]
        best = against["ne"] - teacher[seed]["ne"] if seed in teacher else np.nan
        is_base = model == baseline
        gain = 100 * better / against["ne"]
        headroom = 100 * best / against["ne"]
        paired[seed] = {
            **{n: own[n] for n in ("examples", "clicks", "ne", "logloss", "auc", "group_auc")},
            "calibration": own["calibration"],
            "gain": np.nan if is_base else gain,
            "auc_gain": np.nan if is_base else own["auc"] - against["auc"],
            "headroom": np.nan if model in (baseline, TEACHER) else headroom,
            "bayes_distance": own["ne"] - own["bayes_ne"],
        }
        _rate(paired[seed])
    return paired


def _rate(cell: Cell) -> None:
    """Adds the transfer ratio: the gain to the teacher's gain, if that is one."""
    headroom = cell["headroom"]
    cell["transfer_ratio"] = cell["gain"] / headroom if headroom > 0 else float("nan")


def _mean(parts: list[dict[int, Cell]]) -> dict[int, Cell]:
    seeds = set(parts[0]).intersection(*parts[1:])
    means = {
        seed: {name: float(np.mean([p[seed][name] for p in parts])) for name in parts[0][seed]}
        for seed in sorted(seeds)
    }
    for cell in means.values():
        _rate(cell)
    return means


def _summary(vertical: str, model: str, seeds: dict[int, Cell]) -> dict[str, Any]:
    row: dict[str, Any] = {"vertical": vertical, "model": model, "seeds": len(seeds)}
    for name in ("examples", "clicks"):
        row[name] = _mean_sd([cell[name] for cell in seeds.values()])[0]
    for name in MEASURES:
        row[f"{name}_mean"], row[f"{name}_sd"] = _mean_sd([c[name] for c in seeds.values()])
    return row


def _mean_sd(values: list[float]) -> tuple[float, float]:
    known = np.array([v for v in values if np.isfinite(v)])
    mean = float(known.mean()) if len(known) else float("nan")
    return mean, float(known.std(ddof=1)) if len(known) > 1 else float("nan")
