import keras
import numpy as np
import pytest

from keras_exfm.losses import TeacherCrossentropy, clipped_targets, known_teacher, soft_targets
from tests.distillation.gradients import gradient_of
from tests.testing import to_numpy

TEACHER = np.array([[-3.0], [0.0], [1.0], [np.nan], [np.inf], [-np.inf], [40.0]], "float32")
KNOWN = np.array([1, 1, 1, 0, 0, 0, 1], bool)[:, None]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, "float64")))


def test_known_teacher_replaces_what_is_missing():
    logit, known = known_teacher(TEACHER)
    np.testing.assert_array_equal(to_numpy(known), KNOWN)
    np.testing.assert_array_equal(to_numpy(logit), np.where(KNOWN, TEACHER, 0))


def test_known_teacher_is_float32_whatever_comes():
    logit, _ = known_teacher(keras.ops.cast(TEACHER, "bfloat16"))
    assert keras.backend.standardize_dtype(logit.dtype) == "float32"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_soft_targets_scale_and_clip(alpha):
    target = to_numpy(soft_targets(TEACHER, alpha))
    expected = np.minimum(alpha * sigmoid(np.where(KNOWN, TEACHER, 0)), 1)
    np.testing.assert_allclose(target, expected, atol=1e-7)
    clipped = to_numpy(clipped_targets(TEACHER, alpha))
    np.testing.assert_array_equal(clipped, KNOWN & (alpha * sigmoid(TEACHER) > 1))


def test_no_gradient_reaches_the_teacher():
    def total(teacher):
        return keras.ops.sum(soft_targets(teacher, 0.7) ** 2)

    np.testing.assert_array_equal(gradient_of(total, TEACHER[:3]), np.zeros((3, 1)))


def test_row_losses_match_the_definition():
    z = np.linspace(-4, 4, len(TEACHER)).astype("float32")[:, None]
    rows = to_numpy(TeacherCrossentropy(1.3).call(TEACHER, z))
    p = np.minimum(1.3 * sigmoid(np.where(KNOWN, TEACHER, 0)), 1)
    expected = -p * np.log(sigmoid(z)) - (1 - p) * np.log(1 - sigmoid(z))
    np.testing.assert_allclose(rows, np.where(KNOWN, expected, 0)[:, 0], rtol=1e-5, atol=1e-6)


def test_missing_rows_stay_in_the_divisor():
    loss = TeacherCrossentropy()
    z = np.zeros((4, 1), "float32")
    teacher = np.array([[0.0], [np.nan], [np.nan], [np.nan]], "float32")
    assert float(loss(teacher, z)) == pytest.approx(np.log(2) / 4, rel=1e-6)
    weight = np.array([3.0, 1.0, 1.0, 1.0], "float32")
    assert float(loss(teacher, z, sample_weight=weight)) == pytest.approx(
        3 * np.log(2) / 4, rel=1e-6
    )


@pytest.mark.parametrize("z", [-80.0, -20.0, -1.0, 0.0, 1.0, 20.0, 80.0])
def test_gradient_is_sigmoid_minus_target_at_every_size(z):
    """Also at exactly 0, where max(z, 0) has no derivative, and far out, where clips kill it."""
    loss = TeacherCrossentropy()
    teacher = np.array([[0.8]], "float32")
    gradient = gradient_of(lambda v: loss(teacher, v), np.array([[z]], "float32"))
    np.testing.assert_allclose(gradient, [[sigmoid(z) - sigmoid(0.8)]], rtol=1e-5, atol=1e-7)
    assert np.isfinite(float(loss(teacher, np.array([[z]], "float32"))))


def test_gradient_of_missing_rows_is_zero_and_never_nan():
    loss = TeacherCrossentropy()
    gradient = gradient_of(lambda v: loss(TEACHER, v), np.ones((7, 1), "float32"))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient != 0, KNOWN)


def test_bfloat16_logits_are_raised_to_float32():
    z = keras.ops.cast(np.array([[1.0]], "float32"), "bfloat16")
    loss = TeacherCrossentropy()(np.array([[0.3]], "float32"), z)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


def test_config_round_trip():
    loss = TeacherCrossentropy(label_scale=2.0, reduction="sum", name="t")
    clone = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(clone) is TeacherCrossentropy
    assert clone.get_config() == loss.get_config()


def test_bad_arguments():
    for scale in (0, -1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="label_scale"):
            TeacherCrossentropy(scale)
    with pytest.raises(ValueError, match=r"one shape.*\(3,\).*\(3, 1\)"):
        TeacherCrossentropy().call(np.zeros(3, "float32"), np.zeros((3, 1), "float32"))
