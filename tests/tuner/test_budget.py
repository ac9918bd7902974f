import subprocess
import sys

import pytest

import keras_exfm as kx
from keras_exfm.tuner import Budget, Cost, objectives

COST = Cost(training_flops=300, inference_flops=100, parameters=50)


@pytest.mark.parametrize("name", ["training_flops", "inference_flops", "parameters"])
def test_each_figure_is_a_limit_of_its_own(name):
    limit = getattr(COST, name)
    assert Budget(**{name: limit}).allows(COST)
    assert not Budget(**{name: limit - 1}).allows(COST)
    assert Budget(**{name: limit - 1}).excess(COST)[0].startswith(name)
    assert Budget().allows(COST)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "20M"])
def test_bad_limits_are_refused(value):
    with pytest.raises(ValueError, match="training_flops="):
        Budget(training_flops=value)


def test_cost_leaves_tables_out():
    def dlrm(rows):
        schema = kx.Schema([kx.Categorical("a", rows), kx.Categorical("b", rows)])
        return kx.models.shapes_only(kx.models.DLRM, schema, dim=4, top_units=(8,))

    small, large = Cost.of(dlrm(10)), Cost.of(dlrm(10_000_000))
    assert small == large
    # Input of the MLP: two embeddings of 4 and their product; then 8 units and a logit.
    assert small.parameters == 9 * 8 + 8 + 8 + 1


@pytest.mark.parametrize(
    ("make", "metric", "direction"),
    [
        (objectives.normalized_entropy, kx.metrics.NormalizedEntropy, "min"),
        (objectives.log_loss, kx.metrics.LogLoss, "min"),
        (objectives.auc, kx.metrics.AUC, "max"),
        (objectives.grouped_auc, kx.metrics.GroupedAUC, "max"),
        (objectives.calibration_error, kx.metrics.CalibrationError, "min"),
    ],
)
def test_objectives_are_named_as_the_metrics(make, metric, direction):
    assert make().name == f"val_{metric().name}"
    assert make("progressive").name == f"progressive_{metric().name}"
    assert make().direction == direction
    with pytest.raises(ValueError, match="on='test'"):
        make("test")


def test_missing_keras_tuner_names_the_extra():
    program = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'keras_tuner' else find(name, *a)\n"
        "try:\n"
        "    import keras_exfm.tuner\n"
        "except ImportError as error:\n"
        "    assert 'pip install keras-exfm[tuner]' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
