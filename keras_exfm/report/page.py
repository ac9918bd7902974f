"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from keras_exfm.report import figures
from keras_exfm.report.curves import VerticalCurves, vertical_curves
from keras_exfm.report.gains import by_seed, gain_table
from keras_exfm.report.headline import headline
from keras_exfm.report.results import TEACHER, Results, load

_MINUS = "\N{MINUS SIGN}"
_NARROW = "\N{NARROW NO-BREAK SPACE}"
_NONE = "\N{EN DASH}"


def write(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes a run's report.

    Args:
        run_dir: Folder of the run, with `results/windows.parquet`, `results/overall.parquet` and
            `results/run.json`.
        out: The HTML file. Defaults to `None`: `run_dir/report.html`.

    Returns:
        Path of the file. The same results give the same file.

    Raises:
        ReportError: For results that are missing or damaged; names the file.
    """
    results = load(run_dir)
    file = Path(out) if out is not None else Path(run_dir) / "report.html"
    html = render(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(html, encoding="utf-8")
    os.replace(unfinished, file)
    return file


def render(results: Results) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number, signed=signed, deviation=deviation, count=count, duration=duration
    )
    source = (resources.files("keras_exfm.report") / "report.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(**_context(results))


def number(value: Any, digits: int) -> str:
    """A number with fixed digits."""
    if not _known(value):
        return _NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("-")


def signed(value: Any, digits: int) -> str:
    """As `number`, with a sign."""
    text = number(value, digits)
    return f"+{text}" if _known(value) and float(f"{value:.{digits}f}") > 0 else text


def deviation(value: Any, digits: int) -> str:
    """A deviation after its mean; nothing if it is not known."""
    return f"{_NARROW}±{_NARROW}{value:.{digits}f}" if _known(value) else ""


def count(value: Any) -> str:
    """A whole number in groups of three."""
    return f"{round(value):,}".replace(",", _NARROW) if _known(value) else _NONE


def duration(seconds: Any) -> str:
    """Seconds as a person would say them."""
    if not _known(seconds):
        return _NONE
    if seconds < 10:
        return f"{seconds:.1f}{_NARROW}s"
    if seconds < 120:
        return f"{seconds:.0f}{_NARROW}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}{_NARROW}min"
    return f"{seconds / 3600:.1f}{_NARROW}h"


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _context(results: Results) -> dict[str, Any]:
    about, baseline = results.about, results.baseline
    table = _as_rows(results.overall)
    rows = gain_table(table, baseline)
    several = len(results.verticals) > 1
    mean = gain_table(table, baseline, mean_over_verticals=True) if several else []
    styles = figures.Styles(results.models, baseline)
    students = about.get("students") or {}
    seeds = sorted(set(results.overall["seed"].tolist()))
    return {
        "name": about.get("name", "run"),
        "description": about.get("description", ""),
        "headline": headline(rows, mean or rows, baseline, len(seeds)),
        "baseline": baseline,
        "teacher_name": TEACHER,
        "facts": _facts(results, seeds),
        "overview": _overview(results, table, rows, styles),
        "groups": _groups(results, rows, mean),
        "has_group_auc": any(_known(row["group_auc_mean"]) for row in rows),
        "has_bayes": any(_known(row["bayes_distance_mean"]) for row in rows),
        "several_seeds": len(seeds) > 1,
        "legend": [
            {"model": m, "token": styles.token(m), "dash": styles.dash_css(m)}
            for m in results.models
        ],
        "sections": [
            _section(f"v{index}", vertical, curves, styles)
            for index, vertical in enumerate(results.verticals)
            if (curves := vertical_curves(results, vertical)) is not None
        ],
        "das": _das(about.get("das") or {}),
        "networks": _networks(results, students),
        "settings": _flat(about.get("config") or {}),
        "dataset": _flat(about.get("dataset") or {}),
        "versions": {
            **({"Keras backend": about["backend"]} if about.get("backend") else {}),
            **(about.get("versions") or {}),
        },
        "notes": [str(note) for note in about.get("notes") or []],
        "command": about.get("command", ""),
        "finished": _time(about.get("finished")),
    }


def _as_rows(overall: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    names = list(overall)
    return [dict(zip(names, values)) for values in zip(*(overall[n].tolist() for n in names))]


def _facts(results: Results, seeds: list[int]) -> list[tuple[str, str]]:
    about, overall = results.about, results.overall
    base = overall["model"] == results.baseline
    one = base & (overall["seed"] == seeds[0])
    examples, clicks = overall["examples"][one].sum(), overall["clicks"][one].sum()
    hours = len(set(results.windows["hour"].tolist()))
    facts = [
        ("counted examples", count(int(examples))),
        ("click rate", f"{number(100 * float(clicks) / max(int(examples), 1), 2)}{_NARROW}%"),
        ("hours of stream", count(hours)),
        ("verticals", count(len(results.verticals))),
        ("seeds", ", ".join(map(str, seeds)) if len(seeds) <= 5 else count(len(seeds))),
    ]
    if about.get("backend"):
        facts.append(("Keras backend", str(about["backend"])))
    started, finished = (_parse(about.get(key)) for key in ("started", "finished"))
    if started and finished:
        facts.append(("wall time", duration((finished - started).total_seconds())))
    return facts


def _overview(
    results: Results,
    table: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    styles: figures.Styles,
) -> str | None:
    students = [row for row in rows if row["model"] != TEACHER and math.isfinite(row["gain_mean"])]
    if not students:
        return None
    seeds = {
        key: [cell["gain"] for cell in cells.values() if math.isfinite(cell["gain"])]
        for key, cells in by_seed(table, results.baseline).items()
    }
    return figures.overview_figure(students, seeds, styles)


def _groups(
    results: Results, rows: list[dict[str, Any]], mean: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the gain table by vertical, the mean over verticals last."""
    groups = []
    for vertical in results.verticals:
        mine = [row for row in rows if row["vertical"] == vertical]
        bayes = [
            row["ne_mean"] - row["bayes_distance_mean"]
            for row in mine
            if row["model"] == results.baseline
        ]
        groups.append({"title": vertical, "rows": mine, "bayes": bayes[0] if bayes else math.nan})
    if mean:
        groups.append({"title": "mean over verticals", "rows": mean, "bayes": math.nan})
    return groups


def _section(
    key: str, vertical: str, curves: VerticalCurves, styles: figures.Styles
) -> dict[str, Any]:
    width = curves.rolling_hours
    rolling = f"last {width} hours, pooled" if width > 1 else "each hour"
    shaded = "; shaded: warm-up, not counted" if curves.counted_from > curves.hours[0] else ""
    faint = "; faint: single hours" if width > 1 else ""
    plots = [
        ("Normalized entropy", rolling + faint + shaded, figures.ne_figure(curves, styles)),
        (
            "Cumulative normalized entropy",
            "all counted hours so far, pooled",
            figures.cumulative_figure(curves, styles),
        ),
        ("Calibration", rolling + shaded, figures.calibration_figure(curves, styles)),
    ]
    if curves.cumulative_gain:
        plots.insert(
            2,
            (
                "Gain over the baseline",
                "all counted hours so far",
                figures.gain_figure(curves, styles),
            ),
        )
    if curves.coverage is not None and np.nanmin(curves.coverage, initial=1.0) < 0.999:
        plots.append(
            ("Teacher coverage", "examples that a snapshot scored", figures.coverage_figure(curves))
        )
    plots = [
        (title, caption, figures.with_own_ids(svg, f"{key}p{index}"))
        for index, (title, caption, svg) in enumerate(plots)
    ]
    return {"vertical": vertical, "plots": plots, "has_bayes": curves.rolling_bayes is not None}


_DAS_LABELS = {
    "rows": "examples, all seeds",
    "coverage": "scored by a teacher",
    "mean_age_s": "mean age of the teacher",
    "not_finite": "teacher outputs that were not finite",
    "late_labels": "label events after their window",
    "early_labels": "label events before their impression",
    "duplicate_labels": "repeated label events",
    "orphan_labels": "label events of no known impression",
}


def _das(das: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {key: das[key] for key in _DAS_LABELS if key in das}
    shown = []
    for key, value in {**known, **{k: v for k, v in das.items() if k not in known}}.items():
        if key == "coverage":
            text = f"{number(100 * value, 1)}{_NARROW}%" if _known(value) else _NONE
        elif key.endswith("_s"):
            text = duration(value)
        elif isinstance(value, int):
            text = count(value)
        else:
            text = number(value, 3) if isinstance(value, float) else str(value)
        shown.append((_DAS_LABELS.get(key, key.replace("_", " ")), text))
    return shown


def _networks(results: Results, students: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for the teacher and each student; what is not known is left blank."""
    found = []
    teacher = results.about.get("teacher") or {}
    for model in results.models:
        note = teacher if model == TEACHER else students.get(model) or {}
        found.append(
            {
                "model": model,
                "description": note.get("description") or note.get("model") or "",
                "parameters": note.get("parameters"),
                "table_parameters": note.get("table_parameters"),
                "training_seconds": note.get("training_seconds"),
            }
        )
    return found


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys."""
    if isinstance(tree, Mapping):
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        pairs = [(str(i), value) for i, value in enumerate(tree)]
    else:
        text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
        return [(prefix, text)]
    return [row for key, value in pairs for row in _flat(value, f"{prefix}.{key}".lstrip("."))]


def _parse(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _time(value: Any) -> str:
    parsed = _parse(value)
    return parsed.strftime("%Y-%m-%d %H:%M %Z").strip() if parsed else ""
