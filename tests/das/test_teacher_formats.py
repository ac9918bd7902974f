"""Teachers that are no Keras models, vectors beside logits, and teachers that hang."""

import pickle
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_exfm as kx
from keras_exfm.das import (
    CallableScorer,
    EntryPointScorer,
    KerasScorer,
    OnnxScorer,
    SavedModelScorer,
    SnapshotError,
    SnapshotScorer,
    SnapshotStore,
    TeacherTimeout,
)
from keras_exfm.streaming import StreamError

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, length=3), kx.Numeric("x")])
READ = SCHEMA.select(["ad", "x"])
TABLE = np.linspace(-1, 1, 10).astype(np.float32)


def rows(n):
    rng = np.random.default_rng(n)
    return SCHEMA.encode(
        {
            "ad": rng.integers(0, 10, n),
            "seen": np.full((n, 3), -1),
            "x": rng.normal(size=n),
        }
    )


def expected(features, factor):
    return factor * TABLE[features["ad"]] + features["x"]


def saved_model(path, factor):
    """A SavedModel of TensorFlow alone, with a variable."""

    class Teacher(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable(TABLE * factor)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.int32, name="ad"),
                tf.TensorSpec([None], tf.float32, name="x"),
            ]
        )
        def serve(self, ad, x):
            logit = tf.gather(self.table, ad) + x
            return {"a_logit": logit[:, None], "h": tf.stack([logit, 1e9 * logit], axis=1)}

    teacher = Teacher()
    tf.saved_model.save(teacher, str(path), signatures=teacher.serve)
    return path


