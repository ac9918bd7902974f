"""Quality against compute and against data, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.tuner.scaling.sweep import Record, excess, laws

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_compute(records: Sequence[Record], path: str | os.PathLike[str], title: str = "") -> Path:
    """Quality against training FLOPs per example, with each model's law (the paper's Figure 1).

    Points are means over seeds, bars their standard deviations, bands the law's 95 % interval.

    Args:
        records: Of `Sweep.records`.
        path: The PNG file.
        title: Defaults to `""`.

    Returns:
        The path.
    """
    figure, axes = _figure("training FLOPs an example", records, title)
    fitted = laws(records)
    for index, name in enumerate(_names(records)):
        own: dict[float, list[float]] = {}
        for r in records:
            if r["name"] == name:
                own.setdefault(r["cost"]["training_flops"], []).append(excess(r["figures"]))
        x = np.array(sorted(own))
        mean = np.array([np.mean(own[c]) for c in x])
        spread = np.array([np.std(own[c], ddof=1) if len(own[c]) > 1 else 0.0 for c in x])
        colour = f"C{index % 10}"
        law = f", c = {fitted[name][0].c:.2f}" if name in fitted else ""
        axes.errorbar(x, mean, spread, fmt="o", ms=4, color=colour, capsize=2, label=f"{name}{law}")
        if name in fitted:
            grid = np.geomspace(x[0], x[-1] * 3, 100)
            axes.plot(grid, fitted[name][0](grid), color=colour, lw=1.2)
            axes.fill_between(grid, *fitted[name][0].band(grid), color=colour, alpha=0.12, lw=0)
        else:
            axes.plot(x, mean, color=colour, lw=0.8, ls=":")
    return _save(figure, axes, path)


def plot_data(
    records: Sequence[Record],
    path: str | os.PathLike[str],
    title: str = "",
    points: int = 12,
) -> Path:
    """Quality against examples seen, a line for each size (the paper's Figure 6).

    Args:
        records: Of `Sweep.records`.
        path: The PNG file.
        title: Defaults to `""`.
        points: Points on a line; each is the mean of as many hours. Defaults to `12`.

    Returns:
        The path.
    """
    figure, axes = _figure("examples seen", records, title)
    names = _names(records)
    sizes = sorted({r["cost"]["training_flops"] for r in records})
    for name in names:
        for size in sizes:
            runs = [r for r in records if (r["name"], r["cost"]["training_flops"]) == (name, size)]
            if not runs:
                continue
            seen = np.cumsum([h["examples"] for h in runs[0]["hours"]])
            loss = np.mean([[excess(h) for h in r["hours"]] for r in runs], axis=0)
            parts = np.array_split(np.arange(len(seen)), min(points, len(seen)))
            x = [seen[p[-1]] for p in parts]
            y = [np.nanmean(loss[p]) for p in parts]
            rank = sizes.index(size) / max(1, len(sizes) - 1)
            axes.plot(
                x,
                y,
                color=f"C{names.index(name) % 10}",
                lw=0.8 + 1.6 * rank,
                alpha=0.35 + 0.65 * rank,
                label=f"{name} {size:.1e}",
            )
    return _save(figure, axes, path)


def _names(records: Sequence[Record]) -> list[str]:
    return sorted({r["name"] for r in records})


def _figure(x_label: str, records: Sequence[Record], title: str) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    if not records:
        raise ValueError("There are no runs to draw. Received: records=[]")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    known = all(r["figures"].get("bayes_ne") is not None for r in records)
    axes.set(
        xscale="log",
        xlabel=x_label,
        ylabel="NE beyond the best possible" if known else "normalized entropy",
        title=title,
    )
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, axes: Axes, path: str | os.PathLike[str]) -> Path:
    axes.legend(fontsize=7)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=130)
    return file
