"""The service over several hours: the join against a plain restatement, restarts, bad files."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.das import CallableScorer, DataAugmentationService
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions

pytestmark = pytest.mark.backend_free

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, 2), kx.Numeric("x")])
HOURS = range(5, 10)


def write_impressions(root, hour, ids, times):
    n = len(ids)
    table = pa.table(
        {
            "example_id": pa.array(ids, pa.int64()),
            "timestamp": pa.array(times, pa.int64()),
            "vertical": ["feed"] * n,
            "ad": np.zeros(n, np.int32),
            "seen": pa.array([[1]] * n, pa.list_(pa.int32())),
            "x": np.arange(n, dtype=np.float32),
        }
    )
    partitions.write_impressions(root, hour, table)
    return table


def write_events(root, events):
    by_hour = {}
    for event in events:
        by_hour.setdefault(event[1] // MS_PER_HOUR, []).append(event)
    for hour, rows in by_hour.items():
        ids, times, labels = zip(*rows)
        columns = {
            "example_id": pa.array(ids, pa.int64()),
            "timestamp": pa.array(times, pa.int64()),
            "label": pa.array(labels, pa.float32()),
        }
        partitions.write_labels(root, hour, pa.table(columns))


def random_stream(root, seed, rows=40):
    """Impressions and events of all kinds; returns both as lists of tuples."""
    rng = np.random.default_rng(seed)
    examples, events = [], []
    for hour in HOURS:
        ids = hour * 1000 + rng.permutation(rows)
        times = hour * MS_PER_HOUR + rng.integers(0, MS_PER_HOUR, rows)
        write_impressions(root, hour, ids, times)
        examples += list(zip(ids.tolist(), times.tolist()))
    for example, time in examples:
        for _ in range(rng.integers(0, 3)):
            delay = int(rng.integers(-MS_PER_HOUR // 4, 3 * MS_PER_HOUR))
            events.append((example, max(0, time + delay), float(rng.integers(0, 2))))
    events += [
        (int(rng.integers(0, 100)), int(t), 1.0)
        for t in rng.integers(5 * MS_PER_HOUR, 10 * MS_PER_HOUR, 20)
    ]
    write_events(root, events)
    return examples, events


def plain_join(examples, events, window, lag):
    """Row by row, as a person would: example -> label, and the counts of all hours."""
    counts = dict.fromkeys(("late_labels", "early_labels", "duplicate_labels"), 0)
    labels = {}
    for example, time in examples:
        hour = time // MS_PER_HOUR
        used = []
        for who, when, value in events:
            if who != example or not hour <= when // MS_PER_HOUR <= hour + lag + 1:
                continue
            if when < time:
                counts["early_labels"] += 1
            elif (window and when - time <= window * MS_PER_HOUR) or (
                not window and (when // MS_PER_HOUR == hour)
            ):
                used.append(value)
            else:
                counts["late_labels"] += 1
        labels[example] = max(used, default=0.0)
        counts["duplicate_labels"] += max(0, len(used) - 1)
    times = dict(examples)
    counts["orphan_labels"] = sum(
        who not in times or not 0 <= when // MS_PER_HOUR - times[who] // MS_PER_HOUR <= lag + 1
        for who, when, _ in events
        if when // MS_PER_HOUR in HOURS
    )
    return labels, counts


@pytest.mark.parametrize("window", [0, 0.5, 1, 1.75])
def test_join_is_that_of_a_plain_restatement(tmp_path, window):
    examples, events = random_stream(tmp_path / "data", seed=int(4 * window))
    das = DataAugmentationService(
        tmp_path / "data", tmp_path / "out", SCHEMA, label_window_hours=window
    )
    reports = das.process_pending()
    labels, counts = plain_join(examples, events, window, math.ceil(window))
    stored = {}
    for hour in HOURS:
        rows = kx.streaming.read_hour(tmp_path / "out", hour, columns=["example_id"])
        stored |= dict(zip(rows["example_id"].tolist(), rows["label"].tolist()))
    assert stored == labels
    for name, count in counts.items():
        assert count > 0
        assert sum(getattr(r, name) for r in reports) == count, name
    assert sum(r.positives for r in reports) == sum(labels.values())


def test_killed_service_goes_on_and_gives_the_same(tmp_path):
    random_stream(tmp_path / "data", seed=1)
    calls = []

    def teacher(features):
        calls.append(len(features["x"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features["x"] / 10

    def run(out, scorer):
        return DataAugmentationService(
            tmp_path / "data", out, SCHEMA, scorer=scorer, label_window_hours=1
        ).process_pending()

    whole = run(tmp_path / "whole", CallableScorer(lambda f: f["x"] / 10))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", CallableScorer(teacher))
    assert kx.streaming.hours(tmp_path / "out") == [5, 6]
    rest = run(tmp_path / "out", CallableScorer(teacher))
    assert [r.hour for r in rest] == [7, 8, 9]
    # The counts of a restarted service are those of one that remembers the hours before.
    plain = [{**vars(r), "mean_age_s": 0} for r in (*rest, *whole[2:])]
    assert plain[:3] == plain[3:]
    assert run(tmp_path / "out", CallableScorer(teacher)) == []
    assert len(calls) == 3 + 3
    columns = ["example_id", "timestamp"]
    for hour in HOURS:
        one, two = (
            kx.streaming.read_hour(tmp_path / name, hour, columns=columns)
            for name in ("whole", "out")
        )
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_an_unfinished_stream_keeps_hours_whose_labels_may_still_come(tmp_path):
    random_stream(tmp_path / "data", seed=2)
    for folder in (tmp_path / "data" / "labels").iterdir():
        if int(folder.name.split("=")[1]) > 9:
            (folder / "part-0.parquet").unlink()
            folder.rmdir()
    das = DataAugmentationService(tmp_path / "data", tmp_path / "out", SCHEMA, label_window_hours=1)
    # Hour 8's window ends within hour 9, which may not be over.
    assert [r.hour for r in das.process_pending(ended=False)] == [5, 6, 7]
    assert das.process_pending(ended=False) == []
    assert [r.hour for r in das.process_pending()] == [8, 9]


def test_teacher_without_snapshots_has_no_age(tmp_path):
    write_impressions(tmp_path / "data", 5, [1, 2], [5 * MS_PER_HOUR] * 2)
    das = DataAugmentationService(
        tmp_path / "data", tmp_path / "out", SCHEMA, scorer=CallableScorer(lambda f: f["x"])
    )
    assert math.isnan(das.process_hour(5).mean_age_s)
    rows = kx.streaming.read_hour(tmp_path / "out", 5, columns=["teacher_age_s"])
    assert np.isnan(rows["teacher_age_s"]).all()
    assert rows["teacher_logit"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("restarted", [False, True])
def test_an_example_that_comes_again_in_the_next_hour_is_refused(tmp_path, restarted):
    write_impressions(tmp_path / "data", 5, [1, 2], [5 * MS_PER_HOUR] * 2)
    write_impressions(tmp_path / "data", 6, [3, 2], [6 * MS_PER_HOUR] * 2)

    def das():
        return DataAugmentationService(tmp_path / "data", tmp_path / "out", SCHEMA)

    first = das()
    first.process_hour(5)
    with pytest.raises(StreamError, match=r"hour=6.*'example_id'.*Received 2 in row 1.*hour=5"):
        (das() if restarted else first).process_hour(6)
    assert kx.streaming.hours(tmp_path / "out") == [5]


def bad_label(value):
    def damage(data):
        write_events(data, [(1, 5 * MS_PER_HOUR, 1.0)])
        file = data / "labels" / "hour=5" / "part-0.parquet"
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.set_column(2, "label", pa.array([value], pa.float32())), file)

    return damage


def corrupt(kind):
    def damage(data):
        write_events(data, [(1, 5 * MS_PER_HOUR, 1.0)])
        (data / kind / "hour=5" / "part-0.parquet").write_bytes(b"PAR1 and then nothing")

    return damage


def changed(name, column):
    def damage(data):
        file = data / "impressions" / "hour=5" / "part-0.parquet"
        table = pq.read_table(file, partitioning=None)
        if name in table.column_names:
            table = table.drop_columns([name])
        pq.write_table(table.append_column(name, column) if column is not None else table, file)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (bad_label(math.nan), r"labels.hour=5.*'label'.*nan"),
        (bad_label(0.5), r"labels.hour=5.*'label': expected 0 or 1. Received.*0\.5.*example 1"),
        (bad_label(None), r"labels.hour=5.*'label'"),
        (corrupt("labels"), r"labels.hour=5.part-0.parquet"),
        (corrupt("impressions"), r"impressions.hour=5.part-0.parquet"),
        (changed("surprise", pa.array([1, 2])), r"hour=5.*\['surprise'\]"),
        (changed("x", None), r"hour=5.*\['x'\]"),
        (changed("ad", pa.array(["a", "b"])), r"hour=5.*'ad'.*string"),
        (changed("seen", pa.array([[1, 2, 3], [1]])), r"hour=5.*'seen'.*3 ids in row 0"),
        (changed("timestamp", pa.array([0, 1])), r"hour=5.*'timestamp'.*0"),
        (changed("example_id", pa.array([1, None])), r"hour=5.*'example_id'.*1 nulls"),
        (
            lambda data: (data / "impressions" / "hour=5" / "part-0.parquet").unlink(),
            r"hour=5.*empty",
        ),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(tmp_path, damage, message):
    write_impressions(tmp_path / "data", 5, [1, 2], [5 * MS_PER_HOUR] * 2)
    damage(tmp_path / "data")
    das = DataAugmentationService(
        tmp_path / "data", tmp_path / "out", SCHEMA, scorer=CallableScorer(lambda f: f["x"])
    )
    with pytest.raises(StreamError, match=message):
        das.process_hour(5)
    assert kx.streaming.hours(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob("*.parquet"))
