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


def functional_tasks(tasks=("click", "conversion"), seed=3, units=6):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,), name="x")
    h = keras.layers.Dense(units, activation="relu", name="representation")(inputs)
    logits = {task: keras.layers.Dense(1, name=f"serving_{task}")(h) for task in tasks}
    return keras.Model(inputs, logits)


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


def wide_batch(rows=16, seed=0, size=3):
    """As `batch`, with a second task, a second teacher, vectors and ages, all with holes."""
    rng = np.random.default_rng(seed + 100)
    x, y, weight = batch(rows, seed)
    click = y["label"]
    conversion = np.where(rng.uniform(size=rows) < 0.5, click, 0.0).astype("float32")
    conversion[rng.uniform(size=rows) < 0.3] = np.nan
    second = (0.5 * y["teacher_logit"] - 1 + rng.normal(size=rows)).astype("float32")
    vectors = (5.0 + rng.normal(size=(rows, size)) * (10.0, 0.1, 1.0)).astype("float32")
    vectors[rng.uniform(size=rows) < 0.3] = np.nan
    age = rng.uniform(0, 1e5, size=rows).astype("float32")
    age[rng.uniform(size=rows) < 0.2] = np.nan
    return (
        x,
        {
            "label": click,
            "label_click": click,
            "label_conversion": conversion,
            "teacher_logit": y["teacher_logit"],
            "teacher_logit_second": np.where(rng.uniform(size=rows) < 0.3, np.nan, second),
            "teacher_representation": vectors,
            "teacher_representation_second": vectors[:, ::-1] * 2,
            "teacher_age_s": age,
        },
        weight,
    )


def chosen(model, batch):
    """The batch with the columns that the model reads."""
    x, y, weight = batch
    return x, {name: y[name].astype("float32") for name in model.target_columns}, weight


def columns(x, y, weight):
    """The same batch for the restatement."""
    y = {k: v.astype("float64").reshape(len(x), -1) for k, v in y.items()}
    return x.astype("float64"), y, weight.astype("float64")[:, None]
