"""A whole run: prepare the stream, train the teacher and log it, distil the students, report."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from keras_exfm import datasets, report, streaming
from keras_exfm.das import DataAugmentationService, HourReport, SnapshotStore
from keras_exfm.datasets._writing import Silent
from keras_exfm.features import Schema
from keras_exfm.pipeline import networks
from keras_exfm.pipeline.config import ConfigError, PreparedData, RunConfig, Student
from keras_exfm.streaming import MS_PER_HOUR
from keras_exfm.streaming.partitions import DatasetInfo

_FIGURES = ("logloss", "ne", "auc", "calibration", "group_auc", "bayes_ne")
_WINDOWS = pa.schema(
    [
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("vertical", pa.string()),
        ("hour", pa.int64()),
        ("examples", pa.int64()),
        ("clicks", pa.float64()),
        *((name, pa.float64()) for name in _FIGURES),
    ]
)
_OVERALL = _WINDOWS.remove(_WINDOWS.get_field_index("hour"))
TEACHER = "teacher"


class Progress(datasets.Progress, Protocol):
    """Where a run tells how far it is."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...


class _Silent(Silent):
    def say(self, text: str) -> None:
        """Nothing."""


class Run:
    """One run in one folder.

    The folder holds `run.json` (what the run is), `data/` (impressions and label events),
    `seed-<n>/` (snapshots, the labelled stream, each student's figures and serving model),
    `results/` and `report.html`. Executing it again goes on where it stopped: at the hour for the
    teacher, at the student for the students. Students may be added or changed in between; stream
    and teacher are then kept.

    Args:
        config: What to run.
        directory: The run's folder; made if it does not exist.
        progress: Told how far the run is. Defaults to `None`: silent.
        fresh: Whether to delete what the folder holds. Defaults to `False`.

    Raises:
        ConfigError: If the folder holds a run of another stream or teacher, or something else
            than a run.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: str | os.PathLike[str],
        progress: Progress | None = None,
        fresh: bool = False,
    ) -> None:
        self.config = config
        self.directory = Path(directory)
        self.progress: Progress = progress or _Silent()
        self.fresh = fresh

    def execute(self) -> Path:
        """Runs what is not done yet and writes the report.

        Returns:
            Path of the HTML report.
        """
        started = datetime.now(UTC)
        self._claim()
        source, info = self._prepare()
        schema = info.schema
        self._check(schema, info)
        windows: list[dict[str, Any]] = []
        overall: list[dict[str, Any]] = []
        details: dict[str, dict[str, Any]] = {}
        das: list[HourReport] = []
        teacher: dict[str, Any] = {}
        for seed in self.config.seeds:
            counted, teacher = self._teach(seed, source, schema, info)
            das += counted
            self._collect_teacher(seed, info, windows, overall)
            for student in self.config.students:
                for vertical in self.config.evaluation.verticals:
                    result, detail = self._distil(seed, student, vertical, schema, info)
                    self._collect(seed, student.name, vertical, result, windows, overall)
                    seconds = details.get(student.name, {}).get("training_seconds", 0.0)
                    detail["training_seconds"] += seconds
                    details[student.name] = detail
        results = self.directory / "results"
        results.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(windows, _WINDOWS), results / "windows.parquet")
        pq.write_table(pa.Table.from_pylist(overall, _OVERALL), results / "overall.parquet")
        about = {
            "name": self.config.name,
            "description": self.config.description,
            "config": self.config.model_dump(mode="json"),
            "dataset": _dataset(info),
            "versions": _versions(),
            "backend": _backend(),
            "seeds": self.config.seeds,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "baseline": self.config.baseline,
            "students": details,
            "teacher": teacher,
            "das": _das_summary(das),
            "notes": self._notes(),
        }
        (results / "run.json").write_text(json.dumps(about, indent=1))
        return report.write(self.directory)

    def gains(self) -> list[dict[str, Any]]:
        """The gain table of an executed run: a dict for each vertical and model."""
        table = pq.read_table(self.directory / "results" / "overall.parquet")
        return report.gain_table(table, self.config.baseline)

    # Stages

    def _claim(self) -> None:
        note = self.directory / "run.json"
        if self.fresh and note.exists():
            shutil.rmtree(self.directory)
        if self.directory.exists() and not note.exists() and any(self.directory.iterdir()):
            raise ConfigError(
                f"{self.directory} holds files that are no run's. Choose another folder."
            )
        fixed = self._fixed()
        if note.exists():
            held = json.loads(note.read_text())
            changed = sorted(key for key in fixed if _given(held.get(key)) != _given(fixed[key]))
            changed = [key for key in changed if self._depends_on(key)]
            if changed:
                detail = "; ".join(_differences(held, fixed, changed))
                raise ConfigError(
                    f"{self.directory} holds a run with other settings for {changed}: {detail}. "
                    "Choose another folder, or start over (--fresh)."
                )
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(note, fixed)

    def _depends_on(self, key: str) -> bool:
        """Whether the folder holds what was made with a setting: a mistake may be put right."""
        made = {path.name.partition("-")[0] for path in self.directory.iterdir()}
        return "seed" in made or (key == "data" and "data" in made)

    def _fixed(self) -> dict[str, Any]:
        """What must not change while a run goes on: all that stream and teacher depend on."""
        whole = self.config.model_dump(mode="json")
        del whole["teacher"]["batch_size"]  # It is part of `batch_size`, below.
        # Comparing the files' sums changes nothing in what is made from them.
        whole["data"].get("options", {}).pop("check", None)
        return {
            "data": whole["data"],
            "teacher": whole["teacher"],
            "batch_size": self._teacher_batch_size,
            "backend": _backend(),
        }

    @property
    def _teacher_batch_size(self) -> int:
        return self.config.teacher.batch_size or self.config.evaluation.batch_size

    def _prepare(self) -> tuple[Path, DatasetInfo]:
        data = self.config.data
        if isinstance(data, PreparedData):
            source = Path(data.path)
            if not (source / "dataset.json").is_file():
                raise ConfigError(f"{source / 'dataset.json'}: no prepared data set there.")
        else:
            source = self.directory / "data"
            datasets.prepare(
                data.source,
                source,
                path=getattr(data, "path", None),
                options=data.options,
                progress=self.progress,
            )
        return source, DatasetInfo.read(source)

    def _check(self, schema: Schema, info: DatasetInfo) -> None:
        """Finds faults of the configuration before hours of work."""
        networks.network(self.config.teacher, schema)
        for student in self.config.students:
            networks.student(self.config.student, student, schema)
        unknown = sorted(set(self.config.evaluation.verticals) - set(info.verticals))
        if unknown:
            raise ConfigError(
                f"evaluation.verticals: the stream has no {unknown}. It has {list(info.verticals)}."
            )
        hours = info.last_hour - info.first_hour + 1
        if self.config.evaluation.warmup_hours >= hours:
            raise ConfigError(
                f"evaluation.warmup_hours: the stream has {hours} hours, so none is left to "
                f"measure. Received: {self.config.evaluation.warmup_hours}"
            )

    def _teach(
        self, seed: int, source: Path, schema: Schema, info: DatasetInfo
    ) -> tuple[list[HourReport], dict[str, Any]]:
        """Hour by hour: log the teacher's predictions, then train it, then publish it."""
        import keras

        root = self.directory / f"seed-{seed}"
        settings = self.config.teacher
        store = SnapshotStore(root / "snapshots")
        service = DataAugmentationService(
            source,
            root / "labelled",
            schema,
            snapshots=store,
            label_window_hours=info.label_window_hours,
        )
        hours = streaming.partitions.hours(source)
        log = root / "das.json"
        done: dict[str, Any] = (
            json.loads(log.read_text()) if log.exists() else {"hours": [], "seconds": 0.0}
        )
        reports = [HourReport(**row) for row in done["hours"]]
        newest = store.latest()
        trained = newest.metadata["trained_through"] if newest else hours[0] - 1
        keras.utils.set_random_seed(seed)
        model = newest.load(compile=True) if newest else networks.teacher(settings, schema)
        about = {
            "parameters": int(model.count_params()),
            "table_parameters": _table_parameters(model),
            "model": settings.model,
        }
        begun = time.monotonic()
        self.progress.begin(f"teacher, seed {seed}", len(hours))
        lag = service.label_lag + 1 + settings.delay_hours
        for index, hour in enumerate(hours):
            result = service.process_hour(hour)
            if result.committed or hour not in {r.hour for r in reports}:
                reports.append(result)
            if hour > trained:
                streaming.train_hour(
                    model,
                    root / "labelled",
                    hour,
                    networks.features_of(settings, schema),
                    batch_size=self._teacher_batch_size,
                )
                # An hour's labels are complete `label_lag` hours after its end: a teacher that
                # learned from them could not have been there earlier.
                if (hour - hours[0]) % settings.snapshot_hours == 0:
                    store.publish(model, (hour + lag) * MS_PER_HOUR, {"trained_through": hour})
                    store.retire(before=hour * MS_PER_HOUR)
                    seconds = done["seconds"] + time.monotonic() - begun
                    rows = [_plain(r) for r in reports]
                    _write(log, {"hours": rows, "seconds": seconds})
            self.progress.step(index + 1, f"coverage {result.coverage:.0%}" if result.rows else "")
        held = json.loads(log.read_text())
        about["training_seconds"] = held["seconds"]
        return reports, about

    def _distil(
        self, seed: int, student: Student, vertical: str, schema: Schema, info: DatasetInfo
    ) -> tuple[streaming.ValidationResult, dict[str, Any]]:
        import keras

        root = self.directory / f"seed-{seed}"
        settings = self.config.student.model_dump(mode="json"), student.model_dump(mode="json")
        evaluation = self.config.evaluation
        key = hashlib.sha256(
            json.dumps([*settings, vertical, evaluation.batch_size], sort_keys=True).encode()
        ).hexdigest()[:10]
        stem = f"{_slug(student.name)}-{_slug(vertical)}-{key}"
        figures = root / "students" / f"{stem}.parquet"
        detail_file = figures.with_suffix(".json")
        first, last = info.first_hour, info.last_hour
        if figures.exists() and detail_file.exists():
            held = json.loads(detail_file.read_text())
            if held.pop("warmup_hours") == evaluation.warmup_hours:
                return streaming.ValidationResult.load(figures), held
        figures.parent.mkdir(exist_ok=True)
        keras.utils.set_random_seed(seed)
        model = networks.student(self.config.student, student, schema)
        self.progress.begin(f"{student.name} on {vertical}, seed {seed}", last - first + 1)

        def show(row: dict[str, Any], logs: dict[str, float]) -> None:
            self.progress.step(row["hour"] - first + 1, f"NE {row['ne']:.3f}")

        begun = time.monotonic()
        result = streaming.progressive_validation(
            model,
            root / "labelled",
            networks.features_of(self.config.student, schema),
            batch_size=evaluation.batch_size,
            metrics_from=first + evaluation.warmup_hours,
            label_lag=math.ceil(info.label_window_hours),
            vertical=vertical,
            on_window=show,
            teacher_batch_size=student.teacher_batch_size,
        )
        serving = model.serving_model()
        serving.save(figures.with_suffix(".keras"))
        detail = {
            "description": _describe(student),
            "parameters": int(serving.count_params()),
            "table_parameters": _table_parameters(serving),
            "training_seconds": time.monotonic() - begun,
        }
        result.save(figures)
        _write(detail_file, {**detail, "warmup_hours": evaluation.warmup_hours})
        return result, detail

    # Results

    def _collect_teacher(
        self, seed: int, info: DatasetInfo, windows: list[Any], overall: list[Any]
    ) -> None:
        stream = streaming.Stream(self.directory / f"seed-{seed}" / "labelled")
        for vertical in self.config.evaluation.verticals:
            result = streaming.score_column(
                stream,
                metrics_from=info.first_hour + self.config.evaluation.warmup_hours,
                vertical=vertical,
            )
            self._collect(seed, TEACHER, vertical, result, windows, overall)

    @staticmethod
    def _collect(
        seed: int,
        model: str,
        vertical: str,
        result: streaming.ValidationResult,
        windows: list[Any],
        overall: list[Any],
    ) -> None:
        who = {"seed": seed, "model": model, "vertical": vertical}
        windows += [{**who, **_only(row, _WINDOWS.names)} for row in result.rows]
        if result.whole is None:
            raise ConfigError(
                "evaluation.warmup_hours leaves no hour to count: shorten it or lengthen the "
                "stream."
            )
        overall.append({**who, **_only(result.whole, _OVERALL.names)})

    def _notes(self) -> list[str]:
        evaluation = self.config.evaluation
        early = [s.name for s in self.config.students if s.teacher_batch_size is not None]
        at_once = (
            f"{', '.join(early)}: what the teacher said of a row is trained on right after the row "
            "is predicted, its label when the label is known."
        )
        return [
            f"Figures count the hours from {evaluation.warmup_hours} after the stream's start; "
            "each hour is predicted before it is trained on.",
            "The teacher's figures are those of its logged predictions on the same rows; rows "
            "that it did not score are left out of them.",
            *([at_once] if early else []),
        ]


