"""DCN-V2 and DLRM from the layers of tensorflow-recommenders, on Keras 2.

    python tests/models/keras2_reference.py FILE

Needs `pip install tensorflow-recommenders tf_keras` (the extra "parity") and nothing of this
project. Writes inputs, weights, logits and gradients of small models, from the embeddings on, to a
JSON file; `keras2_reference.json` beside it is such a file, and `test_parity.py` holds this
project's models to it.
"""

import json
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH, FIELDS, DIM = 5, 4, 3
# What the networks are made of; the names are those of the arguments of this project's models.
CASES = {
    "dcnv2": {"rank": None, "num_cross_layers": 2, "stacked_units": [], "parallel_units": [4, 3]},
    "dcnv2-low-rank": {
        "rank": 2,
        "num_cross_layers": 3,
        "stacked_units": [4],
        "parallel_units": [],
    },
    "dcnv2-both": {"rank": 5, "num_cross_layers": 1, "stacked_units": [4], "parallel_units": [3]},
    "dlrm": {"concat_embeddings": False, "top_units": [5, 4]},
    "dlrm-concat": {"concat_embeddings": True, "top_units": [4]},
}


def dcnv2(keras, recommenders, x, rank, num_cross_layers, stacked_units, parallel_units):
    """Wang et al. 2021, figure 1: the tower behind the cross network, and the one beside it."""
    x0 = keras.layers.Flatten()(x)
    cross = x0
    for i in range(num_cross_layers):
        layer = recommenders.layers.feature_interaction.Cross(rank, name=f"cross-{i}")
        cross = layer(x0, cross)
    for i, units in enumerate(stacked_units):
        cross = keras.layers.Dense(units, "relu", name=f"stacked-{i}")(cross)
    deep = x0
    for i, units in enumerate(parallel_units):
        deep = keras.layers.Dense(units, "relu", name=f"parallel-{i}")(deep)
    return keras.layers.concatenate([cross, deep]) if parallel_units else cross


def dlrm(keras, recommenders, x, concat_embeddings, top_units):
    """Naumov et al. 2019: dots of all pairs, in the order of the lower triangle's rows."""
    rows = [x[:, i] for i in range(FIELDS)]
    z = recommenders.layers.feature_interaction.DotInteraction(name="dots")(rows)
    if concat_embeddings:
        z = keras.layers.concatenate([keras.layers.Flatten()(x), z])
    for i, units in enumerate(top_units):
        z = keras.layers.Dense(units, "relu", name=f"top-{i}")(z)
    return z


def main(path):
    import numpy as np
    import tensorflow as tf
    import tensorflow_recommenders as recommenders
    import tf_keras as keras

    rng = np.random.default_rng(7)
    cases = {}
    for name, config in CASES.items():
        x = keras.Input((FIELDS, DIM))
        make = dcnv2 if name.startswith("dcnv2") else dlrm
        hidden = make(keras, recommenders, x, **config)
        model = keras.Model(x, keras.layers.Dense(1, name="logit")(hidden))
        weights = [rng.normal(size=w.shape, scale=0.5) for w in model.trainable_weights]
        for variable, value in zip(model.trainable_weights, weights):
            variable.assign(value)
        inputs = tf.constant(rng.normal(size=(BATCH, FIELDS, DIM)), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            logits = model(inputs, training=True)
            loss = tf.reduce_sum(tf.square(logits))
        back, own = tape.gradient(loss, (inputs, model.trainable_weights))
        cases[name] = {
            "config": config,
            "inputs": plain(inputs),
            "weights": [[w.name, plain(w)] for w in model.trainable_weights],
            "logits": plain(logits),
            "input_gradient": plain(back),
            "weight_gradients": [plain(g) for g in own],
        }
    versions = {
        "tensorflow-recommenders": recommenders.__version__,
        "tf_keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    with open(path, "w") as file:
        json.dump({"versions": versions, "cases": cases}, file)
        file.write("\n")


def plain(tensor):
    """Nested lists of nine digits, enough for every float32."""

    def shorten(value):
        return [shorten(v) for v in value] if isinstance(value, list) else float(f"{value:.9g}")

    return shorten(tensor.numpy().tolist())


if __name__ == "__main__":
    main(sys.argv[1])
