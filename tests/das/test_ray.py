"""The ray engine gives what the local one gives."""

import subprocess
import sys

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import JobError, TeacherTimeout, Worker, backfill
from keras_exfm.streaming import MS_PER_HOUR, StreamError
from tests.das import made

pytestmark = pytest.mark.backend_free

ray = pytest.importorskip("ray")
HOURS = range(5, 8)


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False,
        object_store_memory=80 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


def changed(root, entry="linear", engine="ray", two=False, **teacher):
    point = {"entry_point": f"tests.das.teachers:{entry}", "workers": 1, **teacher}
    join = {"memory_limit": "200MB", "threads": 1, "chunk_rows": 16}
    second = {"entry_point": "tests.das.teachers:half_with_vectors", "representation_size": 3}
    teachers = {"second": {**second, "workers": point["workers"]}} if two else {}
    return made.job(root, engine=engine, teacher=point, teachers=teachers, join=join)


def test_the_same_content_as_the_local_engine(tmp_path, cluster):
    made.source(tmp_path / "data", HOURS)
    log = tmp_path / "asked"
    counting = {"entry": "counting", "arguments": {"path": str(log)}}
    steps = Worker(changed(tmp_path, two=True, **counting)).run(ended=True)
    local = tmp_path / "local"
    local.mkdir()
    (local / "data").symlink_to(tmp_path / "data")
    expected = Worker(changed(local, engine="local", two=True, workers=0)).run(ended=True)
    assert made.everything(tmp_path) == made.everything(local)
    assert [(s.kind, s.name, s.hour, s.rows, s.scored) for s in steps] == [
        (s.kind, s.name, s.hour, s.rows, s.scored) for s in expected
    ]
    assert len(log.read_text().splitlines()) == 3 * 40


@pytest.mark.slow
def test_a_teacher_that_is_not_finite_everywhere_and_a_backfill(tmp_path, cluster):
    made.source(tmp_path / "data", HOURS)
    steps = Worker(changed(tmp_path, "nan_where_negative")).run(ended=True)
    rows = made.contents(tmp_path / "out" / "all").values()
    negative = sum(not row["x"] > 0 for row in rows)
    assert sum(s.not_finite for s in steps if s.kind == "score") == negative
    assert (
        sum(d.filled for d in backfill(changed(tmp_path)) if "predictions" in d.table) == negative
    )


@pytest.mark.slow
def test_snapshots_on_actors(tmp_path, cluster):
    made.source(tmp_path / "data", HOURS)
    store = kx.das.SnapshotStore(tmp_path / "teachers")
    model = kx.models.LogisticRegression(made.SCHEMA.select(["x"]))
    model.set_weights([np.full(w.shape, 2.0, np.float32) for w in model.weights])
    store.publish(model, 6 * MS_PER_HOUR)
    for name, engine in (("one", "ray"), ("two", "local")):
        root = tmp_path / name
        root.mkdir()
        (root / "data").symlink_to(tmp_path / "data")
        teacher = {"snapshots": str(tmp_path / "teachers"), "workers": 1}
        worker = Worker(made.job(root, engine=engine, teacher=teacher))
        worker.run(ended=True)
        if engine == "local":
            worker.close()
    assert made.everything(tmp_path / "one") == made.everything(tmp_path / "two")


def test_an_actor_that_dies_is_started_again_and_kept_for_the_next_hour(tmp_path, cluster):
    shown, _ = made.source(tmp_path / "data", HOURS)
    once = {"entry": "once", "arguments": {"path": str(tmp_path / "died"), "what": "die"}}
    worker = Worker(changed(tmp_path, **once))
    actors = []
    for step in worker.steps(ended=True):
        if step.kind == "score":
            actors.append([member.actor._actor_id for member in worker.engines[""]._members])
    assert worker.engines[""].restarts == 1
    assert actors[0] == actors[1] == actors[2]
    rows = made.contents(tmp_path / "out" / "all")
    for row in shown:
        expected = pytest.approx(made.teacher(row), rel=1e-6)
        assert rows[row["example_id"]]["teacher_logit"] == expected
    worker.close()


def test_an_hour_that_could_not_be_written_leaves_no_answers_behind(tmp_path, cluster, monkeypatch):
    shown, _ = made.source(tmp_path / "data", HOURS)
    made.in_row_groups(tmp_path / "data", 5)
    calls = made.failing_write(monkeypatch)
    worker = Worker(changed(tmp_path))
    # Held, as a caller may: with its traceback it keeps alive what was under way.
    with pytest.raises(StreamError, match="No space left") as held:
        worker.run(ended=True)
    assert len(calls) == 1
    worker.run(ended=True)
    worker.close()
    assert held.value is not None
    rows = made.contents(tmp_path / "out" / "predictions")
    assert rows.keys() == {row["example_id"] for row in shown}
    for row in shown:
        expected = pytest.approx(made.teacher(row), rel=1e-6)
        assert rows[row["example_id"]]["teacher_logit"] == expected


