import math

import keras
import numpy as np
import pyarrow as pa
import pytest

import keras_exfm as kx
from keras_exfm.das import (
    CallableScorer,
    DataAugmentationService,
    KerasScorer,
    SnapshotStore,
)
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, length=3), kx.Numeric("x")])


def impressions(hour, n=6, **changes):
    data = {
        "example_id": np.arange(n) + 100 * hour,
        "timestamp": hour * MS_PER_HOUR + 1000 * np.arange(n),
        "vertical": ["feed", "search"] * (n // 2),
        "ad": np.arange(n, dtype=np.int32),
        "seen": pa.array([[1], [], [2, 3], [4], [5], [6, 7, 8]][:n], pa.list_(pa.int32())),
        "x": np.linspace(-1, 1, n).astype(np.float32),
    }
    return pa.table({**data, **changes})


def events(*rows):
    ids, times, labels = zip(*rows) if rows else ((), (), ())
    return pa.table(
        {
            "example_id": pa.array(ids, pa.int64()),
            "timestamp": pa.array(times, pa.int64()),
            "label": pa.array(labels, pa.float32()),
        }
    )


def model(value):
    inputs = SCHEMA.inputs()
    x = keras.layers.Reshape((1,), name="one")(inputs["x"])
    out = keras.layers.Dense(1, name="out")
    network = keras.Model({"x": inputs["x"]}, out(x))
    out.set_weights([np.full((1, 1), value, np.float32), np.zeros(1, np.float32)])
    return network


def service(path, **options):
    return DataAugmentationService(path / "data", path / "labelled", SCHEMA, **options)


def read(path, hour):
    columns = ("example_id", "teacher_snapshot", "teacher_age_s", "vertical")
    return kx.streaming.read_hour(path / "labelled", hour, columns=columns)


def test_vectors_are_logged_beside_logits(tmp_path):
    partitions.write_impressions(tmp_path / "data", 5, impressions(5))
    partitions.write_labels(tmp_path / "data", 5, events())

    def teacher(features):
        x = features["x"]
        return np.where(x > 0, x, np.nan), np.stack([x, -x], axis=1)

    scorer = CallableScorer(teacher, representation_size=2)
    report = service(tmp_path, scorer=scorer).process_hour(5)
    assert (report.scored, report.not_finite) == (3, 3)
    columns = ("example_id", "teacher_representation")
    rows = kx.streaming.read_hour(tmp_path / "labelled", 5, columns=columns)
    x = np.linspace(-1, 1, 6, dtype=np.float32)
    x = np.where(x > 0, x, np.nan)[rows["example_id"] - 500]
    expected = np.stack([x, -x], axis=1)
    np.testing.assert_allclose(rows["teacher_representation"], expected, rtol=1e-3)


def test_labels_join_within_their_window(tmp_path):
    data = tmp_path / "data"
    partitions.write_impressions(data, 5, impressions(5))
    start = 5 * MS_PER_HOUR
    partitions.write_labels(
        data,
        5,
        events(
            (501, start + 2000, 1.0),  # in time
            (501, start + 3000, 0.0),  # a second event: the larger label wins
            (502, start + 1000, 1.0),  # before its impression: not counted as a label
            (999, start + 1000, 1.0),  # nobody's
        ),
    )
    partitions.write_labels(
        data,
        6,
        events(
            (503, start + 3000 + MS_PER_HOUR, 1.0),  # the window's last millisecond
            (504, start + 4001 + MS_PER_HOUR, 1.0),  # one too late
        ),
    )
    result = service(tmp_path, label_window_hours=1).process_hour(5)
    assert read(tmp_path, 5)["label"].tolist() == [0, 1, 0, 1, 0, 0]
    assert (result.rows, result.positives, result.scored) == (6, 2, 0)
    assert (result.late_labels, result.early_labels) == (1, 1)
    assert (result.duplicate_labels, result.orphan_labels) == (1, 1)
    assert math.isnan(result.mean_age_s)
    assert result.coverage == 0.0


def test_window_zero_is_the_examples_own_hour(tmp_path):
    data = tmp_path / "data"
    partitions.write_impressions(data, 5, impressions(5))
    partitions.write_labels(data, 5, events((505, 6 * MS_PER_HOUR - 1, 1.0)))
    partitions.write_labels(data, 6, events((504, 6 * MS_PER_HOUR, 1.0)))
    assert service(tmp_path).process_hour(5).positives == 1
    assert read(tmp_path, 5)["label"].tolist() == [0, 0, 0, 0, 0, 1]


def test_newest_snapshot_that_is_older_than_the_example(tmp_path):
    data = tmp_path / "data"
    partitions.write_impressions(data, 5, impressions(5))
    store = SnapshotStore(tmp_path / "snapshots")
    start = 5 * MS_PER_HOUR
    first = store.publish(model(2.0), start + 1000)
    second = store.publish(model(3.0), start + 3500)
    store.publish(model(99.0), start + 6000)  # after every example: must never be used
    result = service(tmp_path, snapshots=store).process_hour(5)
    rows = read(tmp_path, 5)
    x = np.linspace(-1, 1, 6)
    expected = [math.nan, *(2 * x[1:4]), *(3 * x[4:])]
    np.testing.assert_allclose(rows["teacher_logit"], expected, rtol=1e-6)
    assert rows["teacher_snapshot"].tolist() == ["", *[first.id] * 3, *[second.id] * 2]
    np.testing.assert_allclose(rows["teacher_age_s"], [math.nan, 0, 1, 2, 0.5, 1.5])
    assert result.scored == 5
    assert result.mean_age_s == pytest.approx(1.0)


def test_each_example_is_scored_once_for_all_verticals(tmp_path):
    data = tmp_path / "data"
    seen = []
    scorer = CallableScorer(lambda f: seen.extend(f["ad"].tolist()) or f["x"])
    das = service(tmp_path, scorer=scorer)
    for hour in (5, 6):
        partitions.write_impressions(data, hour, impressions(hour))
        das.process_hour(hour)
    again = das.process_hour(6)
    assert not again.committed
    assert math.isnan(again.coverage)
    assert sorted(seen) == sorted([*range(6), *range(6)])
    for vertical in ("feed", "search"):
        rows = kx.streaming.read_hour(tmp_path / "labelled", 6, vertical=vertical)
        assert np.isfinite(rows["teacher_logit"]).all()
        assert len(rows["label"]) == 3


def test_rotation_changes_weights_without_a_new_model(tmp_path):
    store = SnapshotStore(tmp_path)
    scorer = KerasScorer(SCHEMA, batch_size=4)
    features = SCHEMA.encode({"ad": np.arange(6), "seen": np.full((6, 3), -1), "x": np.arange(6.0)})
    one = store.publish(model(1.0), 1)
    np.testing.assert_allclose(scorer.score(features, one), np.arange(6.0))
    kept = scorer._model
    two = store.publish(model(2.0), 2)
    np.testing.assert_allclose(scorer.score(features, two), 2 * np.arange(6.0))
    assert scorer._model is kept
    np.testing.assert_allclose(scorer.score(features, one), np.arange(6.0))


def test_rows_with_a_teacher_that_is_not_finite_are_without(tmp_path):
    partitions.write_impressions(tmp_path / "data", 5, impressions(5))
    das = service(tmp_path, scorer=CallableScorer(lambda f: np.where(f["x"] > 0, f["x"], np.inf)))
    result = das.process_hour(5)
    assert (result.scored, result.not_finite) == (3, 3)
    assert np.isnan(read(tmp_path, 5)["teacher_logit"]).sum() == 3


def test_a_teacher_may_change_its_input_in_place(tmp_path):
    partitions.write_impressions(tmp_path / "data", 5, impressions(5))

    def teacher(features):
        for column in features.values():
            column += 1
        return features["x"] * features["ad"]

    service(tmp_path, scorer=CallableScorer(teacher)).process_hour(5)
    rows = kx.streaming.read_hour(tmp_path / "labelled", 5, SCHEMA)
    x = np.linspace(-1, 1, 6)
    np.testing.assert_allclose(rows["x"], x, rtol=1e-6)
    np.testing.assert_allclose(rows["teacher_logit"], (x + 1) * (rows["ad"] + 1), rtol=1e-6)


@pytest.mark.parametrize("output", [np.zeros(5), np.zeros((6, 2)), np.array(["a"] * 6)])
def test_teacher_of_the_wrong_shape_is_refused_before_writing(tmp_path, output):
    partitions.write_impressions(tmp_path / "data", 5, impressions(5))
    with pytest.raises(StreamError, match="one logit for each of 6 rows"):
        service(tmp_path, scorer=CallableScorer(lambda f: output)).process_hour(5)
    assert kx.streaming.hours(tmp_path / "labelled") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ad": np.full(6, 77, np.int32)}, "hour=5.*'ad'.*77"),
        ({"x": np.full(6, np.nan, np.float32)}, "hour=5.*'x'.*nan"),
        ({"label": np.zeros(6)}, "label"),
        ({"example_id": np.zeros(6, np.int64)}, "hour=5.*'example_id'"),
    ],
)
def test_bad_impressions_are_refused_before_writing(tmp_path, changes, message):
    # Written past the checks of the writer, as another program would.
    import pyarrow.parquet as pq

    folder = tmp_path / "data" / "impressions" / "hour=5"
    folder.mkdir(parents=True)
    pq.write_table(impressions(5, **changes), folder / "part-0.parquet")
    with pytest.raises(StreamError, match=message):
        service(tmp_path, scorer=CallableScorer(lambda f: f["x"])).process_hour(5)
    assert kx.streaming.hours(tmp_path / "labelled") == []


def test_teacher_that_reads_what_the_stream_lacks(tmp_path):
    partitions.write_impressions(tmp_path / "data", 5, impressions(5))
    store = SnapshotStore(tmp_path / "snapshots")
    inputs = keras.Input((1,), name="other")
    store.publish(keras.Model(inputs, keras.layers.Dense(1)(inputs)), 0)
    with pytest.raises(StreamError, match=r"\['other'\].*does not have"):
        service(tmp_path, snapshots=store).process_hour(5)


def test_pending_and_bad_window(tmp_path):
    for hour in (5, 6, 7):
        partitions.write_impressions(tmp_path / "data", hour, impressions(hour))
    das = service(tmp_path)
    das.process_hour(5)
    assert das.pending() == [6, 7]
    with pytest.raises(ValueError, match="label_window_hours=-1"):
        service(tmp_path, label_window_hours=-1)
