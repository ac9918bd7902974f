import itertools
import json

import keras
import numpy as np
import pytest

from keras_exfm.layers import AuxiliaryHead
from tests.distillation.gradients import gradient_of, layer_gradients
from tests.testing import run_layer_test, to_numpy

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
TEACHER = np.array([[-2.0], [0.0], [3.0], [np.nan], [1.0], [-1.0]], "float32")


def dense_stack(layer, x):
    kernels = [to_numpy(v) for v in layer.weights]
    for i in range(0, len(kernels) - 2, 2):
        x = np.maximum(x @ kernels[i] + kernels[i + 1], 0)
    return x @ kernels[-2] + kernels[-1]


@pytest.mark.parametrize("units", [(), (4,), (4, 3)])
def test_layer(units, tmp_path):
    widths = [5, *units, 1]
    run_layer_test(
        lambda **kwargs: AuxiliaryHead(
            units, loss_weight=0.5, label_scale=2.0, gradient_scale=3.0, **kwargs
        ),
        X,
        output_shape=(6, 1),
        parameters=sum(a * b + b for a, b in itertools.pairwise(widths)),
        reference=dense_stack,
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0, 20.0])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_gradient_scale_leaves_the_value_exact(beta, dtype):
    plain = AuxiliaryHead((4,), dtype=dtype)
    scaled = AuxiliaryHead((4,), gradient_scale=beta, dtype=dtype)
    x = (X * np.float32(1e4)).astype("float32")
    plain(x), scaled(x)
    scaled.set_weights(plain.get_weights())
    np.testing.assert_array_equal(
        to_numpy(keras.ops.cast(plain(x), "float32")),
        to_numpy(keras.ops.cast(scaled(x), "float32")),
    )


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 20.0])
def test_gradient_scale_acts_on_the_backbone_only(beta):
    plain, scaled = AuxiliaryHead((4,)), AuxiliaryHead((4,), gradient_scale=beta)
    plain(X), scaled(X)
    scaled.set_weights(plain.get_weights())

    def total(logit):
        return keras.ops.sum(logit**2)

    back, own = layer_gradients(plain, X, total)
    scaled_back, scaled_own = layer_gradients(scaled, X, total)
    assert np.abs(back).max() > 0.01
    np.testing.assert_allclose(scaled_back, beta * back, rtol=1e-5, atol=1e-6)
    for a, b in zip(own, scaled_own):
        np.testing.assert_array_equal(a, b)


def test_golden_loss():
    head = AuxiliaryHead(loss_weight=10.0, label_scale=5.0)
    teacher = np.log(np.array([[0.1], [0.4]]) / np.array([[0.9], [0.6]])).astype("float32")
    np.testing.assert_allclose(to_numpy(head.target(teacher)), [[0.5], [1.0]], rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(head.clipped(teacher)), [[False], [True]])
    logit = np.array([[0.0], [0.0]], "float32")
    np.testing.assert_allclose(to_numpy(head.row_loss(logit, teacher)), np.log([2.0, 2.0]), 1e-6)
    weight = np.array([1.0, 3.0], "float32")
    # 10 * (1 log 2 + 3 log 2) / 2
    assert float(head.compute_loss(logit, teacher, weight)) == pytest.approx(20 * np.log(2))


def test_missing_teacher():
    head = AuxiliaryHead()
    rows = to_numpy(head.row_loss(head(X), TEACHER))
    assert rows.shape == (6,)
    np.testing.assert_array_equal(rows == 0, np.isnan(TEACHER[:, 0]))
    assert np.isfinite(to_numpy(head.target(TEACHER))).all()
    known = np.isfinite(TEACHER[:, 0])
    assert float(head.compute_loss(head(X), TEACHER)) == pytest.approx(
        rows[known].sum() / 6, rel=1e-6
    )


def test_row_loss_of_bfloat16_logits_is_float32():
    head = AuxiliaryHead(dtype="mixed_bfloat16")
    rows = head.row_loss(head(X), TEACHER)
    assert keras.backend.standardize_dtype(rows.dtype) == "float32"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("units", (0,)),
        ("units", "8"),
        ("loss_weight", -1),
        ("label_scale", 0),
        ("gradient_scale", float("nan")),
        ("gradient_scale", True),
    ],
)
def test_bad_argument(argument, value):
    with pytest.raises(ValueError, match=argument):
        AuxiliaryHead(**{argument: value})


@pytest.mark.parametrize("shape", [(None, 3, 4), (None, None), (None,)])
def test_bad_representation(shape):
    with pytest.raises(ValueError, match=r"\(batch, features\)"):
        AuxiliaryHead().build(shape)


def test_schedules():
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, 4, end_learning_rate=2.0)
    head = AuxiliaryHead(loss_weight=ramp, gradient_scale=ramp)
    config = head.get_config()
    json.dumps(config)
    clone = AuxiliaryHead.from_config(config)
    assert clone.get_config() == config
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    teacher = np.array([[0.0], [1.0], [np.nan], [-1.0]], "float32")
    plain = AuxiliaryHead()
    plain.build((None, 3))
    for h in (head, clone):
        h.build((None, 3))
        h.set_weights(plain.get_weights())
        logit = h(x, step=1)
        np.testing.assert_array_equal(to_numpy(logit), to_numpy(plain(x)))
        once = float(plain.compute_loss(logit, teacher))
        for step, weight in ((None, 0.0), (1, 0.5), (3, 1.5), (9, 2.0)):
            assert float(h.compute_loss(logit, teacher, step=step)) == pytest.approx(weight * once)
        for step, gate, scale in ((1, None, 0.5), (3, 0.5, 0.75), (None, 1.0, 0.0)):
            got = gradient_of(lambda v: keras.ops.sum(h(v, step=step, gate=gate)), x)  # noqa: B023
            want = gradient_of(lambda v: keras.ops.sum(plain(v)), x)
            np.testing.assert_allclose(got, scale * want, rtol=1e-6, atol=1e-9)


def test_where_it_starts():
    """From zero: the prior for every row, and no gradient into the backbone at first."""
    head = AuxiliaryHead((4,), output_initializer="zeros", prior=0.2)
    logit = to_numpy(head(X))
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), np.full((6, 1), 0.2), rtol=1e-6)
    back = gradient_of(lambda x: head.compute_loss(head(x), TEACHER), X)
    np.testing.assert_array_equal(back, np.zeros_like(X))
    # The hidden layer starts at random, or nothing would ever move.
    assert np.abs(to_numpy(head.mlp.hidden[0].kernel)).max() > 0.1
    config = head.get_config()
    json.dumps(config)
    clone = AuxiliaryHead.from_config(config)
    assert clone.get_config() == config
    np.testing.assert_array_equal(to_numpy(clone(X)), logit)
    for prior in (0, 1, -0.1):
        with pytest.raises(ValueError, match="`prior` should be a probability"):
            AuxiliaryHead(prior=prior)
