"""The Globo.com news clicks as an impression stream with sampled negatives.

The log holds clicks only. Each click becomes a group of one positive and some negatives drawn
from what all users clicked in the hour before, so a negative is "not clicked then", not "shown
and skipped"; say so with every result.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa

from keras_exfm.datasets._globo_clicks import (
    COLUMNS,
    CONTEXT,
    Clicks,
    digest,
    files_of,
    read_clicks,
)
from keras_exfm.datasets._hashing import hash_of, u01
from keras_exfm.datasets._writing import DatasetWriter, Progress, Silent
from keras_exfm.features import PADDING, Categorical, Feature, MultiHot, Schema
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError
from keras_exfm.streaming.partitions import DatasetInfo, hours

__all__ = ["COLUMNS", "START", "prepare"]

START = 1_506_826_800_000
"""2017-10-01 03:00 UTC, midnight in Brasilia: where day 1 begins."""

HISTORY = 20
ROUNDS = 64
"""Draws of one negative before its group is given up."""

_USER_SEED = 12_345
_AGES, _COUNTS, _PASTS = 24, 28, 16
_DAY = 24 * MS_PER_HOUR


def prepare(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    user_fraction: float = 0.15,
    days: tuple[int, int] = (1, 10),
    negatives: int = 4,
    seed: int = 17,
    share_article_table: bool = False,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Writes the impressions and label events of the Globo.com clicks.

    A user takes part if a hash of the id falls below `user_fraction`, so smaller shares are subsets
    of larger ones. A click at time `t` is a group if it is not in the stream's first hour, if other
    users clicked its article in `[t - 1 h, t)` (else "no clicks" would mark the positives) and
    if it is not among the user's last 20 clicks. Its negatives are the articles of clicks
    that a hash picks from all traffic in `[t - 1 h, t)`, so popular articles come often and
    popularity is nearly divided out; clicks of the same user, the positive's article, repeats and
    the user's last 20 clicks are drawn again. Histories and counts are those just before `t`. Rows
    of a group share `group` and `timestamp` and are in the order of a hash.

    `vertical` is the device group, `"device1"` to `"device5"`. A repeated call completes what a
    stopped one left, and does nothing when all is there.

    Args:
        path: Parquet or CSV file of the clicks, or a folder with `clicks*.parquet` or
            `clicks_hour_*.csv`.
        out: Folder for `impressions/`, `labels/` and `dataset.json`.
        user_fraction: Share of the users whose clicks become groups. Counts, negatives and ages
            come from all users in any case. Defaults to `0.15`.
        days: First and last day, both included, counted from 1 (2017-10-01 in Brasilia). Earlier
            days still fill histories. Defaults to `(1, 10)`.
        negatives: Negatives per click. Defaults to `4`.
        seed: Seed of the negatives. Defaults to `17`.
        share_article_table: Let `last_article` and `history` read the table of `article`.
            Defaults to `False`: a table each.
        progress: Told how many hours are done. Defaults to `None`: silent.

    Returns:
        The content of `dataset.json`.

    Raises:
        StreamError: For a file that is missing, cannot be read, lacks a column, holds a bad value
            or ends before `days`; or if `out` holds other data.

    Example:

    >>> import pyarrow.parquet as pq
    >>> clicks = {name: [1] * 60 for name in COLUMNS}
    >>> clicks["user_id"] = list(range(60))
    >>> clicks["click_article_id"] = [7, 8] * 30
    >>> clicks["click_timestamp"] = [START + 3_600_000 + 1_000 * i for i in range(60)]
    >>> pq.write_table(pa.table(clicks), "clicks.parquet")
    >>> info = prepare("clicks.parquet", "globo", user_fraction=1.0, days=(1, 1), negatives=1)
    >>> info.statistics["clicks"], info.statistics["left_out_without_support"]
    (60, 2)

    Source of the log: G. de Souza Pereira Moreira et al., "News Session-Based Recommendations
    using Deep Neural Networks" (2018). The impressions are this project's protocol.
    """
    _check(user_fraction, days, negatives)
    progress = progress or Silent()
    files = files_of(path)
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    parameters: dict[str, Any] = {
        "user_fraction": user_fraction,
        "days": list(days),
        "negatives": negatives,
        "seed": seed,
        "share_article_table": share_article_table,
    }
    source = {"file": name, "sha256": digest(files)}
    writer = DatasetWriter(out, "globo", parameters, source)
    if writer.finished is not None:
        return writer.finished
    clicks = read_clicks(files, START, START + days[1] * _DAY)
    if clicks.time[-1] < START + (days[1] - 1) * _DAY:
        last = int((clicks.time[-1] - START) // _DAY) + 1
        raise StreamError(f"{files[-1]}: the clicks end on day {last}. Received: days={days}")
    log = _Log(clicks, user_fraction)
    groups, statistics = log.groups(START + (days[0] - 1) * _DAY)
    of_hour = clicks.time[groups] // MS_PER_HOUR
    wanted = np.unique(of_hour).tolist()
    progress.begin("Globo impressions", len(wanted))
    for index, hour in enumerate(wanted):
        if not writer.has(hour):
            rows = groups[of_hour == hour]
            writer.put(hour, *_hour(log, rows, negatives, seed))
        progress.step(index + 1)
    written = hours(out)
    if not written:
        raise StreamError(f"{name}: no click of days {days} makes a group: {statistics}")
    return writer.finish(
        DatasetInfo(
            name="globo",
            description=(
                f"Globo.com news clicks, days {days[0]}-{days[1]} from 2017-10-01, "
                f"{user_fraction:.0%} of the users. Each click with {negatives} negatives sampled "
                "from all traffic of the hour before: a negative is an article that was not "
                "clicked then, not one that was shown."
            ),
            schema=_schema(log, share_article_table),
            first_hour=written[0],
            last_hour=written[-1],
            label_window_hours=0,
            verticals=tuple(f"device{i}" for i in range(1, CONTEXT["click_deviceGroup"][1])),
            parameters=parameters,
            source=source,
            statistics={**statistics, "hours": len(written)},
        )
    )


class _Log:
    """The clicks with the indexes that answer "how many, before t"."""

    def __init__(self, clicks: Clicks, user_fraction: float) -> None:
        self.clicks = clicks
        self.t = clicks.time - START
        self.span = int(self.t[-1]) + 1
        self.articles = len(clicks.article_id)
        # Article and time in one number: one binary search counts clicks before a time.
        self._by_article = np.sort(clicks.article * self.span + self.t)

        users, first, self.user_of = np.unique(
            clicks.user_id, return_index=True, return_inverse=True
        )
        kept = u01(hash_of(users, _USER_SEED)) < user_fraction
        self.kept = np.flatnonzero(kept[self.user_of])
        # Numbered by first click, as articles are.
        self.number = np.full(len(users), -1, np.int64)
        kept_users = np.flatnonzero(kept)
        self.number[kept_users[np.argsort(first[kept_users])]] = np.arange(len(kept_users))
        self.users = len(kept_users)

        user, t = self.number[self.user_of[self.kept]], self.t[self.kept]
        article = clicks.article[self.kept]
        order = np.lexsort((t, user))
        self._user_article = article[order].astype(np.int32)
        self._by_user = user[order] * self.span + t[order]
        pair = user * self.articles + article
        self._pairs, number = np.unique(pair, return_inverse=True)
        self._by_pair = np.sort(number * self.span + t)

    def groups(self, start: int) -> tuple[np.ndarray, dict[str, float]]:
        """Rows of the clicks from `start` (ms) on that become groups, and what was left out."""
        rows = self.kept[self.clicks.time[self.kept] >= start]
        supported = np.empty(len(rows), bool)
        read = np.empty(len(rows), bool)
        for begin in range(0, len(rows), 100_000):
            part = slice(begin, begin + 100_000)
            user, article = self.number[self.user_of[rows[part]]], self.clicks.article[rows[part]]
            supported[part] = self.clicks_of_others(user, article, self.t[rows[part]]) > 0
            history, _ = self.history(user, self.t[rows[part]])
            read[part] = (history == article[:, None]).any(1)
        late = self.t[rows] >= MS_PER_HOUR
        statistics: dict[str, float] = {
            "clicks_of_all_users": len(self.t),
            "articles": self.articles,
            "users": self.users,
            "clicks": len(rows),
            "left_out_first_hour": int((~late).sum()),
            "left_out_without_support": int((late & ~supported).sum()),
            "left_out_already_read": int((late & supported & read).sum()),
        }
        return rows[late & supported & ~read], statistics

    def history(self, user: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Articles of a user's last clicks before `t`, newest first, and how many there were."""
        begin = np.searchsorted(self._by_user, user * self.span)
        end = np.searchsorted(self._by_user, user * self.span + t)
        at = end[:, None] - 1 - np.arange(HISTORY)
        known = at >= begin[:, None]
        return np.where(known, self._user_article[np.maximum(at, 0)], PADDING), end - begin

    def clicks_of_others(self, user: np.ndarray, article: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Clicks of an article in the hour before `t` by other users."""
        everyone = _count(self._by_article, article * self.span, t)
        pair = user * self.articles + article
        at = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        own = _count(self._by_pair, at * self.span, t)
        return everyone - np.where(self._pairs[at] == pair, own, 0)


def _count(keys: np.ndarray, base: np.ndarray, t: np.ndarray) -> np.ndarray:
    since = np.maximum(t - MS_PER_HOUR, 0)
    return np.searchsorted(keys, base + t) - np.searchsorted(keys, base + since)


def _draw(
    log: _Log, rows: np.ndarray, history: np.ndarray, negatives: int, seed: int
) -> np.ndarray:
    """Articles of the negatives, `(groups, negatives)`; -1 where `ROUNDS` draws did not do."""
    clicks, t = log.clicks, log.t
    low = np.searchsorted(t, t[rows] - MS_PER_HOUR)
    width = np.searchsorted(t, t[rows]) - low
    drawn = np.full((len(rows), negatives), PADDING, np.int64)
    for k in range(negatives):
        open_ = np.arange(len(rows))
        for round_ in range(ROUNDS):
            # The row in the whole log, not among the kept: a subset of users draws the same.
            share = u01(hash_of(seed, rows[open_], k, round_))
            pick = low[open_] + np.floor(share * width[open_]).astype(np.int64)
            article = clicks.article[pick]
            refused = (
                (log.user_of[pick] == log.user_of[rows[open_]])
                | (article == clicks.article[rows[open_]])
                | (article[:, None] == drawn[open_, :k]).any(1)
                | (article[:, None] == history[open_]).any(1)
            )
            drawn[open_[~refused], k] = article[~refused]
            open_ = open_[refused]
            if not len(open_):
                break
    return drawn


def _hour(log: _Log, rows: np.ndarray, negatives: int, seed: int) -> tuple[pa.Table, pa.Table]:
    clicks = log.clicks
    history, past = log.history(log.number[log.user_of[rows]], log.t[rows])
    drawn = _draw(log, rows, history, negatives, seed)
    full = (drawn >= 0).all(1)
    rows, history, past, drawn = rows[full], history[full], past[full], drawn[full]
    each = negatives + 1
    candidates = np.concatenate([clicks.article[rows][:, None], drawn], 1)
    order = np.argsort(hash_of(seed, rows[:, None], np.arange(each), ROUNDS), 1, kind="stable")
    article = np.take_along_axis(candidates, order, 1).ravel()
    positive = (order == 0).ravel()

    def spread(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, each, 0)

    user = spread(log.number[log.user_of[rows]])
    t = spread(log.t[rows])
    time = spread(clicks.time[rows])
    example = (rows[:, None] * each + np.arange(each)).ravel()
    minutes = (time - clicks.first_click[article]) / 60_000
    others = log.clicks_of_others(user, article, t)
    features = {
        "user": user,
        "article": article,
        **{name: spread(column[rows]) for name, column in clicks.context.items()},
        "hour_of_day": t // MS_PER_HOUR % 24,
        "past_clicks": np.minimum(np.floor(np.log2(spread(past) + 1)), _PASTS - 1),
        "article_age": np.minimum(np.floor(1.5 * np.log2(minutes + 1)), _AGES - 1),
        "clicks_last_hour": np.minimum(np.floor(2 * np.log2(others)), _COUNTS - 1),
        "last_article": spread(history[:, 0]),
    }
    listed = spread(history)
    known = listed >= 0
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))]).astype(np.int32)
    device = spread(clicks.context["device"][rows])
    impressions = pa.table(
        {
            "example_id": example,
            "timestamp": time,
            "vertical": np.char.add("device", device.astype(str)),
            "group": spread(rows),
            **{name: column.astype(np.int32) for name, column in features.items()},
            "history": pa.ListArray.from_arrays(offsets, pa.array(listed[known], pa.int32())),
        }
    )
    labels = pa.table(
        {
            "example_id": example[positive],
            "timestamp": time[positive],
            "label": np.ones(int(positive.sum()), np.float32),
        }
    )
    return impressions, labels


def _schema(log: _Log, share_article_table: bool) -> Schema:
    table = "article" if share_article_table else None
    features: list[Feature] = [
        Categorical("user", log.users),
        Categorical("article", log.articles),
        *(Categorical(name, size) for name, size in CONTEXT.values()),
        Categorical("hour_of_day", 24),
        Categorical("past_clicks", _PASTS),
        Categorical("article_age", _AGES),
        Categorical("clicks_last_hour", _COUNTS),
        Categorical("last_article", log.articles, table=table),
        MultiHot("history", log.articles, length=HISTORY, table=table),
    ]
    return Schema(features)


def _check(user_fraction: float, days: tuple[int, int], negatives: int) -> None:
    if not 0 < user_fraction <= 1:
        raise ValueError(
            f"`user_fraction` should be in (0, 1]. Received: user_fraction={user_fraction!r}"
        )
    if len(days) != 2 or not 1 <= days[0] <= days[1] <= 60:
        raise ValueError(f"`days` should be (first, last), counted from 1. Received: days={days!r}")
    if not isinstance(negatives, int) or negatives < 1:
        raise ValueError(
            f"`negatives` should be an integer of at least 1. Received: negatives={negatives!r}"
        )
