"""`keras-exfm tune`."""

import io
import sys
import tomllib

import pytest
from rich.console import Console
from typer.testing import CliRunner

from keras_exfm._cli import tuning
from keras_exfm._cli.tuning import toml
from keras_exfm.cli import app
from keras_exfm.pipeline import config
from keras_exfm.tuner import Cost, DistillationHyperModel, DLRMHyperModel
from tests.tuner import streams

SMALL = (
    *("--fix", "dim=2", "--fix", "dropout=0.0", "--fix", "learning_rate=0.01"),
    *("--fix", "concat_embeddings=true", "--space", "top_units=[4,8,512]"),
    *("--space", "top_depth=1..2", "--space", "table_learning_rate=0.05..0.4"),
)


def call(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def run_config(text):
    """The fragment in the place of the demo's own tables."""
    tree = config.load("demo").model_dump()
    fragment = tomllib.loads(text)
    extra = fragment.pop("students", [])
    return config.parse({**tree, **fragment, "students": [*tree["students"], *extra]})


def test_search_then_toml_for_run_then_go_on(tmp_path, backend):
    stream = streams.write(tmp_path / "labelled", hours=2, count=64)
    out = tmp_path / "out"
    command = (
        *("--model", "dlrm", "--data", stream, "--out", out, "--backend", backend, *SMALL),
        *("--budget-mflop", 0.004, "--batch-size", 64, "--warmup-hours", 1),
    )
    result = call(*command, "--trials", 2)
    assert result.exit_code == 0, result.output
    assert "2/2 trials" in result.output
    assert "progressive_normalized_entropy: the best 2 of 2 trials" in result.output
    student = run_config((out / "best.toml").read_text()).student
    assert student.model == "DLRM"
    assert student.options["dim"] == 2
    assert 0.05 <= student.table_learning_rate <= 0.4
    # The wide layer is beyond the budget.
    assert set(student.options["top_units"]) <= {4, 8}

    again = call(*command, "--trials", 2, "--as", "teacher")
    assert again.exit_code == 0, again.output
    teacher = run_config((out / "best.toml").read_text()).teacher
    assert teacher.options == student.options
    assert len(list(out.glob("search/trial_*"))) == 2

    # What the trials were made with may not change under them.
    best = (out / "best.toml").read_bytes()
    for change, words in (
        (("--fix", "dim=4"), "fixed: "),
        (("--batch-size", 32), "batch_size: 64 (now: 32)"),
        (("--budget-mflop", 0.005), "budget: "),
    ):
        refused = call(*command, *change, "--trials", 2)
        text = " ".join((refused.output + (refused.stderr or "")).split())
        assert refused.exit_code == 1
        assert "holds a search with other settings" in text
        assert words in text
        assert "--fresh" in text
    assert (out / "best.toml").read_bytes() == best


@pytest.mark.slow
def test_a_process_for_each_trial(tmp_path, backend):
    stream = streams.write(tmp_path / "labelled", hours=2, count=64)
    out = tmp_path / "out"
    result = call(
        *("--model", "dlrm", "--data", stream, "--out", out, "--backend", backend, *SMALL),
        *("--batch-size", 64, "--trials", 3, "--trials-per-process", 1),
    )
    assert result.exit_code == 0, result.output
    assert "the best 3 of 3 trials" in result.output
    assert len(list(out.glob("search/trial_*"))) == 3
    assert (out / "tuner0.log").is_file()


def test_distilled_student_as_toml():
    base = DLRMHyperModel(streams.schema())
    hypermodel = DistillationHyperModel(base)
    values = {name: spec.first for name, spec in {**base.space, **hypermodel.space}.items()}
    row = {"trial": "3", "hyperparameters": values, "cost": Cost(300, 100, 50)}
    found = run_config(toml(hypermodel, row))
    tuned = found.students[-1]
    assert (tuned.name, tuned.student_adapter) == ("tuned", {"units": [8]})
    assert tuned.auxiliary_head["units"] == [16]
    assert found.student.model == "DLRM"


@pytest.mark.backend_free
@pytest.mark.parametrize(("width", "shown"), [(120, 5), (60, 4), (20, 1)])
def test_as_many_trials_as_the_terminal_is_wide(width, shown, monkeypatch):
    console = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(tuning, "console", console)
    rows = [
        {
            "trial": str(i),
            "score": 0.9 + i / 100,
            "cost": Cost(3_000_000 * (i + 1), 100, 50),
            "hyperparameters": {"top_units": 8 * i, "same": 1, "tuner/epochs": i},
        }
        for i in range(5)
    ]
    tuning._show(rows, "ne")
    text = console.export_text()
    assert f"the best {shown} of 5 trials" in " ".join(text.split())
    assert "same" not in text
    assert "tuner/epochs" not in text
    if width > 20:
        (scores,) = (line for line in text.splitlines() if "score" in line)
        assert scores.count("0.9") == shown
        assert "0.90000" in scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nope"), "No model 'nope'"),
        (("--model", "dlrm", "--fix", "widht=3"), "widht"),
        (("--model", "dlrm", "--fix", "widht"), "KEY=VALUE"),
        (("--model", "dlrm", "--budget-mflop", "0.000001"), "None of 500 draws"),
        (("--model", "dlrm", "--budget-mflop", "-1"), "training_flops"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path):
    stream = streams.write(tmp_path / "labelled", hours=1, count=8)
    result = call(*arguments, "--data", stream, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert message in " ".join((result.output + (result.stderr or "")).split())


def test_a_missing_extra_is_told_in_a_line(tmp_path, monkeypatch):
    stream = streams.write(tmp_path / "labelled", hours=1, count=8)
    for name in [n for n in sys.modules if n.partition(".")[0] == "keras_tuner"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("keras_exfm.tuner")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    result = call("--model", "dlrm", "--data", stream, "--out", tmp_path / "out")
    assert result.exit_code == 1
    text = " ".join((result.output + (result.stderr or "")).split())
    assert "Error keras_exfm.tuner needs KerasTuner" in text
    assert "pip install keras-exfm[tuner]" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_share_a_search(tmp_path, backend):
    stream = streams.write(tmp_path / "labelled", hours=2, count=64)
    out = tmp_path / "out"
    result = call(
        *("--model", "dlrm", "--data", stream, "--out", out, "--backend", backend, *SMALL),
        *("--batch-size", 64, "--trials", 4, "--workers", 2, "--trials-per-process", 1),
    )
    assert result.exit_code == 0, result.output
    assert "the best 4 of 4 trials" in result.output
    assert (out / "best.toml").is_file()
    assert (out / "worker1.log").is_file()
