"""What a service measures of itself, for Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from keras_exfm.das.job import Job, JobError
from keras_exfm.das.worker import Step
from keras_exfm.streaming import MS_PER_HOUR

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """Prometheus metrics of a worker.

    `das_rows_total{stage, name}`, `das_coverage{name, teacher}` and
    `das_teacher_age_seconds{name, teacher}` (of the last hour), `das_lag_seconds{stage, name}`
    (from the end of the last hour done until now), `das_events_total{task, reason}` (late, early,
    duplicate, orphan, out_of_order), `das_dropped_rows_total` (of hours that landed too late),
    `das_not_finite_rows_total{teacher}`, `das_stage_seconds{stage}` (a histogram),
    `das_backlog_units`, `das_scorer_restarts_total`, `das_errors_total`.

    `name` is a vertical; where rows and lag are those of scoring, it is the teacher. Coverage and
    age are an hour's of predictions where `name` is empty. `teacher` is empty for the one without a
    name, which to Prometheus is as good as no label.

    Args:
        job: The job.
        registry: Prometheus' registry. Defaults to `None`: a new one.

    Raises:
        JobError: If prometheus-client is not installed.
    """

    def __init__(self, job: Job, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise JobError("Metrics need prometheus-client: pip install 'keras-exfm[das]'") from (
                error
            )
        self.job = job
        self.registry = registry if registry is not None else prometheus.CollectorRegistry()
        self._last: dict[tuple[str, str], int] = {}
        self._restarts = 0

        def make(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"das_{name}", text, labels, registry=self.registry, **more)

        counter, gauge = prometheus.Counter, prometheus.Gauge
        staged = ("stage", "name")
        self.rows = make(counter, "rows", "Rows done", staged)
        taught = ("name", "teacher")
        self.coverage = make(gauge, "coverage", "Share of an hour's rows with a teacher", taught)
        self.age = make(gauge, "teacher_age_seconds", "Mean age of an hour's teacher", taught)
        self.lag = make(gauge, "lag_seconds", "Since the end of the last hour done", staged)
        self.events = make(counter, "events", "Events without a label", ("task", "reason"))
        self.dropped = make(counter, "dropped_rows", "Rows of hours that landed too late")
        self.not_finite = make(
            counter, "not_finite_rows", "Rows whose teacher was not finite", ("teacher",)
        )
        for teacher in job.all_teachers:
            self.not_finite.labels(teacher)
        self.seconds = make(
            prometheus.Histogram, "stage_seconds", "Seconds of a unit", ("stage",), buckets=_SECONDS
        )
        self.backlog = make(gauge, "backlog_units", "Units of work that could be done now")
        self.restarts = make(counter, "scorer_restarts", "Scoring processes that died")
        self.errors = make(counter, "errors", "Units that failed and are tried again")

    def observe(self, step: Step) -> None:
        """Counts a unit of work."""
        self.seconds.labels(step.kind).observe(step.seconds)
        if not step.committed:
            return
        if step.kind == "audit":
            for reason, count in step.counts.items():
                self.events.labels(step.name, reason).inc(count)
        elif step.kind == "missed":
            self.dropped.inc(step.rows)
        else:
            self.rows.labels(step.kind, step.name).inc(step.rows)
            if step.kind == "score":
                self.not_finite.labels(step.name).inc(step.not_finite)
            key = (step.kind, step.name)
            if key not in self._last:
                self.lag.labels(*key).set_function(lambda: self._lag(key))
            self._last[key] = max(step.hour, self._last.get(key, step.hour))
            vertical = step.name if step.kind == "emit" else ""
            for teacher, scored in step.scored.items() if step.rows else ():
                self.coverage.labels(vertical, teacher).set(scored / step.rows)
            for teacher, age in step.mean_age_s.items():
                self.age.labels(vertical, teacher).set(age)

    def observe_restarts(self, restarts: int) -> None:
        """Counts deaths of scoring processes; takes their number since the start."""
        self.restarts.inc(max(0, restarts - self._restarts))
        self._restarts = restarts

    def serve(self, port: int) -> None:
        """Answers Prometheus at `http://0.0.0.0:<port>/metrics`, in a thread."""
        from prometheus_client import start_http_server

        start_http_server(port, registry=self.registry)

    def _lag(self, key: tuple[str, str]) -> float:
        return time.time() - (self._last[key] + 1) * MS_PER_HOUR / 1000
