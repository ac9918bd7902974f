"""Each model's quality after a short training on planted interactions, against a recorded band.

A change that trains worse, or that is suddenly much better, falls out of its band. The data have
main effects and interactions of the orders 2 to 8, of which the orders 3 and 4 carry the most; one
pass, so that there is nothing to overfit. The networks are tiny and their order says nothing about
the models at full size, except where a test below claims it.
"""

import functools

import keras
import numpy as np
import pytest

from keras_exfm.features import Categorical, Schema
from keras_exfm.metrics import functional
from keras_exfm.models import (
    AFN,
    DLRM,
    FM,
    AutoInt,
    DCNv2,
    DeepFM,
    FinalMLP,
    LogisticRegression,
    MaskNet,
    Wukong,
    XDeepFM,
)

FIELDS, VOCABULARY, LATENT, TERMS = 8, 4, 2, 4
# Variance of the logit's part of each order.
ORDERS = {1: 1.0, 2: 1.0, 3: 4.0, 4: 4.0, 5: 1.0, 6: 0.5, 7: 0.3, 8: 0.3}
TRAIN, TEST, BATCH, RATE = 120_000, 10_000, 200, 0.005
SCHEMA = Schema([Categorical(f"field_{i}", VOCABULARY) for i in range(FIELDS)])

# Model, arguments beside the tables', NE; the two backends differ by 0.005 at most.
GATE = {
    "LogisticRegression": (LogisticRegression, {}, 0.826),
    "FM": (FM, {"dim": 8}, 0.719),
    "DeepFM": (DeepFM, {"dim": 8, "dnn_units": (16,)}, 0.665),
    # The published form: without numeric features the dots alone.
    "DLRM": (DLRM, {"dim": 8, "top_units": (16,), "concat_embeddings": False}, 0.625),
    "DCNv2": (DCNv2, {"dim": 8, "num_cross_layers": 2, "parallel_units": (16,)}, 0.599),
    "AutoInt": (
        AutoInt,
        {"dim": 8, "num_layers": 2, "attention_units": 16, "dnn_units": (16,)},
        0.648,
    ),
    "AFN": (AFN, {"dim": 8, "neurons": 16, "afn_units": (16,), "dnn_units": (16,)}, 0.602),
    "FinalMLP": (FinalMLP, {"dim": 8, "mlp1_units": (32,), "mlp2_units": (16,)}, 0.587),
    "MaskNet": (MaskNet, {"dim": 8, "block_units": (16, 16), "dnn_units": (16,)}, 0.561),
    "XDeepFM": (XDeepFM, {"dim": 8, "cin_units": (8, 8), "dnn_units": (16,)}, 0.611),
    "Wukong": (
        Wukong,
        {
            "dim": 8,
            "num_layers": 2,
            "n_fmb": 8,
            "n_lcb": 8,
            "rank": 8,
            "mlp_units": (64,),
            "head_units": (16,),
        },
        0.583,
    ),
}
BAND = 0.02


@functools.cache
def clicks():
    """Ids and labels; the logit is a sum over orders of products of hidden numbers."""
    rng = np.random.default_rng(99)
    ids = rng.integers(0, VOCABULARY, (TRAIN + TEST, FIELDS))
    hidden = rng.normal(size=(FIELDS, VOCABULARY, LATENT))[np.arange(FIELDS), ids]
    logit = np.full(len(ids), -1.0)
    for order, variance in ORDERS.items():
        part = np.zeros(len(ids))
        for _ in range(FIELDS if order == 1 else TERMS):
            fields = rng.choice(FIELDS, order, replace=False)
            part += hidden[:, fields].prod(axis=1).sum(axis=1)
        logit += part * np.sqrt(variance / part.var())
    label = (rng.random(len(ids)) < 1 / (1 + np.exp(-logit))).astype("float32")
    features = {f"field_{i}": ids[:, i].astype("int32") for i in range(FIELDS)}
    return features, label


@functools.cache
def normalized_entropy(name):
    """NE on rows that the training did not see."""
    cls, arguments, _ = GATE[name]
    keras.utils.set_random_seed(1)
    if cls is not LogisticRegression:
        start = keras.initializers.RandomNormal(stddev=0.1, seed=1)
        arguments = {**arguments, "embeddings_initializer": start}
    model = cls(SCHEMA, optimizer=None, **arguments)
    features, label = clicks()
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.BinaryCrossentropy(from_logits=True),
        # XLA pays on JAX alone at this size; several steps a dispatch pay on both.
        steps_per_execution=20,
        jit_compile=keras.backend.backend() == "jax",
    )
    train = {key: column[:TRAIN] for key, column in features.items()}
    model.fit(train, label[:TRAIN], batch_size=BATCH, shuffle=False, verbose=0)
    test = {key: column[TRAIN:] for key, column in features.items()}
    logit = model.predict(test, batch_size=TEST, verbose=0)
    return functional.normalized_entropy(label[TRAIN:], logit[:, 0])


@pytest.mark.parametrize("name", GATE)
def test_quality_stays_in_its_band(name):
    assert normalized_entropy(name) == pytest.approx(GATE[name][2], abs=BAND)


def test_wukong_beats_what_knows_pairs_only():
    """Orders above 2 are most of the logit: a factorization machine cannot see them."""
    assert normalized_entropy("Wukong") < normalized_entropy("FM") - 0.1
    assert normalized_entropy("Wukong") < normalized_entropy("DLRM") - 0.01
    assert normalized_entropy("FM") < normalized_entropy("LogisticRegression") - 0.01
