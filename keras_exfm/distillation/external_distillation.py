"""ExFM's external distillation as a Keras model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_exfm.distillation import _adapter_step, _targets
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from keras_exfm.losses import TeacherCrossentropy, known_teacher
from keras_exfm.losses import _checks as _loss_checks


def _instance(name: str, value: Any, cls: type) -> Any:
    if value is not None and not isinstance(value, cls):
        raise ValueError(f"`{name}` should be a {cls.__name__} or None. Received: {name}={value!r}")
    return value


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
             + shared_head_weight * h(z_S, sigmoid(t))      shared_head_loss

    with the terms whose parts were given. The stopped gradient makes one summed loss give every
    weight the gradient that ExFM's Algorithm 1 gives it: the serving head learns from labels
    alone, the adapter from its own loss alone, and the teacher reaches the shared representation.
    Algorithm 1 also has an order: the adapter moves first and the student then sees the moved
    adapter. `strict=True` trains in that order, with an optimizer of its own for the adapter; the
    adapter's variables are then frozen for the main optimizer.

    **Baselines.** No parts: a plain student that reads the same stream. `shared_head_weight > 0`:
    vanilla distillation, one head for both targets (ExFM Eq. 2; its form is not public in full,
    this is the usual one). It may be combined with the heads.

    **Weights and missing teachers.** Each term is `sum_i(weight_i * known_i * h_i) / batch`: the
    same divisor as the label's loss, so a row without a teacher adds nothing and the other rows
    do not grow. A row of weight 0 is padding and never matters, whatever its label or teacher. If
    `y` is the labels alone, or the teacher is missing throughout, the student trains exactly as a
    plain one would.

    **Logs.** `fit` reports `loss`, its terms under the names above (`label_loss` includes the
    student's regularization losses), `clipped_labels` (share of the rows with a teacher whose
    scaled label hit 1) and `teacher_coverage` (share of rows with a teacher). `evaluate` looks at
    the serving head only: its `loss` equals its `label_loss`. With `strict=True`, `adapter_loss`
    and the targets come after the adapter's move.

    Args:
        inputs: Symbolic inputs of the student, as in `keras.Model(inputs, outputs)`.
        logit: Symbolic serving logit, `(batch, 1)`, before any sigmoid.
        representation: Symbolic input of the heads, `(batch, features)`; in most students what
            the last Dense reads. Needed if there is a head. Defaults to `None`.
        auxiliary_head: `keras_exfm.layers.AuxiliaryHead` for the teacher's label.
            Defaults to `None`.
        student_adapter: `keras_exfm.layers.StudentAdapter`. Defaults to `None`.
        adapter_head: `AuxiliaryHead` for the adapter's label. Defaults to `None`: if there is an
            adapter, a head with the `units`, `gradient_scale` and dtype of `auxiliary_head` (of
            a fresh `AuxiliaryHead` without one), and no label scale or loss weight.
        shared_head_weight: Weight of the teacher's label in the serving head itself.
            Defaults to `0.0`.
        strict: Whether to train in the order of Algorithm 1. Defaults to `False`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.Model`.

    Call arguments:
        inputs: As the student's.
        training: If `True`, returns a dict of all logits, `"logit"`, `"auxiliary"` and
            `"adapter_head"`, else the serving logit alone, at the student's cost.
            Defaults to `False`.

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
        shared_head_weight: float = 0.0,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        # The student converts every input to the dtype that its `Input` declares. Autocasting here
        # would round float features to bfloat16 on the way.
        super().__init__(autocast=False, **kwargs)
        _check_tensor("logit", logit)
        if len(logit.shape) != 2 or logit.shape[1] != 1:
            raise ValueError(
                f"`logit` should have shape (batch, 1). Received: shape={tuple(logit.shape)}"
            )
        self.auxiliary_head = _instance("auxiliary_head", auxiliary_head, AuxiliaryHead)
        self.student_adapter = _instance("student_adapter", student_adapter, StudentAdapter)
        if student_adapter is None and (adapter_head is not None or strict):
            raise ValueError(
                "`adapter_head` and `strict=True` need a `student_adapter`. Received: "
                f"adapter_head={adapter_head!r}, strict={strict!r}, student_adapter=None"
            )
        if student_adapter is not None and adapter_head is None:
            like = auxiliary_head if auxiliary_head is not None else AuxiliaryHead()
            adapter_head = AuxiliaryHead(
                units=like.units,
                gradient_scale=like.gradient_scale,
                dtype=like.dtype_policy,
                name="adapter_head",
            )
        self.adapter_head = _instance("adapter_head", adapter_head, AuxiliaryHead)
        if adapter_head is not None and adapter_head is auxiliary_head:
            raise ValueError("`auxiliary_head` and `adapter_head` should be two layers.")
        self.shared_head_weight = _loss_checks.scale("shared_head_weight", shared_head_weight)
        if not isinstance(strict, bool):
            raise ValueError(f"`strict` should be a bool. Received: strict={strict!r}")
        self.strict = strict

        outputs = {"logit": logit}
        if representation is not None:
            _check_tensor("representation", representation)
            outputs["representation"] = representation
        elif self.auxiliary_head is not None or self.adapter_head is not None:
            raise ValueError(
                "A head needs a `representation` to stand on. Received: representation=None"
            )
        self.student = keras.Model(inputs, outputs, name="student")

        self._teacher_loss = TeacherCrossentropy()
        self._crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.adapter_optimizer: Any = None
        terms = {
            "label_loss": True,
            "auxiliary_loss": self.auxiliary_head is not None,
            "adapter_loss": self.student_adapter is not None,
            "adapter_head_loss": self.adapter_head is not None,
            "shared_head_loss": self.shared_head_weight > 0,
            "clipped_labels": self.auxiliary_head is not None,
            "teacher_coverage": True,
        }
        self._trackers = {name: keras.metrics.Mean(name=name) for name, on in terms.items() if on}
        self.build(None)

    @classmethod
    def from_model(
        cls, model: keras.Model, representation: str | None = "representation", **kwargs: Any
    ) -> ExternalDistillation:
        """Distills into a functional model that ends in a logit, such as those of the zoo.

        The two share their layers: training the one trains the other.

        Args:
            model: A functional model with one output, the logit `(batch, 1)`.
            representation: Name of the layer whose output the heads stand on, or `None` if there
                are none. Defaults to `"representation"`.
            **kwargs: The other arguments of `ExternalDistillation`.

        Raises:
            ValueError: If `model` is not functional or has no such layer.
        """
        if not isinstance(model, keras.Model) or getattr(model, "inputs", None) is None:
            raise ValueError(
                f"`model` should be a functional keras.Model. Received: model={model!r}"
            )
        tensor = None
        if representation is not None:
            names = [layer.name for layer in model.layers]
            if representation not in names:
                raise ValueError(
                    "`representation` should name a layer of `model`. Received: "
                    f"representation={representation!r}, layers={names}"
                )
            tensor = model.get_layer(representation).output
        return cls(model.input, model.output, representation=tensor, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Creates the heads' and the adapter's variables; the student has its own already."""
        for head in (self.auxiliary_head, self.adapter_head):
            if head is not None and not head.built:
                head.build(tuple(self.student.output["representation"].shape))
        if self.student_adapter is not None and not self.student_adapter.built:
            self.student_adapter.build((None, 1))
        self._freeze_adapter()
        self.built = True

    def _freeze_adapter(self) -> None:
        if self.strict:
            # Up and down: on TensorFlow an assignment of the value it has already is skipped, and
            # a layer that was loaded frozen still has trainable variables.
            self.student_adapter.trainable = True
            self.student_adapter.trainable = False

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The serving logit, or a dict with the logits of all heads while training."""
        outputs = self.student(inputs, training=training)
        if not training:
            return outputs["logit"]
        logits = {"logit": outputs["logit"]}
        if self.auxiliary_head is not None:
            logits["auxiliary"] = self.auxiliary_head(outputs["representation"])
        if self.adapter_head is not None:
            logits["adapter_head"] = self.adapter_head(outputs["representation"])
        return logits

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

        Raises:
            ValueError: If `adapter_optimizer` comes without `strict=True`, or keeps a moving
                average, which nothing would write back.
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
        super().compile(
            optimizer=optimizer,
            loss=self._crossentropy if loss is None else loss,
            weighted_metrics=[*_listed(metrics), *_listed(weighted_metrics)] or None,
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

    def get_compile_config(self) -> dict[str, Any]:
        """Arguments of `compile`."""
        config = super().get_compile_config()
        if config:
            config.pop("loss_weights", None)
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
        """The variables that the adapter's own optimizer trains, if `strict`."""
        return list(self.student_adapter.weights) if self.strict else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        """Those of `keras.Model`, and the adapter optimizer's.

        On JAX only what is listed here is carried through the compiled step.
        """
        variables = super().non_trainable_variables
        if self.adapter_optimizer is not None:
            variables = [*variables, *self.adapter_optimizer.variables]
        return variables

    def adapter_loss(self, targets: _targets.Targets) -> Any:
        """The adapter's loss on the labels of the rows that have a teacher."""
        logit = self.student_adapter(targets.teacher_logit)
        return self._adapter_loss(logit, targets)

    def _adapter_loss(self, logit: Any, targets: _targets.Targets) -> Any:
        _, known = known_teacher(targets.teacher_logit)
        weight = ops.cast(ops.squeeze(known, -1), "float32")
        if targets.weight is not None:
            weight = weight * targets.weight
        return self._crossentropy(targets.label, logit, sample_weight=weight)

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
        targets = _targets.split(y, sample_weight)
        logits = y_pred if isinstance(y_pred, Mapping) else {"logit": y_pred}
        label_loss = super().compute_loss(
            x=x,
            y=targets.label,
            y_pred=logits["logit"],
            sample_weight=targets.weight,
            training=training,
        )
        terms = {"label_loss": label_loss}
        if isinstance(y_pred, Mapping):
            terms |= self._teacher_terms(logits, targets)
            self._track_rows(targets)
        rows = ops.shape(targets.label)[0]
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=rows)
        return sum(terms.values())

    def _teacher_terms(self, logits: Mapping[str, Any], targets: _targets.Targets) -> dict:
        _, teacher, weight = targets
        terms = {}
        if self.auxiliary_head is not None:
            terms["auxiliary_loss"] = self.auxiliary_head.compute_loss(
                logits["auxiliary"], teacher, weight
            )
        if self.student_adapter is not None:
            adapted = self.student_adapter(teacher)
            terms["adapter_loss"] = self._adapter_loss(adapted, targets)
            _, known = known_teacher(teacher)
            target = ops.cast(ops.stop_gradient(adapted), "float32")
            terms["adapter_head_loss"] = self.adapter_head.compute_loss(
                logits["adapter_head"], ops.where(known, target, teacher), weight
            )
        if self.shared_head_weight > 0:
            terms["shared_head_loss"] = self.shared_head_weight * self._teacher_loss(
                teacher, logits["logit"], sample_weight=weight
            )
        return terms

    def _track_rows(self, targets: _targets.Targets) -> None:
        _, known = known_teacher(targets.teacher_logit)
        known = ops.cast(known, "float32")
        used = None
        if targets.weight is not None:
            used = ops.cast(ops.expand_dims(targets.weight, -1) > 0, "float32")
        self._trackers["teacher_coverage"].update_state(known, sample_weight=used)
        if self.auxiliary_head is not None:
            clipped = self.auxiliary_head.clipped(targets.teacher_logit)
            self._trackers["clipped_labels"].update_state(
                ops.cast(clipped, "float32"), sample_weight=known
            )

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """Metrics of the serving logit; the teacher's terms appear while training only."""
        targets = _targets.split(y, sample_weight)
        training = isinstance(y_pred, Mapping)
        logit = y_pred["logit"] if training else y_pred
        logs = super().compute_metrics(x, targets.label, logit, sample_weight=targets.weight)
        if not training:
            hidden = set(self._trackers) - {"label_loss"}
            logs = {name: value for name, value in logs.items() if name not in hidden}
        return logs

    def serving_model(self) -> keras.Model:
        """The student alone: same inputs, the serving logit, shared weights, no distillation.

        Its outputs are bit for bit those of `predict`, and its `.keras` file holds neither heads
        nor adapter.
        """
        return keras.Model(
            self.student.input, self.student.output["logit"], name=f"{self.name}_serving"
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the model; the student stands for its three tensors."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "auxiliary_head": serialize(self.auxiliary_head),
            "student_adapter": serialize(self.student_adapter),
            "adapter_head": serialize(self.adapter_head),
            "shared_head_weight": self.shared_head_weight,
            "strict": self.strict,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """The model with the arguments of `get_config`."""
        # Keras empties the config of a functional model while it reads it.
        arguments = copy.deepcopy(dict(config))
        for key in ("student", "auxiliary_head", "student_adapter", "adapter_head"):
            arguments[key] = keras.saving.deserialize_keras_object(
                arguments[key], custom_objects=custom_objects
            )
        student = arguments.pop("student")
        return cls(
            student.input,
            student.output["logit"],
            representation=student.output.get("representation"),
            **arguments,
        )
