"""What models say of inputs that are not as `Schema.encode` gives them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_exfm as kx
from keras_exfm.distillation import ExternalDistillation

SCHEMA = kx.Schema([kx.Categorical("ad", 9), kx.MultiHot("seen", 9, length=2), kx.Numeric("age")])


def rows(**changes):
    return {
        "ad": np.array([3, -1, 8], np.int32),
        "seen": np.array([[1, 2], [3, -1], [-1, -1]], np.int32),
        "age": np.array([0.5, 1.0, 2.0], np.float32),
        **changes,
    }


def made(kind):
    if kind in ("distilled", "strict"):
        parts = {} if kind == "distilled" else {"student_adapter": kx.layers.StudentAdapter()}
        inner = kx.models.FM(SCHEMA, dim=2)
        if parts:
            inner = kx.models.DeepFM(SCHEMA, dim=2, dnn_units=(3,))
        model = ExternalDistillation.from_model(
            inner,
            representation="representation" if parts else None,
            strict=kind == "strict",
            **parts,
        )
        model.compile("adam")
        return model
    model = getattr(kx.models, kind)(SCHEMA, **({"dim": 2} if kind == "FM" else {}))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("kind", ["FM", "LogisticRegression", "distilled"])
def test_ids_with_a_fraction_are_refused(kind):
    """A column with missing values is one of floats in pandas; Keras would cut NaN to some id."""
    model = made(kind)
    label = np.array([0.0, 1.0, 0.0], np.float32)
    for wrong, name in (
        (rows(ad=np.array([3.0, np.nan, 8.0])), "ad"),
        (rows(seen=np.array([[1, 2], [3, -1], [-1, -1]], np.float32)), "seen"),
    ):
        message = rf"'{name}': expected integer ids.*float.*Schema.encode"
        with pytest.raises(ValueError, match=message):
            model(wrong)
        with pytest.raises(ValueError, match=message):
            model.predict(wrong, verbose=0)
        with pytest.raises(ValueError, match=message):
            model.fit(wrong, label, verbose=0)


@pytest.mark.parametrize("kind", ["FM", "LogisticRegression", "distilled"])
def test_ids_of_any_integer_type_are_the_same(kind):
    model = made(kind)
    wanted = model.predict(rows(), verbose=0)
    assert np.isfinite(wanted).all()
    for dtype in (np.int8, np.int64):
        same = rows(ad=rows()["ad"].astype(dtype))
        np.testing.assert_array_equal(model.predict(same, verbose=0), wanted)
    model.fit(rows(), np.array([0.0, 1.0, 0.0], np.float32), verbose=0)


@pytest.mark.parametrize("kind", ["FM", "LogisticRegression", "distilled", "strict"])
def test_inputs_that_do_not_fit_are_refused_before_a_loop_begins(kind):
    """After a first step that failed, Keras on JAX has lost the weights."""
    model = made(kind)
    label = np.array([0.0, 1.0, 0.0], np.float32)
    model.fit(rows(), label, verbose=0)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    lacking = {name: column for name, column in rows().items() if name != "seen"}
    for wrong, message in (
        (lacking, r"Expected the inputs .*Missing: \['seen'\]"),
        (rows(ad=np.array([3.0, np.nan, 8.0])), "'ad': expected integer ids"),
        (
            rows(seen=np.zeros((3, 5), np.int32)),
            r"'seen': .*\('batch', 2\). Received: \((3|None), 5\)",
        ),
        (rows(seen=np.zeros(3, np.int32)), r"'seen': expected the shape"),
    ):
        sets = tf.data.Dataset.from_tensor_slices((wrong, label)).batch(3)
        for loop in (
            functools.partial(model.predict, wrong, verbose=0),
            functools.partial(model.evaluate, wrong, label, verbose=0),
            functools.partial(model.fit, wrong, label, verbose=0),
            functools.partial(model.fit, sets, verbose=0),
            functools.partial(model.evaluate, sets, verbose=0),
        ):
            with pytest.raises(ValueError, match=message):
                loop()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    model.fit(rows(), label, verbose=0)
    assert np.isfinite(model.predict(rows(), verbose=0)).all()


@pytest.mark.parametrize("kind", ["FM", "distilled"])
def test_inputs_that_fit_pass_in_every_form(kind):
    model = made(kind)
    label = np.array([0.0, 1.0, 0.0], np.float32)
    wanted = model.predict(rows(), verbose=0)
    # Keras adds and drops an axis of 1.
    same = rows(age=rows()["age"][:, None], ad=rows()["ad"][:, None])
    other = made(kind)  # A step of TensorFlow that was traced for one rank takes no other.
    other.set_weights(model.get_weights())
    np.testing.assert_allclose(other.predict(same, verbose=0), wanted, atol=1e-6)
    sets = tf.data.Dataset.from_tensor_slices((rows(), label)).batch(2)
    np.testing.assert_allclose(model.predict(sets, verbose=0), wanted, atol=1e-6)
    model.fit(sets, verbose=0)
    spec = {name: tf.TensorSpec([None] * v.ndim, v.dtype) for name, v in rows().items()}
    loose = tf.data.Dataset.from_generator(lambda: [rows()], output_signature=spec)
    np.testing.assert_allclose(model.predict(loose, verbose=0), model.predict(rows(), verbose=0))
    model.fit(x=rows(), y=label, verbose=0, validation_data=(rows(), label))
    model.fit(((rows(), label) for _ in range(2)), verbose=0)
    model.evaluate(x=rows(), y=label, verbose=0)
    assert model.predict(x=rows(), verbose=0).shape == (3, 1)


@pytest.mark.parametrize("kind", ["FM", "LogisticRegression", "distilled", "strict"])
def test_features_are_taken_by_name(kind):
    """Keras would take the columns of a dict by their sorted positions."""
    model = made(kind)
    label = np.array([0.0, 1.0, 0.0], np.float32)
    wanted = model.predict(rows(), verbose=0)
    other = np.array([5, 6, 7], np.int32)
    for more in ({"aaa": other}, {"zzz": other}, {"aaa": other, "b": other, "note": other}):
        many = {**more, **rows()}
        np.testing.assert_array_equal(model.predict(many, verbose=0), wanted)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(model(many)), wanted, atol=1e-6)
        np.testing.assert_allclose(model.predict_on_batch(many), wanted, atol=1e-6)
        model.evaluate(many, label, verbose=0)
    renamed = {("aid" if name == "ad" else name): value for name, value in rows().items()}
    for call in (model, model.predict, model.predict_on_batch):
        # Keras says so itself where it sees it.
        with pytest.raises(ValueError, match=r"Missing: \['ad'\]|Missing data for input \"ad\""):
            call(renamed)
    # In a graph of one's own too.
    inputs = {**SCHEMA.inputs(), "aaa": keras.Input((), dtype="int32", name="aaa")}
    graph = keras.Model(inputs, model(inputs))
    many = {"aaa": other, **rows()}
    np.testing.assert_allclose(graph.predict(many, verbose=0), wanted, atol=1e-6)
