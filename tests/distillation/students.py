"""A small student and a small stream."""

import keras
import numpy as np

from keras_exfm.distillation import ExternalDistillation
from keras_exfm.layers import AuxiliaryHead, StudentAdapter

FEATURES = 4


def functional(seed=3, units=6, **dense):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    h = keras.layers.Dense(units, activation="relu", name="representation", **dense)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="serving")(h))


def all_parts(**kwargs):
    parts = {
        "auxiliary_head": AuxiliaryHead((5,), loss_weight=0.7, label_scale=1.6, gradient_scale=2.5),
        "student_adapter": StudentAdapter((3,)),
    }
    return parts | kwargs


def distilled(model=None, **kwargs):
    return ExternalDistillation.from_model(functional() if model is None else model, **kwargs)


def batch(rows=16, seed=0):
    """Features, labels, teacher logits with holes, and weights; all float32, labels etc. flat."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype("float32")
    truth = 1.5 * x[:, 0] - x[:, 1]
    label = (rng.uniform(size=rows) < 1 / (1 + np.exp(-truth))).astype("float32")
    teacher = (truth + rng.normal(scale=0.5, size=rows)).astype("float32")
    teacher[rng.uniform(size=rows) < 0.3] = np.nan
    weight = rng.uniform(0.5, 2.0, size=rows).astype("float32")
    weight[-2:] = 0
    return x, {"label": label, "teacher_logit": teacher}, weight


def columns(x, y, weight):
    """The same batch for the restatement."""
    return (
        x.astype("float64"),
        y["label"].astype("float64")[:, None],
        y["teacher_logit"].astype("float64")[:, None],
        weight.astype("float64")[:, None],
    )
