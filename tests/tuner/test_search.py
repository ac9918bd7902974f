import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import keras_tuner
import pytest

import keras_exfm as kx
from keras_exfm.tuner import (
    BayesianOptimization,
    Budget,
    Cost,
    DLRMHyperModel,
    GridSearch,
    Hyperband,
    RandomSearch,
    objectives,
)
from keras_exfm.tuner.grid_search import combinations
from tests.tuner import streams
from tests.tuner.scored import FIXED, SPACE, Scored, score, scoring

NE = objectives.normalized_entropy("progressive")
TIGHT = Budget(training_flops=4_000)


def cost_of(values):
    """Of the model itself, without the search's hypermodel."""
    return _cost(values["dim"], values["top_units"], values["top_depth"])


@functools.cache
def _cost(dim, units, depth):
    options = {"dim": dim, "top_units": (units,) * depth}
    return Cost.of(kx.models.shapes_only(kx.models.DLRM, streams.schema(), **options))


def run(tuner, hypermodel, tmp_path, **options):
    search = scoring(tuner)(hypermodel, NE, directory=tmp_path, **options)
    search.search(verbose=0)
    return search


def test_most_of_the_space_is_over_the_budget():
    """Else the tests below would show nothing."""
    costs = [
        cost_of(dict(zip(("dim", "top_units", "top_depth"), values)))
        for values in itertools.product(SPACE["dim"], SPACE["top_units"], (1, 2, 3))
    ]
    within = [TIGHT.allows(cost) for cost in costs]
    assert 5 < sum(within) < len(within) * 0.4


@pytest.mark.parametrize("tuner", [RandomSearch, BayesianOptimization])
def test_draws_beyond_the_budget_do_not_use_up_trials(tuner, tmp_path):
    # A step of KerasTuner's Gaussian process takes seconds.
    bayesian = tuner is BayesianOptimization
    options = {"num_initial_points": 3} if bayesian else {}
    trials = 4 if bayesian else 9
    hypermodel = Scored()
    search = run(tuner, hypermodel, tmp_path, max_trials=trials, budget=TIGHT, seed=4, **options)
    assert isinstance(search, getattr(keras_tuner, tuner.__name__))
    assert len(hypermodel.ran) == trials
    assert all(TIGHT.allows(cost_of(values)) for values in hypermodel.ran)
    assert len({json.dumps(v, sort_keys=True) for v in hypermodel.ran}) == trials
    rows = search.results()
    assert [row["score"] for row in rows] == sorted(score(v) for v in hypermodel.ran)
    assert all(row["cost"] == cost_of(row["hyperparameters"]) for row in rows)
    if tuner is RandomSearch:
        # The same seed draws the same, another one does not.
        again, other = Scored(), Scored()
        run(tuner, again, tmp_path / "again", max_trials=9, budget=TIGHT, seed=4)
        assert again.ran == hypermodel.ran
        run(tuner, other, tmp_path / "other", max_trials=9, budget=TIGHT, seed=0)
        assert other.ran != hypermodel.ran


def test_redraws_are_uniform_within_the_budget(tmp_path):
    search = RandomSearch(Scored(), NE, budget=TIGHT, seed=1, directory=tmp_path)
    oracle = search.oracle
    counts: dict = {}
    for _ in range(400):
        values = oracle.draw()
        key = (values["dim"], values["top_units"], values["top_depth"])
        counts[key] = counts.get(key, 0) + 1
    expected = {
        key
        for key in itertools.product(SPACE["dim"], SPACE["top_units"], (1, 2, 3))
        if TIGHT.allows(cost_of(dict(zip(("dim", "top_units", "top_depth"), key))))
    }
    assert set(counts) == expected
    mean = 400 / len(expected)
    assert all(abs(n - mean) < 5 * mean**0.5 for n in counts.values())


@pytest.mark.slow
def test_bayesian_optimization_finds_better_than_its_random_start(tmp_path):
    hypermodel = Scored(space={**SPACE, "dim": [2], "top_depth": [1]})
    run(
        BayesianOptimization,
        hypermodel,
        tmp_path,
        max_trials=14,
        num_initial_points=5,
        budget=Budget(parameters=700),
        seed=3,
    )
    scores = [score(values) for values in hypermodel.ran]
    assert min(scores[5:]) < min(scores[:5])
    assert min(scores) < 0.52


