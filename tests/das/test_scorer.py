"""Rotation of snapshots, padding, and teachers that do not fit."""

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import KerasScorer, SnapshotStore
from keras_exfm.streaming import StreamError

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, length=3), kx.Numeric("x")])
FEATURES = SCHEMA.encode({"ad": np.arange(7), "seen": np.full((7, 3), -1), "x": np.arange(7.0)})


@keras.saving.register_keras_serializable(package="keras_exfm_tests")
class Counting(keras.layers.Layer):
    """Times one weight; counts how often Python comes by, that is, how often it is traced."""

    calls = 0
    sizes = set()

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        Counting.calls += 1
        Counting.sizes.add(x.shape[0])
        return x * self.factor


def network(factor, units=()):
    x = keras.Input((), name="x")
    y = Counting(name="counting")(keras.layers.Reshape((1,), name="column")(x))
    for i, width in enumerate(units):
        y = keras.layers.Dense(width, kernel_initializer="ones", name=f"dense{i}")(y)
    made = keras.Model({"x": x}, y)
    made.get_layer("counting").factor.assign(factor)
    return made


def own_store(path):
    return SnapshotStore(path, trusted_packages=("keras_exfm", "keras_exfm_tests"))


def test_rotation_compiles_once_and_batches_have_one_size(tmp_path):
    store = own_store(tmp_path)
    shots = [store.publish(network(i + 1.0), i) for i in range(4)]
    scorer = KerasScorer(SCHEMA, batch_size=5)
    np.testing.assert_allclose(scorer.score(FEATURES, shots[0]), np.arange(7))
    Counting.calls, Counting.sizes = 0, set()
    for rows, shot in ((7, shots[1]), (3, shots[2]), (6, shots[3]), (7, shots[0])):
        part = {name: column[:rows] for name, column in FEATURES.items()}
        expected = np.arange(rows) * (shot.published_at + 1)
        np.testing.assert_allclose(scorer.score(part, shot), expected)
    assert Counting.calls == 0
    assert Counting.sizes == set()


def test_another_architecture_is_loaded_anew(tmp_path):
    store = own_store(tmp_path)
    scorer = KerasScorer(SCHEMA, batch_size=8)
    one, two = store.publish(network(1.0), 1), store.publish(network(1.0, units=(3, 1)), 2)
    np.testing.assert_allclose(scorer.score(FEATURES, one), np.arange(7))
    np.testing.assert_allclose(scorer.score(FEATURES, two), 3 * np.arange(7))
    np.testing.assert_allclose(scorer.score(FEATURES, one), np.arange(7))


def test_zoo_model_scores_as_it_predicts(tmp_path):
    teacher = kx.models.LogisticRegression(SCHEMA.select(["ad", "x"]))
    teacher.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in teacher.weights])
    shot = SnapshotStore(tmp_path).publish(teacher, 1)
    used = {name: FEATURES[name] for name in ("ad", "x")}
    np.testing.assert_allclose(
        KerasScorer(SCHEMA, batch_size=3).score(FEATURES, shot),
        teacher.predict(used, verbose=0)[:, 0],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "feature",
    [
        kx.Categorical("ad", 11),
        kx.Categorical("ad", 10, hashed=True),
        kx.MultiHot("ad", 10, length=1),
    ],
)
def test_teacher_that_reads_ids_otherwise_is_refused(tmp_path, feature):
    shot = SnapshotStore(tmp_path).publish(
        kx.models.LogisticRegression(kx.Schema([feature, kx.Numeric("x")])), 1
    )
    with pytest.raises(StreamError, match=rf"{shot.id}.*was made for .*'ad'.*in the stream"):
        KerasScorer(SCHEMA).score(FEATURES, shot)


def test_several_embeddings_of_a_feature_are_the_teachers_own_affair(tmp_path):
    schema = kx.Schema([kx.Categorical("ad", 10, embeddings=2), kx.Numeric("x")])
    shot = SnapshotStore(tmp_path).publish(kx.models.LogisticRegression(schema), 1)
    assert np.isfinite(KerasScorer(SCHEMA).score(FEATURES, shot)).all()


@pytest.mark.parametrize("outputs", ["wide", "two"])
def test_models_without_one_logit_are_refused(tmp_path, outputs):
    x = keras.Input((), name="x")
    y = keras.layers.Reshape((1,))(x)
    wide = keras.layers.Dense(2)(y)
    shot = SnapshotStore(tmp_path).publish(
        keras.Model({"x": x}, wide if outputs == "wide" else [y, y + 1]), 1
    )
    with pytest.raises(StreamError, match=rf"{shot.id}.*expected one"):
        KerasScorer(SCHEMA, batch_size=7).score(FEATURES, shot)


@pytest.mark.parametrize("size", [0, 1.5, True])
def test_bad_batch_size(size):
    with pytest.raises(ValueError, match="batch_size"):
        KerasScorer(SCHEMA, batch_size=size)
