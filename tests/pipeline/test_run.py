import json
import math

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm import streaming
from keras_exfm.das import DataAugmentationService
from keras_exfm.pipeline import ConfigError, Run, parse

TREE = {
    "name": "tiny",
    "seeds": [1],
    "data": {
        "source": "synthetic",
        "options": {"hours": 6, "examples_per_hour": 200, "users": 40, "ads": 20},
    },
    "teacher": {
        "model": "Wukong",
        "options": {
            "dim": 4,
            "num_layers": 1,
            "n_fmb": 2,
            "n_lcb": 2,
            "rank": 2,
            "mlp_units": [8],
            "head_units": [8],
        },
    },
    "student": {"model": "DLRM", "options": {"dim": 4, "top_units": [8]}},
    "students": [
        {"name": "no teacher"},
        {
            "name": "ExFM",
            "auxiliary_head": {"units": [4]},
            "student_adapter": {"units": [4]},
            "shared_head_weight": 0.5,
            "shared_head_source": "adapter",
            "gate": {"margin": 0.1},
            "teacher_batch_size": 32,
        },
    ],
    "evaluation": {"warmup_hours": 3, "verticals": ["feed"], "batch_size": 64},
}


class Watch:
    """Progress that notes its stages and can stop the run, as kill would."""

    def __init__(self, stop_at=None):
        self.stages, self.stop_at = [], stop_at

    def begin(self, label, total):
        self.stages.append(label)

    def step(self, done, note=""):
        if self.stop_at and self.stages[-1].startswith(self.stop_at[0]) and done == self.stop_at[1]:
            raise KeyboardInterrupt

    def say(self, text):
        pass


def tree(**changes):
    return {**json.loads(json.dumps(TREE)), **changes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    run = Run(parse(tree()), folder)
    return run, folder, run.execute()


def test_results_and_report(finished):
    run, folder, page = finished
    assert page.is_file()
    overall = pq.read_table(folder / "results" / "overall.parquet").to_pylist()
    assert {(r["model"], r["vertical"]) for r in overall} == {
        ("teacher", "feed"),
        ("no teacher", "feed"),
        ("ExFM", "feed"),
    }
    for row in overall:
        assert 0.5 < row["ne"] < 3
        assert row["bayes_ne"] < row["ne"]
    windows = pq.read_table(folder / "results" / "windows.parquet").to_pylist()
    assert len({r["hour"] for r in windows if r["model"] == "ExFM"}) == 6
    about = json.loads((folder / "results" / "run.json").read_text())
    assert about["baseline"] == "no teacher"
    assert about["das"]["rows"] == 6 * 200
    names = {row["model"] for row in run.gains()}
    assert names == {"teacher", "no teacher", "ExFM"}


def test_no_teacher_scores_an_example_that_it_could_have_learned(finished):
    _, folder, _ = finished
    labelled = folder / "seed-1" / "labelled"
    info = streaming.partitions.DatasetInfo.read(folder / "data")
    lag = math.ceil(info.label_window_hours)
    for hour in streaming.hours(labelled):
        rows = streaming.read_hour(labelled, hour, columns=("teacher_snapshot", "timestamp"))
        known = rows["teacher_snapshot"] != ""
        # The first snapshot learned from hour 0, whose labels are complete `lag` hours after it.
        assert known.all() == (hour >= info.first_hour + 1 + lag)
        published = rows["teacher_snapshot"][known].astype(np.int64)
        assert (published <= rows["timestamp"][known]).all()


def test_a_finished_run_does_no_work_again(finished):
    _, folder, _ = finished
    watch = Watch()
    before = pq.read_table(folder / "results" / "overall.parquet")
    Run(parse(tree()), folder, progress=watch).execute()
    assert not [s for s in watch.stages if s.startswith(("no teacher", "ExFM"))]
    assert pq.read_table(folder / "results" / "overall.parquet") == before


def test_a_student_is_added_to_a_finished_run(finished):
    _, folder, _ = finished
    students = [*tree()["students"], {"name": "vanilla", "shared_head_weight": 1.0}]
    watch = Watch()
    Run(parse(tree(students=students)), folder, progress=watch).execute()
    assert [s.split(" on ")[0] for s in watch.stages if " on " in s] == ["vanilla"]


def test_serving_models_are_the_students_alone(finished):
    _, folder, _ = finished
    files = sorted((folder / "seed-1" / "students").glob("exfm-*.keras"))
    model = keras.saving.load_model(files[0])
    assert not any("head" in layer.name or "adapter" in layer.name for layer in model.layers)
    info = streaming.partitions.DatasetInfo.read(folder / "data")
    hour = streaming.read_hour(folder / "seed-1" / "labelled", info.last_hour, info.schema)
    logits = model.predict({n: hour[n] for n in info.schema.names}, verbose=0)
    assert logits.shape == (200, 1)


@pytest.mark.parametrize("stop_at", [("teacher", 4), ("ExFM", 2)])
def test_a_stopped_run_ends_as_an_undisturbed_one(finished, tmp_path, stop_at):
    _, folder, _ = finished
    config = parse(tree())
    with pytest.raises(KeyboardInterrupt):
        Run(config, tmp_path / "again", progress=Watch(stop_at)).execute()
    Run(config, tmp_path / "again").execute()
    wanted = pq.read_table(folder / "results" / "overall.parquet").to_pylist()
    got = pq.read_table(tmp_path / "again" / "results" / "overall.parquet").to_pylist()
    wanted = {r["model"]: r for r in wanted}
    for row in got:
        for name in ("examples", "ne", "auc", "calibration"):
            assert row[name] == pytest.approx(wanted[row["model"]][name], rel=1e-5)


def test_killed_between_commit_and_training(finished, tmp_path, monkeypatch):
    """The hour is in the table but not in the teacher: it is trained on after the restart."""
    _, folder, _ = finished
    real = streaming.train_hour
    calls = []

    def killed(model, path, hour, *args, **kwargs):
        calls.append(hour)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(model, path, hour, *args, **kwargs)

    monkeypatch.setattr(streaming, "train_hour", killed)
    config = parse(tree(students=[{"name": "no teacher"}]))
    with pytest.raises(KeyboardInterrupt):
        Run(config, tmp_path / "again").execute()
    monkeypatch.setattr(streaming, "train_hour", real)
    Run(config, tmp_path / "again").execute()
    for hour in streaming.hours(folder / "seed-1" / "labelled"):
        logits = [
            streaming.read_hour(root / "seed-1" / "labelled", hour)["teacher_logit"]
            for root in (folder, tmp_path / "again")
        ]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("own", "used"), [(None, 64), (16, 16)])