def test_grid_is_every_combination_within_the_budget_once(tmp_path):
    hypermodel = Scored(
        space={"dim": [2, 4], "top_units": [4, 16, 64], "top_depth": [1, 2]},
        fixed={"table_learning_rate": 0.1},
    )
    search = run(GridSearch, hypermodel, tmp_path, budget=TIGHT)
    expected = [
        {"dim": d, "top_units": u, "top_depth": n}
        for d, u, n in itertools.product([2, 4], [4, 16, 64], [1, 2])
    ]
    expected = [v for v in expected if TIGHT.allows(cost_of(v))]
    assert 0 < len(expected) < 12
    assert sorted(map(str, hypermodel.ran)) == sorted(map(str, expected))
    # Finished: going on runs nothing.
    again = Scored(
        space={"dim": [2, 4], "top_units": [4, 16, 64], "top_depth": [1, 2]},
        fixed={"table_learning_rate": 0.1},
    )
    assert len(run(GridSearch, again, tmp_path, budget=TIGHT).results()) == len(expected)
    assert again.ran == []
    assert search.results()[0]["hyperparameters"]["top_units"] == 16


def test_grid_follows_conditions():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Choice("size", [1, 2])
    hp.Boolean("last")
    found = list(combinations(hp.space))
    assert len(found) == 6
    assert {"kind": "a", "last": True} in found
    assert {"kind": "b", "size": 2, "last": False} in found


@pytest.mark.slow
def test_hyperband_over_a_stream_goes_on_where_it_stopped(tmp_path):
    stream = streams.write(tmp_path / "labelled", hours=4, count=32)
    space = {"dim": [2, 4], "top_units": [4, 64], "top_depth": [1, 2]}
    hypermodel = DLRMHyperModel(streams.schema(), fixed=FIXED, space=space, jit_compile=False)
    search = Hyperband(
        hypermodel,
        NE,
        max_epochs=2,
        factor=2,
        budget=TIGHT,
        seed=1,
        directory=tmp_path,
    )
    search.search(stream=stream, batch_size=32, verbose=0)
    trials = list(search.oracle.trials.values())
    assert {t.status for t in trials} == {"COMPLETED"}
    later = [t for t in trials if "tuner/trial_id" in t.hyperparameters.values]
    assert later
    for trial in trials:
        values = trial.hyperparameters.values
        assert TIGHT.allows(cost_of(values))
        assert trial.metrics.get_best_value("examples") == 2 * 32 * values["tuner/epochs"]
    for trial in later:
        values = trial.hyperparameters.values
        parent = search.oracle.get_trial(values["tuner/trial_id"]).hyperparameters.values
        assert parent["tuner/epochs"] == values["tuner/initial_epoch"]
        for name in ("dim", "top_units", "top_depth", "table_learning_rate"):
            assert parent[name] == values[name]
    rows = search.results()
    epochs = [row["hyperparameters"]["tuner/epochs"] for row in rows]
    assert epochs == sorted(epochs, reverse=True)
    most = [row["score"] for row, e in zip(rows, epochs) if e == 2]
    assert most == sorted(most)
    model = search.get_best_models()[0]
    best = rows[0]["hyperparameters"]
    assert model.get_layer("representation").units == best["top_units"]
    # The best model's weights are those after the last hour.
    trained = int(model.optimizer.iterations)
    assert trained == 4


def test_impossible_budget_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"None of 500 draws.*training_flops=[\d,]+ exceeds 10"):
        RandomSearch(Scored(), NE, budget=Budget(training_flops=10), directory=tmp_path)
    with pytest.raises(ValueError, match="budget=20"):
        RandomSearch(Scored(), NE, budget=20, directory=tmp_path)


@pytest.mark.parametrize(
    ("fixed", "space", "options", "words"),
    [
        ({"dropout": 0.1}, None, {}, r"fixed dropout: 0.0 \(now: 0.1\)"),
        ({}, {**SPACE, "dim": [2, 4]}, {}, r"space dim: .*\(2, 4, 8\).*now: .*\(2, 4\)"),
        ({}, None, {"budget": None}, "budget: .*now: None"),
        ({}, None, {"objective": objectives.auc("progressive")}, "objective: .*now: .*auc"),
    ],
)
def test_a_search_of_something_else_is_not_gone_on_with(fixed, space, options, words, tmp_path):
    run(RandomSearch, Scored(), tmp_path, max_trials=2, budget=TIGHT, seed=1)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.json")}
    asked = {"objective": NE, "budget": TIGHT, "max_trials": 2, **options}
    with pytest.raises(ValueError, match=f"holds a search with other settings.*{words}"):
        RandomSearch(Scored(space, fixed), directory=tmp_path, seed=1, **asked)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.json")} == before
    # More trials are no other search; discarding the old one is what the message says.
    more = run(RandomSearch, Scored(), tmp_path, max_trials=3, budget=TIGHT, seed=1)
    assert len(more.results()) == 3
    anew = RandomSearch(Scored(space, fixed), directory=tmp_path, overwrite=True, **asked)
    assert anew.results() == []


def test_a_search_without_trials_may_become_another_one(tmp_path):
    RandomSearch(Scored(), NE, max_trials=2, directory=tmp_path)
    other = run(RandomSearch, Scored(fixed={"dropout": 0.1}), tmp_path, max_trials=1)
    assert len(other.results()) == 1
    with pytest.raises(ValueError, match="fixed dropout"):
        RandomSearch(Scored(), NE, max_trials=2, directory=tmp_path)


