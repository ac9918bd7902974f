import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from keras_exfm.metrics import functional


def sample(rows=2000, seed=0, rate=0.1, ties=False):
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < rate).astype("float64")
    z = rng.normal(size=rows) + y - 2
    return y, np.round(z, 1) if ties else z, rng.uniform(0.1, 3, rows)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("weighted", [False, True])
def test_equal_to_scikit_learn(weighted):
    y, z, w = sample(ties=True)
    w = w if weighted else None
    loss = sk.log_loss(y, sigmoid(z), sample_weight=w)
    assert functional.log_loss(y, z, w) == pytest.approx(loss, rel=1e-12)
    assert functional.log_loss(y, sigmoid(z), w, from_logits=False) == pytest.approx(loss, rel=1e-9)
    rate = np.average(y, weights=w)
    floor = sk.log_loss(y, np.full(len(y), rate), sample_weight=w)
    assert functional.normalized_entropy(y, z, w) == pytest.approx(loss / floor, rel=1e-6)
    area = sk.roc_auc_score(y, z, sample_weight=w)
    assert functional.auc(y, z, w) == pytest.approx(area, abs=1e-12)
    expected = np.average(sigmoid(z), weights=w) / rate
    assert functional.calibration(y, z, w) == pytest.approx(expected, rel=1e-12)
    assert functional.calibration(y, sigmoid(z), w, from_logits=False) == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_grouped_auc_equals_one_scikit_learn_call_a_group(weighted):
    y, z, w = sample(600, ties=True, rate=0.3)
    group = np.random.default_rng(1).integers(-5, 120, 600)
    areas, sizes = [], []
    for g in np.unique(group):
        rows = group == g
        if len(np.unique(y[rows])) == 2:
            weight = w[rows] if weighted else None
            areas.append(sk.roc_auc_score(y[rows], z[rows], sample_weight=weight))
            sizes.append(w[rows].sum() if weighted else rows.sum())
    assert 10 < len(areas) < 120
    weight = w if weighted else None
    got = functional.grouped_auc(y, z, group, weight)
    assert got == pytest.approx(np.average(areas, weights=sizes), abs=1e-12)
    got = functional.grouped_auc(y, z, group, weight, definition="mean")
    assert got == pytest.approx(np.mean(areas), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(-2, 2), st.integers(0, 3), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    )
)
def test_grouped_auc_equals_counting_pairs(rows):
    y, z, group, w = (np.array(column, float) for column in zip(*rows))
    areas, sizes = [], []
    for g in np.unique(group):
        pairs = wins = 0.0
        for i in np.flatnonzero((group == g) & (y == 1)):
            for j in np.flatnonzero((group == g) & (y == 0)):
                pairs += w[i] * w[j]
                wins += w[i] * w[j] * ((z[i] > z[j]) + 0.5 * (z[i] == z[j]))
        if pairs:
            areas.append(wins / pairs)
            sizes.append(w[group == g].sum())
    expected = np.average(areas, weights=sizes) if areas else np.nan
    np.testing.assert_allclose(functional.grouped_auc(y, z, group, w), expected, atol=1e-12)


def test_values_by_hand():
    y, z = [1, 0, 0, 0], [np.log(3), 0.0, 0.0, 0.0]
    loss = (np.log(4 / 3) + 3 * np.log(2)) / 4
    floor = (np.log(4) + 3 * np.log(4 / 3)) / 4
    assert functional.log_loss(y, z) == pytest.approx(loss)
    assert functional.normalized_entropy(y, z) == pytest.approx(loss / floor)
    assert functional.calibration(y, z) == pytest.approx(0.75 + 3 * 0.5)
    assert functional.auc(y, z) == 1.0
    assert functional.auc([1, 0, 0], [0.0, 0.0, -1.0]) == 0.75
    assert functional.entropy(0.25) == pytest.approx(floor)
    assert functional.bayes_normalized_entropy(y, [0.25] * 4) == pytest.approx(1.0)
    assert functional.bayes_normalized_entropy(y, [0.0, 1.0, 0.0, 0.5]) == pytest.approx(
        np.log(2) / 4 / floor
    )


def test_extreme_logits_do_not_overflow():
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert functional.log_loss([1.0, 0.0], [1000.0, -1000.0]) == 0.0
        assert functional.log_loss([1.0, 0.0], [-1000.0, -1000.0]) == 500.0
        assert functional.calibration([1.0, 0.0], [1000.0, -1000.0]) == 1.0


def everything(y, z, w):
    group = np.arange(len(y)) // 3
    return [
        functional.log_loss(y, z, w),
        functional.normalized_entropy(y, z, w),
        functional.bayes_normalized_entropy(y, np.where(np.isnan(z), z, sigmoid(z)), w),
        functional.calibration(y, z, w),
        functional.auc(y, z, w),
        functional.grouped_auc(y, z, group, w),
    ]


def test_rows_of_weight_zero_do_not_matter():
    y, z, w = sample(30, rate=0.4)
    expected = everything(y, z, w)
    nan = np.full(6, np.nan)
    got = everything(np.r_[y, nan], np.r_[z, nan], np.r_[w, np.zeros(6)])
    np.testing.assert_array_equal(got, expected)


def test_nan_is_loud():
    y, z, _ = sample(30, rate=0.4)
    z[4] = np.nan
    assert np.isnan(everything(y, z, None)).all()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class(label):
    values = everything(np.full(9, label), np.zeros(9), None)
    assert np.isfinite(values[0])
    assert np.isnan(values[1])
    assert np.isnan(values[2])
    assert np.isnan(values[3]) == (label == 0)
    assert np.isnan(values[4:]).all()


def test_no_rows():
    assert np.isnan(everything(np.empty(0), np.empty(0), None)).all()
    assert np.isnan(everything(np.ones(3), np.ones(3), np.zeros(3))).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="2, 3 and 2"):
        functional.auc([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="Received: 1 ids"):
        functional.grouped_auc([0, 1], [0, 1], [4])
    with pytest.raises(ValueError, match="definition='median'"):
        functional.grouped_auc([0, 1], [0, 1], [4, 4], definition="median")
    for function in (functional.log_loss, functional.normalized_entropy, functional.calibration):
        with pytest.raises(ValueError, match=r"probabilities.*Received: -3 \(2 such rows\)"):
            function([0, 1, 1], [-3, 3, 0.5], from_logits=False)
        assert np.isfinite(function([0, 1, 1], [0.1, 0.9, 3], [1, 1, 0], from_logits=False))
        assert np.isnan(function([0, 1], [0.1, np.nan], from_logits=False))
