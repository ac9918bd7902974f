"""The record of benchmarks/zoo.py grows: no run is lost, none is mixed with another setting."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FIGURES = {"logloss": 0.5, "calibration": 1.0}


@pytest.fixture
def zoo(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import zoo

    monkeypatch.setattr(zoo, "RESULTS", tmp_path / "results")
    yield zoo
    for name in ("zoo", "zoo_data", "zoo_settings", "_processes", "_records"):
        sys.modules.pop(name, None)


def record(zoo, name, auc, seed=1, trial=None, setting=0):
    scores = {"auc": auc, **FIGURES}
    kinds = dict.fromkeys(("choose", "test", "test_calibrated", "test_of_least_logloss"), scores)
    made = {"model": name, "draw": 0, "seed": seed, **kinds}
    made["setting"] = json.loads(json.dumps(zoo.trials("ml1m", name)[setting]))
    made |= {"rows": {"train": 1}, "checksums": {}, "versions": {"keras": "3"}}
    return made if trial is None else {**made, "trial": trial}


@pytest.fixture
def summary(zoo, tmp_path):
    def summarize(runs, tried):
        for folder, records in (("", runs), ("search", tried)):
            for r in records:
                last = f"{r['draw']}-{r['seed']}" if not folder else r["trial"]
                file = tmp_path / "runs" / "ml1m" / folder / f"{r['model']}-{last}.json"
                zoo.write_json(file, r)
        zoo.summarize(Namespace(runs=tmp_path / "runs"), lambda text: None)
        for file in (tmp_path / "runs").rglob("*.json"):
            file.unlink()
        made = json.loads((zoo.RESULTS / "ml1m.json").read_text())
        models = {row["model"]: (row["runs"], row["auc"]) for row in made["models"]["test"]}
        return models, made

    return summarize


def test_a_record_grows(zoo, summary):
    first, _ = summary(
        [record(zoo, "FM", 0.7), record(zoo, "DLRM", 0.7), record(zoo, "DLRM", 0.8, seed=2)],
        [record(zoo, "DLRM", 0.7, trial=0)],
    )
    assert first == {"FM": (1, 0.7), "DLRM": (2, pytest.approx(0.75))}
    # A trial alone, no better: nothing of the figures goes.
    again, made = summary([], [record(zoo, "DLRM", 0.6, trial=1, setting=1)])
    assert again == first
    assert len(made["search"]) == 2
    # The same run again replaces the old one.
    again, made = summary([record(zoo, "FM", 0.9)], [])
    assert again["FM"] == (1, 0.9)
    assert (len(made["runs"]), made["versions"]) == (3, [{"keras": "3"}])
    # Nothing new leaves it as it is.
    assert summary([], [])[1] == made


def test_runs_of_two_settings_are_not_mixed(zoo, summary):
    old = [record(zoo, "DLRM", 0.7, seed=seed) for seed in (1, 2)]
    summary(old, [record(zoo, "DLRM", 0.7, trial=0)])
    better = record(zoo, "DLRM", 0.8, trial=1, setting=1)
    # No run has the new setting yet: the old ones stay.
    models, _ = summary([], [better])
    assert models["DLRM"] == (2, pytest.approx(0.7))
    models, made = summary([record(zoo, "DLRM", 0.8, seed=2, setting=1)], [])
    assert models["DLRM"] == (1, 0.8)
    assert [r["seed"] for r in made["runs"]] == [2]


def test_the_record_chooses_settings(zoo, summary, tmp_path):
    summary(
        [record(zoo, "DLRM", 0.7)],
        [record(zoo, "DLRM", 0.7, trial=0), record(zoo, "DLRM", 0.8, trial=2, setting=2)],
    )
    setting, found, file = zoo.chosen(tmp_path / "runs" / "ml1m", "ml1m", "DLRM")
    assert setting == zoo.trials("ml1m", "DLRM")[2]
    assert (found["trial"], file) == (2, None)
    assert zoo.chosen(tmp_path, "ml1m", "FM") == (zoo.setting_of("ml1m", "FM"), None, None)
