"""Markdown tables of the site: costs of models, and results from `benchmarks/results/zoo/*.json`.

A page asks for a table by a comment, such as `<!-- costs: Wukong -->`; see `DIRECTIVES`.
"""

import json
import runpy
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import costs

from keras_exfm.models import PRESETS, Preset

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "zoo"
TITLES = {"frappe_x1": "Frappe_x1", "ml1m": "MovieLens-1M"}
NAMES = {"XDeepFM": "xDeepFM", "LogisticRegression": "Logistic regression"}
PAGES = {"LogisticRegression": "logistic-regression"}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns behind the first are numbers, so right-aligned."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def link(name: str) -> str:
    """A model's name, linked to its page from one beside it."""
    return f"[{NAMES.get(name, name)}]({PAGES.get(name, name.lower())}.md)"


def model_costs(name: str) -> str:
    """Sizes and operations of a model with default arguments."""
    cost = costs.of_model(name)
    whole = table(
        ["weights beside the tables", "numbers an id", "inference", "training"],
        [
            [
                f"{cost['dense']:,}",
                cost["numbers_per_id"],
                f"{cost['inference'] / 1e3:,.1f} kFLOP",
                f"{cost['training'] / 1e3:,.1f} kFLOP",
            ]
        ],
    )
    layers = table(
        ["layer", "number", "kFLOP of a forward pass", "share"],
        [
            [
                f"`{kind}`",
                number,
                f"{operations / 1e3:,.1f}",
                f"{operations / cost['inference']:.1%}",
            ]
            for kind, (number, operations) in cost["layers"].items()
        ],
    )
    return f"{whole}\n\n{layers}"


def all_costs(_: str) -> str:
    """One row a model."""
    rows = []
    for name in costs.ZOO:
        cost = costs.of_model(name)
        rows.append(
            [
                link(name),
                f"{cost['dense']:,}",
                cost["numbers_per_id"],
                f"{cost['inference'] / 1e3:,.1f}",
                f"{cost['training'] / 1e3:,.1f}",
            ]
        )
    head = ["model", "weights beside the tables", "numbers an id"]
    return table([*head, "inference, kFLOP", "training, kFLOP"], rows)


def presets(name: str) -> str:
    """The presets of a model, a table for each source: what they set and what they cost."""
    sources: dict[str, dict[str, Preset]] = {}
    for key, each in PRESETS.items():
        if each.model == name:
            sources.setdefault(each.source, {})[key] = each
    if not sources:
        raise ValueError(f"{name} has no presets")
    return "\n\n".join(_presets(source, mine) for source, mine in sources.items())


def _presets(source: str, mine: dict[str, Preset]) -> str:
    configs = [each.config for each in mine.values()]
    arguments = list(dict.fromkeys(argument for config in configs for argument in config))
    shared = {
        argument: configs[0][argument]
        for argument in arguments
        if all(argument in c and c[argument] == configs[0].get(argument) for c in configs)
    }
    shown = [argument for argument in arguments if argument not in shared]
    rows = []
    for key, each in mine.items():
        cost = costs.of_preset(key)
        rows.append(
            [
                f"`{key}`",
                *(f"`{plain(each.config[a])}`" if a in each.config else "" for a in shown),
                f"{cost['dense'] / 1e6:,.1f}",
                f"{cost['training'] / 1e9:,.2f}",
                f"{each.gflops:,.2f}",
            ]
        )
    counted = ["million weights", "GFLOP, counted", "GFLOP, printed"]
    text = table(["preset", *(f"`{a}`" for a in shown), *counted], rows)
    same = ", ".join(f"`{argument}={plain(value)}`" for argument, value in shared.items())
    return f"{source}; every row has {same}:\n\n{text}"


def plain(value: object) -> str:
    """`(8, 8, 8)` as `(8,) * 3`, everything else as Python writes it."""
    if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1:
        return f"({value[0]},) * {len(value)}"
    return repr(value)