def onnx_model(path, factor, external=None, output="logit"):
    """An ONNX model by hand, as from any other framework."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    # Rows that no id reads make the table large enough to be stored beside the file.
    rows = np.concatenate([TABLE * np.float32(factor), np.zeros(600, np.float32)])
    table = numpy_helper.from_array(rows, "table")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ad"], ["row"]),
            helper.make_node("Add", ["row", "x"], [output]),
            helper.make_node("Unsqueeze", [output, "axis"], ["h"]),
        ],
        "teacher",
        [
            helper.make_tensor_value_info("ad", T.INT32, ["batch"]),
            helper.make_tensor_value_info("x", T.FLOAT, ["batch"]),
        ],
        [
            helper.make_tensor_value_info(output, T.FLOAT, ["batch"]),
            helper.make_tensor_value_info("h", T.FLOAT, ["batch", 1]),
        ],
        [table, numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=external,
            convert_attribute=True,
        )
    else:
        onnx.save(model, path)
    return path


def keras_model(factor):
    inputs = READ.inputs()
    table = keras.layers.Embedding(10, 1, name="table")
    logit = keras.layers.Add(name="logit")(
        [table(inputs["ad"]), keras.layers.Reshape((1,), name="column")(inputs["x"])]
    )
    wide = keras.layers.Concatenate(name="h")([logit, logit * 1e9])
    model = keras.Model(inputs, wide[:, :1])
    table.set_weights([factor * TABLE[:, None]])
    return model


@pytest.mark.parametrize("external", [None, "tables.bin"])
def test_onnx_teacher_and_its_rotation(tmp_path, external):
    store = SnapshotStore(tmp_path / "store")
    shots = []
    for factor in (1.0, 2.0):
        folder = tmp_path / str(factor)
        folder.mkdir()
        file = onnx_model(folder / "teacher.onnx", factor, external)
        shots.append(store.publish(file, int(factor), schema=READ))
    assert set(shots[0].files) == {"model.onnx"} | ({external} if external else set())
    scorer = OnnxScorer(SCHEMA, batch_size=4)
    for n, factor in ((7, 1), (3, 2), (9, 1), (4, 2)):
        part = rows(n)
        found = scorer.score(part, shots[factor - 1])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected(part, factor), rtol=1e-5)


def test_saved_model_teacher_and_its_rotation(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    shots = [
        store.publish(saved_model(tmp_path / str(f), f), int(f), schema=READ) for f in (1.0, 2.0)
    ]
    scorer = SavedModelScorer(SCHEMA, batch_size=4)
    for n, factor in ((7, 1), (3, 2), (9, 1)):
        part = rows(n)
        np.testing.assert_allclose(
            scorer.score(part, shots[factor - 1]), expected(part, factor), rtol=1e-5
        )


def test_saved_model_that_keras_exports(tmp_path):
    teacher = kx.models.LogisticRegression(READ)
    teacher.export(str(tmp_path / "exported"), verbose=False)
    shot = SnapshotStore(tmp_path / "store").publish(tmp_path / "exported", 1, schema=READ)
    part = rows(5)
    used = {name: part[name] for name in READ.names}
    np.testing.assert_allclose(
        SavedModelScorer(SCHEMA).score(part, shot),
        teacher.predict(used, verbose=0)[:, 0],
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_store_holds_all_formats(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    shots = [
        store.publish(keras_model(1.0), 1, schema=READ),
        store.publish(onnx_model(tmp_path / "t.onnx", 2.0), 2, schema=READ),
        store.publish(saved_model(tmp_path / "t", 3.0), 3, schema=READ),
    ]
    assert [s.format for s in store.list()] == ["keras", "onnx", "saved_model"]
    scorer = SnapshotScorer(SCHEMA, batch_size=4)
    part = rows(6)
    for factor in (1, 3, 2, 1):
        np.testing.assert_allclose(
            scorer.score(part, shots[factor - 1]), expected(part, factor), rtol=1e-5
        )
    for shot in shots[1:]:
        with pytest.raises(SnapshotError, match=rf"{shot.path}.*`load` is for Keras"):
            shot.load()
    copy = shots[2].copy(tmp_path / "mine")
    np.testing.assert_allclose(scorer.score(part, copy), expected(part, 3), rtol=1e-5)
    with pytest.raises(StreamError, match="Received: None"):
        scorer.score(part, None)
    with pytest.raises(ValueError, match="batch_size"):
        SnapshotScorer(SCHEMA, batch_size=0)


def test_vectors_beside_logits(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    part = rows(7)
    for time_, (made, size) in enumerate(
        [
            (keras_model(2.0), 2),
            (saved_model(tmp_path / "t", 2.0), 2),
            (onnx_model(tmp_path / "t.onnx", 2.0), 1),
        ]
    ):
        shot = store.publish(made, time_, schema=READ)
        scorer = SnapshotScorer(SCHEMA, 4, representation="h", representation_size=size)
        assert scorer.representation_size == size
        logits, vectors = scorer.score_with_representation(part, shot)
        np.testing.assert_allclose(logits, expected(part, 2), rtol=1e-5)
        assert vectors.dtype == np.float16
        assert vectors.shape == (7, size)
        np.testing.assert_allclose(vectors[:, 0], expected(part, 2).astype(np.float16), rtol=2e-3)
        if size == 2:
            # Beyond float16: its largest number, not an infinity.
            large = np.sign(expected(part, 2)) * 65504
            np.testing.assert_array_equal(vectors[:, 1], large)
        np.testing.assert_array_equal(scorer.score(part, shot), logits)
        wrong = SnapshotScorer(SCHEMA, 4, representation="h", representation_size=9)
        with pytest.raises(StreamError, match=rf"{shot.id}.*vector of 9 numbers.*{size}"):
            wrong.score_with_representation(part, shot)
        absent = SnapshotScorer(SCHEMA, 4, representation="nope", representation_size=1)
        with pytest.raises(StreamError, match=rf"{shot.id}.*no (layer|output) 'nope'.*h"):
            absent.score_with_representation(part, shot)
    plain = SnapshotScorer(SCHEMA)
    assert plain.representation_size is None
    with pytest.raises(StreamError, match="gives no vectors"):
        plain.score_with_representation(part, shot)
    with pytest.raises(ValueError, match="come together"):
        SnapshotScorer(SCHEMA, representation="h")


def test_vectors_follow_a_rotation(tmp_path):
    store = SnapshotStore(tmp_path)
    shots = [store.publish(keras_model(f), int(f), schema=READ) for f in (1.0, 2.0)]
    scorer = KerasScorer(SCHEMA, 4, representation="h", representation_size=2)
    part = rows(6)
    for factor in (1, 2, 1):
        _, vectors = scorer.score_with_representation(part, shots[factor - 1])
        np.testing.assert_allclose(
            vectors[:, 0], expected(part, factor).astype(np.float16), rtol=2e-3
        )


def test_a_function_with_vectors():
    part = rows(3)
    scorer = CallableScorer(lambda f: (f["x"], np.stack([f["x"]] * 2, 1)), representation_size=2)
    logits, vectors = scorer.score_with_representation(part, None)
    np.testing.assert_array_equal(logits, part["x"])
    np.testing.assert_array_equal(vectors[:, 1], part["x"].astype(np.float16))
    np.testing.assert_array_equal(scorer.score(part, None), part["x"])
    with pytest.raises(StreamError, match="pair of logits and vectors"):
        CallableScorer(lambda f: f["x"], representation_size=2).score(part, None)
    with pytest.raises(StreamError, match="gives no vectors"):
        CallableScorer(lambda f: f["x"]).score_with_representation(part, None)


# Entry points.


def teacher(features):
    return features["x"] * 3


def make_teacher(factor):
    return lambda features: features["x"] * factor


def test_entry_points():
    part = rows(4)
    plain = EntryPointScorer(f"{__name__}:teacher")
    np.testing.assert_allclose(plain.score(part, None), part["x"] * 3)
    made = EntryPointScorer(f"{__name__}:make_teacher", arguments={"factor": 4})
    np.testing.assert_allclose(made.score(part, None), part["x"] * 4)
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_allclose(again.score(part, None), part["x"] * 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("teacher", "package.module:function"),
        ("nowhere.at.all:teacher", "Cannot find.*nowhere"),
        (f"{__name__}:absent", "Cannot find.*absent"),
        (f"{__name__}:TABLE", "should be a function"),
    ],
)
def test_bad_entry_points(name, message):
    with pytest.raises(ValueError, match=message):
        EntryPointScorer(name)


# Teachers that fail.


def test_not_finite_is_no_logit(tmp_path):
    table = TABLE.copy()
    model = keras_model(1.0)
    table[3], table[4] = np.nan, np.inf
    model.get_layer("table").set_weights([table[:, None]])
    part = {**rows(10), "ad": np.arange(10, dtype=np.int32)}
    found = KerasScorer(SCHEMA, 4).score(part, SnapshotStore(tmp_path).publish(model, 1))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 4]
    assert np.isfinite(np.delete(found, [3, 4])).all()


class Hanging(KerasScorer):
    """Its third batch waits for `go`."""

    def _predict(self, batch):
        Hanging.batches += 1
        if Hanging.batches == 3:
            Hanging.go.wait(60)
        return super()._predict(batch)


def test_a_teacher_that_hangs(tmp_path):
    Hanging.batches, Hanging.go = 0, threading.Event()
    shot = SnapshotStore(tmp_path).publish(keras_model(2.0), 1)
    scorer = Hanging(SCHEMA, batch_size=4, timeout=30.0)
    part = rows(8)
    np.testing.assert_allclose(scorer.score(part, shot), expected(part, 2), rtol=1e-5)
    scorer.timeout = 0.2
    started = time.monotonic()
    with pytest.raises(TeacherTimeout, match=rf"{shot.path}.*timeout=0.2 s"):
        scorer.score(part, shot)
    assert time.monotonic() - started < 20
    # It loads and scores anew, in another thread.
    scorer.timeout = 30.0
    np.testing.assert_allclose(scorer.score(part, shot), expected(part, 2), rtol=1e-5)
    Hanging.go.set()


def test_errors_come_out_of_the_thread(tmp_path):
    shot = SnapshotStore(tmp_path).publish(keras_model(2.0), 1)
    shot.path.unlink()
    with pytest.raises(SnapshotError, match=f"{shot.path}.*missing"):
        KerasScorer(SCHEMA, timeout=30).score(rows(2), shot)


@pytest.mark.parametrize("timeout", [0, -1])
def test_bad_timeout(timeout):
    with pytest.raises(ValueError, match="timeout"):
        KerasScorer(SCHEMA, timeout=timeout)


def test_a_damaged_snapshot_does_not_leave_a_half_loaded_model(tmp_path):
    store = SnapshotStore(tmp_path)
    good, bad = (store.publish(keras_model(f), int(f)) for f in (1.0, 2.0))
    scorer = KerasScorer(SCHEMA, 4)
    part = rows(5)
    scorer.score(part, good)
    bad.path.write_bytes(bad.path.read_bytes()[:-9])
    with pytest.raises(SnapshotError, match=f"{bad.path}.*damaged"):
        scorer.score(part, bad)
    np.testing.assert_allclose(scorer.score(part, good), expected(part, 1), rtol=1e-5)


def test_scorers_go_to_worker_processes_without_their_model(tmp_path):
    shot = SnapshotStore(tmp_path).publish(keras_model(2.0), 1)
    scorer = KerasScorer(SCHEMA, 4, timeout=30)
    part = rows(5)
    first = scorer.score(part, shot)
    again = pickle.loads(pickle.dumps(scorer))
    assert again._model is None
    np.testing.assert_array_equal(again.score(part, shot), first)
    assert scorer._model is not None


# Files that would do more than compute.


def _program(tmp_path, body):
    class Evil(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x):
            return {"logit": body(x)}

    evil = Evil()
    tf.saved_model.save(evil, str(tmp_path / "evil"), signatures=evil.serve)
    return tmp_path / "evil"


def _writes(x):
    tf.io.write_file("written.txt", "hello")
    return x


def _in_a_branch(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: _writes(x), lambda: x)


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (lambda x: x + tf.strings.to_number(tf.io.read_file("/etc/hostname")), "ReadFile"),
        (_writes, "WriteFile"),
        (_in_a_branch, "WriteFile"),
        (lambda x: tf.numpy_function(lambda v: v, [x], tf.float32), "PyFunc"),
        (
            lambda x: (
                tf.raw_ops.RestoreV2(
                    prefix="/secret", tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32]
                )[0]
                + x
            ),
            "RestoreV2",
        ),
    ],
)
def test_a_saved_model_that_touches_files_or_python_is_refused(tmp_path, body, operation):
    with pytest.raises(SnapshotError, match=rf"cannot load the model.*'(Eager)?{operation}"):
        SnapshotStore(tmp_path / "store").publish(_program(tmp_path, body), 1)


def test_files_beside_a_saved_model_are_refused(tmp_path):
    shot = SnapshotStore(tmp_path / "store").publish(saved_model(tmp_path / "t", 1.0), 1)
    (shot.path / "assets.extra").mkdir()
    (shot.path / "assets.extra" / "more").write_text("x")
    with pytest.raises(SnapshotError, match=r"not published: \['assets.extra/more'\]"):
        SavedModelScorer(SCHEMA).score(rows(2), shot)


def test_onnx_that_reads_files_elsewhere_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "made"
    folder.mkdir()
    file = onnx_model(folder / "t.onnx", 1.0, "tables.bin")
    (tmp_path / "secret.bin").write_bytes((folder / "tables.bin").read_bytes())
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.bin"
    file.write_bytes(model.SerializeToString())
    store = SnapshotStore(tmp_path / "store")
    with pytest.raises(SnapshotError, match=r"outside its folder: ../secret.bin"):
        store.publish(file, 1)
    # One that another program has put there.
    honest = tmp_path / "honest"
    honest.mkdir()
    shot = store.publish(onnx_model(honest / "t.onnx", 1.0, "tables.bin"), 1)
    content = file.read_bytes()
    shot.path.write_bytes(content)
    import hashlib

    shot.files["model.onnx"].update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(SnapshotError, match=r"secret.bin.*no part of the snapshot"):
        OnnxScorer(SCHEMA).score(rows(2), shot)


def test_damaged_onnx(tmp_path):
    onnx_model(tmp_path / "t.onnx", 1.0)
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(SnapshotError, match=r"bad.onnx: cannot publish: not an ONNX model"):
        SnapshotStore(tmp_path / "store").publish(tmp_path / "bad.onnx", 1)
