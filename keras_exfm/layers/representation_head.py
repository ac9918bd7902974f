"""A head that matches a teacher's logged representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._gradient_scale import scale_gradient
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.losses import _checks as _loss_checks


@keras.saving.register_keras_serializable(package="keras_exfm")
class RepresentationHead(keras.layers.Layer):
    """Predicts a teacher's logged vector from the student's representation.

    An addition to ExFM: a logit tells the student how the teacher ends, a vector of `size` numbers
    tells what the end was made from. It is still external (the teacher is not run) and free in
    serving. `x` may also be embeddings of the student, to be matched with the teacher's of the same
    features (`ExternalDistillation(embeddings=)`). Formula, with the student's representation `x`,
    the teacher's vector `r`, and per coordinate the running mean `m` and deviation `s` of the
    vectors seen so far:

        g(x)   = sg(x) + beta * (x - sg(x))                value x, gradient times beta
        v      = Dense_size(ReLU(Dense(... g(x))))         a hidden Dense for every entry of units
        target = clip((r - m) / s, -5, 5)
        L      = w * sum_i weight_i * known_i * mean_k((v_ik - target_ik) ** 2) / batch

    Standardised squared error rather than cosine: the vectors are mostly outputs of a ReLU layer,
    whose common mean dominates every angle between them; standardised, each coordinate weighs the
    same whatever its scale, and the loss reads as the share of variance that the head does not
    explain (1 for a head that knows nothing). The running moments follow a teacher that drifts;
    the bound at 5 deviations keeps a coordinate that wakes up from throwing the student off. A row
    whose vector is missing (any NaN or infinite number) adds nothing.

    Args:
        size: Numbers in the teacher's vector.
        units: Widths of the hidden ReLU layers. Defaults to `()`, a linear head.
        loss_weight: Weight `w`; a number, or a `LearningRateSchedule` of Keras that is read at the
            training step. Defaults to `1.0`.
        gradient_scale: Factor `beta` on the gradient into the backbone; a number or a schedule.
            Defaults to `1.0`.
        half_life: Number of rows (sum of their weights) after which a vector counts half in `m`
            and `s`. Defaults to `100000.0`.
        output_initializer: Initializer of the last layer's kernel; see `AuxiliaryHead`. Defaults to
            `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        representation: Tensor `(batch, features)`. The output is `(batch, size)`.
        step: Training step at which a schedule is read. Defaults to `None`: step 0.
        gate: A further factor on the gradient into the backbone, such as a `TeacherGate`'s.
            Defaults to `None`: none.

    Raises:
        ValueError: If an argument is out of range, or a tensor has another shape.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> head = RepresentationHead(size=2)
    >>> vector = head(np.zeros((2, 8), "float32"))
    >>> tuple(vector.shape)
    (2, 2)
    >>> teacher = np.array([[1.0, 50.0], [3.0, 10.0]], "float32")
    >>> loss = head.compute_loss(keras.ops.zeros((2, 2)), teacher)  # the targets are -1 and 1
    >>> round(float(loss), 3)
    1.0
    """

    def __init__(
        self,
        size: int,
        units: Sequence[int] = (),
        loss_weight: Any = 1.0,
        gradient_scale: Any = 1.0,
        half_life: float = 100000.0,
        output_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = _checks.positive_int("size", size)
        self.units = _checks.unit_counts("units", units)
        self.loss_weight = _loss_checks.schedule("loss_weight", loss_weight)
        self.gradient_scale = _loss_checks.schedule("gradient_scale", gradient_scale)
        self.half_life = _loss_checks.scale("half_life", half_life, positive=True)
        self.output_initializer = keras.initializers.get(output_initializer)
        self.mlp: Any = None

    def build(self, representation_shape: Any) -> None:
        """Creates the dense layers and the running moments."""
        shape = tuple(representation_shape)
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(
                "RepresentationHead expects a representation of shape (batch, features) with a "
                f"known number of features. Received: representation_shape={shape}"
            )
        self.mlp = MLP(
            self.units,
            self.size,
            output_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="mlp",
        )
        self.mlp.build(shape)
        self._mean = self._moment("mean", (self.size,))
        self._variance = self._moment("variance", (self.size,))
        self._rows = self._moment("rows", ())
        hand_down_trainable(self)
        self.built = True

    def _moment(self, name: str, shape: tuple[int, ...]) -> Any:
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            name=name,
        )

    def call(self, representation: Any, step: Any = None, gate: Any = None) -> Any:
        """The predicted vector, standardised."""
        scale = _loss_checks.at_step(self.gradient_scale, step)
        return self.mlp(scale_gradient(representation, scale, gate))

    def compute_loss(
        self, vector: Any, teacher: Any, sample_weight: Any = None, step: Any = None
    ) -> Any:
        """The head's term in the training loss; takes the vectors into the running moments first.

        Args:
            vector: What `call` returned, `(batch, size)`.
            teacher: The teacher's vectors, `(batch, size)`; NaN where missing.
            sample_weight: Optional `(batch,)`. Defaults to `None`.
            step: Training step at which a schedule is read. Defaults to `None`: step 0.
        """
        teacher = ops.cast(ops.stop_gradient(ops.convert_to_tensor(teacher)), "float32")
        shape = tuple(teacher.shape)
        if len(shape) != 2 or shape[1] != self.size:
            raise ValueError(
                f"RepresentationHead expects vectors of shape (batch, {self.size}). "
                f"Received: shape={shape}"
            )
        known = ops.all(ops.isfinite(teacher), axis=-1, keepdims=True)
        teacher = ops.where(known, teacher, ops.zeros_like(teacher))
        weight = ops.cast(known, "float32")
        if sample_weight is not None:
            weight = weight * ops.cast(ops.reshape(sample_weight, (-1, 1)), "float32")
        self._observe(teacher, weight)
        target = (teacher - self._mean) / ops.sqrt(self._variance + 1e-8)
        target = ops.stop_gradient(ops.clip(target, -5.0, 5.0))
        error = ops.square(ops.cast(vector, "float32") - target)
        rows = weight * ops.mean(error, axis=-1, keepdims=True)
        return _loss_checks.at_step(self.loss_weight, step) * ops.mean(rows)

    def _observe(self, teacher: Any, weight: Any) -> None:
        """Moves the moments; pooled so that a large mean does not swallow a small variance."""
        new = ops.sum(weight)
        some = ops.where(new > 0, new, ops.ones_like(new))
        mean = ops.sum(weight * teacher, axis=0) / some
        variance = ops.sum(weight * ops.square(teacher - mean), axis=0) / some
        old = self._rows * ops.power(2.0, -new / self.half_life)
        both = old + new
        share = new / ops.where(both > 0, both, ops.ones_like(both))
        delta = mean - self._mean
        self._variance.assign(
            (1.0 - share) * self._variance
            + share * variance
            + share * (1.0 - share) * ops.square(delta)
        )
        self._mean.assign(self._mean + share * delta)
        self._rows.assign(both)

    def compute_output_shape(self, representation_shape: Any) -> tuple[Any, ...]:
        """`(batch, size)`."""
        batch, _ = representation_shape
        return (batch, self.size)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "size": self.size,
            "units": list(self.units),
            "loss_weight": _loss_checks.serialize_schedule(self.loss_weight),
            "gradient_scale": _loss_checks.serialize_schedule(self.gradient_scale),
            "half_life": self.half_life,
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
