"""One commit an hour whoever commits; tables proved whole, compacted, vacuumed, pinned."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

import keras_exfm as kx
from keras_exfm.das import Worker, compact, vacuum, verify
from tests.das import made

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
HOURS = range(5, 9)


@pytest.fixture
def done(tmp_path):
    data = made.source(tmp_path / "data", HOURS)
    Worker(made.job(tmp_path)).run(ended=True)
    return data


def problems(root, **options):
    return [text for found in verify(made.job(root), **options) for text in found.problems]


def file_of(root, table, hour):
    (file,) = (root / "out" / table / f"hour={hour}").glob("*.parquet")
    return file


def test_a_commit_of_predictions_that_another_worker_upset_is_tried_again(tmp_path, monkeypatch):
    made.source(tmp_path / "data", HOURS)
    real, upset = DeltaTable.create_write_transaction, []

    def once(table, *args, **kwargs):
        if "predictions" in table.table_uri and not upset:
            upset.append(table)
            raise CommitFailedError("Metadata changed since last commit.")
        real(table, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", once)
    Worker(made.job(tmp_path)).run(ended=True)
    assert upset
    assert problems(tmp_path) == []


def test_two_workers_started_together_commit_each_hour_once(tmp_path):
    made.source(tmp_path / "data", range(5, 11), rows=400)
    values = made.values(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "tests.das.worker_process", str(tmp_path / "job.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    workers = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = []
    for worker in workers:
        out, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        told.append(json.loads(out))
    committed = [tuple(step[:3]) for steps in told for step in steps if step[3]]
    exact = [unit for unit in committed if unit[0] in ("score", "emit")]
    assert len(exact) == len(set(exact)) == 6 * 4
    # They did run at the same time.
    assert any(not step[3] for steps in told for step in steps)
    alone = tmp_path / "alone"
    made.source(alone / "data", range(5, 11), rows=400)
    Worker(made.job(alone)).run(ended=True)
    assert made.everything(alone) == made.everything(tmp_path)
    for name in (*made.VERTICALS, "predictions"):
        history = DeltaTable(str(tmp_path / "out" / name)).history()
        assert sum("keras_exfm" in commit for commit in history) == 6
    assert problems(tmp_path) == []


def test_whole_tables_are_proved_whole(tmp_path, done):
    found = {Path(v.table).name: v for v in verify(made.job(tmp_path))}
    assert set(found) == {*made.VERTICALS, "predictions"}
    for name, verification in found.items():
        assert verification.problems == []
        assert (verification.hours, verification.by_digest) == (4, 4)
        assert verification.by_source == (0 if name == "predictions" else 4)
        assert verification.unnamed == 0
    assert found["all"].rows == found["predictions"].rows == 4 * 40
    (some,) = verify(made.job(tmp_path), "feed", hours=(6, 7), source=False)
    assert (some.hours, some.by_source) == (2, 0)


def test_a_file_that_is_gone_or_damaged_is_named(tmp_path, done):
    gone, cut, flipped = (file_of(tmp_path, "feed", hour) for hour in (5, 6, 7))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-7])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 1
    flipped.write_bytes(content)
    found = "\n".join(problems(tmp_path, vertical="feed"))
    for file in (gone, cut, flipped):
        assert file.name in found
    assert "hour 8" not in found


def test_values_that_were_changed_are_found(tmp_path, done):
    file = file_of(tmp_path, "all", 6)
    table = pq.read_table(file, partitioning=None)
    label = np.array(table["label"].to_pylist(), np.float32)
    label[3] = 1 - label[3]
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [label]), file)
    found = problems(tmp_path, vertical="all")
    assert any("hour 6" in text and "['label'] have other values than" in text for text in found)
    assert any("hour 6" in text and "source gives 40, and other" in text for text in found)


def test_an_id_that_is_there_twice_is_found(tmp_path, done):
    path = str(tmp_path / "out" / "all")
    rows = DeltaTable(path).to_pyarrow_table(filters=[("hour", "=", 7)])
    write_deltalake(path, rows.slice(0, 2), mode="append")
    found = problems(tmp_path, vertical="all")
    assert any("2 times, in the hours [7, 7] (2 such ids)" in text for text in found)


def test_labels_that_changed_since_are_found(tmp_path, done):
    shown, _ = done
    row = next(r for r in shown if r["timestamp"] // 3_600_000 == 6)
    made.write_events(tmp_path / "data", "labels", [(row["example_id"], row["timestamp"], 1)])
    found = problems(tmp_path, vertical="all")
    assert found
    assert all("other values in ['label']" in text for text in found)


def test_compaction_and_vacuum_change_no_content(tmp_path, done):
    path = tmp_path / "out" / "all"
    version = kx.streaming.Stream(path).version
    before = kx.streaming.read_hour(path, 7, columns=("example_id", "timestamp"))
    # Another writer has cut an hour into two files whose times interleave.
    rows = DeltaTable(str(path)).to_pyarrow_table(filters=[("hour", "=", 7)])
    options = {"mode": "overwrite", "predicate": "hour = 7"}
    write_deltalake(str(path), rows.take(list(range(0, 40, 2))), **options)
    write_deltalake(str(path), rows.take(list(range(1, 40, 2))), mode="append")
    told = compact(made.job(tmp_path))
    assert told[str(path)]["numFilesRemoved"] == 2
    assert len(kx.streaming.Stream(path).files(7)) == 1
    (found,) = verify(made.job(tmp_path), "all")
    assert found.problems == []
    assert found.unnamed == 3
    pinned = kx.streaming.Stream(path, version=version)
    told = vacuum(made.job(tmp_path), retention_hours=0, keep_versions=[version])
    assert len(told[str(path)]) == 2
    for stream in (pinned, path):
        got = kx.streaming.read_hour(stream, 7, columns=("example_id", "timestamp"))
        for name in before:
            np.testing.assert_array_equal(got[name], before[name])
    assert vacuum(made.job(tmp_path), dry_run=True)[str(path)] == []
    vacuum(made.job(tmp_path), retention_hours=0)
    with pytest.raises(kx.streaming.StreamError, match="cannot read the Parquet file"):
        kx.streaming.read_hour(pinned, 7)
    assert problems(tmp_path) == []


def test_old_hours_are_removed_and_do_not_come_back(tmp_path, done):
    vacuum(made.job(tmp_path), retention_hours=0, before_hour=7)
    for name in made.VERTICALS:
        assert kx.streaming.hours(tmp_path / "out" / name) == [7, 8]
        assert not list((tmp_path / "out" / name / "hour=5").glob("*.parquet"))
    assert Worker(made.job(tmp_path)).run(ended=True) == []
    assert problems(tmp_path) == []
