"""Where a model's logit starts."""

import keras
import numpy as np
import pytest

from keras_exfm import models
from keras_exfm.features import Categorical, MultiHot, Schema
from keras_exfm.optimizers import RowwiseAdagrad
from tests.testing import to_numpy

SCHEMA = Schema([Categorical("user", 50), Categorical("ad", 20), MultiHot("seen", 20, length=3)])
SMALL = {
    "Wukong": {"num_layers": 2, "n_fmb": 2, "n_lcb": 2, "rank": 2, "mlp_units": (4,)},
    "DLRM": {"top_units": (8, 4)},
    "DCNv2": {"num_cross_layers": 1, "parallel_units": (8,)},
    "AutoInt": {"num_layers": 1, "attention_units": 4, "num_heads": 2, "dnn_units": (8,)},
    "AFN": {"neurons": 4, "afn_units": (8,), "dnn_units": (8,)},
    "FinalMLP": {"mlp1_units": (8,), "mlp2_units": (8,), "num_heads": 2},
    "MaskNet": {"block_units": (8,), "dnn_units": (8,)},
    "XDeepFM": {"cin_units": (4,), "dnn_units": (8,)},
    "DeepFM": {"dnn_units": (8,)},
    "FM": {},
    "LogisticRegression": {},
}


def batch(size=64):
    rng = np.random.default_rng(0)
    raw = {"user": rng.integers(0, 50, size), "ad": rng.integers(0, 20, size)}
    return SCHEMA.encode({**raw, "seen": rng.integers(-1, 20, (size, 3))})


def make(name, **other):
    arguments = {**SMALL[name], **({} if name == "LogisticRegression" else {"dim": 4})}
    return getattr(models, name)(SCHEMA, **arguments, **other)


@pytest.mark.parametrize("name", list(SMALL))
def test_the_logit_starts_at_the_prior(name):
    logit = to_numpy(make(name, prior=0.1)(batch()))
    # A factorization machine's pairs are of the size of the embeddings' products, about 1e-4.
    np.testing.assert_allclose(logit, np.log(0.1 / 0.9), atol=5e-3)


@pytest.mark.parametrize("name", list(SMALL))
def test_config_keeps_the_prior(name):
    model = make(name, prior=0.25)
    copy = type(model).from_config(model.get_config())
    assert copy.prior == 0.25
    assert make(name).get_config()["prior"] is None
    # The mean of float32 labels.
    assert make(name, prior=np.float32(0.25)).get_config()["prior"] == 0.25
    with pytest.raises(ValueError, match="`prior` should be a probability.*prior=1.0"):
        make(name, prior=1.0)


@pytest.mark.parametrize("name", ["Wukong", "FinalMLP", "DLRM"])
def test_a_head_from_zero_learns_and_its_gradient_reaches_the_tables(name):
    """Zeros in the head alone are no saddle: it moves first, the rest follows."""
    keras.utils.set_random_seed(0)
    model = make(name, prior=0.5, optimizer=RowwiseAdagrad(0.1))
    model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    x = batch(256)
    y = (x["user"].reshape(-1) % 2).astype("float32")
    before = to_numpy(model.get_layer("feature-embedding")(x))
    losses = [float(model.train_on_batch(x, y)) for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert model.evaluate(x, y, verbose=0) < 0.35
    after = to_numpy(model.get_layer("feature-embedding")(x))
    assert np.abs(after - before).max() > 0.05
