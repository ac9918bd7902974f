"""Compose a ranking model from layers, train it in memory, save it, load it.

    python examples/compose_wukong.py

The data are made up: a click depends on which user meets which ad (an interaction of two ids)
and on the hour of the day. The model is a small Wukong; a model without interactions stands
beside it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx

USERS, ADS, HOURS = 200, 100, 24
SCHEMA = kx.Schema(
    [
        kx.Categorical("user", USERS, embeddings=2),  # a significant feature: two embeddings
        kx.Categorical("ad", ADS),
        kx.Categorical("hour_of_day", HOURS),
        kx.MultiHot("history", ADS, length=5, table="ad"),  # reads the ads' table
        kx.Numeric("age"),
    ]
)


def make_data(rows, seed):
    """Rows whose click probability is sigmoid(user · ad + effect of the hour)."""
    truth = np.random.default_rng(0)
    user_taste = truth.normal(size=(USERS, 4))
    ad_style = truth.normal(size=(ADS, 4))
    of_hour = truth.normal(size=HOURS)
    random = np.random.default_rng(seed)
    user, ad = random.integers(USERS, size=rows), random.integers(ADS, size=rows)
    hour = random.integers(HOURS, size=rows)
    logit = (user_taste[user] * ad_style[ad]).sum(1) + 0.5 * of_hour[hour] - 2.0
    label = random.random(rows) < 1 / (1 + np.exp(-logit))
    batch = {
        "user": user,
        "ad": ad,
        "hour_of_day": hour,
        "history": random.integers(-1, ADS, size=(rows, 5)),
        "age": random.normal(size=rows),
    }
    return SCHEMA.encode(batch), label.astype("float32")


def wukong():
    """Embeddings, two Wukong layers, a head: plain functional Keras."""
    inputs = SCHEMA.inputs()
    x = kx.layers.FeatureEmbedding(
        SCHEMA, dim=16, optimizer=kx.optimizers.RowwiseAdagrad(0.1), name="embedding"
    )(inputs)
    for layer in range(2):
        x = kx.layers.WukongLayer(
            n_fmb=8, n_lcb=8, rank=8, mlp_units=(64,), name=f"wukong_{layer}"
        )(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(64, activation="relu", name="head")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x))


def no_interactions():
    """Embeddings and one Dense layer: main effects only."""
    inputs = SCHEMA.inputs()
    x = kx.layers.FeatureEmbedding(
        SCHEMA, dim=16, optimizer=kx.optimizers.RowwiseAdagrad(0.1), name="embedding"
    )(inputs)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x))


def main():
    keras.utils.set_random_seed(1)
    # Arrays will do as well; TensorFlow ends an epoch sooner on these.
    train = kx.datasets.in_memory(*make_data(60_000, seed=1), batch_size=512, shuffle=True)
    features, label = make_data(20_000, seed=2)
    held_out = kx.datasets.in_memory(features, label, batch_size=2048)
    for name, model in (("main effects", no_interactions()), ("Wukong", wukong())):
        model.compile(
            optimizer=keras.optimizers.Adam(1e-3),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[kx.metrics.NormalizedEntropy(), kx.metrics.AUC()],
        )
        model.fit(train, epochs=3, shuffle=False, verbose=2)
        scores = model.evaluate(held_out, verbose=0, return_dict=True)
        figures = ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
        print(f"{name}: {figures}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wukong.keras"
        model.save(path)
        again = keras.saving.load_model(path)
    same = np.array_equal(model.predict(features, verbose=0), again.predict(features, verbose=0))
    print(f"saved and loaded: predictions {'are the same' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
