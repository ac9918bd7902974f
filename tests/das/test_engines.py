"""Teachers in processes of their own: the same content, whatever happens to them."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import TeacherTimeout, Worker
from keras_exfm.das.engines.engine import teacher_settings
from keras_exfm.das.engines.local import LocalEngine
from keras_exfm.streaming import MS_PER_HOUR, StreamError
from tests.das import made

HOURS = range(5, 8)


@pytest.fixture
def data(tmp_path):
    return made.source(tmp_path / "data", HOURS, rows=60)


@pytest.fixture
def expected(tmp_path, data):
    root = tmp_path / "undisturbed"
    root.mkdir()
    (root / "data").symlink_to(tmp_path / "data")
    Worker(made.job(root)).run(ended=True)
    return made.everything(root)


def changed(root, entry="linear", join=None, **teacher):
    small = {"memory_limit": "200MB", "threads": 1, "chunk_rows": 16, **(join or {})}
    point = {"entry_point": f"tests.das.teachers:{entry}", "workers": 1, **teacher}
    return made.job(root, teacher=point, join=small)


def test_processes_give_what_one_process_gives(tmp_path, data, expected):
    worker = Worker(changed(tmp_path, workers=2))
    steps = worker.run(ended=True)
    worker.close()
    assert made.everything(tmp_path) == expected
    assert {s.scored[""] for s in steps if s.kind == "score"} == {60}


def test_an_hour_that_could_not_be_written_leaves_no_answers_behind(
    tmp_path, data, expected, monkeypatch
):
    calls = made.failing_write(monkeypatch)
    worker = Worker(changed(tmp_path, workers=2))
    # Held, as a caller may: with its traceback it keeps alive what was under way.
    with pytest.raises(StreamError, match="No space left") as held:
        worker.run(ended=True)
    assert len(calls) == 1
    worker.run(ended=True)
    worker.close()
    assert made.everything(tmp_path) == expected
    assert held.value is not None


def test_calls_that_were_left_do_not_answer_later_ones(tmp_path, data):
    """Nor does their end, whenever they are collected, end what later ones use."""
    job = changed(tmp_path)
    worker = Worker(job)
    engine = LocalEngine(teacher_settings(job.teacher, worker.schema))

    def asked(hour):
        return engine.score(worker.chunks(hour), "here")

    left = asked(5)
    next(left)
    new = asked(6)
    rows = [next(new)]
    left.close()
    rows += list(new)
    assert {i // 100_000 for r in rows for i in r.rows["example_id"].to_pylist()} == {6}
    assert sum(len(r.rows) for r in rows) == 60
    engine.close()


def test_an_engine_that_leaves_rows_out_is_refused(tmp_path, data, monkeypatch):
    real = LocalEngine.score

    def short(self, chunks, where):
        yield from list(real(self, chunks, where))[1:]

    monkeypatch.setattr(LocalEngine, "score", short)
    worker = Worker(changed(tmp_path))
    with pytest.raises(StreamError, match=r"hour=5: the engine scored 44 rows of 60"):
        worker.run(ended=True)
    worker.close()
    assert not list((tmp_path / "out" / "predictions").rglob("*.parquet"))


def test_a_keras_teacher_in_a_process(tmp_path, data):
    store = kx.das.SnapshotStore(tmp_path / "teachers")
    model = kx.models.DLRM(made.SCHEMA, dim=4, top_units=(4,), numeric_units=(4,))
    store.publish(model, 6 * MS_PER_HOUR)
    for workers in (0, 1):
        root = tmp_path / str(workers)
        root.mkdir()
        (root / "data").symlink_to(tmp_path / "data")
        teacher = {"snapshots": str(tmp_path / "teachers"), "workers": workers, "batch_size": 16}
        worker = Worker(made.job(root, teacher=teacher))
        worker.run(ended=True)
        worker.close()
    assert made.everything(tmp_path / "0") == made.everything(tmp_path / "1")
    rows = made.contents(tmp_path / "1" / "out" / "all").values()
    assert sum(row["teacher_logit"] is not None for row in rows) == 120


def test_a_scorer_that_dies_is_started_again(tmp_path, data, expected):
    die = {"path": str(tmp_path / "once"), "what": "die"}
    worker = Worker(changed(tmp_path, "once", arguments=die))
    worker.run(ended=True)
    worker.close()
    assert worker.engines[""].restarts == 1
    assert made.everything(tmp_path) == expected


def test_a_scorer_that_dies_again_and_again_is_an_error(tmp_path, data):
    worker = Worker(changed(tmp_path, "always_dies"))
    with pytest.raises(StreamError, match=r"hour=5: the process that scores died 3 times.*-9"):
        worker.run(ended=True)
    assert worker.engines[""].pids == []
    assert not list((tmp_path / "out" / "predictions").rglob("*.parquet"))


def test_a_scorer_that_is_killed_from_outside(tmp_path, data, expected):
    (tmp_path / "pace").write_text("0.05")
    slow = {"path": str(tmp_path / "pace")}
    worker = Worker(changed(tmp_path, "slow", arguments=slow))
    stop = threading.Event()
    killed = []

    def kill():
        while not stop.wait(0.4):
            for pid in worker.engines[""].pids[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            if len(killed) == 2:
                return

    thread = threading.Thread(target=kill)
    thread.start()
    worker.run(ended=True)
    stop.set()
    thread.join()
    worker.close()
    assert len(killed) == 2
    assert made.everything(tmp_path) == expected


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("hang", TeacherTimeout, r"hour=5: the process that scores gave no answer within"),
        ("fail", StreamError, "The teacher failed: RuntimeError: the teacher fell ill"),
    ],
)
def test_a_teacher_that_hangs_or_fails_is_named_and_may_be_tried_again(
    tmp_path, data, expected, what, error, message
):
    once = {"path": str(tmp_path / "once"), "what": what}
    job = changed(tmp_path, "once", arguments=once, timeout="100ms")
    settings = teacher_settings(job.teacher, made.SCHEMA)
    worker = Worker(job, engines={"": LocalEngine(settings, start_s=3.0)})
    with pytest.raises(error, match=message):
        worker.run(ended=True)
    assert not list((tmp_path / "out" / "predictions").rglob("*.parquet"))
    worker.run(ended=True)
    worker.close()
    assert made.everything(tmp_path) == expected


def test_a_process_ends_with_its_service(tmp_path, data):
    (tmp_path / "pace").write_text("0.2")
    engine = LocalEngine(
        teacher_settings(
            changed(tmp_path, "slow", arguments={"path": str(tmp_path / "pace")}).teacher,
            made.SCHEMA,
        )
    )
    chunk = made.impressions(5, 4, np.random.default_rng(0))
    (found,) = engine.score(iter([chunk]), "here")
    assert len(found.rows) == 4
    (pid,) = engine.pids
    # As when the service is killed: its end of the socket is closed, nothing else.
    engine._processes[0]._connection.close()
    for _ in range(100):
        if engine._processes[0]._process.poll() is not None:
            break
        time.sleep(0.05)
    assert engine._processes[0]._process.poll() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_tables_larger_than_a_socket_holds(tmp_path):
    """Answers as large as questions: neither side may wait for the other to read."""
    rng = np.random.default_rng(0)
    rows = 60_000
    tables = [
        made.impressions(hour, rows, rng).select(["example_id", "timestamp", "ad", "seen", "x"])
        for hour in HOURS
    ] * 2
    job = changed(tmp_path, "with_vectors", representation="unused", representation_size=3)
    engine = LocalEngine(teacher_settings(job.teacher, made.SCHEMA))
    found: list = []
    # In a thread of its own, so that a deadlock fails the test and does not hang it.
    scores = threading.Thread(
        target=lambda: found.extend(engine.score(iter(tables), "here")), daemon=True
    )
    scores.start()
    scores.join(60)
    engine.close()
    assert [len(scored.rows) for scored in found] == [rows] * len(tables)
    for table, scored in zip(tables, found):
        x, ad = table.column("x").to_numpy(), table.column("ad").to_numpy()
        np.testing.assert_allclose(
            scored.rows.column("teacher_logit").to_numpy(), 0.5 * x + ad, rtol=1e-6
        )