def test_calls_that_were_left_do_not_answer_later_ones(tmp_path, cluster):
    made.source(tmp_path / "data", HOURS)
    worker = Worker(changed(tmp_path))
    engine = worker.engines[""]
    left = engine.score(worker.chunks(5), "here")
    next(left)
    new = engine.score(worker.chunks(6), "here")
    rows = [next(new)]
    left.close()
    rows += list(new)
    assert {i // 100_000 for r in rows for i in r.rows["example_id"].to_pylist()} == {6}
    assert sum(len(r.rows) for r in rows) == 40
    worker.close()


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "ObjectLostError"])
def test_what_is_as_good_as_dead_is_started_again(tmp_path, cluster, monkeypatch, kind):
    """Ray's memory monitor, and machines that go away, end actors by errors of their own."""
    made.source(tmp_path / "data", HOURS)
    error = getattr(ray.exceptions, kind)
    worker = Worker(changed(tmp_path))
    engine, real, asked = worker.engines[""], ray.get, []

    def get(ref, timeout=None):
        asked.append(ref)
        if len(asked) == 2:
            raise error.__new__(error)
        return real(ref, timeout=timeout)

    monkeypatch.setattr(ray, "get", get)
    rows = list(engine.score(worker.chunks(5), "here"))
    assert engine.restarts == 1
    assert sum(len(r.rows) for r in rows) == 40
    worker.close()


def test_an_actor_that_always_dies_or_hangs_is_named(tmp_path, cluster, monkeypatch):
    made.source(tmp_path / "data", HOURS)
    worker = Worker(changed(tmp_path, "always_dies"))
    with pytest.raises(StreamError, match=r"hour=5.*died 3 times over the same rows"):
        worker.run(ended=True)
    assert worker.engines[""].restarts == 3
    # It hangs until the file says otherwise: an actor may have no time to begin before its limit.
    seconds = tmp_path / "seconds"
    seconds.write_text("600")
    hangs = {"arguments": {"path": str(seconds)}, "timeout": "100ms"}
    worker = Worker(changed(tmp_path, "slow", **hangs))
    worker.engines[""].start_s = 3
    monkeypatch.setattr(sys.modules[type(worker.engines[""]).__module__], "_READ_S", 1.0)
    with pytest.raises(TeacherTimeout, match=r"hour=5.*no answer within .* s, for 40 rows"):
        worker.run(ended=True)
    # The actor that hung is gone, and nothing was committed.
    assert not list((tmp_path / "out" / "predictions").rglob("*.parquet"))
    # A slow machine may take longer than that over what does not hang.
    seconds.write_text("0")
    worker.engines[""].start_s = 60
    monkeypatch.undo()
    assert len(worker.run(ended=True)) > len(HOURS)


@pytest.mark.parametrize(
    ("entry", "message"),
    [("wide", r"one logit for each of 16 rows.*\(16, 2\)"), ("ill", "scoring on Ray failed.*ill")],
)
def test_what_fails_on_an_actor_is_told(tmp_path, cluster, entry, message):
    made.source(tmp_path / "data", HOURS)
    with pytest.raises(StreamError, match=rf"(?s){message}"):
        Worker(changed(tmp_path, entry)).run(ended=True)
    assert not list((tmp_path / "out" / "predictions").rglob("*.parquet"))


def test_ray_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(JobError, match=r"keras-exfm\[ray\]"):
        Worker(changed(tmp_path))


TWO_WORKERS = """
import pathlib, sys
from keras_exfm.das import Worker
from tests.das import made
root = pathlib.Path(sys.argv[1])
point = {"entry_point": "tests.das.teachers:linear", "workers": 1}
join = {"memory_limit": "200MB", "threads": 1, "chunk_rows": 16}
workers = []
for name in ("one", "two"):
    made.source(root / name / "data", range(5, 6))
    workers.append(Worker(made.job(root / name, engine="ray", teacher=point, join=join)))
    workers[-1].run()
    made.source(root / name / "data", range(6, 7))
    print(len(workers[-1].run()), flush=True)
workers[0].close()
made.source(root / "two" / "data", range(7, 8))
print([(s.kind, s.hour) for s in workers[1].run()], flush=True)
workers[1].close()
"""


@pytest.mark.slow
def test_actors_of_a_cluster_that_another_worker_left_are_made_anew(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", TWO_WORKERS, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "('score', 7)" in run.stdout.splitlines()[-1]


OWN_CLUSTER = """
import pathlib, sys
from keras_exfm.das import Worker
from tests.das import made
root = pathlib.Path(sys.argv[1])
point = {"entry_point": "tests.das.teachers:linear", "workers": 1}
join = {"memory_limit": "200MB", "threads": 1, "chunk_rows": 16}
worker = Worker(made.job(root, engine="ray", teacher=point, join=join))
for hour in range(5, 8):
    made.source(root / "data", range(hour, hour + 1))
    print([(s.kind, s.hour) for s in worker.steps()], flush=True)
worker.close()
"""


@pytest.mark.slow
def test_a_cluster_of_its_own_outlives_the_steps_that_started_it(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", OWN_CLUSTER, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert [f"('score', {hour})" in line for hour, line in zip(range(5, 8), lines)] == [True] * 3
