"""What a student has for one teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_exfm.distillation._targets import Label, Targets
from keras_exfm.layers import AuxiliaryHead, RepresentationHead, StudentAdapter, TeacherGate
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.losses import TeacherCrossentropy, known_teacher
from keras_exfm.losses import _checks as _loss_checks

_PARTS = {
    "auxiliary_head": AuxiliaryHead,
    "student_adapter": StudentAdapter,
    "adapter_head": AuxiliaryHead,
    "representation_head": RepresentationHead,
    "gate": TeacherGate,
}


def serialize_unbuilt(layer: Any) -> Any:
    """The layer's config without its input shape: its owner builds it, under the owner's name."""
    config = keras.saving.serialize_keras_object(layer)
    if config is not None:
        config.pop("build_config", None)
    return config


def _instance(name: str, value: Any) -> Any:
    cls = _PARTS[name]
    if value is not None and not isinstance(value, cls):
        raise ValueError(f"`{name}` should be a {cls.__name__} or None. Received: {name}={value!r}")
    return value


@keras.saving.register_keras_serializable(package="keras_exfm")
class TeacherBranch(keras.layers.Layer):
    """The parts through which one teacher acts on a student, for `ExternalDistillation(teachers=)`.

    With the serving logit `z` and representation `x` of the branch's task, its label `y`, and the
    teacher's logged logit `t` and vector `r`, the terms in the training loss are

        auxiliary_loss       w h(D(g_beta(x)), min(alpha sigmoid(t), 1))     auxiliary_head
        adapter_loss         h(SA(t), y)                                     student_adapter
        adapter_head_loss    w h(D2(g_beta(x)), sg(sigmoid(SA(t))))          adapter_head
        representation_loss  w (V(g_beta(x)) - standardised r) ** 2          representation_head
        shared_head_loss     w h(z, sigmoid(t)) or w h(z, sg(sigmoid(SA(t))))  shared_head_weight

    with the terms whose parts were given. With a `gate`, its factor multiplies every gradient into
    `x` and the shared head's term.

    Args:
        teacher: Name of the teacher, or `None` for the one without a name. The branch reads the
            keys `teacher_logit` and `teacher_representation` of `y`, with `_<teacher>` at the end
            if there is a name; so do its logs end. Defaults to `None`.
        task: Name of the task that the teacher predicts, or `None` if the student has only one.
            Defaults to `None`.
        auxiliary_head: `keras_exfm.layers.AuxiliaryHead` for the teacher's label.
            Defaults to `None`.
        student_adapter: `keras_exfm.layers.StudentAdapter`. Its `context` names further keys of
            `y`, in full. Defaults to `None`.
        adapter_head: `AuxiliaryHead` for the adapter's label. Defaults to `None`: if there is an
            adapter, a head with the `units`, `gradient_scale`, initial values and dtype of
            `auxiliary_head` (of a fresh `AuxiliaryHead` without one), and no label scale or loss
            weight.
        representation_head: `keras_exfm.layers.RepresentationHead` for the teacher's vector. It
            stands on the student's `embeddings` if there are any. Defaults to `None`.
        gate: `keras_exfm.layers.TeacherGate`. Defaults to `None`: none.
        shared_head_weight: Weight of the teacher's label in the serving head itself; a number or a
            schedule. Defaults to `0.0`.
        shared_head_source: Whose label that is: `"teacher"` (vanilla distillation) or `"adapter"`
            (the label that the adapter makes of the teacher's, without the teacher's bias).
            Defaults to `"teacher"`.
        **kwargs: `name` and `dtype` of `keras.layers.Layer`.

    Call arguments:
        representation: Tensor `(batch, features)`, or `None` for a branch without heads. The output
            is a dict of what the heads predict.
        step: Training step at which schedules are read. Defaults to `None`: step 0.
        embeddings: Tensor `(batch, features)` that the representation head takes in place of
            `representation`. Defaults to `None`: none.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:

    >>> from keras_exfm.layers import AuxiliaryHead, TeacherGate
    >>> branch = TeacherBranch("large", auxiliary_head=AuxiliaryHead(), gate=TeacherGate())
    >>> branch.target_columns
    ('teacher_logit_large',)
    """

    def __init__(
        self,
        teacher: str | None = None,
        task: str | None = None,
        auxiliary_head: AuxiliaryHead | None = None,
        student_adapter: StudentAdapter | None = None,
        adapter_head: AuxiliaryHead | None = None,
        representation_head: RepresentationHead | None = None,
        gate: TeacherGate | None = None,
        shared_head_weight: Any = 0.0,
        shared_head_source: str = "teacher",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        for key, value in (("teacher", teacher), ("task", task)):
            if value is not None and not (isinstance(value, str) and value.isidentifier()):
                raise ValueError(
                    f"`{key}` should be a name (a Python identifier) or None. "
                    f"Received: {key}={value!r}"
                )
        self.teacher = teacher
        self.task = task
        self.auxiliary_head = _instance("auxiliary_head", auxiliary_head)
        self.student_adapter = _instance("student_adapter", student_adapter)
        if student_adapter is None and adapter_head is not None:
            raise ValueError(
                "`adapter_head` needs a `student_adapter`. Received: "
                f"adapter_head={adapter_head!r}, student_adapter=None"
            )
        if student_adapter is not None and adapter_head is None:
            like = auxiliary_head if auxiliary_head is not None else AuxiliaryHead()
            adapter_head = AuxiliaryHead(
                units=like.units,
                gradient_scale=like.gradient_scale,
                output_initializer=clone_initializer(like.output_initializer),
                prior=like.prior,
                dtype=like.dtype_policy,
                name="adapter_head",
            )
        self.adapter_head = _instance("adapter_head", adapter_head)
        if adapter_head is not None and adapter_head is auxiliary_head:
            raise ValueError("`auxiliary_head` and `adapter_head` should be two layers.")
        self.representation_head = _instance("representation_head", representation_head)
        self.gate = _instance("gate", gate)
        self.shared_head_weight = _loss_checks.schedule("shared_head_weight", shared_head_weight)
        if shared_head_source not in ("teacher", "adapter"):
            raise ValueError(
                '`shared_head_source` should be "teacher" or "adapter". '
                f"Received: shared_head_source={shared_head_source!r}"
            )
        if shared_head_source == "adapter" and (student_adapter is None or not self.shares_head):
            raise ValueError(
                '`shared_head_source="adapter"` needs a `student_adapter` and a '
                f"`shared_head_weight`. Received: student_adapter={student_adapter!r}, "
                f"shared_head_weight={shared_head_weight!r}"
            )
        self.shared_head_source = shared_head_source
        self._teacher_loss = TeacherCrossentropy()
        self._crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)

    @property
    def suffix(self) -> str:
        """End of the branch's keys and logs."""
        return f"_{self.teacher}" if self.teacher else ""

    @property
    def logit_column(self) -> str:
        """Key of the teacher's logit."""
        return f"teacher_logit{self.suffix}"

    @property
    def scalar_columns(self) -> tuple[str, ...]:
        """Keys of the scalars that the branch reads."""
        context = self.student_adapter.context if self.student_adapter is not None else ()
        return (self.logit_column, *context)

    @property
    def vector_columns(self) -> dict[str, int]:
        """Keys of the vectors that the branch reads, and their sizes."""
        if self.representation_head is None:
            return {}
        return {f"teacher_representation{self.suffix}": self.representation_head.size}

    @property
    def target_columns(self) -> tuple[str, ...]:
        """All keys of `y` that the branch reads beside its task's label."""
        return (*self.scalar_columns, *self.vector_columns)

    @property
    def shares_head(self) -> bool:
        """Whether the teacher's label goes into the serving head."""
        weight = self.shared_head_weight
        return _loss_checks.is_schedule(weight) or weight > 0

    @property
    def heads(self) -> dict[str, Any]:
        """The heads that stand on the representation, by the name of their output."""
        heads = {
            "auxiliary": self.auxiliary_head,
            "adapter_head": self.adapter_head,
            "representation": self.representation_head,
        }
        return {name: head for name, head in heads.items() if head is not None}

    @property
    def parts(self) -> list[Any]:
        """The branch's layers."""
        return [part for part in (getattr(self, name) for name in _PARTS) if part is not None]

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the branch's terms in the training loss, without the suffix."""
        present = {
            "auxiliary_loss": self.auxiliary_head is not None,
            "adapter_loss": self.student_adapter is not None,
            "adapter_head_loss": self.adapter_head is not None,
            "representation_loss": self.representation_head is not None,
            "shared_head_loss": self.shares_head,
        }
        return tuple(name for name, there in present.items() if there)

    @property
    def has_schedule(self) -> bool:
        """Whether anything depends on the training step."""
        values = [self.shared_head_weight]
        for head in self.heads.values():
            values += [head.loss_weight, head.gradient_scale]
        return any(map(_loss_checks.is_schedule, values))

    def build(self, representation_shape: Any, embeddings_shape: Any = None) -> None:
        """Creates the variables of the heads and of the adapter."""
        for name, head in self.heads.items():
            if not head.built:
                shape = representation_shape
                if name == "representation" and embeddings_shape is not None:
                    shape = embeddings_shape
                head.build(tuple(shape))
        if self.student_adapter is not None and not self.student_adapter.built:
            self.student_adapter.build((None, 1))
        self.built = True

    def call(self, representation: Any, step: Any = None, embeddings: Any = None) -> dict[str, Any]:
        """What the heads predict."""
        gate = None if self.gate is None else self.gate.factor
        found = {}
        for name, head in self.heads.items():
            matches = name == "representation" and embeddings is not None
            found[name] = head(embeddings if matches else representation, step=step, gate=gate)
        return found

    def adapt(self, targets: Targets) -> Any:
        """The adapter's logit; a constant without meaning where the teacher is missing."""
        context = None
        if self.student_adapter.context:
            context = ops.concatenate(
                [targets.teachers[name] for name in self.student_adapter.context], axis=-1
            )
        return self.student_adapter(targets.teachers[self.logit_column], context)

    def adapter_loss(self, targets: Targets, adapted: Any = None) -> Any:
        """The adapter's loss on the labels of the rows that have a teacher."""
        adapted = self.adapt(targets) if adapted is None else adapted
        return self._crossentropy(
            targets.labels[self.task].value, adapted, sample_weight=self._labelled(targets)
        )

    def _labelled(self, targets: Targets) -> Any:
        """Weight `(batch,)` of the rows that have both a teacher and a label."""
        label = targets.labels[self.task]
        _, known = known_teacher(targets.teachers[self.logit_column])
        weight = ops.cast(ops.squeeze(known, -1), "float32")
        return weight if label.weight is None else weight * label.weight

    def observe_teacher(self, targets: Targets, adapted: Any = None) -> None:
        """Shows the gate the teacher's loss, as the adapter makes it."""
        if self.gate is None:
            return
        logit, _ = known_teacher(targets.teachers[self.logit_column])
        if self.student_adapter is not None:
            logit = self.adapt(targets) if adapted is None else adapted
        self.gate.observe_teacher(
            _row_loss(logit, targets.labels[self.task]), self._labelled(targets)
        )

    def compute_terms(
        self,
        outputs: Mapping[str, Any],
        logit: Any,
        targets: Targets,
        step: Any = None,
        teacher_observed: bool = False,
    ) -> dict[str, Any]:
        """The branch's terms in the training loss, weighted, by the names of `terms`.

        Args:
            outputs: What `call` returned.
            logit: The serving logit of the task, `(batch, 1)`.
            targets: The batch.
            step: Training step at which schedules are read. Defaults to `None`: step 0.
            teacher_observed: Whether the gate has seen the teacher's loss of this batch, as when
                the adapter has moved since. Defaults to `False`.
        """
        teacher = targets.teachers[self.logit_column]
        label = targets.labels[self.task]
        terms: dict[str, Any] = {}
        if self.auxiliary_head is not None:
            terms["auxiliary_loss"] = self.auxiliary_head.compute_loss(
                outputs["auxiliary"], teacher, label.row_weight, step
            )
        adapted = adapted_teacher = None
        if self.student_adapter is not None:
            adapted = self.adapt(targets)
            terms["adapter_loss"] = self.adapter_loss(targets, adapted)
            _, known = known_teacher(teacher)
            target = ops.cast(ops.stop_gradient(adapted), "float32")
            adapted_teacher = ops.where(known, target, teacher)
            terms["adapter_head_loss"] = self.adapter_head.compute_loss(
                outputs["adapter_head"], adapted_teacher, label.row_weight, step
            )
        if self.representation_head is not None:
            (column,) = self.vector_columns
            terms["representation_loss"] = self.representation_head.compute_loss(
                outputs["representation"], targets.teachers[column], label.row_weight, step
            )
        if self.shares_head:
            weight = _loss_checks.at_step(self.shared_head_weight, step)
            if self.gate is not None:
                weight = weight * self.gate.factor
            source = teacher if self.shared_head_source == "teacher" else adapted_teacher
            terms["shared_head_loss"] = weight * self._teacher_loss(
                source, logit, sample_weight=label.row_weight
            )
        if self.gate is not None:
            if not teacher_observed:
                self.observe_teacher(targets, adapted)
            self.gate.observe_student(_row_loss(logit, label), self._labelled(targets))
        return terms

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        config = super().get_config()
        # Set by the branch itself.
        config.pop("autocast", None)
        parts = {name: serialize_unbuilt(getattr(self, name)) for name in _PARTS}
        return {
            **config,
            "teacher": self.teacher,
            "task": self.task,
            **parts,
            "shared_head_weight": _loss_checks.serialize_schedule(self.shared_head_weight),
            "shared_head_source": self.shared_head_source,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> TeacherBranch:
        """The branch with the arguments of `get_config`."""
        arguments = copy.deepcopy(dict(config))
        for name in _PARTS:
            arguments[name] = keras.saving.deserialize_keras_object(
                arguments[name], custom_objects=custom_objects
            )
        return cls(**arguments)


def _row_loss(logit: Any, label: Label) -> Any:
    """Crossentropy of each row, `(batch,)`."""
    z = ops.stop_gradient(ops.cast(logit, "float32"))
    return ops.squeeze(ops.softplus(z) - label.value * z, -1)
