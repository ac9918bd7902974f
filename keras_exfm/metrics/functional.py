"""The metrics as plain NumPy functions: exact, in float64, over all rows at once.

Rows of weight 0 do not count, whatever they hold. A value that is not defined, such as the AUC of
one class or anything of no rows, is NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 1e-3
"""How far beyond 0..1 a probability may lie."""


def entropy(probability: ArrayLike) -> np.ndarray:
    """Entropy of a Bernoulli variable in nats, `-p log p - (1 - p) log(1 - p)`.

    Example:

    >>> entropy([0.0, 0.5]).round(4).tolist()
    [0.0, 0.6931]
    """
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x == 0, 0.0, -x * np.log(x)) for x in (p, 1 - p)]
    return terms[0] + terms[1]


def log_loss(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sample_weight: ArrayLike | None = None,
    from_logits: bool = True,
) -> float:
    """Mean crossentropy, `mean(log(1 + exp(z)) - y z)` with the logit `z`, in nats.

    Args:
        y_true: Labels, `(rows,)`.
        y_pred: Logits or probabilities, `(rows,)`. Probabilities are clipped to
            `2.2e-16..1 - 2.2e-16`.
        sample_weight: `(rows,)`. Defaults to one each.
        from_logits: Whether `y_pred` holds logits. Defaults to `True`.

    Raises:
        ValueError: For different lengths, or a probability outside of 0..1.

    Example:

    >>> round(log_loss([0.0, 1.0], [0.0, 0.0]), 4)
    0.6931
    """
    y, z, w = _rows(y_true, y_pred, sample_weight)
    if from_logits:
        with np.errstate(invalid="ignore"):
            losses = np.logaddexp(0, z) - y * z
    else:
        eps = np.finfo(np.float64).eps
        p = np.clip(_probabilities(z), eps, 1 - eps)
        losses = -y * np.log(p) - (1 - y) * np.log1p(-p)
    return _ratio((w * losses).sum(), w.sum())


def normalized_entropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sample_weight: ArrayLike | None = None,
    from_logits: bool = True,
) -> float:
    """Log loss over the entropy of the label rate; 1 is what the rate alone reaches.

    Arguments as in `log_loss`.

    Example:

    >>> normalized_entropy([0.0, 1.0], [0.0, 0.0])
    1.0

    References:
        - [He et al., 2014](https://doi.org/10.1145/2648584.2648589), section 3, Eq. 3.
    """
    y, _, w = _rows(y_true, y_pred, sample_weight)
    loss = log_loss(y_true, y_pred, sample_weight, from_logits)
    return _ratio(loss, float(entropy(_ratio((w * y).sum(), w.sum()))))


def bayes_normalized_entropy(
    y_true: ArrayLike,
    true_probability: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The normalized entropy that a model expects which knows every row's click probability.

    `mean(entropy(true_probability)) / entropy(mean(y))`: no model can expect less.

    Args:
        y_true: Labels, `(rows,)`; only their rate counts.
        true_probability: `(rows,)`.
        sample_weight: `(rows,)`. Defaults to one each.

    Example:

    >>> round(bayes_normalized_entropy([0, 1], [0.1, 0.9]), 4)
    0.469
    """
    y, p, w = _rows(y_true, true_probability, sample_weight)
    rate = _ratio((w * y).sum(), w.sum())
    return _ratio(_ratio((w * entropy(p)).sum(), w.sum()), float(entropy(rate)))


def calibration(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sample_weight: ArrayLike | None = None,
    from_logits: bool = True,
) -> float:
    """Predicted clicks over clicks, `sum(p) / sum(y)`.

    Arguments as in `log_loss`.

    Example:

    >>> calibration([0.0, 1.0], [0.0, 0.0])
    1.0
    """
    y, z, w = _rows(y_true, y_pred, sample_weight)
    # tanh does not overflow.
    p = (1 + np.tanh(z / 2)) / 2 if from_logits else _probabilities(z)
    return _ratio((w * p).sum(), (w * y).sum())


def auc(y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: how often a click scores above a non-click, ties half.

    Args:
        y_true: Labels, `(rows,)`.
        y_pred: Scores, `(rows,)`; only their order counts.
        sample_weight: `(rows,)`. Defaults to one each.

    Example:

    >>> auc([0, 1, 0, 1], [0.1, 0.3, 0.3, 0.9])
    0.875
    """
    y, score, w = _rows(y_true, y_pred, sample_weight)
    areas, _ = _areas(y, score, w, np.zeros(len(y), np.int8))
    return _ratio(areas.sum(), len(areas))


def grouped_auc(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    groups: ArrayLike,
    sample_weight: ArrayLike | None = None,
    definition: Literal["weighted", "mean"] = "weighted",
) -> float:
    """Mean of the AUCs within groups; groups that have one class only are left out.

    Args:
        y_true: Labels, `(rows,)`.
        y_pred: Scores, `(rows,)`.
        groups: Group ids, `(rows,)`, in any order.
        sample_weight: `(rows,)`. Defaults to one each.
        definition: `"weighted"` weights each group by the weight of its rows, as FuxiCTR's `gAUC`
            does; `"mean"` counts groups alike, as torchrec's `GAUC` does.
            Defaults to `"weighted"`.

    Example:

    >>> grouped_auc([0, 1, 0, 1, 1], [0.1, 0.3, 0.3, 0.2, 0.9], [1, 1, 2, 2, 2])
    0.7
    >>> grouped_auc([0, 1, 0, 1, 1], [0.1, 0.3, 0.3, 0.2, 0.9], [1, 1, 2, 2, 2],
    ...             definition="mean")
    0.75
    """
    if definition not in ("weighted", "mean"):
        raise ValueError(
            f"`definition` should be 'weighted' or 'mean'. Received: definition={definition!r}"
        )
    y, score, w = _rows(y_true, y_pred, sample_weight)
    group = np.asarray(groups).reshape(-1)
    if sample_weight is not None:
        group = group[np.asarray(sample_weight).reshape(-1) > 0]
    if len(group) != len(y):
        raise ValueError(f"`groups` should have one id a row. Received: {len(group)} ids")
    areas, sizes = _areas(y, score, w, group)
    weights = sizes if definition == "weighted" else np.ones(len(sizes))
    return _ratio((weights * areas).sum(), weights.sum())


def _rows(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, z = (np.asarray(x, np.float64).reshape(-1) for x in (y_true, y_pred))
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    w = w.reshape(-1)
    if not len(y) == len(z) == len(w):
        raise ValueError(
            "Labels, predictions and weights should have one value a row. "
            f"Received: {len(y)}, {len(z)} and {len(w)}"
        )
    used = w > 0
    return (y, z, w) if used.all() else (y[used], z[used], w[used])


def _probabilities(p: np.ndarray) -> np.ndarray:
    """Refuses what is none: clipped, logits would look like a perfect prediction."""
    bad = p[np.abs(p - 0.5) > 0.5 + ROUNDING]
    if len(bad):
        raise ValueError(
            "With from_logits=False predictions should be probabilities, 0 to 1. "
            f"Received: {bad[0]:g} ({len(bad)} such rows)"
        )
    return p


def _areas(
    y: np.ndarray, score: np.ndarray, w: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and weight of each group that has both classes; NaN where a score is NaN."""
    if not len(y):
        return np.empty(0), np.empty(0)
    order = np.lexsort((score, group))
    y, score, w, group = y[order], score[order], w[order], group[order]
    new_group = np.r_[True, group[1:] != group[:-1]]
    starts = np.flatnonzero(new_group | np.r_[True, score[1:] != score[:-1]])
    positive = np.add.reduceat(w * y, starts)
    negative = np.add.reduceat(w * (1 - y), starts)
    group_starts = np.flatnonzero(new_group[starts])
    blocks = np.diff(np.r_[group_starts, len(starts)])
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[group_starts], blocks)
    credit = np.add.reduceat(positive * (below + negative / 2), group_starts)
    clicks = np.add.reduceat(positive, group_starts)
    others = np.add.reduceat(negative, group_starts)
    unknown = np.logical_or.reduceat(np.isnan(score), starts[group_starts])
    credit[unknown] = np.nan
    both = (clicks > 0) & (others > 0)
    return (credit / np.where(both, clicks * others, 1))[both], (clicks + others)[both]


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
