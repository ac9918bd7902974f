"""ExFM's external distillation as a Keras model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_exfm.distillation import _adapter_step, _targets
from keras_exfm.distillation.embeddings import embeddings_of
from keras_exfm.distillation.teacher_branch import TeacherBranch, serialize_unbuilt
from keras_exfm.layers import (
    AuxiliaryHead,
    RepresentationHead,
    StudentAdapter,
    TeacherGate,
    _checks,
)
from keras_exfm.losses import known_teacher
from keras_exfm.losses._probabilities import probability_layer, takes_probabilities

_PARTS = ("auxiliary_head", "student_adapter", "adapter_head", "representation_head", "gate")


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, keras.KerasTensor):
        raise ValueError(
            f"`{name}` should be a symbolic tensor of the student's graph (keras.KerasTensor). "
            f"Received: {name}={value!r}"
        )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _resolved(given: Any, get: Any) -> list[Any]:
    """The losses or metrics of an argument of `compile`; names that `get` knows as objects."""
    found = []
    for one in keras.tree.flatten(given):
        try:
            found.append(get(one) if isinstance(one, str) else one)
        except ValueError:  # `super().compile` says what is wrong with it.
            continue
    return found


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _serving_logit(y_pred: Any) -> tuple[Any, bool]:
    """The serving logit (a dict with several tasks), and whether the heads' outputs are beside."""
    if isinstance(y_pred, Mapping) and "logit" in y_pred:
        return y_pred["logit"], True
    return y_pred, False


def _logits(logit: Any) -> dict[str | None, Any]:
    """The serving logits by task; `None` is the only one's."""
    logits = dict(logit) if isinstance(logit, Mapping) else {None: logit}
    if not logits or not all(task is None or _is_name(task) for task in logits):
        raise ValueError(
            "`logit` should be a tensor or a dict of tensors by task (Python identifiers). "
            f"Received: tasks={list(logits)}"
        )
    for tensor in logits.values():
        _check_tensor("logit", tensor)
        if len(tensor.shape) != 2 or tensor.shape[1] != 1:
            raise ValueError(
                f"`logit` should have shape (batch, 1). Received: shape={tuple(tensor.shape)}"
            )
    return logits


def _branches(
    teachers: Any,
    tasks: list[str | None],
    parts: dict[str, Any],
    shared_head_weight: Any,
    shared_head_source: str,
) -> list[TeacherBranch]:
    """The teachers that were given, or a single one of the parts that were."""
    given = [name for name, part in parts.items() if part is not None]
    if teachers is None:
        if tasks != [None] and (given or shared_head_weight):
            raise ValueError(
                "With several tasks the teachers' parts come as `teachers`, a TeacherBranch "
                f"each. Received: tasks={tasks} and parts of a single teacher"
            )
        branch = TeacherBranch(
            task=tasks[0],
            **parts,
            shared_head_weight=shared_head_weight,
            shared_head_source=shared_head_source,
            name="teacher",
        )
        return [branch]
    if shared_head_source != "teacher":
        given.append("shared_head_source")
    if given or shared_head_weight:
        raise ValueError(
            "`teachers` takes the place of the parts of a single teacher. Received both: "
            f"{given or ['shared_head_weight']}"
        )
    branches = list(teachers)
    if not branches or not all(isinstance(b, TeacherBranch) for b in branches):
        raise ValueError(
            f"`teachers` should be one TeacherBranch or more in a list. Received: {teachers!r}"
        )
    names = [branch.teacher for branch in branches]
    if len(set(names)) < len(names):
        raise ValueError(f"`teachers` should differ in their names. Received: {names}")
    strangers = [branch.task for branch in branches if branch.task not in tasks]
    if strangers:
        raise ValueError(
            f"Every teacher's `task` should be one of the student's, {tasks}. Received: {strangers}"
        )
    layers = [id(layer) for branch in branches for layer in branch.parts]
    if len(set(layers)) < len(layers):
        raise ValueError("`teachers` should have layers of their own. Received a layer twice.")
    return branches


