import keras
import numpy as np
import pytest

from keras_exfm.layers import RepresentationHead
from tests.distillation.gradients import gradient_of, layer_gradients
from tests.layers.test_auxiliary_head import dense_stack
from tests.testing import run_layer_test, to_numpy

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


@pytest.mark.parametrize(("units", "parameters"), [((), 18), ((8,), 75)])
def test_layer(units, parameters, tmp_path):
    run_layer_test(
        lambda **kwargs: RepresentationHead(3, units, **kwargs),
        X,
        output_shape=(6, 3),
        parameters=parameters,
        reference=lambda layer, x: dense_stack(layer.mlp, x),
        tmp_path=tmp_path,
    )


def test_golden_values():
    head = RepresentationHead(2, loss_weight=0.5)
    head.build((None, 5))
    vector = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]], "float32")
    teacher = np.array([[1.0, 50.0], [np.nan, 3.0], [3.0, 10.0]], "float32")
    # Targets (-1, 1), none, (1, -1): errors (2, 1) and (1, 3).
    loss = head.compute_loss(vector, teacher)
    assert float(loss) == pytest.approx(0.5 * (2.5 + 5.0) / 3, rel=1e-4)
    # Weights 1 and 3: means 2.5 and 20; the first column's variance is 0.75.
    head = RepresentationHead(2)
    head.build((None, 5))
    zero = np.zeros((3, 2), "float32")
    loss = head.compute_loss(zero, teacher, np.array([1.0, 9.0, 3.0], "float32"))
    assert float(loss) == pytest.approx((1 * 3 + 3 * (1 / 3)) / 3, rel=1e-4)


def test_running_moments():
    """Restated as moments of all rows ever seen; a mean of 1000 swallows no variance of 1e-2."""
    rng = np.random.default_rng(1)
    head = RepresentationHead(2, half_life=20.0)
    head.build((None, 5))
    rows, weights = np.zeros((0, 2)), np.zeros(0)
    for size in (8, 1, 8):
        new = (1000 + rng.normal(size=(size, 2)) * (0.1, 50)).astype("float32")
        weight = rng.uniform(0, 2, size).astype("float32")
        head.compute_loss(np.zeros((size, 2), "float32"), new, weight)
        weights = np.concatenate([weights * 0.5 ** (weight.sum() / 20), weight])
        rows = np.concatenate([rows, new])
        mean = np.average(rows, axis=0, weights=weights)
        variance = np.average((rows - mean) ** 2, axis=0, weights=weights)
        np.testing.assert_allclose(to_numpy(head._mean), mean, rtol=1e-5)
        np.testing.assert_allclose(to_numpy(head._variance), variance, rtol=1e-2)


def test_the_loss_reads_as_the_unexplained_share():
    rng = np.random.default_rng(2)
    teacher = (rng.normal(size=(512, 2)) * (3, 0.01) + (7, -1)).astype("float32")
    head = RepresentationHead(2)
    head.build((None, 5))
    assert float(head.compute_loss(np.zeros_like(teacher), teacher)) == pytest.approx(1, abs=0.06)
    best = (teacher - teacher.mean(0)) / teacher.std(0)
    head = RepresentationHead(2)
    head.build((None, 5))
    assert float(head.compute_loss(best, teacher)) < 1e-3


def test_a_coordinate_that_wakes_up_is_bounded():
    head = RepresentationHead(2)
    head.build((None, 5))
    zero = np.zeros((4, 2), "float32")
    for _ in range(3):
        assert float(head.compute_loss(zero, zero)) == 0.0
    spike = zero.copy()
    spike[0] = 100.0
    assert float(head.compute_loss(zero, spike)) <= 25.0 / 4 + 1e-3


def test_missing_vectors_send_no_nan_back():
    head = RepresentationHead(3)
    head.build((None, 5))
    teacher = np.full((6, 3), np.nan, "float32")
    teacher[:2] = [[1.0, 2.0, 3.0], [2.0, np.inf, 0.0]]
    vector = np.ones((6, 3), "float32")
    back = gradient_of(lambda v: head.compute_loss(v, teacher), vector)
    assert np.isfinite(back).all()
    assert (back[1:] == 0).all()
    assert np.abs(back[0]).max() > 0
    none = np.full((6, 3), np.nan, "float32")
    fresh = RepresentationHead(3)
    fresh.build((None, 5))
    assert float(fresh.compute_loss(vector, none)) == 0.0
    assert not any(to_numpy(v).any() for v in fresh.non_trainable_variables)


def test_gradient_scale_gate_and_schedules():
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, 4, end_learning_rate=2.0)
    plain = RepresentationHead(3)
    scaled = RepresentationHead(3, gradient_scale=ramp, loss_weight=ramp)
    for head in (plain, scaled):
        head.build((None, 5))
    scaled.set_weights(plain.get_weights())
    # Step 3 of 4: 1.5; times a gate of 0.5.
    seen = lambda x: scaled(x, step=3, gate=0.5)  # noqa: E731
    np.testing.assert_array_equal(to_numpy(seen(X)), to_numpy(plain(X)))
    total = keras.ops.sum
    want, _ = layer_gradients(plain, X, lambda v: total(v * v))
    back = gradient_of(lambda x: total(seen(x) ** 2), X)
    np.testing.assert_allclose(back, 0.75 * want, rtol=1e-5)
    teacher = np.random.default_rng(3).normal(size=(6, 3)).astype("float32")
    vector = to_numpy(plain(X))
    assert float(scaled.compute_loss(vector, teacher)) == 0.0
    other = RepresentationHead(3)
    other.build((None, 5))
    once = float(other.compute_loss(vector, teacher))
    fresh = RepresentationHead(3, loss_weight=ramp)
    fresh.build((None, 5))
    assert float(fresh.compute_loss(vector, teacher, step=3)) == pytest.approx(1.5 * once)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "`size` should be an integer of at least 1"),
        ({"size": 2, "half_life": 0}, "`half_life`"),
        ({"size": 2, "loss_weight": "big"}, "`loss_weight` should be.*LearningRateSchedule"),
        ({"size": 2, "gradient_scale": -1.0}, "`gradient_scale`"),
        ({"size": 2, "units": (0,)}, r"`units\[0\]`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepresentationHead(**arguments)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"\(batch, features\)"):
        RepresentationHead(2).build((None, 3, 4))
    head = RepresentationHead(2)
    head.build((None, 5))
    with pytest.raises(ValueError, match=r"\(batch, 2\).*\(6, 3\)"):
        head.compute_loss(np.zeros((6, 2), "float32"), np.zeros((6, 3), "float32"))


def test_it_may_start_from_zero():
    head = RepresentationHead(3, (4,), output_initializer="zeros")
    np.testing.assert_array_equal(to_numpy(head(X)), np.zeros((6, 3)))
    assert RepresentationHead.from_config(head.get_config()).get_config() == head.get_config()
