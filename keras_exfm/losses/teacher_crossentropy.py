"""Crossentropy between a head's logit and a logged teacher's prediction."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.losses import _checks
from keras_exfm.losses.soft_targets import known_teacher, soft_targets


@keras.saving.register_keras_serializable(package="keras_exfm")
class TeacherCrossentropy(keras.losses.Loss):
    """Binary crossentropy of a logit against a teacher's logit, where there is one.

    Formula, with the student's logit `z`, the teacher's logit `t` and `alpha = label_scale`:

        p = min(alpha * sigmoid(t), 1)
        L = p * softplus(-z) + (1 - p) * softplus(z)

    which is `-h(z, alpha * teacher)` in ExFM's notation. Both terms are sums of positive numbers,
    so nothing cancels at large logits, and the gradient in `z` is `sigmoid(z) - p` everywhere.

    A row whose teacher is missing (NaN or infinite) has loss 0 and gradient 0, and still counts
    in the mean: a batch with half of its teachers missing pulls half as hard, rather than
    doubling the weight of the rows that have one.

    Args:
        label_scale: The factor alpha on the teacher's probability. Defaults to `1.0`.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss. Defaults to `"teacher_crossentropy"`.
        dtype: As in `keras.losses.Loss`. Defaults to `None`.

    Call arguments:
        y_true: Teacher logits, `(batch, 1)` or `(batch,)`.
        y_pred: Student logits, of the same shape.
        sample_weight: Optional `(batch,)` weights.

    Example:

    >>> import numpy as np
    >>> loss = TeacherCrossentropy()
    >>> z = np.array([[0.0], [2.0]], "float32")
    >>> float(loss(np.array([[0.0], [np.nan]], "float32"), z))  # (log 2 + 0) / 2
    0.34657...

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), Eq. 1 and 4.
    """

    def __init__(
        self,
        label_scale: float = 1.0,
        reduction: str = "sum_over_batch_size",
        name: str = "teacher_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_scale = _checks.scale("label_scale", label_scale, positive=True)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each row, shape of `y_pred` without a last axis of size 1."""
        y_true = ops.convert_to_tensor(y_true)
        y_pred = ops.convert_to_tensor(y_pred)
        if tuple(y_true.shape) != tuple(y_pred.shape):
            raise ValueError(
                "The teacher's and the student's logits should have one shape. Received: "
                f"y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
            )
        _, known = known_teacher(y_true)
        target = ops.cast(soft_targets(y_true, self.label_scale), y_pred.dtype)
        rows = target * ops.softplus(-y_pred) + (1.0 - target) * ops.softplus(y_pred)
        rows = ops.where(known, rows, ops.zeros_like(rows))
        return ops.squeeze(rows, -1) if len(rows.shape) > 1 and rows.shape[-1] == 1 else rows

    def get_config(self) -> dict[str, Any]:
        """Arguments of the loss."""
        return {**super().get_config(), "label_scale": self.label_scale}
