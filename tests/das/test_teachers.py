"""A job with several teachers: each with predictions of its own, all in each stream."""

import sys

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import (
    Follower,
    Metrics,
    SnapshotStore,
    Worker,
    backfill,
    compact,
    rescore,
    status,
    vacuum,
    verify,
)
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions
from tests.das import made

pytestmark = pytest.mark.backend_free

HOURS = range(5, 8)
VERTICALS = {name: made.VERTICALS[name] for name in ("shop", "all")}
HALF = {"entry_point": "tests.das.teachers:half_with_vectors", "workers": 0}
HALF["representation_size"] = 3
ALL = {"entry_point": "tests.das.teachers:with_vectors", "workers": 0, "representation_size": 3}


@pytest.fixture
def data(tmp_path):
    return made.source(tmp_path / "data", HOURS, rows=20)


def make(root, **changes):
    return made.job(root, **{"verticals": VERTICALS, **changes})


def run(root, hours=(None, None), **changes):
    worker = Worker(make(root, **changes), hours=hours)
    try:
        return worker.run(ended=True)
    finally:
        worker.close()


def elsewhere(root, name, **changes):
    """What a job leaves that has run with these teachers all the time."""
    other = root / name
    other.mkdir()
    (other / "data").symlink_to(root / "data")
    run(other, **changes)
    return made.everything(other)


def assert_whole(root, **changes):
    found = verify(make(root, **changes))
    assert [text for table in found for text in table.problems] == []
    return found


def without(rows, ending):
    return {i: {n: v for n, v in row.items() if not n.endswith(ending)} for i, row in rows.items()}


def test_each_teacher_has_its_columns_and_asks_once(tmp_path, data):
    log = tmp_path / "asked"
    counting = {"entry_point": "tests.das.teachers:counting", "arguments": {"path": str(log)}}
    counting["workers"] = 0
    teachers = {"half": HALF, "again": counting}
    steps = run(tmp_path, teachers=teachers)
    assert len(log.read_text().splitlines()) == len(data[0])
    left = made.everything(tmp_path)["tables"]
    assert set(left) == {*VERTICALS, *(f"predictions{n}" for n in ("", "_half", "_again"))}
    for vertical in VERTICALS:
        expected = made.plain(*data, vertical)
        assert left[vertical].keys() == expected.keys()
        for example, row in left[vertical].items():
            known = row["x"] > 0
            logit = pytest.approx(expected[example]["teacher_logit"], rel=1e-6)
            assert row["teacher_logit"] == row["teacher_logit_again"] == logit
            assert row["teacher_logit_half"] == (logit if known else None)
            assert (row["teacher_representation_half"] is not None) == known
    rows = kx.streaming.read_hour(
        tmp_path / "out" / "shop", 6, columns=("teacher_representation_half",)
    )
    expected = np.stack([rows["x"], -rows["x"], np.full_like(rows["x"], 0.5)], 1)
    np.testing.assert_array_equal(
        rows["teacher_representation_half"], expected.astype(np.float16).astype(np.float32)
    )
    # The one without a name says what it says alone, where it says it alone.
    alone = elsewhere(tmp_path, "alone")["tables"]
    assert left["predictions"] == alone["predictions"]
    assert without(without(left["shop"], "_half"), "_again") == alone["shop"]
    for step in steps:
        if step.kind == "emit":
            assert step.scored[""] == step.scored["again"] == step.rows
        if (step.kind, step.name) == ("score", "half"):
            assert step.scored["half"] + step.not_finite == step.rows
    assert run(tmp_path, teachers=teachers) == []
    found = assert_whole(tmp_path, teachers=teachers)
    assert {v.table.rsplit("/", 1)[1]: v.hours for v in found} == dict.fromkeys(left, 3)


def test_names_alone(tmp_path, data):
    only = {"teacher": None, "teachers": {"half": HALF}}
    run(tmp_path, **only)
    rows = made.contents(tmp_path / "out" / "all")
    assert {row["teacher_logit"] for row in rows.values()} == {None}
    assert {row["teacher_logit_half"] is None for row in rows.values()} == {True, False}
    assert not (tmp_path / "out" / "predictions").exists()
    assert_whole(tmp_path, **only)
    told = status(make(tmp_path, **only))["streams"]["all"]
    assert "coverage" not in told
    assert told["coverage_half"] == pytest.approx(np.mean([r["x"] > 0 for r in rows.values()]))


