"""The service that runs by itself, and what it tells of itself."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keras_exfm.cli import app
from keras_exfm.das import Follower, JobError, Metrics, Worker, status
from keras_exfm.das.follower import JsonLines
from tests.das import made

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
HOURS = range(5, 9)
KINDS = ("impressions", "labels", "conversions")


def as_toml(value, prefix=""):
    """A job's values as a TOML file, enough for these tests."""
    lines, tables = [], []
    for key, item in value.items():
        if isinstance(item, dict):
            tables.append(f"[{prefix}{key}]\n{as_toml(item, f'{prefix}{key}.')}")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            tables += [f"[[{prefix}{key}]]\n{as_toml(row)}" for row in item]
        else:
            lines.append(f"{key} = {json.dumps(item)}\n")
    return "".join(lines) + "\n".join(tables)


@pytest.fixture
def toml(tmp_path):
    values = made.values(tmp_path, follow={"poll": "50ms"})
    file = tmp_path / "ads.toml"
    file.write_text(as_toml(values))
    assert tomllib.loads(file.read_text()) == values
    return file


def land(root, hour):
    for kind in KINDS:
        landed = root / "whole" / kind / f"hour={hour}"
        if landed.exists():
            shutil.copytree(landed, root / "data" / kind / f"hour={hour}")


def until(condition, seconds=30):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def sample(metrics, metric, /, **labels):
    return metrics.registry.get_sample_value(metric, labels)


def test_partitions_are_picked_up_as_they_land(tmp_path, caplog):
    caplog.set_level(logging.INFO, "keras_exfm.das")
    made.source(tmp_path / "whole", HOURS)
    job = made.job(tmp_path, follow={"poll": "20ms"})
    metrics = Metrics(job)
    follower = Follower(job, metrics)
    thread = threading.Thread(target=follower.run)
    thread.start()
    for hour in range(4, 14):
        land(tmp_path, hour)
        due = Worker(job)
        until(lambda due=due: not due.due())
        time.sleep(0.03)
    follower.stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()
    rows = sum(len(made.contents(tmp_path / "out" / name)) for name in made.VERTICALS)
    told = [sample(metrics, "das_rows_total", stage="emit", name=n) for n in made.VERTICALS]
    assert sum(told) == rows
    assert sample(metrics, "das_rows_total", stage="score", name="") == 4 * 40
    assert sample(metrics, "das_coverage", name="feed", teacher="") == 1.0
    counts = status(job)["events"]
    for task, reasons in counts.items():
        for reason, count in reasons.items():
            if count:
                assert sample(metrics, "das_events_total", task=task, reason=reason) == count
    assert sample(metrics, "das_lag_seconds", stage="emit", name="feed") > 1e9
    assert sample(metrics, "das_stage_seconds_count", stage="score") == 4
    assert sample(metrics, "das_backlog_units") == 0
    assert sample(metrics, "das_errors_total") == 0
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    steps = [line for line in lines if line["event"] == "step"]
    assert {"kind", "name", "hour", "rows", "seconds", "committed", "time"} <= set(steps[0])
    assert lines[0]["event"] == "started"
    assert lines[-1]["event"] == "stopped"
    # The rest is that of a service that saw everything at once.
    for hour in range(14, 18):
        land(tmp_path, hour)
    Worker(job).run(ended=True)
    whole = tmp_path / "at-once"
    shutil.copytree(tmp_path / "whole", whole / "data")
    Worker(made.job(whole)).run(ended=True)
    assert made.everything(whole) == made.everything(tmp_path)


def test_what_fails_is_tried_again_and_nothing_is_passed_over(tmp_path, caplog):
    made.source(tmp_path / "data", HOURS)
    file = tmp_path / "data" / "impressions" / "hour=6" / "part-0.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    job = made.job(tmp_path, follow={"poll": "10ms"})
    metrics = Metrics(job)
    follower = Follower(job, metrics)
    thread = threading.Thread(target=follower.run, kwargs={"ended": True})
    thread.start()
    until(lambda: (sample(metrics, "das_errors_total") or 0) >= 2)
    assert "hour=6/part-0.parquet: cannot read" in caplog.records[-1].fields["error"]
    assert sample(metrics, "das_rows_total", stage="score", name="") == 40
    file.write_bytes(content)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(made.contents(tmp_path / "out" / "all")) == 160


