"""The worker against plain restatements: labels, emission, audits, scoring once."""

import shutil
import threading

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.das import JobError, Worker
from keras_exfm.das.engines.engine import InlineEngine, teacher_settings
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions
from tests.das import made

pytestmark = pytest.mark.backend_free

HOURS = range(5, 10)


@pytest.fixture
def data(tmp_path):
    return made.source(tmp_path / "data", HOURS)


def run(root, ended=True, **changes):
    worker = Worker(made.job(root, **changes))
    try:
        return worker.run(ended)
    finally:
        worker.close()


def assert_streams(root, data):
    for vertical in made.VERTICALS:
        expected = made.plain(*data, vertical)
        got = made.contents(root / "out" / vertical)
        assert got.keys() == expected.keys()
        for example, columns in expected.items():
            for name, value in columns.items():
                assert got[example][name] == pytest.approx(value, rel=1e-6), (example, name)


def test_verticals_have_their_own_labels_and_rows(tmp_path, data):
    steps = run(tmp_path)
    assert_streams(tmp_path, data)
    shown, _ = data
    rows = kx.streaming.read_hour(
        tmp_path / "out" / "shop", 7, columns=("label_click", "group", "vertical", "example_id")
    )
    assert set(rows["label_click"]) == {0.0, 1.0}
    by_id = {row["example_id"]: row for row in shown}
    assert [by_id[i]["group"] for i in rows["example_id"].tolist()] == rows["group"].tolist()
    emitted = {(s.name, s.hour): s for s in steps if s.kind == "emit"}
    feed = made.plain(*data, "feed")
    for hour in HOURS:
        ours = [r for i, r in feed.items() if r["timestamp"] // MS_PER_HOUR == hour]
        assert emitted["feed", hour].rows == len(ours)
        assert emitted["feed", hour].scored == {"": len(ours)}
        assert emitted["feed", hour].positives == sum(r["label"] for r in ours)
    # Done is done.
    assert run(tmp_path) == []


def test_events_without_a_label_go_to_the_side_output(tmp_path, data):
    steps = run(tmp_path)
    for task in made.WINDOWS:
        expected = made.plain_audit(*data, task, HOURS)
        assert all(expected.values())
        assert made.side(tmp_path, task) == expected
        for reason, rows in expected.items():
            counted = sum(s.counts[reason] for s in steps if (s.kind, s.name) == ("audit", task))
            assert counted == len(rows)


def test_an_example_is_emitted_when_its_longest_window_has_closed(tmp_path):
    """Partitions land one by one; the click streams do not wait for conversions."""
    made.source(tmp_path / "whole", HOURS)
    last = 0
    when = {}
    for hour in range(4, 16):
        for kind in ("impressions", "labels", "conversions"):
            landed = tmp_path / "whole" / kind / f"hour={hour}"
            if landed.exists():
                shutil.copytree(landed, tmp_path / "data" / kind / f"hour={hour}")
                last = hour
        for step in run(tmp_path, ended=False):
            when[step.kind, step.name, step.hour] = last
    # A partition may be unfinished until there is a later one.
    for hour in HOURS:
        assert when["score", "", hour] == hour + 1
        assert when["emit", "feed", hour] == hour + 1 + 1
        assert when["emit", "all", hour] == hour + 1 + 1
        assert when["audit", "click", hour] == hour + 1 + 2
        assert when["emit", "shop", hour] == hour + 3 + 1
    # What is left is the events after the last impressions.
    rest = run(tmp_path, ended=True)
    assert {s.kind for s in rest} == {"audit"}
    assert min(s.hour for s in rest) > max(HOURS)
    whole = tmp_path / "at-once"
    shutil.copytree(tmp_path / "whole", whole / "data")
    run(whole)
    assert made.everything(whole) == made.everything(tmp_path)


def test_each_example_is_scored_once_for_all_verticals(tmp_path, data):
    log = tmp_path / "asked"
    counting = {"entry_point": "tests.das.teachers:counting", "arguments": {"path": str(log)}}
    steps = run(tmp_path, teacher={**counting, "workers": 0})
    asked = sorted(float(line) for line in log.read_text().splitlines())
    assert asked == sorted(row["x"] for row in data[0])
    assert sum(s.rows for s in steps if s.kind == "emit") > len(asked)
    run(tmp_path, teacher={**counting, "workers": 0})
    assert len(log.read_text().splitlines()) == len(asked)


def test_vectors_are_logged_beside_logits(tmp_path, data):
    vectors = {"entry_point": "tests.das.teachers:with_vectors", "representation_size": 3}
    run(tmp_path, teacher={**vectors, "workers": 0})
    assert_streams(tmp_path, data)
    columns = ("teacher_representation", "example_id")
    rows = kx.streaming.read_hour(tmp_path / "out" / "all", 6, columns=columns)
    x = {row["example_id"]: row["x"] for row in data[0]}
    expected = np.array([[x[i], -x[i], 0.5] for i in rows["example_id"].tolist()], np.float16)
    np.testing.assert_array_equal(rows["teacher_representation"], expected.astype(np.float32))
    with pytest.raises(StreamError, match=r"predictions have the columns.*another output"):
        run(tmp_path, ended=True)


def test_without_a_teacher_labels_are_joined_alone(tmp_path, data):
    steps = run(tmp_path, teacher=None)
    assert {s.kind for s in steps} == {"emit", "audit"}
    assert not (tmp_path / "out" / "predictions").exists()
    rows = made.contents(tmp_path / "out" / "feed")
    expected = made.plain(*data, "feed")
    assert {i: r["label"] for i, r in rows.items()} == {i: r["label"] for i, r in expected.items()}
    assert {r["teacher_logit"] for r in rows.values()} == {None}


def test_snapshots_score_with_the_newest_that_is_older(tmp_path, data):
    store = kx.das.SnapshotStore(tmp_path / "teachers")
    model = kx.models.LogisticRegression(made.SCHEMA.select(["x"]))
    published = {}
    for value, time in ((1.0, 6 * MS_PER_HOUR), (2.0, 7 * MS_PER_HOUR + 1_800_000)):
        model.set_weights([np.full(w.shape, value, np.float32) for w in model.weights])
        published[time] = (store.publish(model, time).id, value)
    teacher = {"snapshots": str(tmp_path / "teachers"), "workers": 0}
    steps = run(tmp_path, teacher=teacher)
    rows = made.contents(tmp_path / "out" / "all")
    for row in rows.values():
        before = [time for time in published if time <= row["timestamp"]]
        if not before:
            assert row["teacher_logit"] is row["teacher_snapshot"] is row["teacher_age_s"] is None
            continue
        name, value = published[max(before)]
        assert row["teacher_snapshot"] == name
        assert row["teacher_age_s"] == pytest.approx((row["timestamp"] - max(before)) / 1000)
        assert row["teacher_logit"] == pytest.approx(value * row["x"] + value, rel=1e-5)
    scored = {s.hour: s.scored[""] for s in steps if s.kind == "score"}
    assert scored == {5: 0, 6: 40, 7: 40, 8: 40, 9: 40}


def without_events(root):
    for folder in made.FOLDERS.values():
        (root / "data" / folder).mkdir(exist_ok=True)


def test_a_folder_of_events_that_does_not_exist_holds_up_what_needs_it(tmp_path, data):
    (tmp_path / "data" / "conversions").rename(tmp_path / "data" / "conversion")
    with pytest.raises(StreamError, match=r"data/conversions: .*'conversion', .*'impressions', "):
        run(tmp_path)
    assert kx.streaming.hours(tmp_path / "out" / "shop") == []
    # The others do not wait.
    assert kx.streaming.hours(tmp_path / "out" / "feed") == list(HOURS)
    (tmp_path / "data" / "conversion").rename(tmp_path / "data" / "conversions")
    run(tmp_path)
    assert_streams(tmp_path, data)


def test_a_vertical_without_rows_is_told_of_and_not_tried_again_and_again(tmp_path, data):
    verticals = {"all": made.VERTICALS["all"], "feed": {"tasks": ["click"], "verticals": ["fed"]}}
    worker = Worker(made.job(tmp_path, verticals=verticals))
    steps = [s for s in worker.run(ended=True) if s.name == "feed"]
    assert [(s.rows, s.committed) for s in steps] == [(0, True)] * len(HOURS)
    for step in steps:
        assert "verticals = ['fed']" in step.remark
        assert f"['feed', 'search'] in hour {step.hour}" in step.remark
    assert worker.due(ended=True) == []
    worker.close()
    # Nothing of it lies on disk: another worker looks again, with the job put right.
    again = run(tmp_path, verticals=made.VERTICALS)
    assert sum(s.rows for s in again if (s.kind, s.name) == ("emit", "feed")) > 0
    assert_streams(tmp_path, data)


def test_teachers_that_may_be_wrong_are_told_of(tmp_path):
    made.source(tmp_path / "data", [5], rows=200)

    def remark(**teacher):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (step,) = (s for s in run(tmp_path, teacher={"workers": 0, **teacher}) if s.kind == "score")
        return step.remark

    store = tmp_path / "teachers"
    assert f"{store} holds no snapshot" in remark(snapshots=str(store))
    # Older hours than the first snapshot have none for a good reason.
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
    kx.das.SnapshotStore(store).publish(model, published_at=100 * MS_PER_HOUR)
    assert remark(snapshots=str(store)) == ""
    assert remark(entry_point="tests.das.teachers:linear") == ""
    assert "all 200 predictions" in remark(entry_point="tests.das.teachers:sigmoid")


def test_an_hour_without_a_vertical_s_rows_is_passed(tmp_path):
    rng = np.random.default_rng(0)
    for hour in HOURS:
        table = made.impressions(hour, 20, rng)
        if hour in (5, 7, 9):
            column = pa.array(["search"] * 20)
            table = table.set_column(table.column_names.index("vertical"), "vertical", column)
        partitions.write_impressions(tmp_path / "data", hour, table)
    without_events(tmp_path)
    steps = run(tmp_path)
    emitted = [s for s in steps if (s.kind, s.name) == ("emit", "feed")]
    assert [s.rows > 0 for s in emitted] == [0, 1, 0, 1, 0]
    # As long as there was no row, the job may be wrong.
    assert "['search'] in hour 5" in emitted[0].remark
    assert not any(s.remark for s in emitted[1:])
    assert all(s.committed for s in emitted)
    assert kx.streaming.hours(tmp_path / "out" / "feed") == [6, 8]
    assert run(tmp_path) == []


def test_an_hour_that_lands_after_later_ones_is_kept_aside(tmp_path, data):
    shutil.move(tmp_path / "data" / "impressions" / "hour=7", tmp_path / "later")
    run(tmp_path)
    shutil.move(tmp_path / "later", tmp_path / "data" / "impressions" / "hour=7")
    (step,) = run(tmp_path)
    assert (step.kind, step.hour, step.counts) == ("missed", 7, {"missed_hour": 40})
    file = tmp_path / "out" / "side" / "reason=missed_hour" / "hour=7" / "impressions.parquet"
    kept = pq.read_table(file, partitioning=None)["example_id"].to_pylist()
    assert sorted(kept) == sorted(
        r["example_id"] for r in data[0] if r["timestamp"] // MS_PER_HOUR == 7
    )
    assert run(tmp_path) == []


def test_an_hour_that_lands_too_late_for_its_predictions_is_not_emitted(tmp_path, data):
    """Nor by a later run, which finds it kept aside, though its labels are awaited still."""
    shutil.move(tmp_path / "data" / "impressions" / "hour=9", tmp_path / "last")
    for kind in ("labels", "conversions"):
        for folder in (tmp_path / "data" / kind).glob("hour=*"):
            if int(folder.name.removeprefix("hour=")) > 8:
                shutil.move(folder, tmp_path / f"{kind}-{folder.name}")
    shutil.move(tmp_path / "data" / "impressions" / "hour=6", tmp_path / "later")
    run(tmp_path, ended=False)
    shutil.move(tmp_path / "later", tmp_path / "data" / "impressions" / "hour=6")
    # Scored up to 7, and emitted up to 5 at most.
    assert kx.streaming.hours(tmp_path / "out" / "feed") == [5]
    assert kx.streaming.hours(tmp_path / "out" / "shop") == []
    assert [s.hour for s in run(tmp_path, ended=False) if s.kind == "missed"] == [6]
    shutil.move(tmp_path / "last", tmp_path / "data" / "impressions" / "hour=9")
    run(tmp_path)
    for name in ("feed", "shop"):
        assert kx.streaming.hours(tmp_path / "out" / name) == [5, 7, 8, 9]


def test_events_in_another_hours_partition_count_and_are_told(tmp_path):
    rng = np.random.default_rng(0)
    table = made.impressions(5, 3, rng)
    partitions.write_impressions(tmp_path / "data", 5, table)
    example, time = table["example_id"][0].as_py(), table["timestamp"][0].as_py()
    event = {"example_id": [example], "timestamp": [time + 1000], "label": [1.0]}
    folder = tmp_path / "data" / "labels" / "hour=6"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(event), folder / "part-0.parquet")
    without_events(tmp_path)
    audits = [s for s in run(tmp_path) if (s.kind, s.name, s.hour) == ("audit", "click", 5)]
    assert audits[0].counts["out_of_order"] == 1
    assert made.contents(tmp_path / "out" / "all")[example]["label"] == 1.0
    kept = tmp_path / "out" / "side" / "reason=out_of_order" / "hour=5" / "click.parquet"
    assert pq.read_table(kept, partitioning=None)["used"].to_pylist() == [True]