def test_an_hour_is_emitted_when_all_teachers_have_scored_it(tmp_path, data):
    ill = {"entry_point": "tests.das.teachers:ill", "workers": 0}
    with pytest.raises(RuntimeError, match="fell ill"):
        run(tmp_path, teachers={"second": ill})
    assert list(made.contents(tmp_path / "out" / "predictions")) != []
    assert not (tmp_path / "out" / "all").exists()
    # Only those of the other one are missing.
    nan = {"entry_point": "tests.das.teachers:nan_where_negative", "workers": 0}
    steps = run(tmp_path, teachers={"second": nan})
    scored = [(s.name, s.hour) for s in steps if s.kind == "score"]
    assert ("", 5) not in scored
    assert ("second", 5) in scored
    order = [(s.kind, s.hour) for s in steps if s.kind in ("score", "emit")]
    for hour in HOURS:
        last = max(i for i, unit in enumerate(order) if unit == ("score", hour))
        assert last < order.index(("emit", hour))
    got = made.everything(tmp_path)
    assert got == elsewhere(tmp_path, "whole", teachers={"second": nan})


def test_each_by_its_own_snapshots_and_ages(tmp_path, data):
    values = {"": 1.0, "late": 2.0}
    for name, hour in (("", 6), ("late", 7)):
        model = kx.models.LogisticRegression(made.SCHEMA.select(["x"]))
        model.set_weights([np.full(w.shape, values[name], np.float32) for w in model.weights])
        SnapshotStore(tmp_path / f"store{name}").publish(model, hour * MS_PER_HOUR)
    settings = {
        name: {"snapshots": str(tmp_path / f"store{name}"), "workers": 0} for name in values
    }
    both = {"teacher": settings[""], "teachers": {"late": settings["late"]}}
    job = make(tmp_path, **both)
    metrics = Metrics(job)
    Follower(job, metrics).run(ended=True)
    rows = made.contents(tmp_path / "out" / "all").values()
    ages = {"": [], "late": []}
    for row in rows:
        for ending, name, hour in (("", "", 6), ("_late", "late", 7)):
            age = (row["timestamp"] - hour * MS_PER_HOUR) / 1000
            assert (row[f"teacher_snapshot{ending}"] is not None) == (age >= 0)
            if age >= 0:
                ages[name].append(age)
                assert row[f"teacher_age_s{ending}"] == pytest.approx(age)
                expected = values[name] * (row["x"] + 1)
                assert row[f"teacher_logit{ending}"] == pytest.approx(expected, rel=1e-5)
    told = status(job)["streams"]["all"]
    for ending, name in (("", ""), ("_late", "late")):
        assert told[f"coverage{ending}"] == len(ages[name]) / len(rows)
        assert told[f"mean_age_s{ending}"] == pytest.approx(np.mean(ages[name]), rel=1e-5)

    def sample(metric, **labels):
        return metrics.registry.get_sample_value(f"das_{metric}", labels)

    assert sample("rows_total", stage="score", name="late") == 60
    assert sample("coverage", name="all", teacher="late") == 1.0
    assert sample("coverage", name="", teacher="late") == 1.0
    assert sample("not_finite_rows_total", teacher="late") == 0
    older = sample("teacher_age_seconds", name="all", teacher="")
    assert older == pytest.approx(
        sample("teacher_age_seconds", name="all", teacher="late") + 3600, rel=1e-4
    )


def test_a_teacher_that_joins_later(tmp_path, data):
    run(tmp_path, hours=(None, 6))
    version = kx.streaming.Stream(tmp_path / "out" / "all").version
    joined = {"teachers": {"new": ALL}}
    # Nothing is wrong before it has said anything.
    assert_whole(tmp_path, **joined)
    steps = run(tmp_path, **joined)
    assert {s.hour for s in steps if (s.kind, s.name) == ("score", "new")} == set(HOURS)
    for name in VERTICALS:
        for row in made.contents(tmp_path / "out" / name).values():
            late = row["timestamp"] // MS_PER_HOUR > 6
            assert (row["teacher_logit_new"] is not None) == late
            assert (row["teacher_representation_new"] is not None) == late
    told = status(make(tmp_path, **joined))["streams"]["all"]
    assert (told["coverage"], told["coverage_new"]) == (1.0, pytest.approx(1 / 3))
    found = assert_whole(tmp_path, **joined)
    assert {v.by_source for v in found if "predictions" not in v.table} == {3}
    # What it has said of hours that were emitted before, a backfill puts there.
    done = backfill(make(tmp_path, **joined))
    assert {(d.table.rsplit("/", 1)[1], d.hour, d.teacher) for d in done} == {
        (name, hour, "new") for name in VERTICALS for hour in (5, 6)
    }
    assert all(d.filled == d.missing == d.rows for d in done)
    note = kx.streaming.Stream(tmp_path / "out" / "all").notes()[5]["backfill"]
    assert note == {"missing_new": 20, "filled_new": 20}
    assert made.everything(tmp_path) == elsewhere(tmp_path, "always", **joined)
    assert_whole(tmp_path, **joined)
    assert backfill(make(tmp_path, **joined)) == []
    pinned = kx.streaming.Stream(tmp_path / "out" / "all", version=version)
    assert "teacher_logit_new" not in pinned.columns
    assert len(kx.streaming.read_hour(pinned, 5)["label"]) == 20


