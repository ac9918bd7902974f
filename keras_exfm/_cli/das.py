"""`keras-exfm das`: the data augmentation service."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from keras_exfm._cli.shared import (
    BackendOption,
    console,
    errors,
    hour_span,
    readable_errors,
    use_backend,
)

app = typer.Typer(
    help=(
        "The data augmentation service: scores every example once with the newest teacher that is "
        "older than it, joins labels as their windows close, and commits hour by hour, exactly "
        "once. A job is one TOML file; docs/das.md describes it."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

JobArgument = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job description.")]
HoursOption = Annotated[
    str | None,
    typer.Option(metavar="FIRST:LAST", help="Hours, both included; either may be left out."),
]


class LogFormat(StrEnum):
    """How the service tells what it does."""

    json = "json"
    text = "text"


@app.command()
def run(
    job: JobArgument,
    ended: Annotated[
        bool, typer.Option("--ended", help="The source has ended: no more labels will come.")
    ] = False,
    backend: BackendOption = None,
) -> None:
    """Do what is due now, and end.

    Any number of these may run at once, on one machine or several, and be killed at any moment:
    each hour is committed once.
    """
    with readable_errors():
        settings = _job(job)
        use_backend(backend)
        from keras_exfm.das.worker import Worker, summary
        from keras_exfm.streaming import StreamError

        begun = time.monotonic()
        worker = Worker(settings)
        steps: list[Any] = []
        remarks: dict[tuple[str, str], str] = {}
        try:
            if not worker.join.hours():
                raise StreamError(_no_impressions(settings))
            for step in worker.steps(ended):
                steps.append(step)
                console.print(_line(step))
                if step.remark:
                    remarks.setdefault((step.kind, step.name), step.remark)
        finally:
            worker.close()
            for remark in remarks.values():
                errors.print(f"[yellow]Note[/] {escape(remark)}.")
        done = summary(steps)
        told = ", ".join(f"{kind}: {of['rows']} rows" for kind, of in done.items())
        console.print(
            f"[bold]{escape(settings.name)}[/] {told or 'nothing is due'} "
            f"[dim]({time.monotonic() - begun:.1f} s)[/]"
        )


@app.command()
def follow(
    job: JobArgument,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics here (job: follow.metrics_port).")
    ] = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Do all there is, then end; for tests and backlogs.")
    ] = False,
    log: Annotated[LogFormat, typer.Option(help="Log lines on stdout.")] = LogFormat.json,
    backend: BackendOption = None,
) -> None:
    """Do work as partitions land, until SIGTERM or Ctrl-C; the unit whose turn it is ends first."""
    with readable_errors():
        settings = _job(job)
        use_backend(backend)
        from keras_exfm.das.follower import Follower, JsonLines
        from keras_exfm.das.metrics import Metrics

        handler = logging.StreamHandler(sys.stdout)
        if log is LogFormat.json:
            handler.setFormatter(JsonLines())
        logger = logging.getLogger("keras_exfm.das")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        stop = threading.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        port = metrics_port or settings.follow.metrics_port
        metrics = None
        if port is not None:
            metrics = Metrics(settings)
            metrics.serve(port)
        try:
            Follower(settings, metrics, stop).run(ended)
        finally:
            logger.removeHandler(handler)


@app.command()
def status(
    job: JobArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Where the service stands: streams, what is due, events without a label."""
    with readable_errors():
        settings = _job(job)
        from keras_exfm.das._predictions import named
        from keras_exfm.das.status import status as find

        found = find(settings)
        if as_json:
            console.print_json(json.dumps(found))
            return
        table = Table(title=f"{settings.name}: streams")
        teachers = list(settings.all_teachers) or [""]
        taught = [f"{of} {name}".rstrip() for name in teachers for of in ("coverage", "age")]
        columns = ("vertical", "version", "hours", "rows", "through", "lag", *taught, "label rate")
        for column in columns:
            table.add_column(column, justify="left" if column == "vertical" else "right")
        for name, of in found["streams"].items():
            table.add_row(
                name,
                _text(of["version"]),
                str(of["hours"]),
                f"{of['rows']:,}",
                _text(of["through"]),
                _span(of["lag_s"]),
                *(
                    told
                    for teacher in teachers
                    for told in (
                        _share(of[named("coverage", teacher)]),
                        _span(of[named("mean_age_s", teacher)]),
                    )
                ),
                _share(of["label_rate"]),
            )
        console.print(table)
        due = ", ".join(f"{count} {kind}" for kind, count in found["due"].items())
        console.print(f"newest hour {_text(found['newest_hour'])}; due now: {due or 'nothing'}")
        if found["events"]:
            reasons = sorted({reason for counts in found["events"].values() for reason in counts})
            aside = Table(title="events without a label")
            for column in ("task", *reasons):
                aside.add_column(column, justify="left" if column == "task" else "right")
            for task, counts in found["events"].items():
                aside.add_row(task, *(f"{counts.get(reason, 0):,}" for reason in reasons))
            console.print(aside)


