"""Figures as inline SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.report.curves import Curve, VerticalCurves
from keras_exfm.report.results import TEACHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes colours as literals. These, which nothing else uses, become CSS variables, so
# that one figure serves the light and the dark page.
_TOKENS = {
    "ink": "#010203",
    "soft": "#010204",
    "grid": "#010205",
    "bayes": "#010206",
    "teacher": "#010207",
    "baseline": "#010208",
    **{f"s{i}": f"#01021{i}" for i in range(6)},
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_DASH_CSS = ("none", "5 2", "2 2", "6 2 2 2")


class Styles:
    """Colour and dash of every model: the same in all figures and in the legend.

    Args:
        models: All models; any order.
        baseline: The undistilled student.
    """

    def __init__(self, models: Sequence[str], baseline: str) -> None:
        self.baseline = baseline
        others = [m for m in models if m not in (TEACHER, baseline)]
        self._of = {m: (f"s{i % 6}", i // 6 % len(_DASHES)) for i, m in enumerate(others)}
        self._of[TEACHER] = ("teacher", 0)
        self._of[baseline] = ("baseline", 0)

    def token(self, model: str) -> str:
        """Name of the model's CSS colour variable."""
        return self._of[model][0]

    def dash_css(self, model: str) -> str:
        """The model's `stroke-dasharray`."""
        return _DASH_CSS[self._of[model][1]]

    def line(self, model: str) -> dict[str, Any]:
        """The model's line as matplotlib takes it."""
        token, dash = self._of[model]
        return {"color": _TOKENS[token], "linestyle": _DASHES[dash]}


def ne_figure(curves: VerticalCurves, styles: Styles) -> str:
    """Normalized entropy per window: rolling lines over the raw windows."""
    figure, axes, x = _time_figure(curves, "normalized entropy")
    shown = []
    for model, curve in curves.rolling_ne.items():
        axes.plot(x, curves.ne[model].mean, lw=0.7, alpha=0.22, **_solid(styles, model))
        _line(axes, x, curve, styles, model)
        shown.append(curve.mean)
    if curves.rolling_bayes is not None:
        _bayes(axes, x, curves.rolling_bayes)
        shown.append(curves.rolling_bayes)
    _fit_y(axes, shown, curves, curves.rolling_hours)
    return _svg(figure)


def cumulative_figure(curves: VerticalCurves, styles: Styles) -> str:
    """Normalized entropy of all counted windows so far."""
    figure, axes, x = _time_figure(curves, "normalized entropy so far", counted=True)
    shown = []
    for model, curve in curves.cumulative_ne.items():
        _line(axes, x, curve, styles, model)
        shown.append(curve.mean)
    if curves.cumulative_bayes is not None:
        _bayes(axes, x, curves.cumulative_bayes)
        shown.append(curves.cumulative_bayes)
    _fit_y(axes, shown, curves)
    return _svg(figure)


def gain_figure(curves: VerticalCurves, styles: Styles) -> str:
    """Gain over the baseline in all counted windows so far."""
    figure, axes, x = _time_figure(curves, "NE gain so far, %", counted=True)
    axes.axhline(0, **styles.line(styles.baseline), lw=1.4)
    shown = [np.zeros(len(x))]
    for model, curve in curves.cumulative_gain.items():
        _line(axes, x, curve, styles, model)
        shown += [curve.mean, curve.mean - curve.sd, curve.mean + curve.sd]
    _fit_y(axes, shown, curves)
    return _svg(figure)


def calibration_figure(curves: VerticalCurves, styles: Styles) -> str:
    """Predicted clicks over clicks in the rolling windows."""
    figure, axes, x = _time_figure(curves, "predicted clicks / clicks")
    axes.axhline(1, color=_TOKENS["soft"], lw=1, linestyle=(0, (1, 2)))
    shown = [np.ones(len(x))]
    for model, curve in curves.rolling_calibration.items():
        _line(axes, x, curve, styles, model)
        shown.append(curve.mean)
    _fit_y(axes, shown, curves, curves.rolling_hours)
    return _svg(figure)


def coverage_figure(curves: VerticalCurves) -> str:
    """Share of the windows' examples that a teacher scored."""
    assert curves.coverage is not None
    figure, axes, x = _time_figure(curves, "share with a teacher", height=2.1)
    axes.fill_between(x, 0, curves.coverage, color=_TOKENS["s0"], alpha=0.18, lw=0, step="mid")
    axes.plot(x, curves.coverage, color=_TOKENS["s0"], lw=1.4, drawstyle="steps-mid")
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    return _svg(figure)


