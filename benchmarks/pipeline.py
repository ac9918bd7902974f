"""Run the pipeline over several seeds and record the figures with their recipe.

    python benchmarks/pipeline.py globo --data DIR --seeds 1,2,3 --backend jax
    python benchmarks/pipeline.py demo --seeds 1,2,3

Writes benchmarks/results/pipeline-<preset>-<backend>/: `overall.csv` (every seed), `gains.csv`
(mean and standard deviation over seeds), `run.json` (command, configuration, checksum of the data,
versions, machine) and `log.txt`. The run itself, with its report, goes to `--out`.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

from _processes import machine
from _records import write_csv

RESULTS = Path(__file__).parent / "results"


class Log:
    """Progress of the run, to the terminal and into the record."""

    def __init__(self):
        self.lines = []
        self.started = self.said = time.monotonic()

    def say(self, text):
        line = f"{time.monotonic() - self.started:7.0f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)

    def begin(self, label, total):
        self.total = total
        self.say(f"{label}: {total} steps")

    def step(self, done, note=""):
        if time.monotonic() - self.said > 20 or done == self.total:
            self.said = time.monotonic()
            self.say(f"  {done}/{self.total} {note}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or TOML file")
    parser.add_argument("--data", help="file or folder of the data set")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="jax")
    parser.add_argument("--out", help="folder of the run (default: runs/<name>-<backend>)")
    parser.add_argument("--name", help="name of the record (default: pipeline-<name>-<backend>)")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    import pyarrow.parquet as pq

    from keras_exfm import pipeline

    overrides = {"seeds": [int(seed) for seed in arguments.seeds.split(",")]}
    if arguments.data:
        overrides["data.path"] = arguments.data
    config = pipeline.load(arguments.config, overrides)
    out = Path(arguments.out or f"runs/{config.name}-{arguments.backend}")
    log = Log()
    run = pipeline.Run(config, out, progress=log)
    log.say(f"report: {run.execute()}")

    record = RESULTS / (arguments.name or f"pipeline-{config.name}-{arguments.backend}")
    record.mkdir(parents=True, exist_ok=True)
    write_csv(record / "overall.csv", pq.read_table(out / "results/overall.parquet").to_pylist())
    write_csv(record / "gains.csv", run.gains())
    about = json.loads((out / "results" / "run.json").read_text())
    about["command"] = shlex.join(["python", "benchmarks/pipeline.py", *public(sys.argv[1:])])
    about["machine"] = machine()
    if "path" in about["config"]["data"]:
        about["config"]["data"]["path"] = "DIR"
    (record / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    (record / "log.txt").write_text("\n".join(log.lines) + "\n")
    print(f"recorded in {record}")


def public(arguments):
    """The arguments with paths of this machine left out."""
    hidden = {"--data": "DIR", "--out": "RUN"}
    return [hidden.get(before, word) for before, word in zip(["", *arguments], arguments)]


if __name__ == "__main__":
    main()
