"""`--add` of benchmarks/zoo_stream.py keeps other models' runs, and only of the same settings."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Tuples, as the script has them; the file has lists.
SAME = {"batch": 512, "dims": (16, 32)}


@pytest.fixture
def zoo_stream(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import zoo_stream

    monkeypatch.setattr(zoo_stream, "RESULTS", tmp_path)
    yield zoo_stream
    for name in ("zoo_stream", "_processes", "_records"):
        sys.modules.pop(name, None)


@pytest.fixture
def recorded(zoo_stream, tmp_path):
    def write(**changes):
        runs = [{"model": name, "seed": 1} for name in ("FM", "DLRM", "FM")]
        about = {
            "command": f"python benchmarks/zoo_stream.py {zoo_stream.asked(asked())}",
            "settings": zoo_stream.SETTINGS,
            **SAME,
            "runs": runs,
            "search": runs,
        }
        zoo_stream.write_json(tmp_path / "globo.json", {**about, **changes})

    return write


def asked(**changes):
    options = {"seeds": [1, 2], "backend": "jax", "user_fraction": 0.15, "models": ["DLRM"]}
    return Namespace(**{**options, **changes})


def test_without_a_record_there_is_nothing_to_keep(zoo_stream):
    assert zoo_stream.kept(SAME, asked()) is None


def test_the_other_models_are_kept(zoo_stream, recorded):
    recorded()
    before = zoo_stream.kept(SAME, asked())
    assert [r["model"] for r in before["runs"]] == ["FM", "FM"]
    assert [r["model"] for r in before["search"]] == ["FM", "FM"]


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"batch": 256}, {}, "of other batch"),
        ({"dims": [16]}, {}, "of other dims"),
        ({}, {"seeds": [1, 2, 3]}, "of other seeds, backend or users"),
        ({}, {"user_fraction": 0.3}, "of other seeds, backend or users"),
    ],
)
def test_a_record_of_something_else_is_refused(zoo_stream, recorded, changes, options, words):
    recorded(**changes)
    before = (zoo_stream.RESULTS / "globo.json").read_text()
    with pytest.raises(SystemExit, match=words):
        zoo_stream.kept(SAME, asked(**options))
    assert (zoo_stream.RESULTS / "globo.json").read_text() == before


def test_other_settings_of_a_model_that_stays_are_refused(zoo_stream, recorded):
    recorded(settings={**zoo_stream.SETTINGS, "FM": {"dim": 3}})
    with pytest.raises(SystemExit, match="of other settings of FM"):
        zoo_stream.kept(SAME, asked())


def test_settings_of_a_model_that_runs_anew_may_be_other_ones(zoo_stream, recorded):
    recorded(settings={**zoo_stream.SETTINGS, "DLRM": {"top_units": [1]}})
    kept = zoo_stream.kept(SAME, asked())
    assert json.dumps(kept["runs"]) == json.dumps([{"model": "FM", "seed": 1}] * 2)
