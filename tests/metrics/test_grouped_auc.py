import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_exfm.metrics import GroupedAUC
from tests.metrics.compiled import update


def counted(y, z, w, group, definition):
    """Win counts of all pairs, one by one."""
    total = weights = 0.0
    for g in np.unique(group):
        pairs = wins = 0.0
        for i in np.flatnonzero((group == g) & (y == 1)):
            for j in np.flatnonzero((group == g) & (y == 0)):
                pairs += w[i] * w[j]
                wins += w[i] * w[j] * ((z[i] > z[j]) + 0.5 * (z[i] == z[j]))
        if pairs:
            weight = w[group == g].sum() if definition == "weighted" else 1.0
            total, weights = total + weight * wins / pairs, weights + weight
    return total / weights if weights else np.nan


@pytest.mark.parametrize("definition", ["weighted", "mean"])
@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(-2, 2),
            st.integers(0, 2),
            st.sampled_from([-9, 3, 2**30]),
        ),
        min_size=24,
        max_size=24,
    )
)
def test_equals_counting_pairs(definition, data):
    y, z, w, group = (np.array(column) for column in zip(*data))
    batch = (
        {"label": y.astype("float32"), "group": group.astype("int32")},
        z.astype("float32"),
        w.astype("float32"),
    )
    metric = update(GroupedAUC(definition=definition), [batch])
    expected = counted(y, z, w, group, definition)
    np.testing.assert_allclose(float(metric.result()), expected, atol=1e-6)


@pytest.mark.parametrize("definition", ["weighted", "mean"])
def test_large_batches_of_fractional_weights(definition):
    rng = np.random.default_rng(0)
    rows = 4096
    y, z = rng.integers(0, 2, rows), np.round(rng.normal(size=rows), 1).astype("float32")
    w, group = rng.uniform(0.1, 2, rows).astype("float32"), rng.integers(0, 700, rows)
    metric = update(
        GroupedAUC(definition=definition),
        [({"label": y.astype("float32"), "group": group.astype("int32")}, z, w)],
    )
    assert float(metric.result()) == pytest.approx(counted(y, z, w, group, definition), abs=1e-4)


def test_values_by_hand():
    label, group = [0, 1, 0, 1, 1, 1, 1], [1, 1, 2, 2, 2, 3, 3]
    score = [0.1, 0.3, 0.3, 0.2, 0.9, 0.5, 0.5]
    # Group 1: 1. Group 2: one of two pairs. Group 3 has one class.
    for definition, value in (("weighted", (2 * 1 + 3 * 0.5) / 5), ("mean", 0.75)):
        metric = GroupedAUC(definition=definition)
        metric.update_state({"label": label, "group": group}, score)
        assert float(metric.result()) == pytest.approx(value)
        stacked = GroupedAUC(definition=definition)
        stacked.update_state(np.stack([label, group], axis=1).astype("int32"), score)
        assert float(stacked.result()) == float(metric.result())


def test_equal_scores_of_neighbouring_groups_are_no_ties():
    """Sorted, the last score of group 1 stands beside the first of group 2, its equal."""
    metric = GroupedAUC()
    metric.update_state({"label": [0, 1, 0, 0], "group": [1, 1, 1, 2]}, [1.0, 5.0, 5.0, 5.0])
    assert float(metric.result()) == 0.75


def test_a_group_is_that_of_its_batch():
    metric = GroupedAUC()
    metric.update_state({"label": [0, 1], "group": [7, 7]}, [0.0, 1.0])
    metric.update_state({"label": [0, 1], "group": [7, 7]}, [5.0, 4.0])
    assert float(metric.result()) == 0.5


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ({"label": [0, 1]}, r"keys=\['label'\]"),
        (np.zeros((2, 3)), r"shape=\(2, 3\)"),
        (np.zeros(2), r"shape=\(2,\)"),
    ],
)
def test_labels_without_groups_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        GroupedAUC().update_state(y, [0.0, 1.0])


def test_bad_definition():
    with pytest.raises(ValueError, match="definition='median'"):
        GroupedAUC(definition="median")