def _dataset(info: DatasetInfo) -> dict[str, Any]:
    found = {
        "name": info.name,
        "description": info.description,
        "hours": info.last_hour - info.first_hour + 1,
        "label_window_hours": info.label_window_hours,
        "parameters": info.parameters,
        "features": list(info.schema.names),
    }
    return found | ({"source": info.source} if info.source else {})


def _only(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}


def _plain(result: HourReport) -> dict[str, Any]:
    return {name: getattr(result, name) for name in HourReport.__dataclass_fields__}


def _das_summary(reports: list[HourReport]) -> dict[str, Any]:
    rows = sum(r.rows for r in reports)
    scored = sum(r.scored for r in reports)
    ages = sum(r.mean_age_s * r.scored for r in reports if r.scored)
    counters = (
        "not_finite",
        "late_labels",
        "early_labels",
        "duplicate_labels",
        "orphan_labels",
    )
    return {
        "rows": rows,
        "coverage": scored / rows if rows else math.nan,
        "mean_age_s": ages / scored if scored else math.nan,
        **{name: sum(getattr(r, name) for r in reports) for name in counters},
    }


def _describe(student: Student) -> str:
    parts = []
    if student.shared_head_weight:
        parts.append(
            f"the {student.shared_head_source}'s label in the serving head, weight "
            f"{student.shared_head_weight}"
        )
    if student.auxiliary_head is not None:
        parts.append(f"auxiliary head ({_settings(student.auxiliary_head)})")
    if student.student_adapter is not None:
        parts.append(f"student adapter ({_settings(student.student_adapter)})")
    if student.gate is not None:
        parts.append(f"gate ({_settings(student.gate)})")
    if student.teacher_batch_size is not None:
        parts.append(f"the teacher's label at once, every {student.teacher_batch_size} rows")
    return "; ".join(parts) or "labels only"