def overview_figure(
    rows: Sequence[dict[str, Any]], seeds: dict[tuple[str, str], list[float]], styles: Styles
) -> str:
    """Gains over the baseline by vertical: mean and deviation, and each seed as a dot.

    Args:
        rows: `gain_table`'s rows of the students that have a gain.
        seeds: (vertical, model) -> the gain of each seed.
        styles: The models' styles.
    """
    verticals = list(dict.fromkeys(row["vertical"] for row in rows))
    positions: dict[int, float] = {}
    labels, y = [], 0.0
    for vertical in verticals:
        for index, row in enumerate(rows):
            if row["vertical"] == vertical:
                positions[index] = y
                labels.append((y, row["model"]))
                y += 1
        y += 0.75
    figure, axes = _figure(width=6.4, height=0.75 + 0.3 * y)
    axes.axvline(0, **styles.line(styles.baseline), lw=1.4)
    for index, row in enumerate(rows):
        at, colour = positions[index], _TOKENS[styles.token(row["model"])]
        mean, sd = row["gain_mean"], row["gain_sd"]
        values = seeds.get((row["vertical"], row["model"]), [])
        if np.isfinite(sd):
            axes.plot(
                [mean - sd, mean + sd],
                [at, at],
                color=colour,
                lw=5,
                alpha=0.3,
                solid_capstyle="butt",
            )
            axes.plot(values, [at] * len(values), "o", color=colour, ms=3, alpha=0.75, mew=0)
        axes.plot([mean], [at], "o", color=colour, ms=7, mew=0)
    axes.set_yticks([p for p, _ in labels], [_plain(name) for _, name in labels])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(y - 0.9, -0.8)
    axes.set_xlabel("NE gain over the baseline, %   (right is better)")
    for vertical in verticals if len(verticals) > 1 else ():
        top = min(positions[i] for i, row in enumerate(rows) if row["vertical"] == vertical)
        axes.text(
            0.004,
            top - 0.42,
            _plain(vertical),
            transform=axes.get_yaxis_transform(),
            va="bottom",
            color=_TOKENS["soft"],
            fontsize=9.5,
        )
    low, high = axes.get_xlim()
    pad = 0.06 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    return _svg(figure)


def _time_figure(
    curves: VerticalCurves, ylabel: str, height: float = 3.1, counted: bool = False
) -> tuple[Figure, Axes, np.ndarray]:
    figure, axes = _figure(5.6, height)
    x, unit = time_axis(curves)
    axes.set_xlabel(f"{unit} since the stream's start")
    axes.set_ylabel(ylabel)
    begin = float(x[np.searchsorted(curves.hours, curves.counted_from)])
    if begin > x[0] and not counted:
        axes.axvspan(x[0], begin, color=_TOKENS["grid"], alpha=0.55, lw=0, zorder=0)
    left = begin if counted else x[0]
    axes.set_xlim(left, x[-1] if x[-1] > left else left + 1)
    return figure, axes, x


def time_axis(curves: VerticalCurves) -> tuple[np.ndarray, str]:
    """Positions of the hours, and their unit."""
    since = (curves.hours - curves.hours[0]).astype(float)
    return (since / 24, "days") if len(since) >= 96 else (since, "hours")


def _line(axes: Axes, x: np.ndarray, curve: Curve, styles: Styles, model: str) -> None:
    style = styles.line(model)
    if np.isfinite(curve.sd).any():
        axes.fill_between(
            x, curve.mean - curve.sd, curve.mean + curve.sd, color=style["color"], alpha=0.16, lw=0
        )
    axes.plot(x, curve.mean, lw=1.8, **style)
    # A line through a single window would be invisible.
    known = np.isfinite(curve.mean)
    if known.sum() == 1:
        axes.plot(x[known], curve.mean[known], "o", ms=4, color=style["color"])


def _solid(styles: Styles, model: str) -> dict[str, Any]:
    return {"color": styles.line(model)["color"], "linestyle": "-"}


def _bayes(axes: Axes, x: np.ndarray, values: np.ndarray) -> None:
    axes.plot(x, values, color=_TOKENS["bayes"], lw=1.5, linestyle=(0, (3, 2)))


def _fit_y(axes: Axes, shown: list[np.ndarray], curves: VerticalCurves, after: int = 0) -> None:
    """The range of what counts: the first steps of an untrained model would flatten the rest.

    Args:
        axes: Where.
        shown: The curves.
        curves: The vertical's curves.
        after: Hours after the warm-up that still hold some of it.
    """
    start = min(curves.counted_from + after, int(curves.hours[-1]))
    kept = [v[(curves.hours >= start) & np.isfinite(v)] for v in shown]
    if not any(map(len, kept)):
        kept = [v[np.isfinite(v)] for v in shown]
    values = np.concatenate(kept) if kept else np.empty(0)
    if not len(values):
        axes.text(
            0.5,
            0.5,
            "no window with figures",
            transform=axes.transAxes,
            ha="center",
            color=_TOKENS["soft"],
        )
        return
    low, high = np.quantile(values, [0.005, 0.995])
    pad = 0.08 * (high - low) or 0.01 * max(abs(high), 1e-3)
    axes.set_ylim(low - pad, high + pad)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_TOKENS["soft"])
    axes.grid(color=_TOKENS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TOKENS["soft"], labelcolor=_TOKENS["ink"], labelsize=10)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.label.set(color=_TOKENS["soft"], fontsize=10)
    axes.yaxis.label.set(color=_TOKENS["soft"], fontsize=10)
    axes.ticklabel_format(useOffset=False)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Text stays text: it is small, can be selected, and takes the page's font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "keras_exfm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Groups are called alike in every figure, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for token, colour in _TOKENS.items():
        svg = svg.replace(colour, f"var(--{token})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    return re.sub(r'(<svg[^>]*?) (width|height)="[^"]*pt"', r"\1", svg, count=1)


def with_own_ids(svg: str, prefix: str) -> str:
    """The figure with names that no other figure of the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)(?=\w)', rf"\g<1>{prefix}-", svg)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
