"""A service that runs until it is told to stop."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
import time
from typing import Any

from keras_exfm.das.job import Job
from keras_exfm.das.metrics import Metrics
from keras_exfm.das.snapshots import SnapshotError
from keras_exfm.das.worker import Step, Worker
from keras_exfm.streaming import StreamError

log = logging.getLogger("keras_exfm.das")
_LONGEST_WAIT_S = 300.0


class Follower:
    """Does work as partitions land, and waits where there is none.

    At most two units of work are under way at a time, one that scores and one that does not, and
    each holds a few chunks of rows, however much has landed: what waits, waits on disk. A unit that
    fails is logged and tried again, after a wait that doubles up to five minutes; nothing is passed
    over. Stopping lets the unit end whose turn it is, and gives up an hour that is scored ahead of
    its turn: it is scored again at the next start.

    Args:
        job: The job.
        metrics: Where units are counted. Defaults to `None`: nowhere.
        stop: Set it to stop. Defaults to `None`: an event of its own, `stop`.
        worker: Does the work. Defaults to `None`: a `Worker` of the job.
    """

    def __init__(
        self,
        job: Job,
        metrics: Metrics | None = None,
        stop: threading.Event | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.job = job
        self.metrics = metrics
        self.stop = stop if stop is not None else threading.Event()
        self.worker = worker if worker is not None else Worker(job)

    def run(self, ended: bool = False) -> None:
        """Works until `stop` is set.

        Args:
            ended: Whether the source has ended: then all that is left is done, and `run` returns.
                Defaults to `False`.
        """
        _tell("started", job=self.job.name, source=self.job.source, output=self.job.output)
        warned = False
        wait = self.job.follow.poll / 1000
        failures = 0
        try:
            while not self.stop.is_set():
                try:
                    did = self._pass(ended)
                    if not (did or warned or self.worker.join.hours()):
                        warned = True
                        fields = {"source": self.job.source}
                        log.warning("no impressions yet", extra={"fields": fields})
                    failures = 0
                except (StreamError, SnapshotError, OSError) as error:
                    failures += 1
                    pause = min(wait * 2**failures, _LONGEST_WAIT_S)
                    log.error("failed", extra={"fields": {"error": str(error), "retry_s": pause}})
                    if self.metrics is not None:
                        self.metrics.errors.inc()
                    self.stop.wait(pause)
                    continue
                if ended and not did:
                    break
                if not did:
                    self.stop.wait(wait)
        finally:
            self.worker.close()
            _tell("stopped", job=self.job.name)

    def _pass(self, ended: bool) -> int:
        done = 0
        if self.metrics is not None:
            self.metrics.backlog.set(len(self.worker.due(ended)))
        for step in self.worker.steps(ended):
            done += 1
            self._observe(step)
            if self.stop.is_set():
                break
        return done

    def _observe(self, step: Step) -> None:
        said = dataclasses.asdict(step)
        _tell("step", **{k: v for k, v in said.items() if v != {} and (k != "remark" or v)})
        if self.metrics is not None:
            self.metrics.observe(step)
            self.metrics.backlog.dec()
            engines = self.worker.engines.values()
            self.metrics.observe_restarts(sum(engine.restarts for engine in engines))


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event` and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps({key: _plain(value) for key, value in line.items()}, default=str)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tell(event: str, **fields: Any) -> None:
    log.info(event, extra={"fields": fields})