def test_events_of_hours_without_impressions_are_told(tmp_path, data):
    made.write_events(tmp_path / "data", "labels", [(1, 30 * MS_PER_HOUR, 1)])
    run(tmp_path)
    assert (1, 30 * MS_PER_HOUR, 1) in made.side(tmp_path, "click")["orphan"]


def test_a_join_that_does_not_fit_in_memory_spills(tmp_path):
    hours = range(1, 3)
    rng = np.random.default_rng(0)
    for hour in hours:
        partitions.write_impressions(tmp_path / "data", hour, big(hour, 400_000, rng))
    without_events(tmp_path)
    spill = tmp_path / "spill"
    join = {"memory_limit": "20MB", "temp_directory": str(spill), "threads": 1}
    verticals = {"all": {"tasks": ["click"]}}
    seen = []
    sort = Worker(made.job(tmp_path, join=join, verticals=verticals)).join
    for chunk in sort.rows(1):
        seen.append(len(chunk))
        if len(seen) == 1:
            assert any(spill.rglob("*")), "nothing was spilled: the test shows nothing"
    assert sum(seen) == 400_000
    run(tmp_path, verticals=verticals)
    stream = kx.streaming.Stream(tmp_path / "out" / "all")
    assert [stream.rows(hour) for hour in hours] == [400_000, 400_000]