def test_rows_of_a_teachers_step(finished, tmp_path, monkeypatch, own, used):
    """The evaluation's, unless the teacher has its own: then those of the evaluation may change."""
    seen = []

    def train_hour(*args, batch_size, **kwargs):
        seen.append(batch_size)
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "train_hour", train_hour)
    changed = tree(data={"source": "prepared", "path": str(finished[1] / "data")})
    changed["teacher"]["batch_size"] = own
    with pytest.raises(KeyboardInterrupt):
        Run(parse(changed), tmp_path / "run").execute()
    changed["evaluation"]["batch_size"] = 32
    with pytest.raises(KeyboardInterrupt if own else ConfigError, match=None if own else "batch_s"):
        Run(parse(changed), tmp_path / "run").execute()
    assert seen == ([used] * 2 if own else [used])


def test_a_run_from_before_a_setting_was_there_goes_on(finished, tmp_path, monkeypatch):
    made = []

    def train_hour(model, *args, **kwargs):
        made.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "train_hour", train_hour)
    changed = tree(data={"source": "prepared", "path": str(finished[1] / "data")})
    with pytest.raises(KeyboardInterrupt):
        Run(parse(changed), tmp_path / "run").execute()
    note = tmp_path / "run" / "run.json"
    held = json.loads(note.read_text())
    assert held["teacher"].pop("clip_row_norm") is None
    note.write_text(json.dumps(held))
    with pytest.raises(KeyboardInterrupt):
        Run(parse(changed), tmp_path / "run").execute()
    changed["teacher"]["clip_row_norm"] = 0.25
    with pytest.raises(ConfigError, match="other settings"):
        Run(parse(changed), tmp_path / "run").execute()
    with pytest.raises(KeyboardInterrupt):
        Run(parse(changed), tmp_path / "run", fresh=True).execute()
    tables = [next(x for x in model.layers if x.name == "feature-embedding") for model in made]
    assert [table.optimizer.clip_row_norm for table in tables] == [None, None, 0.25]


def test_another_teacher_in_the_same_folder_is_refused(finished):
    _, folder, _ = finished
    changed = tree()
    changed["teacher"]["learning_rate"] = 0.5
    words = r"other settings for \['teacher'\]: teacher.learning_rate [\d.]+ \(now 0.5\)\. "
    with pytest.raises(ConfigError, match=words):
        Run(parse(changed), folder).execute()


