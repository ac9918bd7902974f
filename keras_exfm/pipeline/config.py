"""What a run is: a TOML file, checked by pydantic before anything is written."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from keras_exfm.toml_values import faults


class ConfigError(ValueError):
    """A run configuration that cannot be used, with every fault named."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticData(_Strict):
    """The synthetic ad stream with known ground truth (`keras_exfm.datasets.synthetic`)."""

    source: Literal["synthetic"]
    options: dict[str, Any] = {}
    """Arguments of `SyntheticAds`."""


class GloboData(_Strict):
    """Clicks of Globo.com (`keras_exfm.datasets.globo`); the user has the file."""

    source: Literal["globo"]
    path: str | None = None
    """File or folder of the clicks; `--data` sets it."""
    options: dict[str, Any] = {}
    """Arguments of `globo.prepare`."""


class PublicData(_Strict):
    """A public click data set (`keras_exfm.datasets.PublicTable`); the user has the files."""

    source: Literal[
        "criteo_kaggle",
        "criteo_terabyte",
        "criteo_x4",
        "avazu",
        "avazu_x4",
        "taobao_ad",
        "taobao_ad_x1",
        "kuaivideo_x1",
        "microvideo_x1",
        "frappe_x1",
        "movielens_100k",
        "movielens_1m",
        "movielens_atomic",
    ]
    path: str | None = None
    """File or folder; `--data` sets it."""
    options: dict[str, Any] = {}
    """Arguments of `PublicTable`, and `check`."""


class PreparedData(_Strict):
    """Impressions and label events already on disk, as docs/architecture.md lays them out."""

    source: Literal["prepared"]
    path: str
    """Folder with `dataset.json`, `impressions/` and `labels/`."""


Data = Annotated[
    SyntheticData | GloboData | PublicData | PreparedData, Field(discriminator="source")
]


class Network(_Strict):
    """A model of the zoo and how it is trained."""

    model: str
    """Class name in `keras_exfm.models`."""
    options: dict[str, Any] = {}
    """The model's own arguments."""
    features: list[str] | None = None
    """The features it reads; all if left out."""
    learning_rate: PositiveFloat = 1e-3
    """Adam, for the dense part."""
    table_learning_rate: PositiveFloat = 0.05
    """Row-wise Adagrad, for the embedding tables."""
    clip_row_norm: PositiveFloat | None = None
    """Largest norm of a row's gradient (docs/tuning.md); no clipping if left out."""


class Teacher(Network):
    """The foundation model: all verticals' traffic."""

    snapshot_hours: PositiveInt = 1
    """Hours between published snapshots."""
    delay_hours: NonNegativeInt = 0
    """Extra hours before a snapshot is published: a stale teacher."""
    batch_size: PositiveInt | None = None
    """Rows of a training step; `evaluation.batch_size` if left out."""


class Student(_Strict):
    """One way to train the student network; with nothing set, it has no teacher."""

    name: str
    shared_head_weight: NonNegativeFloat = 0.0
    """Weight of vanilla distillation in the serving head."""
    shared_head_source: Literal["teacher", "adapter"] = "teacher"
    """Whose label that is: the teacher's, or what the adapter makes of it."""
    auxiliary_head: dict[str, Any] | None = None
    """Arguments of `layers.AuxiliaryHead`."""
    student_adapter: dict[str, Any] | None = None
    """Arguments of `layers.StudentAdapter`."""
    adapter_head: dict[str, Any] | None = None
    """Arguments of the head on the adapter's target."""
    gate: dict[str, Any] | None = None
    """Arguments of `layers.TeacherGate`."""
    teacher_batch_size: PositiveInt | None = None
    """Learn what the teacher logged after every so many rows, before their labels are known; with
    the label if left out."""
    strict: bool = False
    """Algorithm 1's two-step order."""

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's logit is used at all."""
        parts = (self.auxiliary_head, self.student_adapter, self.adapter_head)
        return self.shared_head_weight > 0 or any(part is not None for part in parts)

    @model_validator(mode="after")
    def _check(self) -> Student:
        if self.shared_head_source == "adapter" and (
            self.student_adapter is None or not self.shared_head_weight
        ):
            raise ValueError(
                f'student {self.name!r}: `shared_head_source = "adapter"` needs a '
                "`student_adapter` and a `shared_head_weight` above 0"
            )
        alone = [n for n in ("gate", "teacher_batch_size") if getattr(self, n) is not None]
        if alone and not self.has_teacher:
            raise ValueError(
                f"student {self.name!r}: {alone} need something to learn from the teacher with: "
                "an `auxiliary_head`, a `student_adapter` or a `shared_head_weight`"
            )
        return self


class Evaluation(_Strict):
    """Progressive validation: predict each hour, then train on it."""

    warmup_hours: NonNegativeInt = 0
    """Hours at the stream's start that train but do not count in the overall figures."""
    verticals: list[str] = Field(min_length=1)
    """Each student is trained and measured on each of these."""
    batch_size: PositiveInt = 1024


class RunConfig(_Strict):
    """A whole run: stream, teacher, students, evaluation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seeds: list[NonNegativeInt] = Field(default=[1], min_length=1)
    """Each seed trains its own teacher and students on the same stream."""
    data: Data
    teacher: Teacher
    student: Network
    students: list[Student] = Field(min_length=1)
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        names = [student.name for student in self.students]
        if len(set(names)) != len(names):
            raise ValueError(f"students should have distinct names. Received: {names}")
        if "teacher" in names:
            raise ValueError("a student cannot be called 'teacher'")
        if all(student.has_teacher for student in self.students):
            raise ValueError(
                "one of the students should have no teacher (only a name): gains are measured "
                "against it"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds should be distinct. Received: {self.seeds}")
        return self

    @property
    def baseline(self) -> str:
        """Name of the first student without a teacher."""
        return next(student.name for student in self.students if not student.has_teacher)


def presets() -> list[str]:
    """Names of the configurations that ship with the package."""
    folder = resources.files("keras_exfm.pipeline") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name[-5:] == ".toml")


def load(source: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Reads a run's configuration.

    Args:
        source: Path of a TOML file, or the name of a preset (`presets()`).
        overrides: Dotted keys and values that replace the file's, such as
            `{"evaluation.batch_size": 512}`. Defaults to none.

    Raises:
        ConfigError: For a file that is missing or no TOML, an unknown key, a value out of range;
            all faults in one message.

    Example:

    >>> load("demo", {"seeds": [1, 2]}).seeds
    [1, 2]
    """
    if str(source) in presets():
        text = (resources.files("keras_exfm.pipeline") / "presets" / f"{source}.toml").read_text()
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(
                f"No configuration file {str(source)!r}, and no preset of that name. "
                f"Presets: {presets()}"
            )
        text = path.read_text()
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    return parse(tree, str(source))


def parse(tree: dict[str, Any], source: str = "configuration") -> RunConfig:
    """Checks a configuration given as a nested dict (`load` without the file)."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {fault}" for fault in faults(RunConfig, error))
        raise ConfigError(f"{source}:\n{lines}") from error


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"Cannot set {key!r}: {part!r} is no table in the configuration.")
        tree = child
    tree[last] = value