@keras.saving.register_keras_serializable(package="keras_exfm")
class ExternalDistillation(keras.Model):
    """Trains a student on labels and on the logged predictions of an external teacher.

    The teacher never runs here. Its logits come with the labels, `y = {"label", "teacher_logit"}`,
    NaN where a row has none. With the serving logit `z_S` and representation `x` of the student,
    the label `y`, the teacher's logit `t`, the auxiliary head `D`, the student adapter `SA`, its
    head `D2`, the crossentropy `h(logit, probability)` and `sg` a stopped gradient, a training
    step minimises

        loss = h(z_S, y)                                    label_loss
             + w * h(D(g_beta(x)), min(alpha sigmoid(t), 1))    auxiliary_loss
             + h(SA(t), y)                                  adapter_loss
             + h(D2(g_beta(x)), sg(sigmoid(SA(t))))         adapter_head_loss
             + w_r * (V(g_beta(x)) - standardised r) ** 2   representation_loss
             + shared_head_weight * h(z_S, sigmoid(t))      shared_head_loss

    with the terms whose parts were given (`V`, the representation head, learns the vector `r` that
    the teacher logged). The stopped gradient makes one summed loss give every
    weight the gradient that ExFM's Algorithm 1 gives it: the serving head learns from labels
    alone, the adapter from its own loss alone, and the teacher reaches the shared representation.
    Algorithm 1 also has an order: the adapter moves first and the student then sees the moved
    adapter. `strict=True` trains in that order, with an optimizer of its own for the adapter; the
    adapter's variables are then frozen for the main optimizer.

    **Baselines.** No parts: a plain student that reads the same stream. `shared_head_weight > 0`:
    vanilla distillation, one head for both targets (ExFM Eq. 2; its form is not public in full,
    this is the usual one). It may be combined with the heads.

    **A gate** (an addition to the paper) multiplies what the teacher sends into `x` by a factor in
    0..1 that is 0 while the teacher, adapted, predicts this student's labels no better than the
    student itself does; see `keras_exfm.layers.TeacherGate`.

    **Several teachers** come as `teachers`, a `TeacherBranch` each, with their own heads, adapter
    and gate; a branch named `large` reads `teacher_logit_large` and logs `auxiliary_loss_large`.
    **Several tasks** come as a dict of logits, `{"click": ..., "conversion": ...}`: the labels are
    then `label_click` (or `label`, as streams name the first task's) and `label_conversion`, NaN
    where a task's label is not known (the row counts for the other tasks). Each branch belongs to a
    `task`; predictions, serving model, and `loss` and `metrics` of `compile` are dicts by task.

    **Rows without a label.** A row whose label is NaN, in a `y` that has teachers' keys, trains
    what the teacher teaches alone: its logged prediction can be learned from as soon as it is
    logged, long before the label is known.

    **Weights and missing teachers.** Each term is `sum_i(weight_i * known_i * h_i) / batch`: the
    same divisor as the label's loss, so a row without a teacher adds nothing and the other rows
    do not grow. A row of weight 0 is padding and never matters, whatever its label or teacher. If
    `y` is the labels alone, or the teacher is missing throughout, the student trains exactly as a
    plain one would.

    **Logs.** `fit` reports `loss`, its terms under the names above (`label_loss` includes the
    student's regularization losses), `clipped_labels` (share of the rows with a teacher whose
    scaled label hit 1), `teacher_coverage` (share of rows with a teacher) and `teacher_gate` (mean
    factor of the gate). `evaluate` looks at the serving head only: its `loss` equals its
    `label_loss`. With `strict=True`, `adapter_loss`
    and the targets come after the adapter's move.

    Args:
        inputs: Symbolic inputs of the student, as in `keras.Model(inputs, outputs)`.
        logit: Symbolic serving logit, `(batch, 1)`, before any sigmoid; or a dict of them by task.
        representation: Symbolic input of the heads, `(batch, features)`; in most students what
            the last Dense reads. A dict by task, if tasks have their own. Needed if there is a
            head. Defaults to `None`.
        auxiliary_head: `keras_exfm.layers.AuxiliaryHead` for the teacher's label.
            Defaults to `None`.
        student_adapter: `keras_exfm.layers.StudentAdapter`. Defaults to `None`.
        adapter_head: `AuxiliaryHead` for the adapter's label. Defaults to `None`: if there is an
            adapter, a head with the `units`, `gradient_scale`, initial values and dtype of
            `auxiliary_head` (of a fresh `AuxiliaryHead` without one), and no label scale or loss
            weight.
        shared_head_weight: Weight of the teacher's label in the serving head itself; a number, or
            a `LearningRateSchedule` of Keras, which is read at the number of steps that this model
            was trained (as the heads' `loss_weight` and `gradient_scale` are).
            Defaults to `0.0`.
        shared_head_source: Whose label that is: `"teacher"`, or `"adapter"` for
            `h(z_S, sg(sigmoid(SA(t))))`, the label without the teacher's bias (an addition to the
            paper). Defaults to `"teacher"`.
        strict: Whether to train in the order of Algorithm 1. Defaults to `False`.
        representation_head: `keras_exfm.layers.RepresentationHead` for the teacher's vector,
            `y["teacher_representation"]`. Defaults to `None`.
        embeddings: Symbolic tensor `(batch, features)` on which the representation heads stand in
            place of `representation`: embeddings that are to match those that the teacher logged,
            see `embeddings_of`. Defaults to `None`.
        gate: `keras_exfm.layers.TeacherGate`. Defaults to `None`: none.
        teachers: `TeacherBranch`es, in place of the parts above: for several teachers or tasks.
            Defaults to `None`: one branch, of those parts.
        **kwargs: `name`, `dtype` and `trainable` of `keras.Model`.

    Call arguments:
        inputs: As the student's.
        training: If `True`, returns a dict of all outputs, `"logit"`, `"auxiliary"`,
            `"adapter_head"` and `"representation"`, else the serving logit alone, at the student's
            cost. Defaults to `False`.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:

    >>> import keras, numpy as np
    >>> from keras_exfm.layers import AuxiliaryHead, StudentAdapter
    >>> inputs = keras.Input((4,))
    >>> h = keras.layers.Dense(8, activation="relu")(inputs)
    >>> student = ExternalDistillation(
    ...     inputs, keras.layers.Dense(1)(h), representation=h,
    ...     auxiliary_head=AuxiliaryHead(loss_weight=0.5), student_adapter=StudentAdapter())
    >>> student.compile(optimizer=keras.optimizers.Adam(0.01))
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> y = {"label": (x[:, 0] > 0).astype("float32"), "teacher_logit": 3 * x[:, 0]}
    >>> history = student.fit(x, y, verbose=0)
    >>> sorted(history.history)
    ['adapter_head_loss', 'adapter_loss', 'auxiliary_loss', 'clipped_labels', 'label_loss', \
'loss', 'teacher_coverage']
    >>> student.predict(x, verbose=0).shape
    (64, 1)
    >>> len(student.serving_model().layers)
    3

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), Eq. 1-7 and Algorithm 1.
          Where the paper's text was not at hand, after the open re-implementation
          `doogkong/ad_ranking`.
    """

    def __init__(
        self,
        inputs: Any,
        logit: Any,
        representation: Any = None,
        auxiliary_head: AuxiliaryHead | None = None,
        student_adapter: StudentAdapter | None = None,
        adapter_head: AuxiliaryHead | None = None,
        shared_head_weight: Any = 0.0,
        strict: bool = False,
        representation_head: RepresentationHead | None = None,
        gate: TeacherGate | None = None,
        teachers: Sequence[TeacherBranch] | None = None,
        shared_head_source: str = "teacher",
        embeddings: Any = None,
        **kwargs: Any,
    ) -> None:
        # The student converts every input to the dtype that its `Input` declares. Autocasting here
        # would round float features to bfloat16 on the way.
        super().__init__(autocast=False, **kwargs)
        logits = _logits(logit)
        self.tasks = list(logits)
        parts = (auxiliary_head, student_adapter, adapter_head, representation_head, gate)
        self._simple = teachers is None
        self.branches = _branches(
            teachers, self.tasks, dict(zip(_PARTS, parts)), shared_head_weight, shared_head_source
        )
        if not isinstance(strict, bool):
            raise ValueError(f"`strict` should be a bool. Received: strict={strict!r}")
        if strict and not self._adapters:
            raise ValueError(
                "`strict=True` needs a `student_adapter`. Received: "
                f"strict={strict!r}, student_adapter=None"
            )
        self.strict = strict
        outputs = {self.output_name("logit", task): tensor for task, tensor in logits.items()}
        outputs |= self._read_by_heads(representation, embeddings)
        self.student = keras.Model(inputs, outputs, name="student")
        for tensor in logits.values():
            layer = probability_layer(self.student, tensor)
            if layer is not None:
                raise ValueError(
                    "`logit` should be the logit, before any sigmoid; prediction and losses take "
                    f"it for one. Received: the output of the layer {layer!r}, a probability"
                )
        self._columns = _targets.Columns(
            {task: self.output_name("label", task) for task in self.tasks},
            tuple(dict.fromkeys(n for b in self.branches for n in b.scalar_columns)),
            {name: size for b in self.branches for name, size in b.vector_columns.items()},
        )

        self._of_clicks = False
        self._crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.adapter_optimizer: Any = None
        self._iterations: Any = None
        if any(branch.has_schedule for branch in self.branches):
            self._iterations = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False, name="iterations"
            )
        names = ["label_loss"]
        for branch in self.branches:
            own_names = [*branch.terms]
            own_names += ["clipped_labels"] if branch.auxiliary_head is not None else []
            own_names += ["teacher_gate"] if branch.gate is not None else []
            names += [name + branch.suffix for name in [*own_names, "teacher_coverage"]]
        self._trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.build(None)

    def _read_by_heads(self, representation: Any, embeddings: Any) -> dict[str, Any]:
        """The tensors on which heads stand, by their keys in `student.output`."""
        if isinstance(representation, Mapping):
            if set(representation) != set(self.tasks):
                raise ValueError(
                    f"`representation` should have the tasks {self.tasks}. "
                    f"Received: {list(representation)}"
                )
            found = {
                self.output_name("representation", task): t for task, t in representation.items()
            }
        else:
            found = {} if representation is None else {"representation": representation}
        for tensor in found.values():
            _check_tensor("representation", tensor)
        if embeddings is not None:
            _check_tensor("embeddings", embeddings)
            if all(branch.representation_head is None for branch in self.branches):
                raise ValueError(
                    "`embeddings` need a `representation_head` that matches them. "
                    "Received: representation_head=None"
                )
        standing = {
            name
            for branch in self.branches
            for name in branch.heads
            if name != "representation" or embeddings is None
        }
        if standing and not found:
            raise ValueError(
                "A head needs a `representation` to stand on. Received: representation=None"
            )
        return found if embeddings is None else {**found, "embeddings": embeddings}

    @staticmethod
    def output_name(name: str, task: str | None) -> str:
        """Key of a task's logit or representation in `student.output`, and of its label in `y`."""
        return name if task is None else f"{name}_{task}"

    @property
    def _several(self) -> bool:
        return self.tasks != [None]

    @property
    def _adapters(self) -> list[StudentAdapter]:
        return [b.student_adapter for b in self.branches if b.student_adapter is not None]

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Keys that the model reads from `y`: the labels, then the teachers' (optional) columns."""
        return self._columns.names

    @property
    def auxiliary_head(self) -> AuxiliaryHead | None:
        """The first teacher's."""
        return self.branches[0].auxiliary_head

    @property
    def student_adapter(self) -> StudentAdapter | None:
        """The first teacher's."""
        return self.branches[0].student_adapter

    @property
    def adapter_head(self) -> AuxiliaryHead | None:
        """The first teacher's."""
        return self.branches[0].adapter_head

    @property
    def representation_head(self) -> RepresentationHead | None:
        """The first teacher's."""
        return self.branches[0].representation_head

    @property
    def gate(self) -> TeacherGate | None:
        """The first teacher's."""
        return self.branches[0].gate

    @property
    def gates_closed(self) -> bool:
        """Whether all teachers have a gate, each at 0: a step without labels would teach nothing.

        It would not be a step that changes nothing: the momentum of Adam moves weights without a
        gradient. `progressive_validation` leaves out steps of teachers alone meanwhile.
        """
        return all(
            branch.gate is not None and float(ops.convert_to_numpy(branch.gate.factor)) == 0
            for branch in self.branches
        )

    @property
    def shared_head_weight(self) -> Any:
        """The first teacher's."""
        return self.branches[0].shared_head_weight

    @property
    def shared_head_source(self) -> str:
        """The first teacher's."""
        return self.branches[0].shared_head_source

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        representation: str | Mapping[str, str] | None = "representation",
        embeddings: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> ExternalDistillation:
        """Distills into a functional model that ends in a logit, such as those of the zoo.

        The two share their layers: training the one trains the other.

        Args:
            model: A functional model with one output, the logit `(batch, 1)`, or a dict of
                logits by task.
            representation: Name of the layer whose output the heads stand on (a dict of names by
                task, if tasks have their own), or `None` if there are none.
                Defaults to `"representation"`.
            embeddings: Names of features; the representation heads match their embeddings, side by
                side (`embeddings_of`). Defaults to `None`: they match `representation`.
            **kwargs: The other arguments of `ExternalDistillation`.

        Raises:
            ValueError: If `model` is not functional or has no such layer.
        """
        if not isinstance(model, keras.Model) or getattr(model, "inputs", None) is None:
            raise ValueError(
                f"`model` should be a functional keras.Model. Received: model={model!r}"
            )
        names = [layer.name for layer in model.layers]

        def output_of(name: str) -> Any:
            if name not in names:
                raise ValueError(
                    "`representation` should name a layer of `model`. Received: "
                    f"representation={name!r}, layers={names}"
                )
            return model.get_layer(name).output

        tensor: Any = None
        if isinstance(representation, Mapping):
            tensor = {task: output_of(name) for task, name in representation.items()}
        elif representation is not None:
            tensor = output_of(representation)
        if embeddings is not None:
            kwargs["embeddings"] = embeddings_of(model, embeddings)
        return cls(model.input, model.output, representation=tensor, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Creates the heads' and the adapters' variables; the student has its own already."""
        embeddings = self.student.output.get("embeddings")
        for branch in self.branches:
            key = self.representation_name(branch)
            branch.build(
                None if key is None else tuple(self.student.output[key].shape),
                None if embeddings is None else tuple(embeddings.shape),
            )
        self._freeze_adapter()
        self.built = True

    def representation_name(self, branch: TeacherBranch) -> str | None:
        """Key of `student.output` on which the branch's heads stand."""
        own = self.output_name("representation", branch.task)
        return next((key for key in (own, "representation") if key in self.student.output), None)

    def _freeze_adapter(self) -> None:
        if self.strict:
            for adapter in self._adapters:
                # Up and down: on TensorFlow an assignment of the value it has already is skipped,
                # and a layer that was loaded frozen still has trainable variables.
                adapter.trainable = True
                adapter.trainable = False

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The serving logit, or a dict of what all heads predict while training."""
        inputs = _checks.named_inputs(inputs, self.student.input)
        outputs = self.student(inputs, training=training)
        logits = {task: outputs[self.output_name("logit", task)] for task in self.tasks}
        logit = logits if self._several else logits[None]
        if not training:
            return logit
        result = {"logit": logit}
        for branch in self.branches:
            if branch.heads:
                key = self.representation_name(branch)
                found = branch(
                    None if key is None else outputs[key], self.step, outputs.get("embeddings")
                )
                result |= {name + branch.suffix: value for name, value in found.items()}
        return result

    @property
    def step(self) -> Any:
        """Number of training steps taken; `None` if nothing depends on it."""
        return None if self._iterations is None else ops.convert_to_tensor(self._iterations)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        adapter_optimizer: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Configures training; the arguments not listed are those of `keras.Model.compile`.

        Args:
            optimizer: Optimizer of the student (and of the adapter, unless `strict`).
                Defaults to `"rmsprop"`.
            loss: Loss of the serving logit against the label; replaces `label_loss` only.
                Defaults to `None`, `keras.losses.BinaryCrossentropy(from_logits=True)`.
            metrics: Metrics of the serving logit against the label. Unlike in `keras.Model` they
                do see the sample weights: the streams pad their last batch with rows of weight 0.
                Defaults to `None`.
            weighted_metrics: More of the same. Defaults to `None`.
            adapter_optimizer: With `strict=True`, the optimizer of the adapter. Defaults to `None`:
                a fresh optimizer with the settings of `optimizer`.
            run_eagerly: Defaults to `False`.
            steps_per_execution: Defaults to `1`.
            jit_compile: Defaults to `"auto"`.
            auto_scale_loss: Defaults to `True`.
            loss_weights: With several tasks, weights of their label losses. Defaults to `None`:
                1 each.

        With several tasks, `loss`, `metrics` and `weighted_metrics` are dicts by task; one loss
        serves all tasks.

        Raises:
            ValueError: If `adapter_optimizer` comes without `strict=True`, or keeps a moving
                average, which nothing would write back; or if a loss or a metric takes
                probabilities (`from_logits=False`).
        """
        if adapter_optimizer is not None and not self.strict:
            raise ValueError(
                "`adapter_optimizer` needs `strict=True`; without it one optimizer trains all. "
                f"Received: adapter_optimizer={adapter_optimizer!r}"
            )
        optimizer = keras.optimizers.get(optimizer)
        if self.strict:
            if adapter_optimizer is None:
                adapter_optimizer = type(optimizer).from_config(optimizer.get_config())
            adapter_optimizer = keras.optimizers.get(adapter_optimizer)
            if adapter_optimizer.use_ema:
                raise ValueError(
                    "`adapter_optimizer` should not use a moving average (use_ema=True)."
                )
        if loss_weights is not None and not self._several:
            raise ValueError(
                "`loss_weights` are for several tasks; this student has one. "
                f"Received: loss_weights={loss_weights!r}"
            )
        for name, given in (
            ("loss", _resolved(loss, keras.losses.get)),
            ("metrics", _resolved([metrics, weighted_metrics], keras.metrics.get)),
        ):
            wrong = [one for one in given if takes_probabilities(one)]
            if wrong:
                raise ValueError(
                    f"`{name}` should take logits, which the serving head gives: pass "
                    f"`from_logits=True`. (Load a file that was saved so with compile=False.) "
                    f"Received: {name}={wrong}"
                )
        loss = self._crossentropy if loss is None else loss
        crossentropies = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
        self._of_clicks = all(isinstance(one, crossentropies) for one in keras.tree.flatten(loss))
        shown: Any = [*_listed(metrics), *_listed(weighted_metrics)] or None
        if self._several:
            loss = loss if isinstance(loss, Mapping) else dict.fromkeys(self.tasks, loss)
            shown = self._metrics_by_task(metrics, weighted_metrics)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            weighted_metrics=shown,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        if self.strict:
            # `model.trainable = True` in between would have thawed it.
            self._freeze_adapter()
            if not adapter_optimizer.built:
                adapter_optimizer.build(self.adapter_variables)
            self.adapter_optimizer = adapter_optimizer

    def _metrics_by_task(self, *given: Any) -> dict[str, list[Any]] | None:
        found: dict[str, list[Any]] = {}
        for metrics in given:
            if metrics is None:
                continue
            if not isinstance(metrics, Mapping) or not set(metrics) <= set(self.tasks):
                raise ValueError(
                    f"With several tasks metrics come as a dict by task, of {self.tasks}. "
                    f"Received: {metrics!r}"
                )
            for task, value in metrics.items():
                found.setdefault(task, []).extend(_listed(value))
        return found or None

    def get_compile_config(self) -> dict[str, Any]:
        """Arguments of `compile`."""
        config = super().get_compile_config()
        if config:
            config["adapter_optimizer"] = (
                keras.saving.serialize_keras_object(self.adapter_optimizer)
                if self.adapter_optimizer is not None
                else None
            )
        return config

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compiles, and makes the optimizers ready to load their state."""
        self.compile(**keras.saving.deserialize_keras_object(dict(config)))
        self.optimizer.build(self.trainable_variables)

    @property
    def adapter_variables(self) -> list[Any]:
        """The variables that the adapters' own optimizer trains, if `strict`."""
        return [v for adapter in self._adapters for v in adapter.weights] if self.strict else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        """Those of `keras.Model`, and the adapter optimizer's.

        On JAX only what is listed here is carried through the compiled step.
        """
        variables = super().non_trainable_variables
        if self.adapter_optimizer is not None:
            variables = [*variables, *self.adapter_optimizer.variables]
        return variables

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; inputs, labels and teachers' logits are looked at before.

        Raises:
            ValueError: For inputs that do not fit; for a label outside of 0..1 in an array, if the
                loss is a crossentropy; names the row. (A NaN is an unknown label.)

        Warns:
            UserWarning: If all logits of a teacher lie in 0..1, as probabilities would.
        """
        _checks.loop_inputs(x, self.student.input)
        _targets.check_arrays(y, kwargs.get("sample_weight"), self._columns, self._of_clicks)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; inputs are looked at before."""
        _checks.loop_inputs(x, self.student.input)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; inputs are looked at before."""
        _checks.loop_inputs(x, self.student.input)
        return super().predict(x, *args, **kwargs)

    def unpack_targets(self, data: Any) -> _targets.Targets:
        """The targets of `(x, y, sample_weight)`, as `train_step` receives it."""
        return _targets.unpack(data, self._columns)

    def adapter_loss(self, targets: _targets.Targets) -> Any:
        """The adapters' loss on the labels of the rows that have a teacher."""
        return sum(b.adapter_loss(targets) for b in self.branches if b.student_adapter is not None)

    def observe_adapters(self, targets: _targets.Targets) -> None:
        """Shows the gates the adapters' loss, before the adapters learn from these rows."""
        for branch in self.branches:
            branch.observe_teacher(targets)

    def train_step(self, *args: Any) -> Any:
        """Keras's own step, after the adapter's if `strict`."""
        if self.strict:
            if keras.backend.backend() == "jax":
                state, data = args
                args = (_adapter_step.jax_step(self, state, data), data)
            else:
                _adapter_step.tensorflow_step(self, *args)
        return super().train_step(*args)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The sum of the terms while training, the label's loss alone otherwise."""
        targets = _targets.split(y, sample_weight, self._columns)
        logit, teaching = _serving_logit(y_pred)
        label_loss = super().compute_loss(
            x=x,
            y=self._by_task({t: label.value for t, label in targets.labels.items()}),
            y_pred=logit,
            sample_weight=self._by_task({t: label.weight for t, label in targets.labels.items()}),
            training=training,
        )
        terms = {"label_loss": label_loss}
        if teaching:
            logits = logit if self._several else {None: logit}
            for branch in self.branches:
                self._track_rows(branch, targets)
                found = branch.compute_terms(
                    {name: y_pred[name + branch.suffix] for name in branch.heads},
                    logits[branch.task],
                    targets,
                    self.step,
                    teacher_observed=self.strict,
                )
                terms |= {name + branch.suffix: value for name, value in found.items()}
            if self._iterations is not None:
                self._iterations.assign_add(1)
        rows = ops.shape(next(iter(targets.labels.values())).value)[0]
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=rows)
        return sum(terms.values())

    def _by_task(self, values: Mapping[Any, Any]) -> Any:
        """As Keras wants it: a dict with several tasks, else the one value."""
        if not self._several:
            return values[None]
        return None if all(value is None for value in values.values()) else dict(values)

    def _track_rows(self, branch: TeacherBranch, targets: _targets.Targets) -> None:
        teacher = targets.teachers[branch.logit_column]
        _, known = known_teacher(teacher)
        known = ops.cast(known, "float32")
        used, weight = None, targets.labels[branch.task].row_weight
        if weight is not None:
            used = ops.cast(ops.expand_dims(weight, -1) > 0, "float32")

        def track(name: str, value: Any, sample_weight: Any = None) -> None:
            self._trackers[name + branch.suffix].update_state(value, sample_weight=sample_weight)

        track("teacher_coverage", known, used)
        if branch.auxiliary_head is not None:
            clipped = ops.cast(branch.auxiliary_head.clipped(teacher), "float32")
            track("clipped_labels", clipped, known)
        if branch.gate is not None:
            track("teacher_gate", branch.gate.factor)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """Metrics of the serving logit; the teacher's terms appear while training only."""
        targets = _targets.split(y, sample_weight, self._columns)
        logit, training = _serving_logit(y_pred)
        logs = super().compute_metrics(
            x,
            self._by_task({t: label.value for t, label in targets.labels.items()}),
            logit,
            sample_weight=self._by_task({t: lb.weight for t, lb in targets.labels.items()}),
        )
        if not training:
            hidden = set(self._trackers) - {"label_loss"}
            logs = {name: value for name, value in logs.items() if name not in hidden}
        return logs

    def serving_model(self) -> keras.Model:
        """The student alone: same inputs, the serving logit, shared weights, no distillation.

        Its outputs are bit for bit those of `predict` (with several tasks a dict), and its `.keras`
        file holds neither heads nor adapter.
        """
        logits = {task: self.student.output[self.output_name("logit", task)] for task in self.tasks}
        return keras.Model(
            self.student.input,
            logits if self._several else logits[None],
            name=f"{self.name}_serving",
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model; the student stands for its tensors."""
        config = {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "tasks": self.tasks if self._several else None,
            "strict": self.strict,
        }
        if not self._simple:
            return {**config, "teachers": [serialize_unbuilt(branch) for branch in self.branches]}
        branch = self.branches[0].get_config()
        simple = (*_PARTS, "shared_head_weight", "shared_head_source")
        return {**config, **{name: branch[name] for name in simple}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """The model with the arguments of `get_config`."""
        # Keras empties the config of a functional model while it reads it.
        arguments = copy.deepcopy(dict(config))
        read = keras.saving.deserialize_keras_object
        for key in ("student", *_PARTS):
            arguments[key] = read(arguments.get(key), custom_objects=custom_objects)
        if arguments.get("teachers") is not None:
            arguments["teachers"] = [
                read(branch, custom_objects=custom_objects) for branch in arguments["teachers"]
            ]
        student, tasks = arguments.pop("student"), arguments.pop("tasks", None)
        outputs = student.output
        own = {task: outputs.get(cls.output_name("representation", task)) for task in tasks or ()}
        shared = outputs.get("representation")
        return cls(
            student.input,
            {task: outputs[cls.output_name("logit", task)] for task in tasks}
            if tasks
            else outputs["logit"],
            representation=own if any(t is not None for t in own.values()) else shared,
            embeddings=outputs.get("embeddings"),
            **arguments,
        )
