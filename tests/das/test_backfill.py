"""Scoring again: new versions and new outputs, never the rows that a reader has."""

import sys

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import JobError, SnapshotStore, Worker, backfill, rescore, verify
from keras_exfm.streaming import MS_PER_HOUR, StreamError
from tests.das import made

pytestmark = pytest.mark.backend_free

HOURS = range(5, 9)
HALF = {"entry_point": "tests.das.teachers:nan_where_negative", "workers": 0}
VECTORS = {"representation_size": 3, "workers": 0}


def test_rows_without_a_teacher_are_filled_in_a_new_version(tmp_path):
    shown, _ = made.source(tmp_path / "data", HOURS)
    Worker(made.job(tmp_path, teacher=HALF)).run(ended=True)
    path = tmp_path / "out" / "all"
    version = kx.streaming.Stream(path).version
    before = made.contents(path)
    assert backfill(made.job(tmp_path, teacher=HALF)) == []
    done = backfill(made.job(tmp_path), hours=(6, 7))
    assert {(d.table.rsplit("/", 1)[1], d.hour) for d in done} == {
        (name, hour) for name in ("predictions", "feed", "all") for hour in (6, 7)
    }
    negative = {r["example_id"] for r in shown if not r["x"] > 0}
    missing = [i for i in negative if i // 100_000 in (6, 7)]
    assert sum(d.filled for d in done if d.table.endswith("all")) == len(missing)
    after = made.contents(path)
    for row in shown:
        example = row["example_id"]
        if example in missing:
            assert after[example]["teacher_logit"] == pytest.approx(made.teacher(row), rel=1e-6)
            assert before[example] == {**after[example], "teacher_logit": None}
        else:
            assert after[example] == before[example]
    stream = kx.streaming.Stream(path)
    assert stream.notes()[6]["backfill"]["filled"] == sum(i // 100_000 == 6 for i in missing)
    assert "backfill" not in stream.notes()[5]
    old = kx.streaming.read_hour(kx.streaming.Stream(path, version=version), 6)
    assert np.isnan(old["teacher_logit"]).sum() == sum(i // 100_000 == 6 for i in missing)
    assert [text for v in verify(made.job(tmp_path)) for text in v.problems] == []
    assert Worker(made.job(tmp_path)).run(ended=True) == []
    assert backfill(made.job(tmp_path), hours=(6, 7)) == []


def test_a_backfill_that_was_killed_is_completed(tmp_path, monkeypatch):
    module = sys.modules[backfill.__module__]
    made.source(tmp_path / "data", HOURS)
    Worker(made.job(tmp_path, teacher=HALF)).run(ended=True)
    real, calls = module._replace, []

    def killed(*args):
        calls.append(args[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        backfill(made.job(tmp_path))
    monkeypatch.undo()
    backfill(made.job(tmp_path))
    for name in (*made.VERTICALS, "predictions"):
        rows = made.contents(tmp_path / "out" / name).values()
        assert all(row["teacher_logit"] is not None for row in rows)


@pytest.mark.parametrize("turn", [1, 2], ids=["predictions", "stream"])
@pytest.mark.parametrize("moment", ["read", "written"])
def test_two_backfills_at_once_do_not_undo_each_other(tmp_path, monkeypatch, moment, turn):
    module = sys.modules[backfill.__module__]
    made.source(tmp_path / "data", [6])
    Worker(made.job(tmp_path, teacher=HALF)).run(ended=True)

    def silent(low, high):
        arguments = {"low": low, "high": high}
        entry = {"entry_point": "tests.das.teachers:nan_between", "arguments": arguments}
        return made.job(tmp_path, teacher={**entry, "workers": 0})

    real = {"read": module._filled, "written": module.HourWriter.finish}[moment]
    calls, others = [], []

    def another(*args):
        calls.append(None)
        if len(calls) == turn:
            if moment == "read":
                args = (list(args[0]), *args[1:])
            others.extend(backfill(silent(-0.5, 0)))
        return real(*args)

    if moment == "read":
        monkeypatch.setattr(module, "_filled", another)
    else:
        monkeypatch.setattr(module.HourWriter, "finish", another)
    done = backfill(silent(-9, -0.5))
    for name in (*made.VERTICALS, "predictions"):
        rows = made.contents(tmp_path / "out" / name).values()
        assert all(row["teacher_logit"] is not None for row in rows)
    assert all(d.filled for d in (*others, *done))
    assert {d.table for d in others} & {d.table for d in done}
    assert [text for v in verify(silent(-9, -8)) for text in v.problems] == []


def test_a_backfill_gives_up_where_others_never_stop(tmp_path, monkeypatch):
    module = sys.modules[backfill.__module__]
    made.source(tmp_path / "data", [6])
    Worker(made.job(tmp_path, teacher=HALF)).run(ended=True)
    real, before = module.files_of, made.everything(tmp_path)
    monkeypatch.setattr(module, "files_of", _unlike(real))
    with pytest.raises(StreamError, match="predictions.*hour 6.*others changed it.*again"):
        backfill(made.job(tmp_path))
    assert made.everything(tmp_path) == before


def _unlike(real):
    calls = []

    def files_of(*args):
        calls.append(None)
        return [*real(*args), f"of-another-{len(calls)}"]

    return files_of


def test_vectors_are_filled_too(tmp_path):
    made.source(tmp_path / "data", HOURS, rows=12)
    half = {"entry_point": "tests.das.teachers:half_with_vectors", **VECTORS}
    Worker(made.job(tmp_path, teacher=half)).run(ended=True)
    whole = {"entry_point": "tests.das.teachers:with_vectors", **VECTORS}
    assert backfill(made.job(tmp_path, teacher=whole))
    columns = ("teacher_representation", "example_id")
    rows = kx.streaming.read_hour(tmp_path / "out" / "all", 6, columns=columns)
    assert np.isfinite(rows["teacher_representation"]).all()
    assert rows["teacher_representation"].shape == (12, 3)


def test_only_older_snapshots_fill(tmp_path):
    made.source(tmp_path / "data", HOURS)
    store = SnapshotStore(tmp_path / "teachers")
    teacher = {"snapshots": str(tmp_path / "teachers"), "workers": 0}
    Worker(made.job(tmp_path, teacher=teacher)).run(ended=True)
    model = kx.models.LogisticRegression(made.SCHEMA.select(["x"]))
    store.publish(model, 7 * MS_PER_HOUR)
    done = backfill(made.job(tmp_path, teacher=teacher))
    assert {d.hour for d in done} == {7, 8}
    rows = made.contents(tmp_path / "out" / "all").values()
    for row in rows:
        assert (row["teacher_age_s"] is not None) == (row["timestamp"] >= 7 * MS_PER_HOUR)


def test_a_rescore_is_another_output(tmp_path):
    data = made.source(tmp_path / "data", HOURS)
    Worker(made.job(tmp_path, teacher=HALF)).run(ended=True)
    before = made.everything(tmp_path)
    steps = rescore(made.job(tmp_path), str(tmp_path / "again" / "out"), hours=(6, None))
    assert {s.hour for s in steps} >= {6, 7, 8}
    assert min(s.hour for s in steps) == 6
    assert made.everything(tmp_path) == before
    for name in made.VERTICALS:
        expected = made.plain(*data, name)
        got = made.contents(tmp_path / "again" / "out" / name)
        assert got.keys() == {i for i, r in expected.items() if r["timestamp"] >= 6 * MS_PER_HOUR}
        for example, row in got.items():
            assert row["teacher_logit"] == pytest.approx(expected[example]["teacher_logit"])
            assert row["label"] == expected[example]["label"]
        stream = kx.streaming.Stream(tmp_path / "again" / "out" / name)
        assert {note["rescored_from"] for note in stream.notes().values()} == {
            str(tmp_path / "out")
        }


def test_what_makes_no_sense_is_refused(tmp_path):
    made.source(tmp_path / "data", HOURS, rows=4)
    with pytest.raises(JobError, match="needs a teacher"):
        backfill(made.job(tmp_path, teacher=None))
    with pytest.raises(JobError, match="needs a teacher"):
        rescore(made.job(tmp_path, teacher=None), str(tmp_path / "again"))
    with pytest.raises(JobError, match="another output than the job's own"):
        rescore(made.job(tmp_path), str(tmp_path / "out") + "/")
