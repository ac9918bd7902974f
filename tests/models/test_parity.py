"""Models and layers against outside implementations: tensorflow-recommenders and keras-rs.

tensorflow-recommenders needs Keras 2 and brings its own TensorFlow along, so its figures are
recorded in a file; where the extra "parity" is installed, the file is held to the packages.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_exfm.features import Categorical, Schema
from keras_exfm.layers import CrossLayer, DotInteraction
from keras_exfm.models import DLRM, DCNv2
from tests.distillation.gradients import layer_gradients
from tests.testing import to_numpy

SCRIPT = Path(__file__).parent / "keras2_reference.py"
RECORD = json.loads(SCRIPT.with_suffix(".json").read_text())
CASES = RECORD["cases"]


def pair_order(n):
    """Where our pairs, (1, 2), (1, 3), .., stand in the order (2, 1), (3, 1), (3, 2)."""
    lower = [(j, i) for i in range(n) for j in range(i)]
    return [lower.index((i, j)) for i in range(n) for j in range(i + 1, n)]


def reordered(name, fields, dim, arrays):
    """Arrays like the weights, with the dots' rows of the first top layer in our order."""
    if not name.startswith("dlrm"):
        return arrays
    first = arrays[0]
    before = len(first) - fields * (fields - 1) // 2
    assert before in (0, fields * dim)
    rows = [*range(before), *(before + np.array(pair_order(fields)))]
    return [first[rows], *arrays[1:]]


@pytest.mark.parametrize("name", CASES)
def test_models_equal_tensorflow_recommenders(name):
    """Logits, and gradients in the embeddings and in every weight, from the embeddings on."""
    case = CASES[name]
    inputs = np.array(case["inputs"], "float32")
    _, fields, dim = inputs.shape
    cls = DCNv2 if name.startswith("dcnv2") else DLRM
    schema = Schema([Categorical(f"f{i}", 2) for i in range(fields)])
    whole = cls(schema, dim=dim, **case["config"])
    model = keras.Model(whole.get_layer("feature-embedding").output, whole.output)

    weights = [np.array(value, "float32") for _, value in case["weights"]]
    weights = reordered(name, fields, dim, weights)
    assert [w.shape for w in weights] == [tuple(v.shape) for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, weights):
        variable.assign(value)

    np.testing.assert_allclose(to_numpy(model(inputs)), case["logits"], rtol=1e-5, atol=1e-5)
    back, own = layer_gradients(model, inputs, lambda logits: ops.sum(ops.square(logits)))
    np.testing.assert_allclose(back, case["input_gradient"], rtol=1e-4, atol=1e-4)
    expected = [np.array(gradient) for gradient in case["weight_gradients"]]
    for found, want in zip(own, reordered(name, fields, dim, expected), strict=True):
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("tensorflow_recommenders", "tf_keras")),
    reason="tensorflow-recommenders and tf_keras are not installed: pip install -e '.[parity]'",
)
def test_the_record_is_what_tensorflow_recommenders_gives(tmp_path):
    path = tmp_path / "reference.json"
    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, timeout=300)
    found = json.loads(path.read_text())["cases"]
    assert list(found) == list(CASES)
    for name, case in CASES.items():
        assert found[name]["config"] == case["config"]
        for part in ("inputs", "logits", "input_gradient"):
            np.testing.assert_allclose(found[name][part], case[part], rtol=1e-4, atol=1e-5)
        for part in ("weights", "weight_gradients"):
            for got, want in zip(found[name][part], case[part], strict=True):
                values = (got[1], want[1]) if part == "weights" else (got, want)
                np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


@pytest.fixture(name="keras_rs", scope="module")
def outside_layers():
    return pytest.importorskip("keras_rs", reason="keras-rs is not installed: pip install keras-rs")


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layer_equals_keras_rs(keras_rs, rank):
    rng = np.random.default_rng(0)
    x0, x = rng.normal(size=(2, 5, 6)).astype("float32")
    theirs = keras_rs.layers.FeatureCross(rank)
    # Why CrossLayer is not this layer: `build` makes no weights, the first call does.
    theirs.build((None, 6))
    assert theirs.built
    assert theirs.weights == []
    theirs(x0, x)
    ours = CrossLayer(rank)
    ours.build([(None, 6), (None, 6)])
    dense = [theirs.dense] if rank is None else [theirs.down_proj_dense, theirs.dense]
    used = [weight for layer in dense for weight in layer.trainable_weights]
    for variable, twin in zip(ours.trainable_weights, used, strict=True):
        twin.assign(rng.normal(size=twin.shape))
        variable.assign(twin)
    expected = to_numpy(theirs(x0, x))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(to_numpy(ours([x0, x])), expected, rtol=1e-5, atol=1e-5)


def test_dot_interaction_equals_keras_rs(keras_rs):
    """The same products in another order."""
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    theirs = to_numpy(keras_rs.layers.DotInteraction()([x[:, i] for i in range(4)]))
    assert theirs.shape == (5, 6)
    np.testing.assert_allclose(
        to_numpy(DotInteraction()(x)), theirs[:, pair_order(4)], rtol=1e-5, atol=1e-6
    )
    # Why DotInteraction is not this layer: it takes a list with one tensor an embedding, and the
    # matrix that FeatureEmbedding gives is read as a list of examples: these are dots of the 5
    # examples with each other, for each of the 4 rows.
    across = to_numpy(keras_rs.layers.DotInteraction()(x))
    assert across.shape == (4, 10)
    assert across[0, 0] == pytest.approx(x[0, 0] @ x[1, 0], rel=1e-5)
