"""Compaction and retention of a service's tables, by the Delta engine's own operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from keras_exfm.das.job import Job
from keras_exfm.streaming import StreamError


def compact(job: Job, target_size: int | None = None) -> dict[str, dict[str, Any]]:
    """Puts small files of an hour together (`optimize`).

    Content and exactly-once bookkeeping stay; readers that have a version pinned still find its
    files, until `vacuum` takes them. Hours that this service wrote have few, large files already:
    it is for tables that others append to, and after a backfill.

    Args:
        job: The job.
        target_size: Bytes of a file. Defaults to `None`: the engine's own, 100 MiB.

    Returns:
        Table -> what the engine did.
    """
    found = {}
    for path, table in _tables(job):
        found[path] = table.optimize.compact(target_size=target_size)
    return found


def vacuum(
    job: Job,
    retention_hours: int | None = None,
    keep_versions: Sequence[int] = (),
    before_hour: int | None = None,
    dry_run: bool = False,
) -> dict[str, list[str]]:
    """Deletes files that no version within retention names (`vacuum`).

    Args:
        job: The job.
        retention_hours: How long a file stays after its removal from the table; a version that a
            training run has pinned needs its files for as long. Files that were never committed
            (a killed worker's) go after as long: shorter than a unit of work takes, a worker's
            files go while it writes. Defaults to `None`: the table's own, a week.
        keep_versions: Versions whose files stay however old. Defaults to none.
        before_hour: First remove all rows of hours before this one from the tables. Defaults to
            `None`: no rows are removed.
        dry_run: Delete nothing, tell what would be. Defaults to `False`.

    Returns:
        Table -> its files that were deleted.
    """
    found = {}
    for path, table in _tables(job):
        if before_hour is not None and not dry_run:
            table.delete(f"hour < {int(before_hour)}")
        found[path] = table.vacuum(
            retention_hours=retention_hours,
            dry_run=dry_run,
            enforce_retention_duration=False,
            full=True,
            keep_versions=list(keep_versions) or None,
        )
    return found


def _tables(job: Job) -> Iterator[tuple[str, Any]]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    options = job.output_options or None
    paths = [job.stream(name) for name in job.verticals]
    for path in [*map(job.predictions, job.all_teachers), *paths]:
        if DeltaTable.is_deltatable(path, options):
            try:
                yield path, DeltaTable(path, storage_options=options)
            except DeltaError as error:
                raise StreamError(f"{path}: {error}") from error
