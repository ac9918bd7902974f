"""What Globo's loader reads and refuses, and what it writes beside the rows."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from keras_exfm.datasets import globo
from keras_exfm.streaming import StreamError, partitions
from keras_exfm.streaming.partitions import DatasetInfo

pytestmark = pytest.mark.backend_free

HOUR = 3_600_000


def clicks(rows=300, seed=0):
    random = np.random.default_rng(seed)
    columns = {name: random.integers(1, 4, rows) for name in globo.COLUMNS}
    columns["user_id"] = random.integers(0, 60, rows)
    columns["click_article_id"] = random.integers(0, 25, rows)
    columns["click_timestamp"] = globo.START + np.sort(random.integers(0, 5 * HOUR, rows))
    return columns


def save(file, columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(columns), file)
    else:
        pq.write_table(pa.table(columns), file)
    return file


def prepare(path, out, **options):
    return globo.prepare(path, out, **{"user_fraction": 1.0, "days": (1, 1), **options})


def content(out):
    return {
        str(file.relative_to(out)): pq.read_table(file, partitioning=None).to_pylist()
        for file in sorted(out.rglob("*.parquet"))
    }


class Watcher:
    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def begin(self, label, total):
        self.told.append((label, total))

    def step(self, done, note=""):
        self.told.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt


def test_parquet_csv_and_the_published_folder_give_the_same(tmp_path):
    columns = clicks()
    one = save(tmp_path / "one.parquet", columns)
    prepare(one, tmp_path / "a")
    rows = content(tmp_path / "a")
    assert len(rows) == 8
    prepare(save(tmp_path / "one.csv", columns), tmp_path / "b")
    folder = tmp_path / "published"
    for part, rows_of in enumerate(np.array_split(np.arange(300), 3)):
        some = {name: column[rows_of] for name, column in columns.items()}
        save(folder / "clicks" / f"clicks_hour_{part:03}.csv", some)
    info = prepare(folder, tmp_path / "c")
    save(tmp_path / "data" / "globo" / "clicks_until_2017-10-02.parquet", columns)
    prepare(tmp_path / "data", tmp_path / "d")
    assert rows == content(tmp_path / "b") == content(tmp_path / "c") == content(tmp_path / "d")
    assert info.source["file"] == "clicks_hour_000.csv and 2 more"


def test_description(tmp_path):
    file = save(tmp_path / "clicks.parquet", clicks())
    info = prepare(file, tmp_path / "out", user_fraction=0.5, negatives=2, seed=3)
    assert info == DatasetInfo.read(tmp_path / "out")
    assert info.source == {
        "file": "clicks.parquet",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert info.parameters == {
        "user_fraction": 0.5,
        "days": [1, 1],
        "negatives": 2,
        "seed": 3,
        "share_article_table": False,
    }
    assert info.label_window_hours == 0
    assert info.verticals == ("device1", "device2", "device3", "device4", "device5")
    hours = partitions.hours(tmp_path / "out")
    assert (info.first_hour, info.last_hour) == (hours[0], hours[-1])
    assert "a negative is an article that was not clicked" in info.description
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()
    groups = sum(len(rows) for name, rows in content(tmp_path / "out").items() if "labels" in name)
    left_out = [n for name, n in info.statistics.items() if name.startswith("left_out")]
    assert info.statistics["clicks"] == groups + sum(left_out)


def test_tables_are_shared_on_request(tmp_path):
    file = save(tmp_path / "clicks.parquet", clicks())
    own = prepare(file, tmp_path / "a").schema
    shared = prepare(file, tmp_path / "b", share_article_table=True).schema
    assert {"article", "last_article", "history"} <= set(own.tables())
    assert "article" in shared.tables()
    assert not {"last_article", "history"} & set(shared.tables())
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_seed_changes_negatives_only(tmp_path):
    file = save(tmp_path / "clicks.parquet", clicks())
    found = []
    for seed in (17, 18):
        out = tmp_path / str(seed)
        prepare(file, out, seed=seed, negatives=1)
        rows = content(out)
        clicked = {r["example_id"] for n, t in rows.items() if n[0] == "l" for r in t}
        shown = [r for n, t in rows.items() if n[0] == "i" for r in t]
        found.append(
            [
                {(r["group"], r["article"]) for r in shown if (r["example_id"] in clicked) is label}
                for label in (True, False)
            ]
        )
    (positives, negatives), (same, others) = found
    assert positives == same
    assert len(negatives & others) < 0.5 * len(negatives)


def test_a_stopped_run_is_completed_and_a_complete_one_kept(tmp_path):
    file = save(tmp_path / "clicks.parquet", clicks())
    whole = Watcher()
    prepare(file, tmp_path / "whole", progress=whole)
    assert whole.told == [("Globo impressions", 4), 1, 2, 3, 4]
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(file, out, progress=Watcher(stop_at=2))
    assert len(partitions.hours(out)) == 2
    with pytest.raises(StreamError, match="not finished"):
        DatasetInfo.read(out)
    with pytest.raises(StreamError, match="another data set.*negatives: 2 .there: 4"):
        prepare(file, out, negatives=2)
    kept = next((out / "impressions").rglob("*.parquet"))
    before = kept.stat().st_mtime_ns
    info = prepare(file, out)
    assert kept.stat().st_mtime_ns == before
    assert content(out) == content(tmp_path / "whole")
    assert info == DatasetInfo.read(tmp_path / "whole")
    assert not list(out.rglob(".*"))
    again = Watcher()
    assert prepare(file, out, progress=again) == info
    assert again.told == []


def test_other_clicks_do_not_mix_with_what_is_there(tmp_path):
    prepare(save(tmp_path / "a.parquet", clicks()), tmp_path / "out")
    with pytest.raises(StreamError, match="another data set: source.file"):
        prepare(save(tmp_path / "b.parquet", clicks(seed=1)), tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", ["a"] * 300, "'user_id': expected integers. Received type string"),
        ("click_os", [23] * 300, "'click_os': expected values in 0..22. Received 23 in row 0"),
        ("click_region", [-1] * 300, "'click_region': expected values in 0..28. Received -1"),
        (
            "click_country",
            [1, None] * 150,
            "'click_country': expected a value in every row; row 1 has none",
        ),
        ("click_timestamp", [1_506_000_000] * 300, "no click between"),
        ("click_timestamp", None, "missing columns .'click_timestamp'.*Expected: .*Received: "),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_bad_columns_are_named(tmp_path, column, values, message, kind):
    columns = clicks()
    if values is None:
        del columns[column]
    else:
        columns[column] = pa.array(values)
    file = save(tmp_path / f"clicks.{kind}", columns)
    with pytest.raises(StreamError, match=f"clicks.{kind}.*{message}"):
        prepare(file, tmp_path / "out")
    assert partitions.hours(tmp_path / "out") == []


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(StreamError, match="no such file.*do not come with this package"):
        prepare(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StreamError, match="no clicks.*parquet.*do not come with this package"):
        prepare(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "clicks.parquet").write_text("no parquet")
    with pytest.raises(StreamError, match=r"clicks.parquet: cannot be read"):
        prepare(tmp_path / "clicks.parquet", tmp_path / "out")
    file = save(tmp_path / "short.parquet", clicks())
    with pytest.raises(StreamError, match=r"short.parquet: the clicks end on day 1.*\(1, 2\)"):
        prepare(file, tmp_path / "out2", days=(1, 2))
    alone = {name: column[:1] for name, column in clicks().items()}
    with pytest.raises(StreamError, match="no click of days .1, 1. makes a group"):
        prepare(save(tmp_path / "alone.parquet", alone), tmp_path / "out3")


@pytest.mark.parametrize(
    "options",
    [
        {"user_fraction": 0.0},
        {"user_fraction": 1.5},
        {"days": (0, 3)},
        {"days": (3, 2)},
        {"negatives": 0},
        {"negatives": 1.5},
    ],
)
def test_bad_arguments_are_named(tmp_path, options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"`{name}`.*Received") as error:
        prepare(tmp_path / "clicks.parquet", tmp_path / "out", **options)
    assert repr(value) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_ones_own_clicks_are_no_negatives_even_when_out_of_the_history(tmp_path):
    """Thirty clicks in an hour: the first ten have left the history, read by that user alone."""
    article = [100, 101, 102, *range(30), 100]
    columns = {name: np.ones(len(article), np.int64) for name in globo.COLUMNS}
    columns["click_article_id"] = np.array(article)
    columns["user_id"] = np.array([1, 1, 1, *[0] * 31])
    columns["click_timestamp"] = globo.START + 2 * HOUR + 1000 * np.arange(len(article))
    out = tmp_path / "out"
    prepare(save(tmp_path / "clicks.parquet", columns), out, negatives=2)
    rows = content(out)["impressions/hour=418565/part-0.parquet"]
    # Articles are numbered by first click: 100, 101 and 102 are 0, 1 and 2.
    assert sorted(row["article"] for row in rows) == [0, 1, 2]
