"""Search space of external distillation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import keras_tuner

from keras_exfm.distillation import ExternalDistillation
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from keras_exfm.streaming import Stream
from keras_exfm.tuner._space import Asker, Choices, Parameter, Range, parameter
from keras_exfm.tuner.hypermodels.ranking_hyper_model import RankingHyperModel


class DistillationHyperModel(keras_tuner.HyperModel):
    """How a teacher's logged predictions are distilled into a student.

    The student is a zoo model of another hypermodel's space, whose hyper-parameters are searched
    along (fix them there for a student that stays). Of `ExternalDistillation`'s parts:

    * `label_scale` (the paper's alpha), `gradient_scale` (beta) and `loss_weight` (w) of the
      auxiliary head, and `auxiliary_units`, the width of its hidden layer, 0 for none;
    * `student_adapter`, whether there is one, and `adapter_units`, the width of its hidden layer;
    * `shared_head_weight`, vanilla distillation in the serving head.

    A `Budget` counts the student alone, which is what serves; heads and adapter are small.

    Args:
        base: A `RankingHyperModel`, the student's space.
        fixed: Name -> value of what is not searched. Defaults to `None`.
        space: Name -> choices or `(low, high)` that replace the defaults. Defaults to `None`.
        strict: Whether to train in the order of Algorithm 1, where there is an adapter. Defaults
            to `False`.

    Raises:
        ValueError: For an unknown name.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.tuner import DLRMHyperModel
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50)])
    >>> student = DLRMHyperModel(schema, fixed={"dim": 4, "top_units": (16,)})
    >>> space = DistillationHyperModel(student, fixed={"student_adapter": False})
    >>> hp = keras_tuner.HyperParameters()
    >>> space.build(hp).auxiliary_head.units, hp.get("loss_weight")
    ((16,), 1.0)

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), sections 4 and 5.
    """

    defaults: ClassVar[Mapping[str, Parameter]] = {
        "label_scale": Range(1.0, 8.0, 1.0, log=True),
        "gradient_scale": Range(0.1, 30.0, 1.0, log=True),
        "loss_weight": Range(0.1, 10.0, 1.0, log=True),
        "auxiliary_units": Choices((0, 16, 64), 16),
        "student_adapter": Choices((False, True), True),
        "adapter_units": Choices((4, 8, 16, 32), 8),
        "shared_head_weight": Choices((0.0, 0.1, 0.3, 1.0), 0.0),
    }
    """The hyper-parameters, beside those of the student."""

    def __init__(
        self,
        base: RankingHyperModel,
        fixed: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(base, RankingHyperModel):
            raise ValueError(f"`base` should be a RankingHyperModel. Received: base={base!r}")
        self.base = base
        self.fixed = dict(fixed or {})
        self.strict = strict
        given = {n: parameter(n, value, self.defaults.get(n)) for n, value in (space or {}).items()}
        unknown = sorted({*self.fixed, *given} - set(self.defaults))
        if unknown:
            raise ValueError(
                f"DistillationHyperModel has no hyper-parameters {unknown}. It has: "
                f"{sorted(self.defaults)}; those of the student belong to `base`"
            )
        self.space = {**self.defaults, **given}

    def parts(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The parts as `keras-exfm run` takes them in `[[students]]`."""
        ask = Asker(hp, self.space, self.fixed)
        head = {n: ask(n) for n in ("label_scale", "gradient_scale", "loss_weight")}
        units = ask("auxiliary_units")
        adapter = ask("student_adapter")
        adapter_units = ask("adapter_units", "student_adapter", [True])
        found: dict[str, Any] = {
            "auxiliary_head": {**head, "units": [units] if units else []},
            "shared_head_weight": ask("shared_head_weight"),
        }
        if adapter:
            found["student_adapter"] = {"units": [adapter_units]}
            found["strict"] = self.strict
        return found

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Asks for every hyper-parameter, without a model."""
        self.base.declare_hyperparameters(hp)
        self.parts(hp)

    def network(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The student, not compiled: what a `Budget` counts."""
        return self.base.network(hp)

    def architecture(self, hp: keras_tuner.HyperParameters) -> str:
        """What the cost depends on, as text."""
        return self.base.architecture(hp)

    def build(self, hp: keras_tuner.HyperParameters) -> ExternalDistillation:
        """A compiled `ExternalDistillation`."""
        parts = self.parts(hp)
        adapter = parts.get("student_adapter")
        model = ExternalDistillation.from_model(
            self.base.network(hp),
            auxiliary_head=AuxiliaryHead(**parts["auxiliary_head"]),
            student_adapter=None if adapter is None else StudentAdapter(**adapter),
            shared_head_weight=parts["shared_head_weight"],
            strict=parts.get("strict", False),
        )
        return self.base.compile(model, hp)

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        stream: str | os.PathLike[str] | Stream | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `RankingHyperModel.fit`."""
        return self.base.fit(hp, model, *args, stream=stream, **kwargs)

    def settings(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The student as `keras-exfm run` takes it in `[student]`, without the parts."""
        return self.base.settings(hp)