def test_metrics_without_prometheus(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(JobError, match=r"keras-exfm\[das\]"):
        Metrics(made.job(tmp_path))


def test_the_command_follows_serves_metrics_and_stops_when_told(tmp_path, toml):
    made.source(tmp_path / "data", HOURS)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "keras_exfm.cli", "das", "follow", str(toml)]
    process = subprocess.Popen(
        [*command, "--metrics-port", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    lines = [json.loads(process.stdout.readline())]
    while (lines[-1].get("kind"), lines[-1].get("hour")) != ("emit", 7):
        lines.append(json.loads(process.stdout.readline()))
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert 'das_rows_total{name="",stage="score"} 120.0' in page or (
        'das_rows_total{name="",stage="score"} 160.0' in page
    )
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


def call(*arguments):
    return CliRunner().invoke(app, ["das", *map(str, arguments)], env={"COLUMNS": "200"})


def test_commands(tmp_path, toml):
    made.source(tmp_path / "data", HOURS)
    text = call("status", toml).output
    assert "due now: 9 audit, 4 score, 12 emit" in text
    done = call("run", toml, "--ended")
    assert done.exit_code == 0, done.output
    assert "score 5: 40 rows, coverage 100.0%" in done.output
    assert "nothing is due" in call("run", toml, "--ended").output
    found = json.loads(call("status", toml, "--json").output)
    assert found["streams"]["all"]["rows"] == 160
    assert found["streams"]["all"]["coverage"] == 1.0
    assert 0 < found["streams"]["all"]["label_rate"] < 1
    assert found["events"]["click"]["orphan"] > 0
    text = call("status", toml).output
    assert "100.00%" in text
    assert "orphan" in text
    whole = call("verify", toml)
    assert whole.exit_code == 0, whole.output
    assert "all whole: 4 hours, 160 rows; 4 by digest, 4 by source" in whole.output
    assert "Nothing to fill" in call("backfill", toml).output
    assert "0 files" in call("compact", toml).output
    assert "0 files would be deleted" in call("vacuum", toml, "--dry-run").output
    again = call("rescore", toml, "--output", tmp_path / "again", "--hours", "6:7")
    assert again.exit_code == 0, again.output
    assert len(made.contents(tmp_path / "again" / "all")) == 80
    next((tmp_path / "out" / "all" / "hour=6").glob("*.parquet")).unlink()
    broken = call("verify", toml, "--vertical", "all", "--hours", "6", "--no-source")
    assert broken.exit_code == 1
    assert "not whole" in broken.output
    assert call("verify", toml, "--hours", "x:y").exit_code == 2
    missing = call("run", tmp_path / "no.toml")
    assert missing.exit_code == 1


def test_what_may_be_a_mistake_in_the_job_is_told(tmp_path, toml):
    empty = call("run", toml)
    assert empty.exit_code == 1
    assert "data/impressions: no hour of impressions" in empty.output
    made.source(tmp_path / "data", HOURS)
    wrong = made.values(
        tmp_path,
        verticals={"feed": {"tasks": ["click"], "verticals": ["fed"]}},
        teacher={"snapshots": str(tmp_path / "teachers"), "workers": 0},
    )
    toml.write_text(as_toml(wrong))
    done = call("run", toml, "--ended")
    assert done.exit_code == 0, done.output
    assert "another worker did" not in done.output
    assert done.output.count("Note") == 2
    assert "holds no snapshot" in done.output
    assert "'feed' has had no row yet" in done.output


def test_a_follower_of_an_empty_source_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "keras_exfm.das")
    Follower(made.job(tmp_path)).run(ended=True)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.fields == {"source": str(tmp_path / "data")}
