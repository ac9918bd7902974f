"""ExFM's auxiliary head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._gradient_scale import scale_gradient
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.losses import TeacherCrossentropy, clipped_targets, soft_targets
from keras_exfm.losses import _checks as _loss_checks


@keras.saving.register_keras_serializable(package="keras_exfm")
class AuxiliaryHead(keras.layers.Layer):
    """A head of its own for the teacher's label, on the student's representation.

    The serving head keeps learning from true labels only; the teacher acts through the shared
    representation. Formula, with the representation `x`, the teacher's logit `t`, and three knobs
    `alpha = label_scale`, `beta = gradient_scale`, `w = loss_weight`:

        g(x)   = sg(x) + beta * (x - sg(x))                value x, gradient times beta
        logit  = Dense_1(ReLU(Dense(... g(x))))            a hidden Dense for every entry of units
        target = min(alpha * sigmoid(t), 1)
        L      = w * crossentropy(logit, target)

    `sg` stops the gradient. `alpha` changes the target; `beta` only the gradient that enters the
    backbone (the head's own weights learn at full strength); `w` the whole term. A head with
    `alpha != 1` is miscalibrated on purpose; it never serves.

    Args:
        units: Widths of the hidden ReLU layers. Defaults to `()`, a linear head.
        loss_weight: Weight of the head's loss: a number, or a `LearningRateSchedule` of Keras that
            is read at the training step. Defaults to `1.0`.
        label_scale: Factor on the teacher's probability. Defaults to `1.0`.
        gradient_scale: Factor on the gradient into the backbone; a number or a schedule.
            Defaults to `1.0`.
        output_initializer: Initializer of the last layer's kernel. A head that starts at random
            sends random gradients into the backbone until it has learned something; with `"zeros"`
            they start from zero and grow as the head learns. Worth it where the teacher's first
            predictions meet a student that has been trained already, or a short stream.
            Defaults to `"glorot_uniform"`.
        prior: The mean target that the head starts with, such as the click rate: its bias starts
            at the logit of it. Defaults to `None`: 0.5, as Keras does.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        representation: Tensor `(batch, features)`. The output is a logit `(batch, 1)`.
        step: Training step at which a schedule is read. Defaults to `None`: step 0.
        gate: A further factor on the gradient into the backbone, such as a `TeacherGate`'s.
            Defaults to `None`: none.

    Raises:
        ValueError: If an argument is out of range, or the representation has another rank.

    Example:

    >>> import numpy as np
    >>> head = AuxiliaryHead(units=(16,), label_scale=2.0, gradient_scale=5.0)
    >>> logit = head(np.ones((3, 8), "float32"))
    >>> tuple(logit.shape)
    (3, 1)
    >>> teacher = np.array([[0.0], [4.0], [np.nan]], "float32")
    >>> [float(v[0]) for v in head.target(teacher)][:2]
    [1.0, 1.0]
    >>> [bool(v[0]) for v in head.clipped(teacher)]
    [False, True, False]

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), Eq. 3-5. Where the paper's
          text was not at hand, after the open re-implementation `doogkong/ad_ranking`.
    """

    def __init__(
        self,
        units: Sequence[int] = (),
        loss_weight: Any = 1.0,
        label_scale: float = 1.0,
        gradient_scale: Any = 1.0,
        output_initializer: Any = "glorot_uniform",
        prior: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = _checks.unit_counts("units", units)
        self.loss_weight = _loss_checks.schedule("loss_weight", loss_weight)
        self.label_scale = _loss_checks.scale("label_scale", label_scale, positive=True)
        self.gradient_scale = _loss_checks.schedule("gradient_scale", gradient_scale)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.prior = None if prior is None else _checks.probability("prior", prior)
        self._loss = TeacherCrossentropy(self.label_scale)
        self.mlp: Any = None

    def build(self, representation_shape: Any) -> None:
        """Creates the head's dense layers."""
        shape = tuple(representation_shape)
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(
                "AuxiliaryHead expects a representation of shape (batch, features) with a known "
                f"number of features. Received: representation_shape={shape}"
            )
        self.mlp = MLP(
            self.units,
            1,
            output_initializer=self.output_initializer,
            output_bias_initializer=keras.initializers.Constant(
                0.0 if self.prior is None else math.log(self.prior / (1 - self.prior))
            ),
            dtype=self.dtype_policy,
            name="mlp",
        )
        self.mlp.build(shape)
        hand_down_trainable(self)
        self.built = True

    def call(self, representation: Any, step: Any = None, gate: Any = None) -> Any:
        """The head's logit."""
        scale = _loss_checks.at_step(self.gradient_scale, step)
        return self.mlp(scale_gradient(representation, scale, gate))

    def target(self, teacher_logit: Any) -> Any:
        """`min(alpha * sigmoid(teacher_logit), 1)`; any finite value where it is missing."""
        return soft_targets(teacher_logit, self.label_scale)

    def clipped(self, teacher_logit: Any) -> Any:
        """Boolean, where the scaled label was above 1; its mean is the clipped share."""
        return clipped_targets(teacher_logit, self.label_scale)

    def row_loss(self, logit: Any, teacher_logit: Any) -> Any:
        """Crossentropy of each row `(batch,)`, without `w`; 0 where the teacher is missing."""
        return self._loss.call(teacher_logit, ops.cast(logit, "float32"))

    def compute_loss(
        self, logit: Any, teacher_logit: Any, sample_weight: Any = None, step: Any = None
    ) -> Any:
        """The head's term in the training loss: `w * sum(sample_weight * row_loss) / batch`.

        Args:
            logit: What `call` returned, `(batch, 1)`.
            teacher_logit: `(batch, 1)`; NaN where the teacher is missing.
            sample_weight: Optional `(batch,)`. Defaults to `None`.
            step: Training step at which a schedule is read. Defaults to `None`: step 0.
        """
        weight = _loss_checks.at_step(self.loss_weight, step)
        return weight * self._loss(teacher_logit, logit, sample_weight=sample_weight)

    def compute_output_shape(self, representation_shape: Any) -> tuple[Any, ...]:
        """`(batch, 1)`."""
        batch, _ = representation_shape
        return (batch, 1)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "loss_weight": _loss_checks.serialize_schedule(self.loss_weight),
            "label_scale": self.label_scale,
            "gradient_scale": _loss_checks.serialize_schedule(self.gradient_scale),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "prior": self.prior,
        }
