"""What separate heads are for: a teacher's bias does not reach the served prediction.

The stream's true click probabilities are known, so that NE has a line that nobody can pass. The
teacher is biased by construction: it was trained on another vertical, with another click rate and
other slopes, and what it logs is sharpened on top.
"""

import dataclasses

import keras
import numpy as np
import pyarrow as pa
import pytest

import keras_exfm as kx
from keras_exfm.datasets import SyntheticAds
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from keras_exfm.metrics import functional

BATCH = 500
HOURS, TEST_HOURS = 6, 2
NAMES = ("ad", "category", "device", "relevance", "price")
SHARPER = 1.3


@dataclasses.dataclass
class Rows:
    """Features, labels and true probabilities of one vertical."""

    x: dict
    label: np.ndarray
    truth: np.ndarray

    def __getitem__(self, rows):
        return Rows({n: v[rows] for n, v in self.x.items()}, self.label[rows], self.truth[rows])


def stream(seed):
    """The rows of two verticals, in time order."""
    ads = SyntheticAds(
        hours=HOURS,
        examples_per_hour=10_000,
        users=200,
        ads=60,
        verticals=("feed", "search"),
        click_rates=(0.08, 0.25),
        traffic=(0.5, 0.5),
        seed=seed,
    )
    tables, clicked = [], set()
    for _, impressions, labels in ads.tables():
        if impressions is not None:
            tables.append(impressions)
        clicked |= set(labels.column("example_id").to_pylist())
    whole = pa.concat_tables(tables)
    schema = ads.schema.select(NAMES)
    label = np.isin(whole.column("example_id").to_numpy(), list(clicked)).astype("float32")
    x = schema.encode({name: whole.column(name).to_numpy() for name in NAMES})
    rows = Rows(x, label, whole.column("true_probability").to_numpy())
    vertical = np.array(whole.column("vertical").to_pylist())
    return schema, {name: rows[vertical == name] for name in ("feed", "search")}


def network(schema):
    return kx.models.DLRM(
        schema, dim=4, top_units=(16,), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )


def train(model, rows, targets=None):
    count = len(rows.label) // BATCH * BATCH
    for start in range(0, count, BATCH):
        part = slice(start, start + BATCH)
        y = rows.label[part] if targets is None else {k: v[part] for k, v in targets.items()}
        model.train_on_batch(rows[part].x, y)


def judge(seed):
    """Of each student over the last hours of "feed": calibration error and NE above Bayes."""
    keras.utils.set_random_seed(seed)
    schema, rows = stream(seed)
    teacher = network(schema)
    teacher.compile(keras.optimizers.Adam(3e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    train(teacher, rows["search"])
    feed = rows["feed"]
    logged = SHARPER * teacher.predict(feed.x, batch_size=BATCH, verbose=0)[:, 0]
    cut = int(len(feed.label) * (1 - TEST_HOURS / HOURS))
    before, after = feed[:cut], feed[cut:]
    students = {
        "plain": {},
        "vanilla": {"shared_head_weight": 1.0},
        "heads": {"auxiliary_head": AuxiliaryHead()},
        "heads and adapter": {
            "auxiliary_head": AuxiliaryHead(),
            "student_adapter": StudentAdapter(residual=True),
        },
    }
    logits = {"teacher": logged[cut:]}
    for name, parts in students.items():
        keras.utils.set_random_seed(seed)
        model = kx.ExternalDistillation.from_model(network(schema), **parts)
        model.compile(keras.optimizers.Adam(3e-3))
        train(model, before, {"label": before.label, "teacher_logit": logged[:cut]})
        logits[name] = model.predict(after.x, batch_size=BATCH, verbose=0)[:, 0]
    bayes = functional.bayes_normalized_entropy(after.label, after.truth)
    return {
        name: (
            # Against the true probabilities, so that chance clicks add no error.
            (1 / (1 + np.exp(-z.astype("float64")))).mean() / after.truth.mean() - 1,
            functional.normalized_entropy(after.label, z) - bayes,
        )
        for name, z in logits.items()
    }


@pytest.fixture(scope="module")
def figures():
    keras.config.set_dtype_policy("float32")
    return judge(seed=0)


# Over the seeds 0 to 4 on both backends, calibration error: plain -0.02 to 0.15, vanilla 0.51 to
# 1.28, with heads -0.07 to 0.13. NE over the plain student's: vanilla 0.03 to 0.17, with heads
# -0.006 to 0.009.


def test_the_teacher_is_biased(figures):
    calibration, excess = figures["teacher"]
    assert calibration > 0.7
    assert excess > figures["plain"][1] + 0.05


def test_a_vanilla_student_inherits_the_bias(figures):
    calibration, excess = figures["vanilla"]
    assert calibration > 0.3
    assert excess > figures["plain"][1] + 0.02


@pytest.mark.parametrize("name", ["heads", "heads and adapter"])
def test_a_student_with_heads_does_not(figures, name):
    calibration, excess = figures[name]
    assert abs(calibration) < 0.2
    assert abs(calibration) < abs(figures["vanilla"][0]) / 3
    assert excess < figures["plain"][1] + 0.01
    assert excess < figures["vanilla"][1] - 0.02


def test_nobody_passes_the_bayes_line(figures):
    assert all(excess > 0 for _, excess in figures.values())
