"""What models say of inputs that are not as `Schema.encode` gives them."""

import functools

import keras
import numpy as np
import pytest

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
    if kind == "distilled":
        model = ExternalDistillation.from_model(kx.models.FM(SCHEMA, dim=2), representation=None)
        model.compile("sgd")
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


def error_of(loop):
    try:
        loop()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["FM", "distilled"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_failed_loop_leaves_the_model_as_it_was(kind, trained):
    """Keras on JAX would lose all weights, and the optimizer's state."""
    model = made(kind)
    model.compile("adam", loss=keras.losses.BinaryCrossentropy(from_logits=True))
    label = np.array([0.0, 1.0, 0.0], np.float32)
    if trained:
        model.fit(rows(), label, verbose=0)
    wanted = model.predict(rows(), verbose=0)

    def state():
        variables = [*model.variables, *model.optimizer.variables]
        return [keras.ops.convert_to_numpy(v.value) for v in variables]

    before = state()
    lacking = {name: column for name, column in rows().items() if name != "seen"}
    floats = rows(ad=np.array([3.0, np.nan, 8.0]))
    for wrong in (lacking, floats, rows(seen=np.zeros((3, 5), np.int32))):
        for loop in (
            functools.partial(model.predict, wrong, verbose=0),
            functools.partial(model.evaluate, wrong, label, verbose=0),
            functools.partial(model.fit, wrong, label, verbose=0),
        ):
            assert "NoneType" not in error_of(loop)
    if trained:
        for value, was in zip(state(), before, strict=True):
            np.testing.assert_array_equal(value, was)
    np.testing.assert_array_equal(model.predict(rows(), verbose=0), wanted)
    # Here the training step is a good one.
    assert error_of(
        functools.partial(model.fit, rows(), label, validation_data=(floats, label), verbose=0)
    )
    assert (model.predict(rows(), verbose=0) != wanted).any()
    model.fit(rows(), label, verbose=0)
    assert np.isfinite(model.predict(rows(), verbose=0)).all()


def test_what_succeeded_before_a_failure_stays():
    """Steps before the one that fails, or that a person interrupts, count."""
    label = np.array([0.0, 1.0, 0.0], np.float32)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

        def on_predict_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model, other = made("FM"), made("FM")
    other.set_weights(model.get_weights())
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            rows(), label, epochs=1, batch_size=1, shuffle=False, verbose=0, callbacks=Interrupt()
        )
    first = {name: column[:2] for name, column in rows().items()}
    other.fit(first, label[:2], batch_size=1, shuffle=False, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        model.predict(rows(), verbose=0, callbacks=[Interrupt()])
    for value, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-7)


def test_callbacks_are_as_given():
    """What `fit` is given stays its own, in every form that Keras takes."""
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    model, label = made("FM"), np.array([0.0, 1.0, 0.0], np.float32)
    for given in (note, [note], (note,), None, []):
        model.fit(rows(), label, verbose=0, callbacks=given, validation_data=(rows(), label))
    assert seen == [0, 0, 0]
    model.fit(rows(), label, 3, 1, 0, [note])
    assert seen == [0, 0, 0, 0]
