"""Globo's impression protocol, restated row by row in plain Python."""

import bisect
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keras_exfm.datasets import globo
from keras_exfm.datasets._globo_clicks import COLUMNS
from keras_exfm.streaming import partitions
from keras_exfm.streaming.columns import prepare_hour
from keras_exfm.streaming.partitions import DatasetInfo

pytestmark = pytest.mark.backend_free

HOUR = 3_600_000
DAY = 24 * HOUR
CONTEXT = {
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}


def click_log(seed=0, clicks=900, users=60, articles=60, first_user=0, first_article=0, start=0):
    """Clicks of ten hours before a day's end and one after it: bursts, ties, popular articles.

    Times are in steps of 20 s so that clicks share them.
    """
    random = np.random.default_rng(seed)
    popularity = random.pareto(2.0, articles) + 0.05
    hours = random.choice([14, 15, 16, 20, 22, 23, 24, 25], clicks)
    time = hours * HOUR + random.integers(0, 180, clicks) * 20_000
    time[:40] = random.integers(0, 180, 40) * 20_000  # the log's first hour
    heavy = random.random(clicks) < 0.2
    user = np.where(heavy, random.integers(0, 3, clicks), random.integers(0, users, clicks))
    columns = {
        "user_id": 1000 * user + 7 + first_user,
        "click_article_id": 11 * random.choice(articles, clicks, p=popularity / popularity.sum())
        + first_article,
        "click_timestamp": globo.START + start + np.sort(time),
    }
    for column in CONTEXT.values():
        columns[column] = random.integers(1, 4, clicks).astype(np.int32)
    return columns


def concatenate(*logs):
    return {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}


