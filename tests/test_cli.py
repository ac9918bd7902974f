import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from keras_exfm import __version__
from keras_exfm.cli import app

TINY = [
    *("--set", "data.options.hours=5", "--set", "data.options.examples_per_hour=120"),
    *("--set", "evaluation.warmup_hours=3", "--set", 'evaluation.verticals=["feed"]'),
    *("--set", "evaluation.batch_size=64", "--set", "teacher.options.num_layers=1"),
]


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_version_and_help():
    assert __version__ in call("--version").output
    text = call("--help").output
    assert all(name in text for name in ("demo", "run", "report"))
    assert "--data" in call("run", "--help").output


def test_demo_then_report_again(tmp_path, backend):
    folder = tmp_path / "demo"
    result = call("demo", "--out", str(folder), "--backend", backend, *TINY)
    assert result.exit_code == 0, result.output
    assert "ExFM" in result.output
    page = (folder / "report.html").read_text()
    assert "<html" in page
    # Self-contained: nothing is loaded from elsewhere.
    assert 'src="http' not in page
    assert "<script src" not in page
    assert json.loads((folder / "results" / "run.json").read_text())["backend"] == backend
    again = call("report", str(folder), "--out", str(tmp_path / "other.html"))
    assert again.exit_code == 0, again.output
    assert (tmp_path / "other.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"], "No configuration file 'nope'"),
        (["run", "globo"], "--data"),
        (["run", "globo", "--data", "/nowhere"], "/nowhere"),
        (["run", "demo", "--set", "teacher.model=Nope"], "No model 'Nope'"),
        (["run", "demo", "--set", "evaluation.batch_size=-1"], "evaluation.batch_size"),
        (["run", "demo", "--set", "x"], "KEY=VALUE"),
        (["run", "demo", "--seeds", "a"], "whole numbers"),
        (["report", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = call(*arguments)
    assert result.exit_code != 0
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_backend_option_reaches_keras(backend):
    """`--backend` wins over the environment, because nothing imports Keras before."""
    other = {"tensorflow": "jax", "jax": "tensorflow"}[backend]
    code = (
        "import sys, keras_exfm.cli as cli; assert 'keras' not in sys.modules;"
        f"cli.use_backend(cli.Backend.{backend}); import keras; print(keras.backend.backend())"
    )
    environment = {**os.environ, "KERAS_BACKEND": other}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == backend
