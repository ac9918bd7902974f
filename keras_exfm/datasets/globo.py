"""Globo.com news clicks as an impression stream with sampled negatives."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_exfm.datasets._globo_clicks import (
    COLUMNS,
    EPOCH_MS,
    HISTORY_LENGTH,
    MS_PER_DAY,
    USER_SALT,
    ClickLog,
    find_file,
)
from keras_exfm.datasets._globo_groups import (
    DROPS,
    MOST_NEGATIVES,
    NEGATIVE_SEED,
    ROUNDS,
    hour_groups,
    schema_of,
)
from keras_exfm.streaming import partitions
from keras_exfm.streaming.columns import MS_PER_HOUR

__all__ = ["COLUMNS", "EPOCH_MS", "Progress", "prepare"]

DESCRIPTION_FILE = "dataset.json"
_PROTOCOL = 1
_DESCRIPTION = (
    "Globo.com news clicks (2017). The log holds clicks only: each click is one positive, and "
    "{negatives} negatives per click are sampled from the articles that other users clicked in "
    "the hour before, in proportion to those clicks. A negative was not necessarily shown."
)


class Progress(Protocol):
    """What `prepare` reports to."""

    def begin(self, label: str, total: int) -> None:
        """A task of `total` steps starts."""

    def step(self, done: int, note: str = "") -> None:
        """`done` steps of the task are finished."""


def prepare(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    user_fraction: float = 0.15,
    first_day: int = 1,
    last_day: int = 10,
    negatives: int = 4,
    progress: Progress | None = None,
) -> Path:
    """Writes impressions and label events of Globo.com's click log.

    One click of a kept user is one impression group: the clicked article (label 1) and
    `negatives` others with the same user, context and time, so the base rate is exactly
    `1 / (1 + negatives)`. **Negatives are synthetic**: articles of clicks that other users made
    in the hour before, `P(article)` in proportion to those clicks, none twice in a group. No group
    holds an article of the user's last 20 clicks, and a click on an article that nobody else
    clicked in the hour before makes no group: both would give the label away. The log's first
    hour makes none either.

    All features are of the moment: they count clicks strictly before the impression, also those
    of the same hour and of users who are not kept.

    | feature | value |
    |---|---|
    | `user` | rank of the user's hash: a small fraction's users are the first of a larger one's |
    | `article` | number in order of first click |
    | `environment`, `device`, `os`, `country`, `region`, `referrer` | the log's codes |
    | `hour_of_day` | hour of the day in Brasilia |
    | `past_clicks` | `floor(log2(n + 1))` of the user's `n` earlier clicks, at most 15 |
    | `article_age` | `floor(1.5 log2(minutes since the first click + 1))`, at most 23 |
    | `clicks_last_hour` | `floor(2 log2 n)` of other users' `n` clicks on it, at most 27 |
    | `last_article` | the article the user clicked last, -1 for none; shares `article`'s table |
    | `history` | the last 20 articles, newest first; a table of its own |

    `vertical` is `"device<code>"`, `group` the click's place in the log. The label event carries
    the impression's time. Rows are in order of `(timestamp, example_id)`, and `example_id` is a
    hash, so a group's order says nothing about the label. Hours without a group have no folder.

    Args:
        path: Parquet file of the clicks (time in ms since the Unix epoch), or a folder with
            `clicks_until_*.parquet` at any depth, of which the last by name is read. The data are
            not shipped.
        out: Folder to write to. `dataset.json` is written last and marks a complete data set: the
            same source and arguments again reuse it, others replace it.
        user_fraction: Fraction of users whose clicks become impressions, chosen by hash. A larger
            fraction holds the same groups and more. Defaults to `0.15`.
        first_day: First day of impressions; day 1 is 2017-10-01 in Brasilia (from 03:00 UTC).
            Earlier clicks still count in features. Defaults to `1`.
        last_day: Last day of impressions; later clicks are not looked at. Defaults to `10`.
        negatives: Negatives per click. Defaults to `4`.
        progress: Object with `begin(label, total)` and `step(done, note="")`. Defaults to `None`.

    Returns:
        `out` as a path.

    Raises:
        ValueError: For arguments out of range, a missing file, columns that are missing or of
            the wrong type, and if no click falls in the days or no group is left.

    Example:

    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from keras_exfm.datasets import globo
    >>> columns = {name: [1] * 60 for name in globo.COLUMNS}
    >>> columns["user_id"] = list(range(60))
    >>> columns["click_article_id"] = [7, 8] * 30
    >>> columns["click_timestamp"] = [1_506_830_400_000 + 1_000 * i for i in range(60)]
    >>> pq.write_table(pa.table(columns), "clicks_until_2017-10-02.parquet")
    >>> out = globo.prepare(".", "globo", user_fraction=1.0, negatives=1)
    >>> rows = pq.read_table(out / "impressions" / "hour=418564" / "part-0.parquet")
    >>> rows.num_rows, rows.column("article").to_pylist()[:2]
    (116, [1, 0])

    Source: G. de Souza Pereira Moreira et al., "News Session-Based Recommendations using Deep
    Neural Networks" (2018), for the log; the impressions are this project's protocol.
    """
    parameters = _check(user_fraction, first_day, last_day, negatives)
    file = find_file(Path(path))
    with file.open("rb") as stream:
        source = {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    out = Path(out)
    marker = out / DESCRIPTION_FILE
    if _is_complete(marker, source, parameters):
        return out
    marker.unlink(missing_ok=True)
    for kind in (partitions.IMPRESSIONS, partitions.LABELS):
        for folder in (out / kind).glob("hour=*"):
            shutil.rmtree(folder)

    start_ms, end_ms = (EPOCH_MS + day * MS_PER_DAY for day in (first_day - 1, last_day))
    log = ClickLog(file, float(user_fraction), end_ms)
    rows = np.flatnonzero(log.kept & (log.time >= start_ms))
    if not len(rows):
        raise ValueError(
            f"{file}: expected clicks of the kept users in days {first_day}..{last_day} "
            f"({start_ms}..{end_ms - 1} ms). Received {len(log.time)} clicks of "
            f"{log.kept_users} kept users in {log.time[0]}..{log.time[-1]} ms."
        )
    first_hour = start_ms // MS_PER_HOUR
    last_hour = int(log.time[-1]) // MS_PER_HOUR
    counts: Counter[str] = Counter()
    if progress is not None:
        progress.begin("Globo impressions", last_hour - first_hour + 1)
    ends = np.searchsorted(
        log.time[rows], np.arange(first_hour, last_hour + 2) * MS_PER_HOUR, side="left"
    )
    for index, hour in enumerate(range(first_hour, last_hour + 1)):
        groups = hour_groups(log, rows[ends[index] : ends[index + 1]], negatives)
        if groups.impressions.num_rows:
            partitions.write_impressions(out, hour, groups.impressions)
            partitions.write_labels(out, hour, groups.labels)
        counts.update(groups.dropped)
        counts["groups"] += groups.labels.num_rows
        if progress is not None:
            progress.step(index + 1, f"{counts['groups']:,} groups")
    if not counts["groups"]:
        raise ValueError(
            f"{file}: expected at least one impression group. "
            f"{len(rows)} clicks of kept users were dropped: {dict(counts)}"
        )
    description = {
        "name": "globo",
        "description": _DESCRIPTION.format(negatives=negatives),
        "schema": schema_of(log).to_dict(),
        "first_hour": first_hour,
        "last_hour": last_hour,
        "label_window_hours": 0,
        "source": source,
        "parameters": parameters,
        "counts": {
            "users": log.kept_users,
            "clicks": len(rows),
            **{f"dropped_{reason}": counts[reason] for reason in DROPS},
            "groups": counts["groups"],
        },
    }
    unfinished = marker.with_name(f".{marker.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(description, indent=1) + "\n")
    os.replace(unfinished, marker)
    return out


def _check(user_fraction: Any, first_day: Any, last_day: Any, negatives: Any) -> dict[str, Any]:
    real = isinstance(user_fraction, numbers.Real) and not isinstance(user_fraction, bool)
    if not (real and math.isfinite(user_fraction) and 0 < user_fraction <= 1):
        raise ValueError(
            "`user_fraction` should be a number above 0 and at most 1. "
            f"Received: user_fraction={user_fraction!r}"
        )
    for name, value, most in (
        ("first_day", first_day, None),
        ("last_day", last_day, None),
        ("negatives", negatives, MOST_NEGATIVES),
    ):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < 1 or (most is not None and value > most):
            wanted = "of at least 1" if most is None else f"from 1 to {most}"
            raise ValueError(f"`{name}` should be an integer {wanted}. Received: {name}={value!r}")
    if last_day < first_day:
        raise ValueError(
            "`last_day` should not be before `first_day`. "
            f"Received: first_day={first_day}, last_day={last_day}"
        )
    return {
        "user_fraction": float(user_fraction),
        "first_day": int(first_day),
        "last_day": int(last_day),
        "negatives": int(negatives),
        "protocol": _PROTOCOL,
        "user_salt": USER_SALT,
        "negative_seed": NEGATIVE_SEED,
        "rounds": ROUNDS,
        "window_hours": 1,
        "history_length": HISTORY_LENGTH,
    }


def _is_complete(marker: Path, source: dict[str, str], parameters: dict[str, Any]) -> bool:
    try:
        description = json.loads(marker.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(description, dict):
        return False
    return description.get("source") == source and description.get("parameters") == parameters
