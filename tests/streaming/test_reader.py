import os

import numpy as np
import pytest
import tensorflow as tf

import keras_exfm as kx
from keras_exfm.streaming import Stream, StreamError, read, read_hour, write_hour
from tests.streaming.samples import hour_rows, schema

SIZES = {1: 10, 2: 7, 4: 8}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "labelled"
    for hour, rows in SIZES.items():
        write_hour(path, hour, hour_rows(hour, rows), schema())
    return path


def whole(path, name):
    return np.concatenate([read_hour(path, h, columns=("example_id",))[name] for h in SIZES])


def test_batches_run_on_across_hours_and_the_end_is_padded(path):
    dataset = read(path, schema(), batch_size=4, columns=("example_id",))
    batches = list(dataset.as_numpy_iterator())
    assert [int(w.sum()) for _, _, w in batches] == [4, 4, 4, 4, 4, 4, 1]
    assert dataset.cardinality().numpy() == 7
    flat = {n: np.concatenate([x[n] for x, _, _ in batches]) for n in schema().names}
    flat |= {n: np.concatenate([y[n] for _, y, _ in batches]) for n in batches[0][1]}
    for name, column in flat.items():
        np.testing.assert_array_equal(column[:25], whole(path, name), err_msg=name)
    tail = {name: column[25:] for name, column in flat.items()}
    assert tail["user"].tolist() == [-1] * 3
    assert tail["history"].tolist() == [[-1] * 4] * 3
    assert tail["age"].tolist() == [0.0] * 3
    assert tail["vector"].tolist() == [[0.0, 0.0]] * 3
    assert tail["label"].tolist() == [0.0] * 3
    assert np.isnan(tail["teacher_logit"]).all()
    assert tail["example_id"].tolist() == [-1] * 3


def test_each_hour_can_start_a_batch(path):
    dataset = read(path, batch_size=4, pad="hour")
    weights = [int(w.sum()) for _, _, w in dataset.as_numpy_iterator()]
    assert weights == [4, 4, 2, 4, 3, 4, 4]
    assert dataset.cardinality().numpy() == 7


@pytest.mark.parametrize(("pad", "batches"), [("end", 6), ("hour", 5)])
def test_tails_can_be_dropped(path, pad, batches):
    dataset = read(path, batch_size=4, pad=pad, drop_remainder=True)
    got = list(dataset.as_numpy_iterator())
    assert len(got) == batches == dataset.cardinality().numpy()
    assert all(w.tolist() == [1.0] * 4 for _, _, w in got)


def test_signature_matches_the_model_inputs(path):
    features, labels, weight = read(path, batch_size=5).element_spec
    for name, tensor in schema().inputs().items():
        assert features[name].shape == (5, *tensor.shape[1:])
        assert features[name].dtype.name == tensor.dtype
    assert {n: s.dtype.name for n, s in labels.items()} == {
        "label": "float32",
        "teacher_logit": "float32",
    }
    assert weight.shape == (5,)


def test_no_thread_tunes_it(path):
    """Such a thread may hold up the end of an iterator that is given up, by a minute each."""
    assert read(path, batch_size=5).options().autotune.enabled is False


def test_hours_vertical_epochs_and_second_pass(path):
    chosen = read(path, batch_size=4, hours=(2, 3), columns=("hour", "vertical"))
    labels = next(chosen.as_numpy_iterator())[1]
    assert labels["hour"].tolist() == [2] * 4
    assert set(labels["vertical"]) <= {b"feed", b"search"}
    feed = read(path, batch_size=4, vertical="feed", columns=("example_id",))
    ids = [i for _, y, w in feed.as_numpy_iterator() for i in y["example_id"][w > 0]]
    expected = [
        i
        for h in SIZES
        for i in read_hour(path, h, vertical="feed", columns=("example_id",))["example_id"]
    ]
    assert ids == expected
    assert ids == [i for _, y, w in feed.as_numpy_iterator() for i in y["example_id"][w > 0]]
    twice = read(path, batch_size=4, epochs=2)
    assert len(list(twice)) == 14 == twice.cardinality().numpy()


def test_later_commits_do_not_show(path, tmp_path):
    other = tmp_path / "grows"
    write_hour(other, 1, hour_rows(1), schema())
    dataset = read(other, batch_size=4)
    write_hour(other, 2, hour_rows(2), schema())
    assert len(list(dataset)) == 3
    assert len(list(read(other, batch_size=4))) == 5
    assert len(list(read(other, batch_size=4, version=1))) == 3
    assert len(list(read(Stream(other, version=1), batch_size=4))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"pad": "day"}, "pad='day'"),
        ({"hours": (8, 9)}, r"no hour in \(8, 9\)"),
        ({"hours": (1, 2, 4)}, r"\(first, last\)"),
        ({"columns": ("colour",)}, "colour"),
        ({"schema": kx.Schema([kx.Categorical("colour", 3)])}, "colour"),
    ],
)
def test_bad_arguments(path, options, message):
    with pytest.raises(StreamError, match=message):
        read(path, **options)


def test_faults_while_iterating_are_named(path, tmp_path):
    narrow = kx.Schema([kx.Categorical("user", 2)])
    with pytest.raises(tf.errors.OpError, match=r"hour=1/.*parquet.*'user'.*0\.\.1"):
        list(read(path, narrow))
    with pytest.raises(tf.errors.OpError, match=r"no row of vertical 'video' in hours 1\.\.4"):
        list(read(path, vertical="video"))
    broken = tmp_path / "broken"
    write_hour(broken, 1, hour_rows(1), schema())
    folder = broken / "hour=1"
    (file,) = os.listdir(folder)
    (folder / file).write_bytes(b"PAR1 not really")
    with pytest.raises(tf.errors.OpError, match=rf"{file}: cannot read the Parquet file"):
        list(read(broken))


def test_large_hours_come_in_several_chunks(tmp_path, monkeypatch):
    from keras_exfm.streaming import stream

    write_hour(tmp_path / "s", 1, hour_rows(1, 500), schema())
    expected = read_hour(tmp_path / "s", 1)
    monkeypatch.setattr(stream, "_CHUNK_ROWS", 64)
    got = read_hour(tmp_path / "s", 1)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    batches = list(read(tmp_path / "s", batch_size=48).as_numpy_iterator())
    labels = np.concatenate([y["label"] for _, y, _ in batches])
    np.testing.assert_array_equal(labels[:500], expected["label"])
    with pytest.raises(StreamError, match=r"rows 0\.\.63.*'user'"):
        read_hour(tmp_path / "s", 1, kx.Schema([kx.Categorical("user", 2)]))


def test_fit_reads_the_stream(path):
    import keras

    part = schema().select(["age", "vector"])
    inputs = part.inputs()
    x = keras.layers.Concatenate()([keras.ops.expand_dims(inputs["age"], -1), inputs["vector"]])
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    dataset = read(path, part, batch_size=8).map(lambda x, y, w: (x, y["label"], w))
    before = model.predict(dataset, verbose=0)
    assert before.shape == (32, 1)
    model.fit(dataset, epochs=2, verbose=0)
    assert not np.array_equal(before, model.predict(dataset, verbose=0))
