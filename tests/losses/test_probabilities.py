"""What is seen of a model, a loss or numbers that stand for probabilities instead of logits."""

import keras
import numpy as np
import pytest

from keras_exfm.losses._probabilities import (
    looks_like_probabilities,
    probability_layer,
    takes_probabilities,
)

pytestmark = pytest.mark.backend_free


def ends(build):
    inputs = keras.Input((3,))
    return keras.Model(inputs, build(keras.layers.Dense(1, name="dense")(inputs)), name="inner")


PROBABILITIES = {
    "a layer": keras.layers.Activation("sigmoid", name="squash"),
    "an operation": lambda z: keras.ops.sigmoid(z),
    "a dense layer": keras.layers.Dense(1, activation="sigmoid", name="squash"),
    "a softmax": keras.layers.Softmax(name="squash"),
}


@pytest.mark.parametrize("build", PROBABILITIES.values(), ids=PROBABILITIES.keys())
def test_models_that_end_in_a_probability(build):
    model = ends(build)
    name = probability_layer(model)
    assert name in ("squash", *(o.name for o in model.operations if "sigmoid" in o.name))
    assert probability_layer(model, model.outputs[0]) == name
    # Of two outputs, it is the one that counts.
    logit = model.get_layer("dense").output
    both = keras.Model(model.input, {"z": logit, "p": model.output})
    assert probability_layer(both, logit) is None
    assert probability_layer(both, model.output) == name
    outer = keras.Input((3,))
    assert probability_layer(keras.Model(outer, model(outer))) == name
    assert probability_layer(keras.Sequential([keras.Input((3,)), model])) == name


def test_models_that_end_in_a_logit():
    assert probability_layer(ends(lambda z: z)) is None
    assert probability_layer(ends(keras.layers.Activation("tanh"))) is None
    # A sigmoid within is a gate.
    gate = ends(lambda z: keras.layers.Dense(1, name="last")(keras.ops.sigmoid(z)))
    assert probability_layer(gate) is None
    assert probability_layer(keras.Sequential()) is None
    # What is not seen is not guessed: a squashed representation beside the logit.
    x = keras.Input((3,))
    rep = keras.layers.Dense(2, activation="sigmoid")(x)
    inner = keras.Model(x, {"logit": keras.layers.Dense(1)(rep), "representation": rep})
    outer = keras.Input((3,))
    logit = inner(outer)["logit"]
    assert probability_layer(keras.Model(outer, logit), logit) is None
    shared = keras.layers.Dense(1)
    first, second = shared(outer), shared(2 * outer)
    side = keras.layers.Dense(1, activation="sigmoid")(outer)
    both = keras.Model(outer, {"a": first, "b": second, "side": side})
    assert probability_layer(both, second) is None

    class Own(keras.Model):
        pass

    assert probability_layer(Own()) is None


def test_losses_and_metrics():
    for measure in (
        keras.losses.BinaryCrossentropy(),
        keras.losses.BinaryFocalCrossentropy(),
        keras.losses.get("binary_crossentropy"),
        keras.metrics.BinaryCrossentropy(),
        keras.metrics.AUC(),
    ):
        assert takes_probabilities(measure)
    for measure in (
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras.metrics.AUC(from_logits=True),
        keras.losses.MeanSquaredError(),
        keras.metrics.Mean(),
        lambda y, z: 0.0,
        "binary_crossentropy",
        None,
    ):
        assert not takes_probabilities(measure)


def test_numbers():
    some = np.linspace(0, 1, 100)
    assert looks_like_probabilities(some)
    assert not looks_like_probabilities(some[:99])
    assert not looks_like_probabilities(np.append(some, -0.1))
    assert not looks_like_probabilities(np.append(some, 1.1))
    assert not looks_like_probabilities(np.empty(0))
