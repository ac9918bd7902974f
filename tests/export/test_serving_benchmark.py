"""The benchmark of serving: contenders in one process leave each other the cores."""

import argparse
import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="serving")
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("serving")


def arguments(contender):
    return argparse.Namespace(
        contender=contender, size="student", folder=None, threads=1, warmup=0, seconds=0, torch=True
    )


def test_another_contender_comes_first_each_turn(serving, monkeypatch):
    called = []

    def caller(name, *settings):
        assert settings == ("student", None, 1, True)
        return lambda batch: called.append(name)

    monkeypatch.setattr(serving, "caller", caller)
    monkeypatch.setattr(serving, "BATCHES", (1,))
    found = serving.measure(arguments(serving.TURNS))["times"]
    turns = np.array(called).reshape(-1, 8)
    assert (turns == turns[:, :1]).all()
    turns = turns[:, 0].reshape(-1, len(found)).tolist()
    assert len(turns) >= 4
    for before, after in itertools.pairwise(turns):
        assert after == before[1:] + before[:1]
    assert {len(times["1"]) for times in found.values()} == {len(turns) * (8 - serving.UNTIMED)}


@pytest.mark.parametrize("contender", ["inputs alone: named", "ONNX Runtime"])
@pytest.mark.parametrize("shared", [True, False])
def test_threads_spin_only_where_a_session_is_alone(
    serving, monkeypatch, tmp_path, contender, shared
):
    import onnxruntime

    (tmp_path / "student.onnx").write_bytes(serving.inputs_alone(matrix=False))
    made = []
    session = onnxruntime.InferenceSession

    def keep(*given, **named):
        made.append(session(*given, **named))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", keep)
    call = serving.caller(contender, "student", tmp_path, 1, shared)
    options = made[-1].get_session_options()
    assert options.intra_op_num_threads == 1
    key = "session.intra_op.allow_spinning"
    if shared:
        assert options.get_session_config_entry(key) == "0"
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)
    if contender != "ONNX Runtime":
        assert call(serving.features(2, 0)).shape == (2 * serving.FIELDS,)
