import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm import Categorical, MultiHot, Numeric, Schema
from keras_exfm.distillation import ExternalDistillation, diagnose, embeddings_of
from keras_exfm.layers import AuxiliaryHead, RepresentationHead
from keras_exfm.models import DLRM
from tests.testing import to_numpy

SCHEMA = Schema(
    [
        Numeric("age"),
        Categorical("user", 7, embeddings=2),
        Categorical("small", 3, dim=2),
        MultiHot("history", 5, length=3),
        Categorical("ad", 5),
    ]
)


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    x = SCHEMA.encode(
        {
            "age": rng.normal(size=rows),
            "user": rng.integers(0, 7, rows),
            "small": rng.integers(0, 3, rows),
            "history": rng.integers(0, 5, (rows, 3)),
            "ad": rng.integers(0, 5, rows),
        }
    )
    y = {
        "label": rng.integers(0, 2, rows).astype("float32"),
        "teacher_representation": rng.normal(size=(rows, 6)).astype("float32"),
    }
    y["teacher_representation"][1] = np.nan
    return x, y


def student(**kwargs):
    keras.utils.set_random_seed(4)
    model = DLRM(SCHEMA, dim=4, top_units=(5,), optimizer=None)
    kwargs = {"embeddings": ["ad", "user"], "representation_head": RepresentationHead(6), **kwargs}
    return ExternalDistillation.from_model(model, **kwargs)


def test_embeddings_of_are_the_table_rows():
    keras.utils.set_random_seed(1)
    model = DLRM(SCHEMA, dim=4, optimizer=None)
    x, _ = batch()
    found = keras.Model(model.input, embeddings_of(model, ["ad", "user", "history"]))(x)
    whole = to_numpy(keras.Model(model.input, model.get_layer("feature-embedding").output)(x))
    # Of the features with vectors of full size: user has places 0 and 1, history 2, ad 3.
    expected = np.concatenate([whole[:, i] for i in (3, 0, 1, 2)], axis=1)
    np.testing.assert_array_equal(to_numpy(found), expected)
    ads = x["ad"]
    assert len(np.unique(to_numpy(found)[:, :4], axis=0)) == len(np.unique(ads))


def test_the_head_moves_the_embeddings_and_nothing_else_of_the_student():
    model = student(representation=None)
    model.compile(keras.optimizers.SGD(0.5))
    x, y = batch()
    y["label"] = np.full_like(y["label"], np.nan)
    before = {v.path: to_numpy(v) for v in model.student.trainable_variables}
    first = float(model.train_on_batch(x, y, return_dict=True)["representation_loss"])
    moved = {
        path
        for path, value in ((v.path, to_numpy(v)) for v in model.student.trainable_variables)
        if not np.array_equal(value, before[path])
    }
    assert len(moved) == 1
    assert "feature-embedding" in next(iter(moved))
    for _ in range(30):
        logs = model.train_on_batch(x, y, return_dict=True)
    assert float(logs["representation_loss"]) < 0.7 * first


def test_file_round_trip_serving_and_diagnosis(tmp_path):
    model = student(auxiliary_head=AuxiliaryHead((3,)))
    model.compile("sgd")
    x, y = batch()
    y["teacher_logit"] = np.linspace(-1, 1, 8).astype("float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    outputs = model(x, training=True)
    assert outputs["representation"].shape == (8, 6)
    again = loaded(x, training=True)
    for name, value in outputs.items():
        np.testing.assert_array_equal(to_numpy(value), to_numpy(again[name]))
    serving = model.serving_model()
    assert not [layer for layer in serving.layers if "head" in layer.name]
    np.testing.assert_array_equal(to_numpy(serving(x)), to_numpy(model(x)))
    assert np.isfinite(diagnose(model, x, y)["gradient_ratio"])


def test_what_does_not_fit_is_refused():
    model = DLRM(SCHEMA, dim=4, optimizer=None)
    for names, received in (
        (["ads"], "ads"),
        (["small"], "small"),
        ([], r"\[\]"),
        (["age"], "age"),
    ):
        with pytest.raises(ValueError, match=f"should name sparse features.*Received.*{received}"):
            embeddings_of(model, names)
    inputs = keras.Input((2,))
    plain = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match="one FeatureEmbedding layer"):
        embeddings_of(plain, ["ad"])
    with pytest.raises(ValueError, match="need a `representation_head`"):
        student(representation_head=None)
    with pytest.raises(ValueError, match="A head needs a `representation`"):
        student(representation=None, auxiliary_head=AuxiliaryHead())
    with pytest.raises(ValueError, match="symbolic tensor"):
        kx.ExternalDistillation(
            inputs, plain.output, embeddings=3, representation_head=RepresentationHead(2)
        )
