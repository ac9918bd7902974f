"""Draws the figures of the documentation.

    python docs/figures/make.py        # writes docs/figures/*.svg

Text stays text and the ground is transparent: docs/style.css turns the colours for dark pages.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent
INK, GREY = "#22303c", "#6b7785"
BLUE, GREEN, ORANGE, PLAIN = "#cfe0fc", "#cdebd2", "#fde0b8", "#eceff3"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_exfm",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A drawing whose units are tenths of an inch."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    """A rounded box, `(x, y)` its lower left corner."""
    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, facecolor=colour, edgecolor=GREY, lw=0.9)
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.3)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    dashed: bool = False,
    bend: float = 0.0,
) -> None:
    """An arrow; dashed ones carry no gradient."""
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": INK,
            "lw": 1.0,
            "linestyle": (0, (3, 2)) if dashed else "-",
            "shrinkA": 1,
            "shrinkB": 1,
            "connectionstyle": f"arc3,rad={bend}",
        },
    )


def note(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    """Small grey text."""
    axes.text(x, y, text, **{"color": GREY, "fontsize": 8, "ha": "center", "va": "center", **style})


def external_distillation() -> Figure:
    """Teacher, log, and a student with its three heads."""
    figure, axes = canvas(7.4, 3.9)
    box(axes, 1, 27, 16, 8, "teacher\n(foundation model)", ORANGE)
    box(axes, 1, 14, 16, 8, "log\nteacher_logit t", PLAIN)
    arrow(axes, (9, 27), (9, 22), dashed=True)
    note(axes, 10, 24.5, "once an\nexample", ha="left", fontsize=7.5)
    box(axes, 22, 2, 16, 7, "backbone", BLUE)
    note(axes, 11, 5.5, "features")
    arrow(axes, (15, 5.5), (22, 5.5))
    box(axes, 56, 2, 16, 7, "serving head", BLUE)
    arrow(axes, (38, 5.5), (56, 5.5))
    note(axes, 47, 3.9, "representation x")
    note(axes, 64, 0.8, "label y alone; all that is served", fontsize=7.5)
    box(axes, 56, 14, 16, 7, "auxiliary head", GREEN)
    box(axes, 56, 29, 16, 7, "second head", GREEN)
    box(axes, 24, 29, 16, 7, "student adapter", GREEN)
    arrow(axes, (44, 5.5), (56, 16), bend=-0.15)
    arrow(axes, (44, 5.5), (56, 30.5), bend=-0.2)
    note(axes, 64, 25, "β scales their gradient\ninto the representation", fontsize=7.5)
    arrow(axes, (17, 18), (56, 18.6), dashed=True)
    note(axes, 35, 19.9, "target min(α σ(t), 1), weight w")
    arrow(axes, (17, 20), (24, 30), dashed=True)
    arrow(axes, (40, 32.5), (56, 32.5), dashed=True)
    note(axes, 48, 34, "target σ(SA(t))")
    note(axes, 32, 37.5, "trained on label y")
    return figure


def data_augmentation_service() -> Figure:
    """One impression on its way into the labelled stream."""
    figure, axes = canvas(7.4, 3.3)
    axes.annotate("", (73, 24), (2, 24), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.0})
    note(axes, 71, 25.5, "time")
    for x, text in ((6, "snapshot 1"), (22, "snapshot 2"), (50, "snapshot 3")):
        axes.plot([x, x], [23, 25], color=INK, lw=1.4)
        axes.text(x, 27, text, ha="center", va="center")
    axes.plot(33, 24, "o", color=INK, ms=6)
    axes.text(33, 21.2, "impression", ha="center", va="center")
    axes.annotate(
        "",
        (33, 25),
        (23, 28.5),
        arrowprops={
            "arrowstyle": "-|>",
            "color": INK,
            "linestyle": (0, (3, 2)),
            "connectionstyle": "arc3,rad=-0.35",
        },
    )
    note(axes, 31, 30.8, "scored by the newest snapshot that is older")
    axes.plot([33, 62], [18.4, 18.4], color=GREY, lw=1.2)
    for x in (33, 62):
        axes.plot([x, x], [17.6, 19.2], color=GREY, lw=1.2)
    note(axes, 47.5, 17, "label window")
    axes.plot(43, 24, "D", color=INK, ms=5)
    axes.text(43, 21.2, "click", ha="center", va="center")
    axes.plot(68, 24, "D", color=GREY, ms=5, mfc="none")
    axes.text(67, 21.2, "too late", ha="center", va="center", color=GREY)
    arrow(axes, (62, 17), (62, 11))
    box(axes, 2, 3, 16, 8, "impressions", PLAIN)
    box(axes, 23, 3, 16, 8, "predictions\nonce an example", ORANGE)
    box(axes, 52, 3, 20, 8, "labelled stream\nhour by hour", BLUE)
    arrow(axes, (18, 7), (23, 7))
    arrow(axes, (39, 7), (52, 7))
    note(axes, 45.5, 8.4, "join, commit")
    note(axes, 64, 14, "window closed", ha="left", fontsize=7.5)
    return figure


def progressive_validation() -> Figure:
    """Hours that are predicted first and trained on afterwards."""
    figure, axes = canvas(7.4, 2.6)
    for i in range(4):
        x = 12 + 15 * i
        name = "h" if i == 2 else f"h {'−' if i < 2 else '+'} {abs(i - 2)}"
        axes.text(x + 6, 23.5, f"hour {name}", ha="center", va="center")
        box(axes, x, 15, 12, 6, "predict", ORANGE)
        box(axes, x, 4, 12, 6, "train", BLUE)
        arrow(axes, (x + 6, 15), (x + 6, 10))
        if i < 3:
            arrow(axes, (x + 12, 7), (x + 15, 15.6))
    note(axes, 11, 18, "figures of\nunseen rows", ha="right")
    note(axes, 11, 7, "weights", ha="right")
    return figure


def normalized_entropy() -> Figure:
    """Log loss of a constant prediction by click rate, and the same as NE."""
    figure, axes = plt.subplots(figsize=(7.0, 2.9), layout="constrained")
    rate = np.linspace(0.001, 0.5, 250)
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    axes.plot(rate, entropy, color="#2f6fd0", lw=1.8)
    axes.plot(rate, np.ones_like(rate), color="#c7741a", lw=1.8)
    axes.text(0.4, 0.5, "log loss of the rate alone", ha="center")
    axes.text(0.4, 0.89, "normalized entropy of the rate alone", ha="center")
    for at in (0.01, 0.1, 0.5):
        height = -at * np.log(at) - (1 - at) * np.log(1 - at)
        axes.plot(at, height, "o", color="#2f6fd0", ms=4)
        axes.annotate(
            f"{height:.3f}", (at, height), (9, -8), textcoords="offset points", va="center"
        )
    axes.set(xlim=(0, 0.55), ylim=(-0.06, 1.1), xlabel="share of clicks", ylabel="")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def wukong() -> Figure:
    """The stack of a Wukong model, and one of its layers."""
    figure, axes = canvas(7.0, 4.2)
    names = [
        ("features", PLAIN),
        ("FeatureEmbedding", PLAIN),
        ("WukongLayer", BLUE),
        ("WukongLayer", BLUE),
        ("ReLU layers", GREEN),
        ("logit", PLAIN),
    ]
    for i, (name, colour) in enumerate(names):
        y = 1 + 7 * i
        box(axes, 2, y, 17, 4.2, name, colour)
        if i:
            arrow(axes, (10.5, y - 2.8), (10.5, y))
    note(axes, 11.5, 13.4, "X_0  (n, d)", ha="left")
    note(axes, 11.5, 20.4, "X_1", ha="left")
    note(axes, 11.5, 27.4, "X_l", ha="left")
    axes.plot([19, 27], [19.2, 40.5], color=GREY, lw=0.7, ls=":")
    axes.plot([19, 27], [15, 1.5], color=GREY, lw=0.7, ls=":")
    axes.add_patch(
        FancyBboxPatch(
            (27, 1.5),
            42,
            39,
            "round,pad=0,rounding_size=1",
            facecolor="none",
            edgecolor=GREY,
            lw=0.9,
        )
    )
    axes.text(48, 4, "X  (n, d)", ha="center", va="center")
    blocks = ["FM: X (Xᵀ Y)", "LayerNorm", "MLP", "reshape"]
    for i, name in enumerate(blocks):
        y = 9 + 5 * i
        box(axes, 29, y, 15, 3.4, name, ORANGE)
        if i:
            arrow(axes, (36.5, y - 1.6), (36.5, y))
    box(axes, 47, 16, 9, 5, "LCB\nW_L X", ORANGE)
    box(axes, 59, 16, 8, 5, "R(X)", ORANGE)
    arrow(axes, (46, 5), (36.5, 9))
    arrow(axes, (48.5, 5), (51.5, 16))
    arrow(axes, (50.5, 5), (63, 16))
    box(axes, 33, 29.5, 21, 3.6, "concat  (n_F + n_L, d)", ORANGE)
    arrow(axes, (36.5, 27.4), (38, 29.5))
    arrow(axes, (51.5, 21), (49, 29.5))
    box(axes, 40, 35.5, 16, 3.4, "add, LayerNorm", ORANGE)
    arrow(axes, (44, 33.1), (46, 35.5))
    arrow(axes, (63, 21), (54, 35.5))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "external-distillation": external_distillation,
    "data-augmentation-service": data_augmentation_service,
    "progressive-validation": progressive_validation,
    "normalized-entropy": normalized_entropy,
    "wukong": wukong,
}


def main(folder: Path = FOLDER) -> None:
    """Writes every figure."""
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(
                folder / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
            plt.close(figure)


if __name__ == "__main__":
    main()
