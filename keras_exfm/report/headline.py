"""What came out, in a sentence, good or bad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras_exfm.report.results import TEACHER

# Student's t at 97.5 % by degrees of freedom: with three seeds, two standard errors are no proof.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def headline(
    rows: Sequence[dict[str, Any]], mean: Sequence[dict[str, Any]], baseline: str, seeds: int
) -> dict[str, Any]:
    """The main sentence and those under it.

    Args:
        rows: `gain_table`'s rows by vertical.
        mean: Its rows over all verticals; `rows` itself if there is but one.
        baseline: The undistilled student.
        seeds: How many seeds the run has.

    Returns:
        `main`, a sentence; `more`, further ones; `tone`: "good", "bad" or "open".
    """
    verticals = len({row["vertical"] for row in rows})
    where = f"mean of {verticals} verticals" if verticals > 1 else "one vertical"
    over = f"{where}, {seeds} seeds" if seeds > 1 else f"{where}, one seed"
    students = [
        r for r in mean if r["model"] not in (TEACHER, baseline) and math.isfinite(r["gain_mean"])
    ]
    students.sort(key=lambda r: -r["gain_mean"])
    teacher = next((r for r in mean if r["model"] == TEACHER), None)
    more = []
    if not students:
        main, tone = f"No student was distilled; “{baseline}” stands alone.", "open"
    else:
        best = students[0]
        gain, sd = best["gain_mean"], best["gain_sd"]
        of = f"Best of {len(students)} distilled students" if len(students) > 1 else "Distilled"
        certain = _certain(gain, sd, best["seeds"])
        if gain > 0:
            main = (
                f"{of}: “{best['model']}” has {_percent(gain, sd)} lower NE than "
                f"“{baseline}” ({over})."
            )
            tone = "good" if certain else "open"
        else:
            main = (
                f"No distilled student beats “{baseline}”: the best, “{best['model']}”, has "
                f"{_percent(-gain, sd)} higher NE ({over})."
            )
            tone = "bad" if certain else "open"
        if not math.isfinite(sd):
            more.append("With one seed, nothing is known of the spread.")
        elif not certain:
            more.append("Seeds alone may do as much: the 95 % interval of the mean includes 0.")
        losing = [r["vertical"] for r in rows if r["model"] == best["model"] and r["gain_mean"] < 0]
        if gain > 0 and losing and verticals > 1:
            more.append(f"It loses in {_listed(losing)}.")
        for row in students[1:]:
            direction = "lower" if row["gain_mean"] >= 0 else "higher"
            more.append(
                f"“{row['model']}”: {_percent(abs(row['gain_mean']), row['gain_sd'])} {direction}."
            )
    if teacher is not None and math.isfinite(teacher["gain_mean"]):
        gain = teacher["gain_mean"]
        direction = "lower" if gain >= 0 else "higher"
        sentence = f"The teacher itself: {_percent(abs(gain), teacher['gain_sd'])} {direction}"
        # The tables' figure. Over several seeds it is not quite that of the mean gains.
        ratio = students[0]["transfer_ratio_mean"] if students else math.nan
        if ratio > 0:
            sentence += f", of which “{students[0]['model']}” gets {100 * ratio:.0f} %"
        elif gain < 0:
            sentence += ", so there was nothing to transfer"
        more.append(sentence + ".")
    return {"main": main, "more": more, "tone": tone}


def _certain(gain: float, sd: float, seeds: int) -> bool:
    if seeds < 2 or not math.isfinite(sd):
        return False
    t = _T[seeds - 2] if seeds - 2 < len(_T) else 2.2
    return abs(gain) > t * sd / math.sqrt(seeds)


def _percent(value: float, sd: float) -> str:
    return f"{value:.2f} ± {sd:.2f} %" if math.isfinite(sd) else f"{value:.2f} %"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