def test_a_backfill_before_anything_more_is_emitted(tmp_path, data):
    run(tmp_path)
    joined = {"teachers": {"new": HALF}}
    run(tmp_path, **joined)
    rows = made.contents(tmp_path / "out" / "all").values()
    assert not any("teacher_logit_new" in row for row in rows)
    assert_whole(tmp_path, **joined)
    backfill(make(tmp_path, **joined))
    assert made.everything(tmp_path) == elsewhere(tmp_path, "always", **joined)
    assert_whole(tmp_path, **joined)


def test_a_teacher_that_leaves(tmp_path, data):
    both = {"teachers": {"old": ALL}}
    run(tmp_path, hours=(None, 6), **both)
    run(tmp_path)
    for row in made.contents(tmp_path / "out" / "all").values():
        assert row["teacher_logit"] is not None
        early = row["timestamp"] // MS_PER_HOUR <= 6
        assert (row["teacher_logit_old"] is not None) == early
        assert (row["teacher_representation_old"] is not None) == early
    assert_whole(tmp_path)


def test_a_backfill_that_is_killed_between_teachers(tmp_path, data, monkeypatch):
    module = sys.modules[backfill.__module__]
    nan = {"entry_point": "tests.das.teachers:nan_where_negative", "workers": 0}
    run(tmp_path, teacher=nan, teachers={"half": HALF})
    real, calls = module._replace, []

    def killed(*args):
        calls.append(args[0])
        if args[0].endswith("predictions_half") and len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        backfill(make(tmp_path, teachers={"half": ALL}))
    monkeypatch.undo()
    done = backfill(make(tmp_path, teachers={"half": ALL}))
    assert {d.teacher for d in done} == {"half"}
    assert made.everything(tmp_path) == elsewhere(tmp_path, "whole", teachers={"half": ALL})
    assert_whole(tmp_path, teachers={"half": ALL})


def test_maintenance_and_rescore_know_them(tmp_path, data):
    both = {"teachers": {"half": HALF}}
    run(tmp_path, **both)
    job = make(tmp_path, **both)
    before = made.everything(tmp_path)["tables"]
    assert {path.rsplit("/", 1)[1] for path in compact(job)} == set(before)
    rescore(job, str(tmp_path / "again" / "out"), hours=(7, None))
    again = made.everything(tmp_path / "again")["tables"]
    for name, rows in before.items():
        late = {i: r for i, r in rows.items() if r["timestamp"] // MS_PER_HOUR >= 7}
        assert again[name] == late
    vacuum(job, retention_hours=0, before_hour=7)
    assert made.everything(tmp_path)["tables"] == again
    assert run(tmp_path, **both) == []
    assert_whole(tmp_path, **both)


def test_a_damaged_file_of_any_teacher_is_named(tmp_path, data):
    both = {"teachers": {"half": HALF}}
    for step in (worker := Worker(make(tmp_path, **both))).steps(ended=True):
        if (step.kind, step.name, step.hour) == ("score", "half", 6):
            break
    worker.close()
    (file,) = (tmp_path / "out" / "predictions_half" / "hour=6").glob("*.parquet")
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[120] ^= 8  # In the column example_id, which comes first.
    for broken in (bytes(flipped), content[:-20]):
        file.write_bytes(broken)
        with pytest.raises(StreamError, match=file.name):
            run(tmp_path, **both)
    file.write_bytes(content)
    run(tmp_path, **both)
    assert_whole(tmp_path, **both)


def test_impressions_cannot_have_a_teacher_s_columns(tmp_path):
    rng = np.random.default_rng(0)
    rows = made.impressions(5, 4, rng)
    rows = rows.append_column("teacher_logit_half", rows["x"])
    partitions.write_impressions(tmp_path / "data", 5, rows)
    for folder in made.FOLDERS.values():
        (tmp_path / "data" / folder).mkdir()
    with pytest.raises(StreamError, match=r"hour=5: impressions cannot.*\['teacher_logit_half'\]"):
        run(tmp_path, teachers={"half": HALF})
    # Of no teacher of the job, they are what was logged elsewhere.
    run(tmp_path, teachers={"other": HALF})
    row = next(iter(made.contents(tmp_path / "out" / "all").values()))
    assert row["teacher_logit_half"] == pytest.approx(row["x"])
