"""What a service does: one TOML file, checked by pydantic before anything runs."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from keras_exfm.das._join import LabelTask
from keras_exfm.das._predictions import named
from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming import partitions
from keras_exfm.streaming.partitions import DatasetInfo
from keras_exfm.toml_values import faults

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"


class JobError(ValueError):
    """A job description that cannot be used, with every fault named."""


def _milliseconds(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(
                "should be a number with a unit, ms, s, m, h or d, such as '90m'. "
                f"Received: {value!r}"
            )
        return round(float(match[1]) * _UNITS[match[2]])
    raise ValueError(f"should be a string such as '90m'. Received: {value!r}")


Duration = Annotated[int, BeforeValidator(_milliseconds)]
"""Milliseconds, written with a unit: `"90m"`, `"1.5h"`, `"1d"`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Task(_Strict):
    """What is predicted: events that say yes, and how long to wait for them."""

    labels: str = partitions.LABELS
    """Folder of its label events below the source."""
    window: Duration
    """How long after an impression an event counts: minutes for clicks, days for conversions."""

    @model_validator(mode="after")
    def _positive(self) -> Task:
        if self.window <= 0:
            raise ValueError("`window` should be longer than 0")
        return self


class Vertical(_Strict):
    """A stream to train on: which impressions, with which labels."""

    tasks: list[str] = Field(min_length=1)
    """The first one's label is the column `label`, a further one's is `label_<task>`."""
    verticals: list[str] | None = None
    """Values of the column `vertical` to take; all if left out."""
    where: str | None = None
    """A condition in DuckDB's SQL over the impressions' columns, such as `"country = 'PT'"`."""


class Teacher(_Strict):
    """Who scores the examples."""

    snapshots: str | None = None
    """Folder or URL of the `SnapshotStore`."""
    entry_point: str | None = None
    """Instead: `"package.module:function"`, a fixed teacher of unknown age."""
    arguments: dict[str, Any] | None = None
    """If given, the entry point is called with them and gives the function."""
    trusted_packages: list[str] = ["keras_exfm"]
    """Packages of registered Keras classes that a snapshot may hold."""
    batch_size: PositiveInt = 4096
    """Rows per prediction."""
    representation: str | None = None
    """Layer or output whose vectors are logged beside the logit."""
    representation_size: PositiveInt | None = None
    """Their length."""
    timeout: Duration = "5m"  # type: ignore[assignment]
    """How long one prediction may take."""
    workers: NonNegativeInt = 1
    """Processes (or Ray actors) that score; 0 scores in the service's own process."""

    @model_validator(mode="after")
    def _one_kind(self) -> Teacher:
        if (self.snapshots is None) == (self.entry_point is None):
            raise ValueError("a teacher has either `snapshots` or an `entry_point`")
        if self.arguments is not None and self.entry_point is None:
            raise ValueError("`arguments` are an entry point's")
        if self.entry_point is None and (self.representation is None) != (
            self.representation_size is None
        ):
            raise ValueError("`representation` and `representation_size` come together")
        if self.timeout <= 0:
            raise ValueError("`timeout` should be longer than 0")
        return self


class Join(_Strict):
    """How DuckDB joins."""

    memory_limit: str = "2GB"
    """What it may hold; more goes to disk."""
    temp_directory: str | None = None
    """Where to: `.tmp` in the working directory if left out."""
    threads: PositiveInt | None = None
    """One a core if left out."""
    chunk_rows: PositiveInt = 65_536
    """Rows that are encoded, scored and written at a time."""


class Follow(_Strict):
    """How the service waits for more."""

    poll: Duration = "10s"  # type: ignore[assignment]
    """How often to look for new partitions."""
    metrics_port: PositiveInt | None = None
    """Port of the Prometheus metrics; none if left out."""


