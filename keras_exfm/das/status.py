"""Where a service stands, from its tables alone."""

from __future__ import annotations

import time
from typing import Any

from keras_exfm.das._predictions import APP_ID, named
from keras_exfm.das.job import Job
from keras_exfm.das.worker import Worker
from keras_exfm.streaming import MS_PER_HOUR, Stream, StreamError, committed_through


def status(job: Job, last: int = 24) -> dict[str, Any]:
    """What has been done, what is due, and how good the last hours were.

    Args:
        job: The job.
        last: Hours that coverage, age and label rate are taken over. Defaults to `24`.

    Returns:
        `newest_hour` of the source, `due` (kind -> units that could be done now), `streams`
        (vertical -> `version`, `hours`, `rows`, `through`, `lag_s`, `coverage`, `mean_age_s`,
        `label_rate`; of a teacher with a name, `coverage_<name>` and `mean_age_s_<name>`; unknown
        figures are `None`) and `events` (task -> reason -> count).
    """
    worker = Worker(job)
    try:
        due: dict[str, int] = {}
        for kind, _, _ in worker.due():
            due[kind] = due.get(kind, 0) + 1
        events: dict[str, dict[str, int]] = {}
        for task in (*job.tasks, "impressions"):
            total = events.setdefault(task, {})
            for hour in worker.side.hours(task):
                for reason, count in (worker.side.counts(hour, task) or {}).items():
                    total[reason] = total.get(reason, 0) + count
        return {
            "job": job.name,
            "newest_hour": worker.newest(),
            "due": due,
            "streams": {name: _stream(job, name, last) for name in job.verticals},
            "events": {task: counts for task, counts in events.items() if counts},
        }
    finally:
        worker.close()


def _stream(job: Job, name: str, last: int) -> dict[str, Any]:
    path, options = job.stream(name), job.output_options or None
    teachers = list(job.all_teachers) or [""]
    figures = [named(of, teacher) for teacher in teachers for of in ("coverage", "mean_age_s")]
    empty = dict.fromkeys(("version", "through", "lag_s", *figures, "label_rate"), None)
    try:
        stream = Stream(path, storage_options=options)
    except StreamError:
        return {**empty, "hours": 0, "rows": 0}
    through = committed_through(path, APP_ID, options)
    notes = stream.notes()
    some = [notes[h] for h in sorted(notes)[-last:] if notes[h].get("positives") is not None]
    rows = sum(note["rows"] for note in some)
    taught: dict[str, float | None] = {}
    for teacher in teachers:
        scored, age = named("scored", teacher), named("mean_age_s", teacher)
        # A teacher may have joined the job later.
        aged = [note for note in some if note.get(age) is not None]
        weight = sum(note[scored] for note in aged)
        seconds = sum(note[age] * note[scored] for note in aged)
        covered = sum(note.get(scored, 0) for note in some)
        taught[named("coverage", teacher)] = covered / rows if rows else None
        taught[age] = seconds / weight if weight else None
    return {
        "version": stream.version,
        "hours": len(stream.hours),
        "rows": sum(stream.rows(hour) for hour in stream.hours),
        "through": through,
        "lag_s": None
        if through is None
        else round(time.time() - (through + 1) * MS_PER_HOUR / 1000),
        **taught,
        "label_rate": sum(note["positives"] for note in some) / rows if rows else None,
    }