def _settings(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"


def _table_parameters(model: Any) -> int:
    """Parameters of embedding tables; they do not count as the size of a ranking model."""
    from keras_exfm.layers import FeatureEmbedding

    return sum(
        table.rows * table.dim
        for layer in model.layers
        if isinstance(layer, FeatureEmbedding)
        for table in layer.tables
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "student"


def _given(value: Any) -> Any:
    """Settings without those that are left out: an earlier version may not know them yet."""
    if isinstance(value, dict):
        return {key: _given(each) for key, each in value.items() if each is not None}
    return value


def _differences(held: Any, asked: Any, keys: Iterable[str], path: str = "") -> Iterator[str]:
    """What differs below some keys, in words."""
    for key in keys:
        old, new = _given(held.get(key)), _given(asked.get(key))
        name = f"{path}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            inner = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
            yield from _differences(old, new, inner, f"{name}.")
        else:
            yield f"{name} {old!r} (now {new!r})"


def _write(path: Path, value: Any) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)


def _backend() -> str:
    import keras

    return keras.backend.backend()


def _versions() -> dict[str, str]:
    found = {}
    for name in (
        "keras-exfm",
        "keras",
        "tensorflow",
        "tensorflow-cpu",
        "jax",
        "numpy",
        "deltalake",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["python"] = sys.version.split()[0]
    return found