def test_a_mistake_at_the_start_can_be_put_right(finished, tmp_path, monkeypatch):
    """Nothing was made with it yet."""

    def train_hour(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "train_hour", train_hour)
    data = {"source": "prepared", "path": str(finished[1] / "data")}
    nowhere = {"source": "prepared", "path": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match="no prepared data set there"):
        Run(parse(tree(data=nowhere)), tmp_path / "run").execute()
    wrong = tree(data=data)
    wrong["teacher"]["options"]["widht"] = 3
    with pytest.raises(ConfigError, match="widht"):
        Run(parse(wrong), tmp_path / "run").execute()
    with pytest.raises(KeyboardInterrupt):
        Run(parse(tree(data=data)), tmp_path / "run").execute()
    # Now the service has begun.
    with pytest.raises(ConfigError, match=r"\['data'\]: data.path '.*data' \(now '.*nowhere'\)"):
        Run(parse(tree(data=nowhere)), tmp_path / "run").execute()


def test_a_stream_that_was_made_is_of_its_settings(tmp_path):
    wrong = tree()
    wrong["teacher"]["options"]["widht"] = 3
    with pytest.raises(ConfigError, match="widht"):
        Run(parse(wrong), tmp_path / "run").execute()
    other = tree()
    other["data"]["options"]["seed"] = 99
    with pytest.raises(ConfigError, match=r"\['data'\]: data.options.seed .*now 99"):
        Run(parse(other), tmp_path / "run").execute()


def test_whether_sums_are_compared_makes_no_other_run(tmp_path):
    for check in (True, False):
        data = {"source": "avazu", "path": str(tmp_path / "none"), "options": {"check": check}}
        with pytest.raises(streaming.StreamError, match="no such file"):
            Run(parse(tree(data=data)), tmp_path / "run").execute()


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no run's"):
        Run(parse(tree()), tmp_path, fresh=True).execute()
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("teacher", {"model": "Wukon"}, "No model 'Wukon'.*Wukong"),
        ("student", {"model": "DLRM", "options": {"dims": 3}}, r"no options \['dims'\]"),
        ("student", {"model": "DLRM", "features": ["nope"]}, "nope"),
        ("evaluation", {"verticals": ["moon"]}, r"no \['moon'\].*feed"),
        (
            "evaluation",
            {"verticals": ["feed"], "warmup_hours": 99},
            r"the stream has \d+ hours, so none is left.*Received: 99",
        ),
        ("students", [{"name": "a"}, {"name": "b", "auxiliary_head": {"unit": [3]}}], "unit"),
    ],
)
def test_faults_are_found_before_the_teacher_trains(finished, tmp_path, section, change, message):
    _, folder, _ = finished
    data = {"source": "prepared", "path": str(folder / "data")}
    with pytest.raises(ValueError, match=message):
        Run(parse(tree(data=data, **{section: change})), tmp_path / "run").execute()
    assert not (tmp_path / "run" / "seed-1").exists()


def test_teacher_delay_makes_it_older(finished, tmp_path):
    _, folder, _ = finished
    changed = tree(data={"source": "prepared", "path": str(folder / "data")})
    changed["teacher"]["delay_hours"] = 1
    changed["students"] = changed["students"][:1]
    Run(parse(changed), tmp_path / "late").execute()
    ages = [
        json.loads((root / "results" / "run.json").read_text())["das"]["mean_age_s"]
        for root in (folder, tmp_path / "late")
    ]
    assert ages[0] < 3600
    # A snapshot is published an hour later each time, so its age at use does not change; but one
    # hour more has no teacher at all.
    coverage = [
        json.loads((root / "results" / "run.json").read_text())["das"]["coverage"]
        for root in (folder, tmp_path / "late")
    ]
    assert coverage[1] < coverage[0]


def test_das_summary_matches_the_service(finished):
    _, folder, _ = finished
    about = json.loads((folder / "results" / "run.json").read_text())["das"]
    labelled = folder / "seed-1" / "labelled"
    scored = rows = 0
    for hour in streaming.hours(labelled):
        logits = streaming.read_hour(labelled, hour)["teacher_logit"]
        scored, rows = scored + int(np.isfinite(logits).sum()), rows + len(logits)
    assert about["coverage"] == pytest.approx(scored / rows)
    assert isinstance(
        DataAugmentationService(folder / "data", labelled, kx.Schema([kx.Numeric("x")])).label_lag,
        int,
    )