@app.command()
def verify(
    job: JobArgument,
    vertical: Annotated[str | None, typer.Option(help="This stream only.")] = None,
    hours: HoursOption = None,
    source: Annotated[bool, typer.Option(help="Compare with a new join of the source.")] = True,
) -> None:
    """Prove the tables whole: files, counts, keys, digests, source. Exit status 1 if not."""
    with readable_errors():
        settings = _job(job)
        from keras_exfm.das.verification import verify as find

        found = find(settings, vertical, hour_span(hours), source)
        for table in found:
            state = "[bold red]not whole[/]" if table.problems else "[green]whole[/]"
            console.print(
                f"{escape(table.table)} {state}: {table.hours} hours, {table.rows:,} rows; "
                f"{table.by_digest} by digest, {table.by_source} by source; "
                f"{table.unnamed} files that no version names"
            )
            for problem in table.problems:
                console.print(f"  {escape(problem)}")
        if any(table.problems for table in found):
            raise typer.Exit(1)


@app.command()
def compact(
    job: JobArgument,
    target_size: Annotated[int | None, typer.Option(help="Bytes of a file.")] = None,
) -> None:
    """Put small files together (Delta's optimize)."""
    with readable_errors():
        from keras_exfm.das.maintenance import compact as do

        for path, told in do(_job(job), target_size).items():
            console.print(
                f"{escape(path)}: {told['numFilesRemoved']} files became {told['numFilesAdded']}"
            )


@app.command()
def vacuum(
    job: JobArgument,
    retention_hours: Annotated[
        int | None, typer.Option(help="Keep what was removed later than that (default: a week).")
    ] = None,
    keep_version: Annotated[
        list[int] | None, typer.Option(help="Keep this version's files (repeatable).")
    ] = None,
    before_hour: Annotated[
        int | None, typer.Option(help="First remove all rows of hours before this one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
) -> None:
    """Delete files that no version within retention names (Delta's vacuum)."""
    with readable_errors():
        from keras_exfm.das.maintenance import vacuum as do

        done = do(_job(job), retention_hours, keep_version or (), before_hour, dry_run)
        for path, files in done.items():
            verb = "would be deleted" if dry_run else "deleted"
            console.print(f"{escape(path)}: {len(files)} files {verb}")


@app.command()
def backfill(job: JobArgument, hours: HoursOption = None, backend: BackendOption = None) -> None:
    """Score rows that have no teacher: a new version of the tables, with a note in its commits."""
    with readable_errors():
        settings = _job(job)
        use_backend(backend)
        from keras_exfm.das.backfill import backfill as do

        done = do(settings, hour_span(hours))
        for one in done:
            teacher = f"the teacher {one.teacher}" if one.teacher else "a teacher"
            console.print(
                f"{escape(one.table)} hour {one.hour}: {one.filled} of {one.missing} rows "
                f"without {teacher} filled, version {one.version}"
            )
        if not done:
            console.print("Nothing to fill.")


@app.command()
def rescore(
    job: JobArgument,
    output: Annotated[str, typer.Option(help="Folder or URL of the new output.")],
    hours: HoursOption = None,
    backend: BackendOption = None,
) -> None:
    """Score a range of hours again, into another output; what exists stays as it is."""
    with readable_errors():
        settings = _job(job)
        use_backend(backend)
        from keras_exfm.das.backfill import rescore as do

        do(settings, output, hour_span(hours), lambda step: console.print(_line(step)))


def _job(path: Path) -> Any:
    from keras_exfm.das.job import Job

    return Job.load(path)


def _no_impressions(job: Any) -> str:
    return f"{job.source.rstrip('/')}/impressions: no hour of impressions (hour=<number>/*.parquet)"


def _line(step: Any) -> str:
    name = f" {escape(step.name)}" if step.name else ""
    told = f"{step.rows:,} rows"
    for teacher, scored in step.scored.items() if step.rows else ():
        behind = f" by {teacher}" if teacher and step.kind == "emit" else ""
        told += f", coverage{behind} {scored / step.rows:.1%}"
    if step.counts:
        told += ", " + ", ".join(f"{n} {reason}" for reason, n in step.counts.items() if n)
    done = "" if step.committed else " [dim](another worker did)[/]"
    return (
        f"  {step.kind}{name} {step.hour}: {told.rstrip(', ')} [dim]{step.seconds:.2f} s[/]{done}"
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
