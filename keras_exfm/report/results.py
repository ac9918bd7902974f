"""Reads what a run left in `RUN/results`, and checks it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TEACHER = "teacher"
KEYS = ("seed", "model", "vertical")
FIGURES = ("logloss", "ne", "auc", "calibration", "group_auc", "bayes_ne")
_WHOLE = ("seed", "hour", "examples")
_OPTIONAL = ("group_auc", "bayes_ne")


class ReportError(ValueError):
    """A run's results that are missing or cannot be read; names the file."""


@dataclasses.dataclass(frozen=True)
class Results:
    """The three result files of a run.

    Attributes:
        windows: Column name -> array, a row for each seed, model, vertical and hour.
        overall: As `windows`, pooled over the hours that count.
        about: `run.json`.
    """

    windows: dict[str, np.ndarray]
    overall: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def baseline(self) -> str:
        """Name of the student without a teacher."""
        return str(self.about["baseline"])

    @property
    def verticals(self) -> list[str]:
        """Verticals in the order in which the run lists them."""
        return list(dict.fromkeys(self.overall["vertical"].tolist()))

    @property
    def models(self) -> list[str]:
        """The teacher, the baseline, then the other students."""
        found = list(dict.fromkeys(self.overall["model"].tolist()))
        first = [m for m in (TEACHER, self.baseline) if m in found]
        return first + [m for m in found if m not in first]


def load(run_dir: str | os.PathLike[str]) -> Results:
    """Reads a run's results.

    Raises:
        ReportError: For a file that is missing, damaged or lacks a column; names it.
    """
    folder = Path(run_dir) / "results"
    file = folder / "run.json"
    if not file.is_file():
        raise ReportError(f"{file}: no results there. `keras-exfm run` writes them at its end.")
    try:
        about = json.loads(file.read_text())
    except ValueError as error:
        raise ReportError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("baseline"), str):
        raise ReportError(f"{file}: expected an object with the key 'baseline'.")
    overall = columns(_read(folder / "overall.parquet"), str(folder / "overall.parquet"))
    windows = columns(_read(folder / "windows.parquet"), str(folder / "windows.parquet"), "hour")
    if about["baseline"] not in overall["model"]:
        raise ReportError(
            f"{folder / 'overall.parquet'}: no rows of the baseline {about['baseline']!r}. "
            f"It has the models {sorted(set(overall['model'].tolist()))}."
        )
    return Results(windows, overall, about)


def columns(table: pa.Table, where: str, *further: str) -> dict[str, np.ndarray]:
    """A result table as arrays: nulls become NaN, absent optional figures are NaN throughout.

    Raises:
        ReportError: For a missing column, no rows, or two rows for the same thing.
    """
    needed = (*KEYS, *further, "examples", "clicks", *FIGURES)
    missing = [n for n in needed if n not in table.column_names and n not in _OPTIONAL]
    if missing:
        raise ReportError(f"{where}: missing columns {missing}. It has {table.column_names}.")
    if not table.num_rows:
        raise ReportError(f"{where}: no rows.")
    found: dict[str, np.ndarray] = {}
    for name in needed:
        if name not in table.column_names:
            found[name] = np.full(table.num_rows, np.nan)
            continue
        values = table.column(name).to_pylist()
        if name in ("model", "vertical"):
            found[name] = np.array(values, object)
        elif name in _WHOLE:
            found[name] = np.array(values, np.int64)
        else:
            found[name] = np.array([np.nan if v is None else v for v in values], np.float64)
    keys = list(zip(*(found[name].tolist() for name in (*KEYS, *further))))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ReportError(f"{where}: two rows for {dict(zip((*KEYS, *further), twice))}.")
    return found


def _read(file: Path) -> pa.Table:
    if not file.is_file():
        raise ReportError(f"{file}: no results there. `keras-exfm run` writes them at its end.")
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ReportError(f"{file}: cannot read the Parquet file: {error}") from error