def test_objects_among_the_fixed_values_do_not_make_another_search(tmp_path):
    """As in another process, where the function lies elsewhere."""

    def initializer():
        def zeros(shape, dtype=None):
            return keras.ops.zeros(shape, dtype)

        return zeros

    for trials in (1, 2):
        hypermodel = Scored(fixed={"embeddings_initializer": initializer()})
        search = run(RandomSearch, hypermodel, tmp_path, max_trials=trials)
    assert len(search.results()) == 2


def test_arrays_and_functions_search_too(tmp_path):
    x, y = streams.arrays()

    def build(hp):
        model = kx.models.DLRM(
            streams.schema(), dim=2, top_units=(hp.Choice("width", [4, 8, 256]),)
        )
        model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
        return model

    search = RandomSearch(
        build,
        keras_tuner.Objective("val_loss", "min"),
        max_trials=2,
        budget=Budget(parameters=500),
        seed=0,
        directory=tmp_path,
    )
    search.search(x, y, validation_data=(x, y), batch_size=64, verbose=0)
    assert sorted(row["hyperparameters"]["width"] for row in search.results()) == [4, 8]
    model = search.get_best_models()[0]
    loss = model.evaluate(x, y, batch_size=64, verbose=0)
    assert loss == pytest.approx(search.results()[0]["score"], rel=1e-4)


def process(folder, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tuner.search_process", str(folder), *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_killed_search_goes_on(tmp_path):
    killed = process(tmp_path, 5, 3)
    assert killed.wait(240) == -signal.SIGKILL, killed.stderr.read()
    first = (tmp_path / "log.txt").read_text().splitlines()
    assert len(first) == 3
    # As if the kill had come amid the writing of these files.
    (tmp_path / "search" / "trial_2" / "trial.json").write_text('{"trial_id": ')
    (tmp_path / "search" / "tuner0.json").write_text("")
    hypermodel = Scored()
    search = run(RandomSearch, hypermodel, tmp_path, max_trials=5, budget=TIGHT, seed=0)
    # The third trial again, with its own values, then the last two.
    ran = [f"one {v['top_units']} {v['table_learning_rate']}" for v in hypermodel.ran]
    assert len(ran) == 3
    assert ran[0] == first[2]
    assert not set(ran[1:]) & set(first)
    assert len(search.results()) == 5
    # What an undisturbed search draws.
    whole = Scored()
    run(RandomSearch, whole, tmp_path / "whole", max_trials=5, budget=TIGHT, seed=0)
    assert whole.ran[2:] == hypermodel.ran


def test_trial_that_ended_before_the_kill_is_not_run_again(tmp_path):
    """KerasTuner's file says "running" until after the trial's own file says "completed"."""
    search = run(RandomSearch, Scored(), tmp_path, max_trials=2, budget=TIGHT, seed=0)
    file = tmp_path / "search" / "oracle.json"
    state = json.loads(file.read_text())
    state["ongoing_trials"] = {"tuner0": "1"}
    state["end_order"] = ["0"]
    file.write_text(json.dumps(state))
    # And one that began, of which the oracle's file does not know.
    begun = tmp_path / "search" / "trial_2" / "trial.json"
    begun.parent.mkdir()
    trial = json.loads((tmp_path / "search" / "trial_1" / "trial.json").read_text())
    begun.write_text(json.dumps({**trial, "trial_id": "2", "status": "RUNNING"}))
    again = Scored()
    search = run(RandomSearch, again, tmp_path, max_trials=3, budget=TIGHT, seed=0)
    assert len(again.ran) == 1
    assert sorted(row["trial"] for row in search.results()) == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["RandomSearch", "BayesianOptimization"])
def test_chief_and_two_workers(tuner, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    started = [
        process(tmp_path, 8, "-", tuner, KERASTUNER_TUNER_ID=name, **environment)
        for name in ("chief", "tuner0", "tuner1")
    ]
    try:
        for each in started:
            assert each.wait(300) == 0, each.stderr.read()[-3000:]
    finally:
        for each in started:
            each.kill()
    log = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert len(log) == 8
    assert {line[0] for line in log} == {"tuner0", "tuner1"}
    assert len({tuple(line[1:]) for line in log}) == 8
    search = getattr(kx.tuner, tuner)(
        Scored(), NE, max_trials=8, budget=TIGHT, seed=0, directory=tmp_path
    )
    rows = search.results()
    assert len(rows) == 8
    assert all(TIGHT.allows(cost_of(row["hyperparameters"])) for row in rows)
    # gRPC hands scores on as float32.
    assert [row["score"] for row in rows] == pytest.approx(
        [score(row["hyperparameters"]) for row in rows], rel=1e-6
    )
