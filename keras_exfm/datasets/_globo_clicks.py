"""Globo's click log in memory: checked, in time order, with the look-ups that features need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm.datasets._hashing import hash64, uniform
from keras_exfm.features import PADDING

EPOCH_MS = 1_506_826_800_000
"""2017-10-01 03:00 UTC, midnight in Brasilia: the first hour of day 1."""
MS_PER_DAY = 24 * 3_600_000
USER_SALT = 12_345
HISTORY_LENGTH = 20
CONTEXT = {
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}
"""Feature -> the log's column with its code."""
COLUMNS = ("user_id", "click_article_id", "click_timestamp", *CONTEXT.values())
_LARGEST_CODE = 9_999

_NOT_SHIPPED = (
    "The Globo.com click log is not shipped with keras_exfm: its terms allow research use only. "
    "`path` should be your own Parquet file with the columns "
    f"{list(COLUMNS)}, or a folder that holds `clicks_until_*.parquet`."
)


def find_file(path: Path) -> Path:
    """The click log that `path` means: itself, or the newest `clicks_until_*.parquet` in it."""
    if path.is_file():
        return path
    # Each file holds all clicks until its date, so the last by name has the most.
    found = sorted(path.rglob("clicks_until_*.parquet"), key=lambda f: (f.name, str(f)))
    if not found:
        what = "a folder without such a file" if path.is_dir() else "no file or folder"
        raise ValueError(f"{_NOT_SHIPPED} Received: path={str(path)!r} ({what})")
    return found[-1]


class ClickLog:
    """All users' clicks until `end_ms`, in time order.

    Users are numbered by the rank of the hash that decides who is kept, so the kept users of a
    small fraction are the first users of a larger one. Articles are numbered by their first
    click, so later clicks change no number.
    """

    def __init__(self, file: Path, user_fraction: float, end_ms: int) -> None:
        log = _read(file)
        keep = log["click_timestamp"] < end_ms
        order = np.argsort(log["click_timestamp"][keep], kind="stable")
        log = {name: column[keep][order] for name, column in log.items()}
        self.time = log["click_timestamp"]
        """Clicks' times in ms, ascending."""
        if not len(self.time):
            raise ValueError(f"{file}: expected clicks before {end_ms} ms. Received none.")

        users, user = np.unique(log["user_id"], return_inverse=True)
        ranked = np.argsort(hash64(users, USER_SALT), kind="stable")
        self.user = np.argsort(ranked)[user]
        self.kept_users = int((uniform(users, USER_SALT) < user_fraction).sum())
        self.kept = self.user < self.kept_users
        """Whether a click's user belongs to the fraction."""

        _, first, article = np.unique(
            log["click_article_id"], return_index=True, return_inverse=True
        )
        self.article = np.argsort(np.argsort(first))[article]
        self.first_click = self.time[np.sort(first)]
        """Time of each article's first click."""
        self.articles = len(first)

        self.context = {name: log[column].astype(np.int32) for name, column in CONTEXT.items()}
        self._start = self.time[0]
        self._span = int(self.time[-1] - self._start) + 1
        self._by_article = _Counts(self.article, self.time - self._start, self._span)
        self._by_reader = _Counts(
            self.user * self.articles + self.article, self.time - self._start, self._span
        )
        self._by_user = np.lexsort((self.time, self.user))
        self._user_sorted = self.user[self._by_user]
        self._user_time = self._user_sorted * self._span + (self.time[self._by_user] - self._start)

    def rows_between(self, first_ms: np.ndarray, end_ms: np.ndarray) -> tuple[np.ndarray, ...]:
        """First row and end row of the clicks in `[first_ms, end_ms)`."""
        return np.searchsorted(self.time, first_ms), np.searchsorted(self.time, end_ms)

    def clicks_by_others(
        self, user: np.ndarray, article: np.ndarray, first_ms: np.ndarray, end_ms: np.ndarray
    ) -> np.ndarray:
        """Clicks on `article` in `[first_ms, end_ms)` by anyone but `user`."""
        window = (first_ms - self._start, end_ms - self._start)
        return self._by_article(article, *window) - self._by_reader(
            user * self.articles + article, *window
        )

    def history(self, user: np.ndarray, end_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count of the user's clicks strictly before `end_ms`; the last articles, newest first.

        Returns:
            `(rows,)` counts and `(rows, HISTORY_LENGTH)` articles padded with -1.
        """
        start = np.searchsorted(self._user_sorted, user)
        end = np.searchsorted(self._user_time, user * self._span + (end_ms - self._start))
        at = end[:, None] - 1 - np.arange(HISTORY_LENGTH)
        there = at >= start[:, None]
        articles = self.article[self._by_user[np.where(there, at, 0)]]
        return end - start, np.where(there, articles, PADDING)


class _Counts:
    """Counts a key's events in a time window, by two binary searches."""

    def __init__(self, keys: np.ndarray, times: np.ndarray, span: int) -> None:
        self.keys, codes = np.unique(keys, return_inverse=True)
        self.span = span
        self.events = np.sort(codes * span + times)

    def __call__(self, keys: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        codes = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        # A window may reach back before the log; codes must not run into their neighbour's times.
        first, end = (np.clip(time, 0, self.span) for time in (first, end))
        low = np.searchsorted(self.events, codes * self.span + first)
        high = np.searchsorted(self.events, codes * self.span + end)
        return np.where(self.keys[codes] == keys, high - low, 0)


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: expected a Parquet file: {error}. {_NOT_SHIPPED}") from error
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise ValueError(
            f"{file}: missing columns {missing}. Received columns: {schema.names}. {_NOT_SHIPPED}"
        )
    wrong = {
        name: str(schema.field(name).type)
        for name in COLUMNS
        if not pa.types.is_integer(schema.field(name).type)
    }
    if wrong:
        raise ValueError(
            f"{file}: expected integer columns (times in ms since the Unix epoch). "
            f"Received: {wrong}. {_NOT_SHIPPED}"
        )
    table = pq.read_table(file, columns=list(COLUMNS), partitioning=None)
    log = {}
    for name in COLUMNS:
        column = table.column(name)
        if column.null_count:
            raise ValueError(
                f"{file}: column {name!r}: expected a value in every row. "
                f"Received {column.null_count} nulls."
            )
        log[name] = column.to_numpy().astype(np.int64)
        if name in CONTEXT.values():
            bad = log[name][(log[name] < 0) | (log[name] > _LARGEST_CODE)]
            if len(bad):
                raise ValueError(
                    f"{file}: column {name!r}: expected codes in 0..{_LARGEST_CODE}. "
                    f"Received {bad[0]} ({len(bad)} such rows)."
                )
    return log