def big(hour, rows, rng):
    ids = np.arange(rows) + hour * 10_000_000
    return pa.table(
        {
            "example_id": ids,
            "timestamp": hour * MS_PER_HOUR + rng.integers(0, MS_PER_HOUR, rows),
            "vertical": np.where(ids % 2, "feed", "search"),
            "group": rng.integers(0, 2**60, rows),
            "ad": rng.integers(0, 10, rows).astype(np.int32),
            "seen": pa.FixedSizeListArray.from_arrays(
                pa.array(rng.integers(0, 10, 2 * rows).astype(np.int32)), 2
            ),
            "x": rng.normal(size=rows).astype(np.float32),
        }
    )


def test_a_condition_may_name_what_the_join_has_too(tmp_path, data):
    where = "example_id % 2 = 0 AND timestamp > 0 AND label IS NULL"
    vertical = {"tasks": ["click"], "verticals": ["feed"]}
    with pytest.raises(StreamError, match='hour=5.*"label" not found'):
        run(tmp_path, verticals={"even": {**vertical, "where": where}})
    where = where.rpartition(" AND ")[0]
    run(tmp_path, verticals={"even": {**vertical, "where": where}})
    expected = made.plain(*data, "feed")
    got = made.contents(tmp_path / "out" / "even")
    assert got.keys() == {i for i in expected if i % 2 == 0}
    assert all(row["label"] == expected[i]["label"] for i, row in got.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verticals": {"a": {"tasks": ["click"], "where": "colour = 1"}}}, "hour=5.*colour"),
        (
            {"teacher": {"entry_point": "tests.das.teachers:wide", "workers": 0}},
            r"one logit for each of 40 rows.*\(40, 2\)",
        ),
        (
            {"join": {"memory_limit": "lots"}},
            "DuckDB refuses the settings.*lots",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_committed(tmp_path, data, changes, message):
    with pytest.raises((StreamError, JobError), match=message):
        run(tmp_path, **changes)
    for name in ("a", "all", "predictions"):
        path = tmp_path / "out" / name
        if name != "predictions" or "verticals" not in changes:
            assert not list(path.rglob("*.parquet"))


def test_rows_without_a_finite_logit_have_no_teacher(tmp_path, data):
    teacher = {"entry_point": "tests.das.teachers:nan_where_negative", "workers": 0}
    steps = run(tmp_path, teacher=teacher)
    negative = [r["example_id"] for r in data[0] if not r["x"] > 0]
    assert sum(s.not_finite for s in steps if s.kind == "score") == len(negative)
    rows = made.contents(tmp_path / "out" / "all")
    assert {i for i, r in rows.items() if r["teacher_logit"] is None} == set(negative)
    # What is read is masked.
    dataset = kx.streaming.read(tmp_path / "out" / "all", batch_size=200)
    _, y, _ = next(iter(dataset))
    assert np.isnan(y["teacher_logit"].numpy()).sum() == len(negative)


class Held(InlineEngine):
    """Scores the first hour at once and each later one when it is told to."""

    def __init__(self, settings):
        super().__init__(settings)
        self.started, self.go, self.hours = threading.Event(), threading.Event(), 0
        self.under_way, self.closed = 0, []

    def score(self, chunks, where):
        self.hours += 1
        if self.hours > 1:
            self.started.set()
            assert self.go.wait(30)
        self.under_way += 1
        try:
            yield from super().score(chunks, where)
        finally:
            self.under_way -= 1

    def close(self):
        self.closed.append(self.under_way)
        super().close()


def held(root):
    job = made.job(root)
    engine = Held(teacher_settings(job.teacher, job.schema_of_features()))
    return Worker(job, engines={"": engine}), engine


def test_an_hour_is_scored_while_the_one_before_is_emitted(tmp_path, data):
    worker, engine = held(tmp_path)
    steps = worker.steps(ended=True)
    first = next(step for step in steps if step.kind == "score")
    assert engine.started.wait(30)
    emitted = [next(steps) for _ in made.VERTICALS]
    assert {(step.kind, step.hour) for step in emitted} == {("emit", first.hour)}
    assert sorted(worker.predictions[""].hours()) == [first.hour]
    engine.go.set()
    order = [first, *emitted, *steps]
    units = [(step.hour, step.kind) for step in order if step.kind in ("score", "emit")]
    assert units == sorted(units, key=lambda unit: (unit[0], unit[1] != "score"))
    assert_streams(tmp_path, data)


def test_an_hour_that_is_scored_when_the_worker_is_left_is_given_up(tmp_path, data):
    worker, engine = held(tmp_path)
    steps = worker.steps(ended=True)
    first = next(step for step in steps if step.kind == "score")
    assert engine.started.wait(30)
    left = worker._under_way.left
    leaving = threading.Thread(target=steps.close)
    leaving.start()
    assert left.wait(30)
    engine.go.set()
    leaving.join(30)
    assert sorted(worker.predictions[""].hours()) == [first.hour]
    files = sorted((tmp_path / "out" / "predictions").glob("hour=*/*.parquet"))
    assert [file.parent.name for file in files] == [f"hour={first.hour}"]
    worker.run(ended=True)
    assert_streams(tmp_path, data)


def test_steps_of_one_worker_do_not_overlap(tmp_path, data):
    worker, engine = held(tmp_path)
    steps = worker.steps(ended=True)
    first = next(steps)
    with pytest.raises(RuntimeError, match="ads: this worker's steps are under way already"):
        worker.run(ended=True)
    # The first goes on as if nothing had been.
    engine.go.set()
    rest = list(steps)
    assert_streams(tmp_path, data)
    assert len({(s.kind, s.name, s.hour) for s in [first, *rest]}) == 1 + len(rest)
    assert worker.run(ended=True) == []
    # One that was never begun, or was dropped, is none.
    unused = worker.steps(ended=True)
    assert worker.run(ended=True) == list(unused) == []


def test_closing_waits_for_the_hour_that_is_scored(tmp_path, data):
    worker, engine = held(tmp_path)
    steps = worker.steps(ended=True)
    first = next(step for step in steps if step.kind == "score")
    assert engine.started.wait(30)
    left = worker._under_way.left
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert left.wait(30)
    assert engine.closed == []
    engine.go.set()
    closing.join(30)
    assert engine.closed == [0]
    assert sorted(worker.predictions[""].hours()) == [first.hour]
    with pytest.raises(StreamError, match="ads: the worker was closed"):
        next(steps)
    worker.run(ended=True)
    assert_streams(tmp_path, data)


def test_of_a_failing_emission_the_hour_that_is_scored_is_kept(tmp_path, data, monkeypatch):
    worker, engine = held(tmp_path)

    def failing(hour, name):
        assert engine.started.wait(30)
        threading.Timer(0.05, engine.go.set).start()
        raise StreamError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_emit", failing)
        with pytest.raises(StreamError, match="no room"):
            worker.run(ended=True)
    assert sorted(worker.predictions[""].hours()) == [5, 6]
    assert engine.closed == []
    steps = worker.run(ended=True)
    assert [step.hour for step in steps if step.kind == "score"] == [7, 8, 9]
    assert_streams(tmp_path, data)


def test_a_teacher_sees_the_program_s_keras_settings(tmp_path, data):
    before = keras.config.dtype_policy()
    log = tmp_path / "policies"
    teacher = {"entry_point": "tests.das.teachers:telling_policy", "arguments": {"path": str(log)}}
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run(tmp_path, teacher={**teacher, "workers": 0})
    finally:
        keras.config.set_dtype_policy(before)
    assert set(log.read_text().splitlines()) == {"made mixed_bfloat16", "asked mixed_bfloat16"}
    assert_streams(tmp_path, data)


def test_the_thread_that_owns_the_worker_connects_the_engine(tmp_path, data):
    """A cluster that Ray starts ends with the thread that started it, as scoring's does."""
    worker, engine = held(tmp_path)
    engine.go.set()
    seen = []
    engine.connect = lambda: seen.append(threading.current_thread())
    scoring = engine.score

    def score(*args):
        seen.append(threading.current_thread())
        return scoring(*args)

    engine.score = score
    worker.run(ended=True)
    assert seen[0] is threading.current_thread()
    assert len(seen) > 1
    assert threading.current_thread() not in seen[1:]
    assert_streams(tmp_path, data)