class Job(_Strict):
    """A data augmentation service.

    Example:

    >>> job = Job.parse({
    ...     "name": "ads", "source": "data", "output": "out",
    ...     "features": [{"kind": "numeric", "name": "x"}],
    ...     "tasks": {"click": {"window": "90m"},
    ...               "conversion": {"labels": "conversions", "window": "1d"}},
    ...     "verticals": {"feed": {"tasks": ["click"], "verticals": ["feed"]},
    ...                   "shop": {"tasks": ["conversion", "click"]}}})
    >>> job.label_tasks["conversion"].lag, job.stream("feed")
    (24, 'out/feed')
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    source: str
    """Folder or URL with `impressions/` and the tasks' label folders."""
    output: str
    """Folder or URL for `<vertical>/`, `predictions/`, `predictions_<teacher>/` and `side/`."""
    source_options: dict[str, Any] = {}
    """Arguments of fsspec's file system, where `source` is a URL."""
    output_options: dict[str, str] = {}
    """Options of the Delta tables' object store, where `output` is a URL."""
    side_output: str | None = None
    """Folder or URL for events that made no label; `<output>/side` if left out."""
    side_options: dict[str, Any] = {}
    """Arguments of fsspec's file system, where `side_output` is a URL."""
    features: list[dict[str, Any]] | None = None
    """The schema, as `Schema.to_dict` has it; that of the source's `dataset.json` if left out."""
    tasks: dict[str, Task] = Field(min_length=1)
    verticals: dict[str, Vertical] = Field(min_length=1)
    teacher: Teacher | None = None
    """The teacher without a name, of the columns `teacher_logit` and so on; none if left out."""
    teachers: dict[str, Teacher] = {}
    """Teachers with names, of the columns `teacher_logit_<name>` and so on. Without any teacher
    labels are joined alone."""
    engine: Literal["local", "ray"] = "local"
    """What runs the teachers."""
    join: Join = Join()
    follow: Follow = Follow()

    @model_validator(mode="after")
    def _names(self) -> Job:
        folders = ("predictions", *(named("predictions", name) for name in self.teachers), "side")
        for kind, taken in (("tasks", ()), ("teachers", ()), ("verticals", folders)):
            for name in getattr(self, kind):
                if not re.match(_NAME, name) or name in taken:
                    other = f" other than {taken}" if taken else ""
                    raise ValueError(f"{kind}.{name}: should be an identifier{other}")
        if len({name.lower() for name in self.teachers}) < len(self.teachers):
            raise ValueError(
                "teachers: expected names that differ by more than upper and lower case. "
                f"Received: {list(self.teachers)}"
            )
        for name, vertical in self.verticals.items():
            unknown = [task for task in vertical.tasks if task not in self.tasks]
            if unknown or len(set(vertical.tasks)) < len(vertical.tasks):
                raise ValueError(
                    f"verticals.{name}.tasks: expected distinct names among {list(self.tasks)}. "
                    f"Received: {vertical.tasks}"
                )
        labels = [task.labels for task in self.tasks.values()]
        if len(set(labels)) < len(labels):
            raise ValueError(f"tasks: each has a label folder of its own. Received: {labels}")
        if self.features is not None:
            Schema.from_dict({"features": self.features})
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Job:
        """A job from what a TOML file holds.

        Raises:
            JobError: Names every fault.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise JobError("; ".join(faults(cls, error))) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Job:
        """The job of a TOML file.

        Raises:
            JobError: Names the file and every fault.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
            return cls.parse(values)
        except (tomllib.TOMLDecodeError, JobError, OSError) as error:
            raise JobError(f"{path}: {error}") from error

    @property
    def label_tasks(self) -> dict[str, LabelTask]:
        """The tasks as the join knows them."""
        return {n: LabelTask(n, task.labels, task.window) for n, task in self.tasks.items()}

    def tasks_of(self, vertical: str) -> list[LabelTask]:
        """A vertical's tasks, the one of `label` first."""
        return [self.label_tasks[name] for name in self.verticals[vertical].tasks]

    def lag(self, vertical: str) -> int:
        """Hours after an hour's end until all labels of a vertical are known."""
        return max(task.lag for task in self.tasks_of(vertical))

    def stream(self, vertical: str) -> str:
        """Path of a vertical's labelled stream."""
        if vertical not in self.verticals:
            raise JobError(
                f"{self.name}: no vertical {vertical!r}. There are {list(self.verticals)}."
            )
        return f"{self.output.rstrip('/')}/{vertical}"

    @property
    def all_teachers(self) -> dict[str, Teacher]:
        """Name -> teacher; the one without a name is `""`."""
        return ({} if self.teacher is None else {"": self.teacher}) | self.teachers

    def predictions(self, teacher: str = "") -> str:
        """Path of a teacher's table of predictions."""
        return f"{self.output.rstrip('/')}/{named('predictions', teacher)}"

    @property
    def side(self) -> str:
        """Where events go that made no label."""
        return self.side_output or f"{self.output.rstrip('/')}/side"

    def schema_of_features(self) -> Schema:
        """The features.

        Raises:
            JobError: If neither the job nor the source says what they are.
        """
        if self.features is not None:
            return Schema.from_dict({"features": self.features})
        try:
            return DatasetInfo.read(self.source, self.source_options or None).schema
        except SchemaError as error:
            raise JobError(f"`features` is left out, and the source does not say: {error}") from (
                error
            )
