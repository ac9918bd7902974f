"""A small labelled stream whose label depends on the features."""

import numpy as np

import keras_exfm as kx
from keras_exfm.streaming import write_hour

FIRST = 1000


def schema():
    return kx.Schema(
        [kx.Categorical("user", 40), kx.Categorical("ad", 20), kx.Numeric("age")],
    )


def rows(hour, count=96, teacher=True):
    rng = np.random.default_rng(hour)
    user, ad = rng.integers(0, 40, count), rng.integers(0, 20, count)
    age = rng.normal(size=count).astype("float32")
    z = np.where(user % 2 == ad % 2, 1.0, -1.5) + 0.5 * age
    p = 1 / (1 + np.exp(-z))
    logit = (z + rng.normal(size=count)).astype("float32")
    return {
        "example_id": hour * 1_000_000 + np.arange(count),
        "timestamp": hour * 3_600_000 + np.arange(count),
        "vertical": ["feed"] * count,
        "group": hour * 1000 + np.arange(count) // 4,
        "user": user,
        "ad": ad,
        "age": age,
        "label": (rng.random(count) < p).astype("float32"),
        "true_probability": p,
        **({"teacher_logit": logit} if teacher else {}),
    }


def write(path, hours=4, count=96):
    for hour in range(FIRST, FIRST + hours):
        write_hour(path, hour, rows(hour, count), schema())
    return path


def arrays(hours=2, count=96):
    """Features and labels as `fit` takes them."""
    found = [rows(hour, count) for hour in range(FIRST, FIRST + hours)]
    whole = {n: np.concatenate([r[n] for r in found]) for n in ("user", "ad", "age", "label")}
    label = whole.pop("label")
    return schema().encode(whole), label
