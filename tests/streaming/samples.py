"""A small stream for the tests, made without the code under test."""

import numpy as np

import keras_exfm as kx

HOUR = 3_600_000


def schema():
    return kx.Schema(
        [
            kx.Categorical("user", 100),
            kx.Categorical("ad", 64, hashed=True),
            kx.Categorical("site", 64, hashed=True),
            kx.MultiHot("history", 64, length=4, hashed=True, table="ad"),
            kx.MultiHot("topics", 9, length=3),
            kx.Numeric("age"),
            kx.Numeric("vector", 2),
        ]
    )


def hour_rows(hour, rows=10, seed=None, **changes):
    rng = np.random.default_rng(hour if seed is None else seed)
    lists = [rng.integers(0, 2**40, rng.integers(0, 5)).tolist() for _ in range(rows)]
    logit = rng.normal(size=rows).astype("float32")
    logit[::3] = np.nan
    data = {
        "example_id": hour * 1_000_000 + rng.permutation(rows),
        "timestamp": hour * HOUR + rng.integers(0, HOUR, rows),
        "vertical": rng.choice(["feed", "search"], rows),
        "group": hour * 1_000 + np.arange(rows) // 3,
        "label": rng.integers(0, 2, rows).astype("float32"),
        "true_probability": rng.uniform(0.1, 0.9, rows),
        "teacher_logit": logit,
        "user": rng.integers(0, 100, rows),
        "ad": rng.integers(0, 2**40, rows),
        "site": [f"site{i}" for i in rng.integers(0, 5, rows)],
        "history": lists,
        "topics": np.where(rng.random((rows, 3)) < 0.5, -1, rng.integers(0, 9, (rows, 3))),
        "age": rng.normal(size=rows),
        "vector": rng.normal(size=(rows, 2)),
    }
    return {**data, **changes}
