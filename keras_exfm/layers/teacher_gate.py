"""How far a teacher is to be followed, learned online."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.losses import _checks


@keras.saving.register_keras_serializable(package="keras_exfm")
class TeacherGate(keras.layers.Layer):
    """Shuts a teacher out while it predicts no better than the student that it teaches.

    An addition to ExFM. Both are judged on the same labelled rows, each before it learns from
    them: the student by its serving logit, the teacher by the adapter's logit if there is an
    adapter, else by its own. Formula, with the crossentropies `s_i` and `t_i`, weights `w_i` (0
    without a teacher, 0 for padding) and `n = sum_i w_i` of a batch:

        d      = 2 ** (-n / half_life)
        S      = d * S + sum_i w_i s_i
        T      = d * T + sum_i w_i t_i
        gain   = 1 - T / S
        factor = min(max((gain - threshold) / margin, 0), 1)   0 before the first labelled row

    `S` and `T` start from 0 and share one count `N = d * N + n`, so that `S / N` and `T / N` are
    unbiased running means from the first batch on. The factor multiplies the gradient that the
    teacher's heads send into the student's representation (and the teacher's term in a shared
    serving head). The heads and the adapter themselves go on learning, and are ready when the gate
    opens. A step uses the factor of the steps before it.

    A teacher that ranks well and is badly calibrated looks worse than it is: give it an adapter.
    A student that learned the teacher's label before its own (`teacher_batch_size` of
    `progressive_validation`) is judged with that knowledge, the teacher as it was when it spoke:
    the gate then shuts earlier than it need. The other way round, a teacher may be better than the
    student and still teach it nothing. The gate bounds the harm of a teacher that has grown bad; it
    does not prove one useful.

    Args:
        half_life: Number of labelled rows (sum of their weights) after which a loss counts half.
            The gate reacts within about that many rows; the noise of the gain is about
            `deviation of (s - t) / mean of s / sqrt(3 * half_life)`. Defaults to `10000.0`.
        margin: Relative gain above the threshold at which the gate is fully open. With `0.0` it is
            open or shut. Defaults to `0.01`.
        threshold: Relative gain below which the gate is shut. A teacher that is hardly better than
            the student has little to teach it, and following it costs something.
            Defaults to `0.0`.
        **kwargs: `name` of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import numpy as np
    >>> gate = TeacherGate(half_life=1000.0, margin=0.1)
    >>> weight = np.ones(4, "float32")
    >>> gate.observe_teacher(np.full(4, 0.38, "float32"), weight)
    >>> gate.observe_student(np.full(4, 0.4, "float32"), weight)
    >>> round(float(gate.factor), 4)  # the teacher is 5 % better
    0.5
    """

    def __init__(
        self,
        half_life: float = 10000.0,
        margin: float = 0.01,
        threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.half_life = _checks.scale("half_life", half_life, positive=True)
        self.margin = _checks.scale("margin", margin)
        self.threshold = _checks.scale("threshold", threshold)
        self._student_sum = self._state("student_sum")
        self._teacher_sum = self._state("teacher_sum")
        self._rows = self._state("rows")
        self._factor = self._state("factor")
        self.built = True

    def _state(self, name: str) -> Any:
        return self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            name=name,
        )

    def build(self, input_shape: Any = None) -> None:
        """Its state exists already."""
        self.built = True

    @property
    def factor(self) -> Any:
        """The factor in `0..1`, after the rows that were observed."""
        return ops.convert_to_tensor(self._factor)

    @property
    def student_loss(self) -> Any:
        """Running mean of the student's crossentropy; 0 before the first row."""
        return self._mean(self._student_sum)

    @property
    def teacher_loss(self) -> Any:
        """Running mean of the (adapted) teacher's crossentropy; 0 before the first row."""
        return self._mean(self._teacher_sum)

    def _mean(self, total: Any) -> Any:
        rows = ops.convert_to_tensor(self._rows)
        return total / ops.where(rows > 0, rows, ops.ones_like(rows))

    def observe_teacher(self, loss: Any, weight: Any) -> None:
        """Takes in the teacher's loss of each row; to be followed by `observe_student`.

        Args:
            loss: `(batch,)`, any finite value where the weight is 0.
            weight: `(batch,)`, 0 where the row has no teacher or no label.
        """
        self._observe(self._teacher_sum, loss, weight)

    def observe_student(self, loss: Any, weight: Any) -> None:
        """Takes in the student's loss of the same rows, and moves the factor.

        Args:
            loss: `(batch,)`.
            weight: `(batch,)`, as for `observe_teacher`.
        """
        self._observe(self._student_sum, loss, weight)
        self._observe(self._rows, ops.ones_like(weight), weight)
        student, teacher = (
            ops.convert_to_tensor(v) for v in (self._student_sum, self._teacher_sum)
        )
        known = student > 0
        gain = 1.0 - teacher / ops.where(known, student, ops.ones_like(student)) - self.threshold
        if self.margin > 0:
            factor = ops.minimum(gain / self.margin, 1.0)
        else:
            factor = ops.ones_like(gain)
        # A loss that is NaN (a part that has diverged) fails the comparison and shuts the gate.
        opened = ops.logical_and(known, gain > 0)
        self._factor.assign(ops.where(opened, factor, ops.zeros_like(factor)))

    def _observe(self, total: Any, value: Any, weight: Any) -> None:
        weight = ops.cast(weight, "float32")
        kept = ops.power(2.0, -ops.sum(weight) / self.half_life)
        rows = ops.where(weight > 0, weight * ops.cast(value, "float32"), ops.zeros_like(weight))
        total.assign(kept * total + ops.stop_gradient(ops.sum(rows)))

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "half_life": self.half_life,
            "margin": self.margin,
            "threshold": self.threshold,
        }
