import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from keras_exfm.metrics import AUC
from tests.metrics.compiled import update

ROWS, BATCH = 120_000, 2_000


def stream(rate, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(np.log(rate / (1 - rate)), 1.2, ROWS)
    return (rng.random(ROWS) < 1 / (1 + np.exp(-z))).astype("float32"), z


# What a stream may do to scores without a warning.
SHAPES = {
    "calibrated": lambda z: z,
    "squeezed to a spread of 1e-3": lambda z: z * 1e-3 - 4.6,
    "squeezed to the last bits of float32": lambda z: z * 1e-5 - 4.6,
    "two clusters": lambda z: np.where(np.sin(z * 100) > 0, 4, -4) + z * 1e-3,
    "many ties": lambda z: np.round(z, 1),
    "drifting": lambda z: z + np.linspace(-3, 3, len(z)),
    "far out": lambda z: np.sinh(z * 3),
    "probabilities": lambda z: 1 / (1 + np.exp(-z)),
}


def result(y, z):
    score = z.astype("float32")
    batches = zip(np.split(y, ROWS // BATCH), np.split(score, ROWS // BATCH))
    return float(update(AUC(), batches).result()), roc_auc_score(y, score)


@pytest.mark.parametrize(
    ("shape", "rate"),
    [(shape, rate) for shape in SHAPES for rate in (0.005, 0.5)]
    + [("calibrated", 0.01), ("calibrated", 0.05)],
)
def test_error_below_1e_4(shape, rate):
    y, z = stream(rate)
    got, exact = result(y, SHAPES[shape](z))
    assert abs(got - exact) < 5e-5


@pytest.mark.parametrize("order", [1, -1])
def test_scores_that_arrive_in_order(order):
    y, z = stream(0.01)
    rows = np.argsort(z)[::order]
    got, exact = result(y[rows], z[rows])
    assert abs(got - exact) < 5e-5


def test_keras_own_auc_would_fail_this():
    """The reason for this class: at its default thresholds, keras.metrics.AUC is off by 1e-2."""
    y, z = stream(0.005)
    theirs = keras.metrics.AUC(from_logits=True)
    update(theirs, [(y, z.astype("float32"))])
    assert abs(float(theirs.result()) - roc_auc_score(y, z)) > 5e-3


def test_a_model_that_says_nothing_has_exactly_one_half():
    y, z = stream(0.05)
    got, _ = result(y, np.full_like(z, -2.7))
    assert got == 0.5


def test_the_window_is_as_exact():
    y, z = stream(0.01)
    z = z.astype("float32")
    batches = list(zip(np.split(y, ROWS // BATCH), np.split(z, ROWS // BATCH)))
    metric = update(AUC(window=10), batches)
    last = 10 * BATCH
    assert abs(float(metric.window_result()) - roc_auc_score(y[-last:], z[-last:])) < 5e-5


def test_merged_parts_are_as_exact():
    y, z = stream(0.01)
    z = z.astype("float32")
    parts = []
    for half_y, half_z in zip(np.split(y, 2), np.split(z, 2)):
        parts.append(update(AUC(), zip(np.split(half_y, 30), np.split(half_z, 30))))
    parts[0].merge_state(parts[1:])
    assert abs(float(parts[0].result()) - roc_auc_score(y, z)) < 5e-5


def test_values_by_hand():
    one = np.array([1, 0, 0, 0], "float32")
    metric = AUC()
    # The click beats -1, ties with 0 and loses to 2 of weight 2.
    scores = np.array([0, -1, 0, 2], "float32")
    update(metric, [(one, scores, np.array([1, 1, 1, 2], "float32"))])
    assert float(metric.result()) == pytest.approx(1.5 / 4)
    update(metric, [(one, np.full(4, np.inf, "float32"), one)])
    assert float(metric.result()) == pytest.approx((1.5 + 4) / 8)
    update(metric, [(1 - one, np.full(4, -np.inf, "float32"), one)])
    assert float(metric.result()) == pytest.approx((1.5 + 4 + 2) / 10)


@pytest.mark.parametrize("bins", [1, 0, 2.5, True])
def test_bad_bins(bins):
    with pytest.raises(ValueError, match=f"bins={bins!r}"):
        AUC(bins=bins)