def write(folder, columns, name="clicks_until_2017-10-03.parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def prepare(log, folder, name="out", **options):
    """The folder of the data set of `log`: all users and three negatives unless said."""
    options = {"user_fraction": 1.0, "negatives": 3, "days": (1, 2), **options}
    globo.prepare(write(folder, log), folder / name, **options)
    return folder / name


def rows_of(out):
    """All impressions in stored order as dicts, with their label."""
    labels = set()
    for hour in partitions.hours(out, partitions.LABELS):
        labels |= set(partitions.read_labels(out, hour, hour).column("example_id").to_pylist())
    rows = []
    for hour in partitions.hours(out):
        rows += partitions.read_impressions(out, hour).to_pylist()
    return [{**row, "label": row["example_id"] in labels} for row in rows]


def renumbered(rows):
    """The rows with their users numbered by first row."""
    number = {}
    return [{**row, "user": number.setdefault(row["user"], len(number))} for row in rows]


@pytest.fixture(scope="module")
def log():
    return click_log()


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """Every user's groups, three negatives."""
    return prepare(log, tmp_path_factory.mktemp("globo"))


# --- the restatement -----------------------------------------------------------------------


def splitmix64(state):
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def u01(*parts):
    state = 0
    for part in parts:
        state = splitmix64(state ^ int(part))
    return (state >> 11) / 2**53


class Restatement:
    """Loops over the clicks before each click, and nothing else."""

    def __init__(self, log, fraction, negatives):
        order = np.argsort(log["click_timestamp"], kind="stable")
        self.clicks = [
            {name: int(column[i]) for name, column in log.items()} | {"row": row}
            for row, i in enumerate(order)
        ]
        self.negatives = negatives
        users = dict.fromkeys(c["user_id"] for c in self.clicks)
        self.users = [u for u in users if u01(u, 12345) < fraction]
        self.articles = list(dict.fromkeys(c["click_article_id"] for c in self.clicks))
        self.dropped = {"first_hour": 0, "no_support": 0, "already_read": 0}

    def others(self, click, article):
        t = click["click_timestamp"]
        return sum(
            c["click_article_id"] == article and c["user_id"] != click["user_id"]
            for c in self.clicks
            if t - HOUR <= c["click_timestamp"] < t
        )

    def group(self, click):
        """The rows of a click's group, or `None` and a count of why there is none."""
        t, user = click["click_timestamp"], click["user_id"]
        before = [c for c in self.clicks if c["click_timestamp"] < t]
        own = [c["click_article_id"] for c in before if c["user_id"] == user]
        history = own[::-1][:20]
        if t < globo.START + HOUR:
            self.dropped["first_hour"] += 1
            return None
        if not self.others(click, click["click_article_id"]):
            self.dropped["no_support"] += 1
            return None
        if click["click_article_id"] in history:
            self.dropped["already_read"] += 1
            return None
        window = [c for c in before if c["click_timestamp"] >= t - HOUR]
        chosen = [click["click_article_id"]]
        for k in range(self.negatives):
            for r in range(64):
                drawn = window[math.floor(u01(17, click["row"], k, r) * len(window))]
                article = drawn["click_article_id"]
                if drawn["user_id"] != user and article not in chosen and article not in history:
                    chosen.append(article)
                    break
            else:
                return None
        return [self.row(click, article, own, history) for article in chosen]

    def row(self, click, article, own, history):
        t = click["click_timestamp"]
        first = min(c["click_timestamp"] for c in self.clicks if c["click_article_id"] == article)
        number = {a: i for i, a in enumerate(self.articles)}
        minutes = (t - first) / 60_000
        return {
            "timestamp": t,
            "vertical": f"device{click['click_deviceGroup']}",
            "group": click["row"],
            "user": self.users.index(click["user_id"]),
            "article": number[article],
            **{name: click[column] for name, column in CONTEXT.items()},
            "hour_of_day": (t - globo.START) // HOUR % 24,
            "past_clicks": min((len(own) + 1).bit_length() - 1, 15),
            "article_age": min(math.floor(1.5 * math.log2(minutes + 1)), 23),
            "clicks_last_hour": min(math.floor(2 * math.log2(self.others(click, article))), 27),
            "last_article": number[own[-1]] if own else -1,
            "history": [number[a] for a in history],
            "label": article == click["click_article_id"],
        }


def by_group(rows):
    """Group -> its rows by article, without the example ids."""
    groups = {}
    for row in rows:
        row = {name: value for name, value in row.items() if name != "example_id"}
        groups.setdefault(row["group"], []).append(row)
    return {g: sorted(rows, key=lambda r: r["article"]) for g, rows in groups.items()}


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_every_row_is_what_a_loop_over_the_past_gives(log, fraction, tmp_path):
    out = prepare(log, tmp_path, user_fraction=fraction)
    restated = Restatement(log, fraction, 3)
    kept = [c for c in restated.clicks if c["user_id"] in restated.users]
    groups = [restated.group(c) for c in kept]
    expected = by_group([row for group in groups if group is not None for row in group])
    got = by_group(rows_of(out))
    assert set(got) == set(expected)
    for group, rows in expected.items():
        assert got[group] == rows

    statistics = DatasetInfo.read(out).statistics
    assert statistics["clicks"] == len(kept)
    assert statistics["users"] == len(restated.users)
    assert statistics["left_out_first_hour"] == restated.dropped["first_hour"]
    assert statistics["left_out_without_support"] == restated.dropped["no_support"]
    assert statistics["left_out_already_read"] == restated.dropped["already_read"]
    if fraction == 1.0:
        # The log is worth the comparison: every rule bites.
        assert all(count > 0 for count in restated.dropped.values())
        assert len(expected) > 150
        assert max(len(row["history"]) for row in rows_of(out)) == 20


def test_negatives_keep_the_rules(log, whole):
    times = log["click_timestamp"].tolist()
    articles = {a: i for i, a in enumerate(dict.fromkeys(log["click_article_id"].tolist()))}
    groups = by_group(rows_of(whole))
    assert len(groups) > 150
    for click, rows in groups.items():
        low, high = (bisect.bisect_left(times, t) for t in (times[click] - HOUR, times[click]))
        by_others = {
            articles[a]
            for a, u in zip(log["click_article_id"][low:high], log["user_id"][low:high])
            if u != log["user_id"][click]
        }
        offered = [row["article"] for row in rows]
        assert len(set(offered)) == 4
        assert set(offered) <= by_others
        assert not set(offered) & set(rows[0]["history"])
        # Only what belongs to the article differs within a group.
        own = ("article", "article_age", "clicks_last_hour", "label")
        assert len({str({k: v for k, v in r.items() if k not in own}) for r in rows}) == 1


def test_negatives_follow_popularity(tmp_path):
    """One article of the hour before has nine clicks, one has three: drawn 3 times as often."""
    readers = 4000
    columns = {name: np.ones(13 + readers, np.int64) for name in COLUMNS}
    columns["click_article_id"] = np.repeat([3, 1, 2, 3], [1, 9, 3, readers])
    columns["user_id"] = np.arange(13 + readers)
    columns["click_timestamp"] = (
        globo.START + 2 * HOUR + np.concatenate([1000 * np.arange(13), np.full(readers, 60_000)])
    )
    rows = rows_of(prepare(columns, tmp_path, negatives=1, days=(1, 1)))
    # Articles are numbered by first click (3, 1, 2); the readers' clicks begin at row 13.
    negatives = [r["article"] for r in rows if r["group"] >= 13 and not r["label"]]
    assert len(negatives) == readers
    assert negatives.count(1) / readers == pytest.approx(0.75, abs=0.02)


def test_a_group_without_enough_articles_is_dropped(log, tmp_path):
    few = {**log, "click_article_id": log["click_article_id"] % 55}
    sizes = [len(rows) for rows in by_group(rows_of(prepare(few, tmp_path))).values()]
    more = [
        len(rows) for rows in by_group(rows_of(prepare(few, tmp_path, "b", negatives=1))).values()
    ]
    assert set(sizes) == {4}
    assert set(more) == {2}
    assert 0 < len(sizes) < len(more)


@pytest.mark.parametrize("negatives", [1, 4])
def test_base_rate_is_exact(log, tmp_path, negatives):
    groups = by_group(rows_of(prepare(log, tmp_path, negatives=negatives)))
    for rows in groups.values():
        assert [row["label"] for row in rows].count(True) == 1
        assert len(rows) == 1 + negatives


def test_neither_order_nor_example_id_tells_the_label(tmp_path):
    log = click_log(seed=3, clicks=5000, users=400, articles=120)
    rows = rows_of(prepare(log, tmp_path, negatives=4))
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    assert len(groups) > 1500
    positions = [[row["label"] for row in g].index(True) for g in groups.values()]
    np.testing.assert_allclose(np.bincount(positions, minlength=5) / len(positions), 0.2, atol=0.04)
    ids = np.array([[row["example_id"] for row in g] for g in groups.values()])
    labels = np.array([[row["label"] for row in g] for g in groups.values()])
    ranks = np.argsort(np.argsort(ids, axis=1), axis=1)
    np.testing.assert_allclose(np.bincount(ranks[labels], minlength=5) / len(ids), 0.2, atol=0.04)
    for modulus in (2, 5):
        for rest in range(modulus):
            assert labels[ids % modulus == rest].mean() == pytest.approx(0.2, abs=0.04)


def test_a_subsample_holds_the_same_rows(log, whole, tmp_path):
    out = prepare(log, tmp_path, user_fraction=0.3)
    users = DatasetInfo.read(out).statistics["users"]
    assert 5 < users < 40
    rows = rows_of(out)
    groups = {row["group"] for row in rows}
    assert len({row["user"] for row in rows}) > 5
    assert renumbered(rows) == renumbered([r for r in rows_of(whole) if r["group"] in groups])
    # Whole users: none has a group on one side only.
    inside = {r["user"] for r in rows_of(whole) if r["group"] in groups}
    assert all(r["group"] in groups for r in rows_of(whole) if r["user"] in inside)


def test_later_clicks_change_no_earlier_row(log, whole, tmp_path):
    later = [
        click_log(seed=9, first_user=1, first_article=5000, start=30 * HOUR),
        click_log(seed=10, start=31 * HOUR),
    ]
    longer = {name: np.concatenate([x[name] for x in (log, *later)]) for name in log}
    rows = rows_of(prepare(longer, tmp_path, days=(1, 3)))
    end = int(log["click_timestamp"][-1])
    assert rows[-1]["timestamp"] > end
    assert [row for row in rows if row["timestamp"] <= end] == rows_of(whole)


def test_a_click_at_the_same_time_is_not_the_past(log, whole, tmp_path):
    rows = rows_of(whole)
    chosen = rows[len(rows) // 2]
    extra = {name: column[:1] for name, column in log.items()}
    extra["click_timestamp"] = np.array([chosen["timestamp"]])
    extra["user_id"] = log["user_id"][[chosen["group"]]]
    extra["click_article_id"] = log["click_article_id"][[chosen["group"]]]
    both = {name: np.concatenate([log[name], extra[name]]) for name in log}
    again = rows_of(prepare(both, tmp_path))
    assert [r for r in again if r["group"] == chosen["group"]] == [
        r for r in rows if r["group"] == chosen["group"]
    ]


def test_days_choose_rows_and_keep_the_past(log, whole, tmp_path):
    border = globo.START + DAY
    rows = rows_of(whole)
    second = rows_of(prepare(log, tmp_path, "second", days=(2, 2)))
    assert second
    assert second == [row for row in rows if row["timestamp"] >= border]
    first = rows_of(prepare(log, tmp_path, "first", days=(1, 1)))
    assert first == [row for row in rows if row["timestamp"] < border]


def test_tables_are_as_the_architecture_says(log, whole):
    info = DatasetInfo.read(whole)
    hours = partitions.hours(whole)
    assert hours == partitions.hours(whole, partitions.LABELS)
    assert info.label_window_hours == 0
    seen = set()
    for hour in hours:
        table = partitions.read_impressions(whole, hour, info.schema)
        ids, times = (table.column(c).to_pylist() for c in ("example_id", "timestamp"))
        assert list(zip(times, ids)) == sorted(zip(times, ids))
        assert not seen & set(ids)
        seen |= set(ids)
        assert set(table.column("vertical").to_pylist()) <= set(info.verticals)
        when = dict(zip(ids, times))
        events = partitions.read_labels(whole, hour, hour)
        assert set(events.column("label").to_pylist()) == {1.0}
        for example, time in zip(*(events.column(c).to_pylist() for c in events.column_names[:2])):
            assert when[example] == time
        labelled = table.append_column("label", pa.array(np.zeros(len(table), np.float32)))
        assert prepare_hour(labelled, hour, info.schema).num_rows == table.num_rows
    assert info.schema["article"].vocabulary_size == len(set(log["click_article_id"].tolist()))


def test_the_files_order_does_not_matter(tmp_path):
    log = click_log(seed=5)
    log["click_timestamp"] = log["click_timestamp"] + np.arange(900) % 19_999
    assert len(np.unique(log["click_timestamp"])) == 900
    order = np.random.default_rng(0).permutation(900)
    shuffled = {name: column[order] for name, column in log.items()}
    rows = rows_of(prepare(log, tmp_path / "a"))
    assert rows
    assert rows == rows_of(prepare(shuffled, tmp_path / "b"))


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("click_os", None, r"missing columns \['click_os'\].*Expected.*Received.*do not come with"),
        ("click_timestamp", lambda x: x.astype(float), "'click_timestamp'.*integers.*double"),
        ("click_timestamp", lambda x: x // 1000, "no click between.*Received"),
        ("click_region", lambda x: x - 2, "'click_region'.*Received -1"),
        ("user_id", lambda x: pa.array(x, mask=x == x[3]), "'user_id'.*a value in every row"),
        ("click_article_id", lambda x: x * 0, "no click of days.*makes a group"),
    ],
)
def test_refuses_logs(log, tmp_path, column, change, message):
    changed = {name: values for name, values in log.items() if name != column}
    if change is not None:
        changed[column] = change(log[column])
    with pytest.raises(ValueError, match=message):
        prepare(changed, tmp_path)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_says_that_the_data_do_not_come_with_the_package(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{path}.*do not come with"):
            globo.prepare(path, tmp_path / "out")
