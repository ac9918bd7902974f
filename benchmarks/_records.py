"""What the benchmarks share in writing their records."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all: a record that is there is a run that is finished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(file)


def recorded(file: Path, make: Callable[[], Any]) -> Any:
    """The record in `file`, made and written if it is not there."""
    if not file.exists():
        write_json(file, make())
    return json.loads(file.read_text())


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of the same columns; numbers to six digits after the point."""
    with file.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})


def spread(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Mean ± standard deviation."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def data_of(info: Any) -> dict[str, Any]:
    """What a record says of a prepared data set, a `DatasetInfo`."""
    return {
        "description": info.description,
        "source": info.source,
        "parameters": info.parameters,
        "statistics": info.statistics,
    }
