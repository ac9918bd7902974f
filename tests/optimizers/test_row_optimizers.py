import json

import keras
import numpy as np
import pytest

from keras_exfm import optimizers
from keras_exfm.optimizers import RowwiseAdagrad, SparseAdagrad, SparseAdam, SparseSGD
from tests.testing import to_numpy

ALL = [RowwiseAdagrad, SparseAdagrad, SparseAdam, SparseSGD]


@pytest.mark.parametrize("cls", ALL)
def test_config_round_trip(cls):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    for rate in (0.07, schedule):
        optimizer = cls(rate, weight_decay=0.1, clip_row_norm=2.0, warmup_steps=7)
        config = keras.saving.serialize_keras_object(optimizer)
        clone = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert type(clone) is cls
        assert clone.get_config() == optimizer.get_config()
        assert (clone.weight_decay, clone.clip_row_norm, clone.warmup_steps) == (0.1, 2.0, 7)
        assert optimizers.get(config).get_config() == optimizer.get_config()


def test_own_arguments_round_trip():
    for optimizer in (
        RowwiseAdagrad(initial_accumulator_value=0.5, epsilon=0.25),
        SparseAdagrad(initial_accumulator_value=0.5, epsilon=0.25),
        SparseAdam(beta_1=0.5, beta_2=0.75, epsilon=0.25),
    ):
        clone = type(optimizer).from_config(optimizer.get_config())
        assert vars(clone) == vars(optimizer)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("rowwise_adagrad", RowwiseAdagrad),
        ("sparse_adagrad", SparseAdagrad),
        ("sparse_adam", SparseAdam),
        ("sparse_sgd", SparseSGD),
    ],
)
def test_names(name, cls):
    assert type(optimizers.get(name)) is cls


def test_get():
    optimizer = SparseSGD()
    assert optimizers.get(optimizer) is optimizer
    assert optimizers.get(None) is None
    for wrong in ("adam", 3, keras.optimizers.SGD()):
        with pytest.raises(ValueError, match="RowOptimizer, None, or one of.*Received"):
            optimizers.get(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": "fast"}, "`learning_rate` should be a finite number.*'fast'"),
        ({"learning_rate": -0.1}, "`learning_rate`.*at least 0"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"learning_rate": float("inf")}, "`learning_rate`"),
        ({"weight_decay": -1}, "`weight_decay`"),
        ({"clip_row_norm": 0}, "`clip_row_norm` should be positive"),
        ({"warmup_steps": 1.5}, "`warmup_steps` should be an integer"),
        ({"warmup_steps": -1}, "`warmup_steps`"),
    ],
)
def test_wrong_arguments(options, message):
    for cls in ALL:
        with pytest.raises(ValueError, match=message):
            cls(**options)


def test_wrong_own_arguments():
    with pytest.raises(ValueError, match="`beta_1` .* below 1"):
        SparseAdam(beta_1=1.0)
    with pytest.raises(ValueError, match="`epsilon`"):
        RowwiseAdagrad(epsilon=-1e-3)
    with pytest.raises(TypeError, match="momentum"):
        SparseSGD(momentum=0.9)


def test_warm_up_by_hand():
    optimizer = SparseSGD(1.0, warmup_steps=4)
    rates = [float(to_numpy(optimizer.rate(1.0, step))) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_rowwise_adagrad_by_hand():
    """g = (3, 4): a = (9 + 16) / 2 = 12.5, w = 1 - 0.1 g / sqrt(12.5)."""
    rows, state = RowwiseAdagrad(0.1, epsilon=0.0).step(
        np.ones((1, 2), "float32"),
        np.array([[3.0, 4.0]], "float32"),
        {"accumulator": np.zeros(1, "float32")},
        0.1,
        0,
    )
    assert to_numpy(state["accumulator"]).tolist() == [12.5]
    np.testing.assert_allclose(to_numpy(rows)[0], [1 - 0.3 / 12.5**0.5, 1 - 0.4 / 12.5**0.5])


def test_clip_scales_the_row_and_keeps_zero():
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], "float32")
    rows, _ = SparseSGD(1.0, clip_row_norm=1.0).step(
        np.zeros((3, 2), "float32"), gradients, {}, 1.0, 0
    )
    np.testing.assert_allclose(to_numpy(rows), [[-0.6, -0.8], [-0.3, -0.4], [0, 0]], rtol=1e-6)
