import keras
import numpy as np
import pytest

from keras_exfm.layers import TeacherGate
from tests.testing import to_numpy


def observe(gate, teacher, student, weight):
    weight = np.asarray(weight, "float32")
    gate.observe_teacher(np.asarray(teacher, "float32"), weight)
    gate.observe_student(np.asarray(student, "float32"), weight)
    return float(to_numpy(gate.factor))


def test_golden_values():
    gate = TeacherGate(half_life=4.0, margin=0.5)
    assert float(gate.factor) == 0.0
    assert float(gate.student_loss) == 0.0
    # Gain 1 - 2.25 / 3 = 0.25, half of the margin.
    assert observe(gate, [0.5, 1.75, 9.0], [1.0, 2.0, 9.0], [1, 1, 0]) == pytest.approx(0.5)
    # Four rows are one half-life: T = 2.25 / 2 + 4, S = 3 / 2 + 8.
    factor = observe(gate, [1.0] * 4, [2.0] * 4, [1] * 4)
    assert factor == pytest.approx((1 - 5.125 / 9.5) / 0.5)
    assert float(gate.teacher_loss) == pytest.approx(5.125 / 5)
    assert float(gate.student_loss) == pytest.approx(9.5 / 5)


@pytest.mark.parametrize(("margin", "factors"), [(0.1, [0.0, 0.0, 0.5, 1.0]), (0.0, [0, 0, 1, 1])])
def test_factor_over_the_gain(margin, factors):
    for gain, expected in zip((-0.3, 0.0, 0.05, 0.2), factors):
        gate = TeacherGate(margin=margin)
        assert observe(gate, [1 - gain], [1.0], [1]) == pytest.approx(expected, abs=1e-5)


def test_a_threshold_shifts_the_gain():
    for gain, expected in zip((0.05, 0.1, 0.15, 0.3, 0.4), (0, 0, 0.25, 1, 1)):
        gate = TeacherGate(margin=0.2, threshold=0.1)
        assert observe(gate, [1 - gain], [1.0], [1]) == pytest.approx(expected, abs=1e-5)


def test_running_means_are_unbiased_from_the_first_row_on():
    """Restated as a weighted mean over all rows ever seen, in batches of unequal size."""
    rng = np.random.default_rng(0)
    gate = TeacherGate(half_life=30.0)
    rows = np.zeros((0, 3))
    for size in (1, 40, 0, 7, 16):
        new = np.stack(
            [rng.uniform(0.1, 1, size), rng.uniform(0.1, 1, size), rng.uniform(0, 2, size)], 1
        )
        rows[:, 2] *= 0.5 ** (new[:, 2].sum() / 30)
        rows = np.concatenate([rows, new])
        observe(gate, new[:, 0], new[:, 1], new[:, 2])
        for mean, column in ((gate.teacher_loss, 0), (gate.student_loss, 1)):
            expected = np.average(rows[:, column], weights=rows[:, 2])
            assert float(mean) == pytest.approx(expected, rel=1e-5)


def test_batches_without_a_teacher_change_nothing():
    gate = TeacherGate()
    before = observe(gate, [0.99], [1.0], [1])
    assert before > 0
    for _ in range(3):
        assert observe(gate, [np.nan, 5.0], [0.1, 0.1], [0, 0]) == before


def test_a_loss_that_is_nan_shuts_the_gate():
    gate = TeacherGate()
    assert observe(gate, [0.5], [1.0], [1]) == 1.0
    assert observe(gate, [np.nan], [1.0], [1]) == 0.0


def test_config_and_state_travel(tmp_path):
    gate = TeacherGate(half_life=12.0, margin=0.2, threshold=0.05, name="g")
    config = gate.get_config()
    assert TeacherGate.from_config(config).get_config() == config
    assert not gate.trainable_variables
    assert [v.path for v in gate.weights] == [
        f"g/{name}" for name in ("student_sum", "teacher_sum", "rows", "factor")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"half_life": 0}, "`half_life` should be a finite number above 0"),
        ({"margin": -0.1}, "`margin` should be a finite number of at least 0"),
        ({"threshold": -1.0}, "`threshold` should be a finite number of at least 0"),
        ({"margin": keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)}, "`margin`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TeacherGate(**arguments)