def read_results(folder: Path = RESULTS) -> tuple[dict[str, Any], dict[str, Any]]:
    """Single-pass streams and multi-epoch sets, by the name of their file."""
    streams, sets = {}, {}
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        (sets if "dataset" in found else streams)[file.stem] = found
    return streams, sets


STREAM_HEAD = ["seeds", "dim", "rates", "NE", "AUC", "grouped AUC", "calibration", "kFLOP"]


def stream_rows(found: dict[str, Any]) -> dict[str, list[object]]:
    """Model -> cells of `STREAM_HEAD`, the least NE first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"]:
        runs.setdefault(run["model"], []).append(run)
    ne = {name: statistics.mean(r["figures"]["ne"] for r in each) for name, each in runs.items()}
    rows: dict[str, list[object]] = {}
    for name in sorted(runs, key=ne.__getitem__):
        first = runs[name][0]
        figures = (
            spread([run["figures"][key] for run in runs[name]], digits)
            for key, digits in (("ne", 4), ("auc", 4), ("group_auc", 4), ("calibration", 3))
        )
        cost = f"{first['cost']['training_flops'] / 1e3:,.0f}"
        rates = f"{first['table_learning_rate']:g} / {first['learning_rate']:g}"
        rows[name] = [len(runs[name]), first["dim"] or "-", rates, *figures, cost]
    return rows


SET_HEAD = ["runs", "AUC", "LogLoss", "LogLoss after Platt scaling", "trials"]
SET_HEAD += ["best trial: AUC / LogLoss", "BARS: AUC / LogLoss"]


def set_rows(found: dict[str, Any]) -> dict[str, list[object]]:
    """Model -> cells of `SET_HEAD`, by the AUC of the best trial, which nearly all models have."""
    published = runpy.run_path(str(ROOT / "benchmarks" / "zoo_settings.py"))["PUBLISHED"]
    bars = published.get(found["dataset"], {})
    rows: dict[str, tuple[float, list[object]]] = {}
    for name in costs.ZOO:
        runs = [run for run in found["runs"] if run["model"] == name]
        tried = [run for run in found["search"] if run["model"] == name]
        if not runs and not tried:
            continue
        best = max(tried, key=lambda run: run["choose"]["auc"])["test"] if tried else None
        figures = [
            spread([run[kind][key] for run in runs], 4) if runs else "-"
            for kind, key in (("test", "auc"), ("test", "logloss"), ("test_calibrated", "logloss"))
        ]
        row = [len(runs), *figures, len(tried)]
        row.append(f"{best['auc']:.4f} / {best['logloss']:.4f}" if best else "-")
        row.append("{:.4f} / {:.4f}".format(*bars[name]) if name in bars else "-")
        order = best["auc"] if best else statistics.mean(run["test"]["auc"] for run in runs)
        rows[name] = (order, row)
    return {name: row for name, (_, row) in sorted(rows.items(), key=lambda x: -x[1][0])}


def _measured() -> list[tuple[str, list[str], dict[str, list[object]]]]:
    streams, sets = read_results()
    return [
        *((TITLES.get(n, n.capitalize()), STREAM_HEAD, stream_rows(f)) for n, f in streams.items()),
        *((TITLES.get(n, n), SET_HEAD, set_rows(f)) for n, f in sets.items()),
    ]


def model_results(name: str) -> str:
    """What was measured of one model on each data set."""
    parts = []
    for title, head, rows in _measured():
        if name in rows:
            parts.append(f"**{title}**\n\n{table(head, [rows[name]])}")
        else:
            parts.append(f"**{title}**: not measured.")
    return "\n\n".join(parts)


def all_results(_: str) -> str:
    """A table a data set, one row a model."""
    return "\n\n".join(
        f"### {title}\n\n{table(['model', *head], [[link(n), *row] for n, row in rows.items()])}"
        for title, head, rows in _measured()
    )


DIRECTIVES: dict[str, Callable[[str], str]] = {
    "costs": model_costs,
    "presets": presets,
    "results": model_results,
    "all-costs": all_costs,
    "all-results": all_results,
}
