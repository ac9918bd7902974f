"""Impression groups of Globo's clicks: rules, negatives and features of one hour's clicks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from keras_exfm.datasets._globo_clicks import CONTEXT, EPOCH_MS, HISTORY_LENGTH, ClickLog
from keras_exfm.datasets._hashing import scramble, uniform
from keras_exfm.features import PADDING, Categorical, Feature, MultiHot, Schema
from keras_exfm.streaming.columns import MS_PER_HOUR

NEGATIVE_SEED = 17
MOST_NEGATIVES = 255
ROUNDS = 64
"""Draws per negative before its group is given up."""
DROPS = ("first_hour", "no_support", "already_read", "no_negative")
"""Why a click makes no group, in the order of the rules."""

_PAST_BUCKETS = 16
_AGE_BUCKETS = 24
_COUNT_BUCKETS = 28


def schema_of(log: ClickLog) -> Schema:
    """The features of `hour_groups`' rows."""
    features: list[Feature] = [
        Categorical("user", log.kept_users),
        Categorical("article", log.articles),
        *(Categorical(name, int(log.context[name].max()) + 1) for name in CONTEXT),
        Categorical("hour_of_day", 24),
        Categorical("past_clicks", _PAST_BUCKETS),
        Categorical("article_age", _AGE_BUCKETS),
        Categorical("clicks_last_hour", _COUNT_BUCKETS),
        Categorical("last_article", log.articles, table="article"),
        MultiHot("history", log.articles, HISTORY_LENGTH, combiner="mean"),
    ]
    return Schema(features)


@dataclasses.dataclass(frozen=True)
class Groups:
    """One hour's rows, both tables sorted by time and example id."""

    impressions: pa.Table
    labels: pa.Table
    dropped: dict[str, int]


def hour_groups(log: ClickLog, rows: np.ndarray, negatives: int) -> Groups:
    """Turns the clicks `rows` into groups of one positive and `negatives` sampled articles."""
    dropped = {}

    def drop(reason: str, bad: np.ndarray) -> np.ndarray:
        dropped[reason] = int(bad.sum())
        return ~bad

    rows = rows[drop("first_hour", log.time[rows] < EPOCH_MS + MS_PER_HOUR)]
    user, article, time = log.user[rows], log.article[rows], log.time[rows]
    past, history = log.history(user, time)
    others = log.clicks_by_others(user, article, time - MS_PER_HOUR, time)
    # Negatives have at least one such click, so a positive without any would give itself away.
    supported = drop("no_support", others == 0)
    read = (history == article[:, None]).any(axis=1)
    keep = supported & drop("already_read", supported & read)
    rows, past, history = rows[keep], past[keep], history[keep]

    drawn = _draw(log, rows, history, negatives)
    keep = drop("no_negative", (drawn == PADDING).any(axis=1))
    rows, past, history, drawn = rows[keep], past[keep], history[keep], drawn[keep]
    return Groups(*_tables(log, rows, past, history, drawn), dropped)


def _draw(log: ClickLog, rows: np.ndarray, history: np.ndarray, negatives: int) -> np.ndarray:
    """Articles of random clicks in the hour before: `P(article)` follows its clicks.

    Returns:
        `(rows, negatives)` articles, -1 where no round gave one.
    """
    low, high = log.rows_between(log.time[rows] - MS_PER_HOUR, log.time[rows])
    user, article = log.user[rows], log.article[rows]
    drawn = np.full((len(rows), negatives), PADDING, np.int64)
    for k in range(negatives):
        open_ = np.arange(len(rows))
        for round_ in range(ROUNDS):
            share = uniform(NEGATIVE_SEED, rows[open_], k, round_)
            click = low[open_] + (share * (high[open_] - low[open_])).astype(np.int64)
            candidate = log.article[click]
            refused = (
                (log.user[click] == user[open_])
                | (candidate == article[open_])
                | (drawn[open_, :k] == candidate[:, None]).any(axis=1)
                | (history[open_] == candidate[:, None]).any(axis=1)
            )
            drawn[open_[~refused], k] = candidate[~refused]
            open_ = open_[refused]
            if not len(open_):
                break
    return drawn


def _tables(
    log: ClickLog, rows: np.ndarray, past: np.ndarray, history: np.ndarray, drawn: np.ndarray
) -> tuple[pa.Table, pa.Table]:
    size = 1 + drawn.shape[1]
    article = np.concatenate([log.article[rows][:, None], drawn], axis=1).ravel()
    row = np.repeat(rows, size)
    slot = np.tile(np.arange(size), len(rows))
    # By click and slot alone, so that neither other users nor other hours change it; scrambled,
    # because rows are stored in its order and the positive is slot 0.
    example_id = scramble(row * (MOST_NEGATIVES + 1) + slot)
    order = np.lexsort((example_id, log.time[row]))
    row, slot, article, example_id = (x[order] for x in (row, slot, article, example_id))
    group = np.repeat(np.arange(len(rows)), size)[order]
    user, time = log.user[row], log.time[row]

    age_hours = (time - log.first_click[article]) / MS_PER_HOUR
    others = log.clicks_by_others(user, article, time - MS_PER_HOUR, time)
    features = {
        "user": user,
        "article": article,
        **{name: log.context[name][row] for name in CONTEXT},
        "hour_of_day": (time - EPOCH_MS) // MS_PER_HOUR % 24,
        "past_clicks": _bucket(np.log2(past[group] + 1), _PAST_BUCKETS),
        "article_age": _bucket(1.5 * np.log2(60 * age_hours + 1), _AGE_BUCKETS),
        "clicks_last_hour": _bucket(2 * np.log2(others), _COUNT_BUCKETS),
        "last_article": history[group, 0],
    }
    read = history[group]
    ends = np.concatenate([[0], np.cumsum((read != PADDING).sum(axis=1))]).astype(np.int32)
    columns = {
        "example_id": pa.array(example_id),
        "timestamp": pa.array(time),
        "vertical": pa.array(np.char.add("device", features["device"].astype(str)), pa.string()),
        "group": pa.array(row),
        **{name: pa.array(value.astype(np.int32)) for name, value in features.items()},
        "history": pa.ListArray.from_arrays(
            pa.array(ends), pa.array(read[read != PADDING].astype(np.int32))
        ),
    }
    clicked = slot == 0
    labels = {
        "example_id": pa.array(example_id[clicked]),
        "timestamp": pa.array(time[clicked]),
        "label": pa.array(np.ones(int(clicked.sum()), np.float32)),
    }
    return pa.table(columns), pa.table(labels)


def _bucket(values: np.ndarray, buckets: int) -> np.ndarray:
    return np.minimum(np.floor(values), buckets - 1).astype(np.int64)
