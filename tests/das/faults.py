"""A harness that kills the service at random moments, and compares what is left.

`python -m tests.das.faults FOLDER --kills 100 --seed 0 --workers 2` prints what it did as JSON.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from keras_exfm.das import Job, Worker, verify
from tests.das import made

ROOT = Path(__file__).parents[2]
HOURS = range(5, 9)


def settings(root):
    """A job of two teachers that take their time, so that there is time to kill them."""
    (root / "pace").write_text("0.01")
    teacher = {
        "entry_point": "tests.das.teachers:slow",
        "arguments": {"path": str(root / "pace")},
        "workers": 1,
    }
    join = {"memory_limit": "200MB", "threads": 1, "chunk_rows": 16}
    return made.values(root, teacher=teacher, teachers={"second": teacher}, join=join)


def start(root):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.das.worker_process", str(root / "job.json")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    """Those of any of its threads."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(n) for n in file.read_text().split()]
    return found


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def disturb(root, kills, seed, workers=1, span=1.2):
    """Kills workers and their scorers until there were `kills`; returns counts.

    Each time the job is done it is compared with an undisturbed run, and begun anew.
    """
    rng = random.Random(seed)
    made.source(root / "data", HOURS)
    values = settings(root)
    (root / "job.json").write_text(json.dumps(values))
    alone = root / "alone"
    alone.mkdir()
    (alone / "data").symlink_to(root / "data")
    quick = made.values(alone)["teacher"]
    Worker(made.job(alone, teachers={"second": quick})).run(ended=True)
    expected = made.everything(alone)
    count = {"worker": 0, "scorer": 0, "whole": 0, "starts": 0, "given up": 0}

    def whole():
        assert made.everything(root) == expected
        problems = [text for v in verify(Job.parse(values)) for text in v.problems]
        assert problems == []
        count["whole"] += 1

    while count["worker"] + count["scorer"] < kills or not count["whole"]:
        enough = count["worker"] + count["scorer"] >= kills
        running = [start(root) for _ in range(workers)]
        count["starts"] += workers
        for process in running:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        while not enough and any(p.poll() is None for p in running):
            time.sleep(rng.uniform(0, span))
            process = rng.choice(running)
            scorers = children(process.pid)
            if process.poll() is not None:
                continue
            if scorers and rng.random() < 0.4:
                os.kill(scorers[0], signal.SIGKILL)
                count["scorer"] += 1
                time.sleep(0.8)
                continue
            process.kill()
            count["worker"] += 1
            process.wait()
            for _ in range(600):
                if all(gone(pid) for pid in scorers):
                    break
                time.sleep(0.05)
            assert all(gone(pid) for pid in scorers), "a scorer outlived its service"
            if rng.random() < 0.7:
                break
        for process in running:
            if not enough and process.poll() is None and rng.random() < 0.5:
                process.kill()
                count["worker"] += 1
            _, errors = process.communicate(timeout=120)
            if process.returncode == 1 and "died 3 times over the same rows" in errors:
                count["given up"] += 1  # As it should, and says which rows.
                continue
            assert process.returncode in (0, -signal.SIGKILL), errors
        if any(process.returncode == 0 for process in running):
            whole()
            shutil.rmtree(root / "out")
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True)
    print(json.dumps(disturb(chosen.folder, chosen.kills, chosen.seed, chosen.workers)))
