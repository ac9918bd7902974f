"""After each fault: the same content as an undisturbed run, or an error that names the file."""

import random
import resource
import shutil
import time

import pytest

import keras_exfm as kx
from keras_exfm.das import SnapshotError, SnapshotStore, Worker, verify
from keras_exfm.streaming import MS_PER_HOUR, StreamError
from tests.das import faults, made

pytestmark = pytest.mark.backend_free

HOURS = range(5, 8)
ONE = {"all": {"tasks": ["click"]}}


@pytest.fixture
def undisturbed(tmp_path):
    made.source(tmp_path / "data", HOURS)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "data").symlink_to(tmp_path / "data")
    Worker(made.job(alone)).run(ended=True)
    return made.everything(alone)


def finish(root, **changes):
    worker = Worker(made.job(root, **changes))
    worker.run(ended=True)
    worker.close()
    problems = [text for v in verify(made.job(root, **changes)) for text in v.problems]
    assert problems == []
    return made.everything(root)


def test_killed_at_random_moments(tmp_path):
    count = faults.disturb(tmp_path, 3, seed=2, workers=2)
    assert count["worker"] + count["scorer"] >= 3
    assert count["whole"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_a_hundred_random_moments(tmp_path, workers):
    count = faults.disturb(tmp_path, 100, seed=10 + workers, workers=workers)
    assert count["worker"] >= 20
    assert count["scorer"] >= 10


@pytest.mark.parametrize("limit", [50, 4_000])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, limit):
    """No file may grow beyond `limit` bytes: of Parquet, of the side output, of the log."""
    made.source(tmp_path / "data", HOURS, rows=300)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    worker = Worker(made.job(tmp_path, verticals=ONE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StreamError, match=r"(?s)out/.*(too large|os error 27)"):
            worker.run(ended=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "data").symlink_to(tmp_path / "data")
    Worker(made.job(alone, verticals=ONE)).run(ended=True)
    assert finish(tmp_path, verticals=ONE) == made.everything(alone)


@pytest.mark.parametrize("kind", ["impressions", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_partitions(tmp_path, kind, damage):
    damaged(tmp_path, kind, damage, 2)


def damaged(tmp_path, kind, damage, tries):
    """Wherever a file is cut and whichever bit is flipped: its name, or no difference at all."""
    hours = range(5, 7)
    made.source(tmp_path / "data", hours)
    Worker(made.job(tmp_path, verticals=ONE)).run(ended=True)
    undisturbed = made.everything(tmp_path)
    shutil.rmtree(tmp_path / "out")
    file = tmp_path / "data" / kind / "hour=6" / "part-0.parquet"
    content = file.read_bytes()
    rng = random.Random(f"{kind} {damage}")
    named = 0
    for _ in range(tries):
        at = rng.randrange(len(content))
        changed = bytearray(content[:at] if damage == "truncated" else content)
        if damage == "flipped":
            changed[at] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        told = None
        try:
            Worker(made.job(tmp_path, verticals=ONE)).run(ended=True)
        except StreamError as error:
            told = str(error)
        if told is not None:
            assert f"{kind}/hour=6" in told, at
            named += 1
            file.write_bytes(content)
            Worker(made.job(tmp_path, verticals=ONE)).run(ended=True)
        assert made.everything(tmp_path) == undisturbed, at
        file.write_bytes(content)
        shutil.rmtree(tmp_path / "out")
    assert named >= (tries if damage == "truncated" else tries // 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["impressions", "labels"])
def test_many_damaged_partitions(tmp_path, kind):
    damaged(tmp_path, kind, "flipped", 100)


def test_damaged_predictions_are_named_before_they_are_used(tmp_path, undisturbed):
    for step in Worker(made.job(tmp_path)).steps(ended=True):
        if (step.kind, step.hour) == ("score", 6):
            break
    (file,) = (tmp_path / "out" / "predictions" / "hour=6").glob("*.parquet")
    content = file.read_bytes()
    changed = bytearray(content)
    changed[120] ^= 8  # In the column example_id, which comes first.
    for broken in (bytes(changed), content[:-20]):
        file.write_bytes(broken)
        with pytest.raises(StreamError, match=file.name):
            Worker(made.job(tmp_path)).run(ended=True)
    file.write_bytes(content)
    assert finish(tmp_path) == undisturbed


def test_a_clock_that_goes_back(tmp_path, undisturbed, monkeypatch):
    """No decision hangs on the clock: hours and labels go by the data's own time."""
    now = [2e9]

    def back():
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    assert finish(tmp_path) == undisturbed


def test_a_snapshot_that_is_removed_while_it_is_needed(tmp_path):
    made.source(tmp_path / "data", HOURS)
    store = SnapshotStore(tmp_path / "teachers")
    model = kx.models.LogisticRegression(made.SCHEMA.select(["x"]))
    shot = store.publish(model, 6 * MS_PER_HOUR)
    teacher = {"snapshots": str(tmp_path / "teachers"), "workers": 0}
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "teachers", kept)
    # Hour 7 would be scored while hour 6 is emitted.
    worker = Worker(made.job(tmp_path, teacher=teacher), hours=(None, 6))
    steps = worker.steps(ended=True)
    while (step := next(steps)).kind != "score" or step.hour < 6:
        pass
    shot.path.unlink()
    with pytest.raises(SnapshotError, match=shot.id):
        Worker(made.job(tmp_path, teacher=teacher)).run(ended=True)
    shutil.copytree(kept, tmp_path / "teachers", dirs_exist_ok=True)
    got = finish(tmp_path, teacher=teacher)
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").symlink_to(tmp_path / "data")
    assert got == finish(other, teacher=teacher)
