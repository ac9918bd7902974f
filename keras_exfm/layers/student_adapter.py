"""ExFM's student adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.losses import _checks as _loss_checks
from keras_exfm.losses import known_teacher


@keras.saving.register_keras_serializable(package="keras_exfm")
class StudentAdapter(keras.layers.Layer):
    """Corrects a teacher's prediction by fresh labels, for a second distillation head.

    Formula, with the teacher's logit `t`:

        SA(t) = MLP(t)              ReLU hidden layers, then Dense(1)
        SA(t) = t + MLP(t)          if residual
        SA(t, c) = MLP([t, c'])     with context, c' = asinh(c / unit), 0 where c is missing

    The adapter is trained on the true label, `crossentropy(SA(t), y)`, and on nothing else. The
    student's second head is trained on `sg(sigmoid(SA(t)))`, through which no gradient comes back.
    The input is the logit and not the probability: at a click rate of 1 % probabilities crowd near
    0, where a small network can hardly tell them apart. With one scalar in, the adapter is a
    calibration curve; it changes the order of examples only where it is not monotone.

    `residual` is an addition to the paper. The last layer then starts at zero, so that the
    adapter's first target is the teacher's own prediction and it learns the correction alone,
    while the plain form starts near probability 0.5 and teaches the second head that until it has
    caught up. Prefer it where a student starts from nothing on a short stream.

    `context` is an addition to the paper as well: further numbers of the example, such as the age
    of the snapshot that scored it, on which the correction may depend. With one scalar in, the
    adapter averages over fresh and stale predictions. `asinh` is near the identity below one unit
    and logarithmic above, for either sign. A column that describes the example gives the adapter a
    part of the student's task; keep to what describes the teacher.

    Args:
        units: Widths of the hidden ReLU layers. `()` is a straight line in the logit (Platt
            scaling). Defaults to `(8,)`.
        residual: If `True`, the MLP's output is added to the teacher's logit.
            Defaults to `False`.
        context: Columns that the adapter reads beside the logit, and the unit of each, such as
            `{"teacher_age_s": 3600.0}`. Defaults to `None`: none.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        teacher_logit: Tensor `(batch, 1)`. The output is a logit `(batch, 1)`. Where the teacher
            is missing (NaN or infinite) the output is a constant that means nothing, so that no
            NaN reaches a gradient; mask it by the input.
        context: With `context`, a float tensor `(batch, columns)` in the order of the argument,
            NaN where missing.

    Raises:
        ValueError: If an argument is out of range, or the input's shape is another.

    Example:

    >>> import numpy as np
    >>> adapter = StudentAdapter(units=(8,), residual=True)
    >>> logit = adapter(np.array([[-4.0], [1.5]], "float32"))
    >>> [float(v[0]) for v in logit]
    [-4.0, 1.5]

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), Eq. 6-7. Where the paper's
          text was not at hand, after the open re-implementation `doogkong/ad_ranking`.
    """

    def __init__(
        self,
        units: Sequence[int] = (8,),
        residual: bool = False,
        context: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(residual, bool):
            raise ValueError(f"`residual` should be a bool. Received: residual={residual!r}")
        self.units = _checks.unit_counts("units", units)
        self.residual = residual
        if context is not None and not isinstance(context, Mapping):
            raise ValueError(
                "`context` should be a dict of column names and their units. "
                f"Received: context={context!r}"
            )
        self.context = {
            str(name): _loss_checks.scale(f"context[{name!r}]", unit, positive=True)
            for name, unit in (context or {}).items()
        }
        self.hidden: list[keras.layers.Layer] = []
        self.out: Any = None

    def build(self, teacher_logit_shape: Any) -> None:
        """Creates the dense layers."""
        shape = tuple(teacher_logit_shape)
        if len(shape) != 2 or shape[1] != 1:
            raise ValueError(
                "StudentAdapter expects teacher logits of shape (batch, 1). Received: "
                f"teacher_logit_shape={shape}"
            )
        shape = (shape[0], 1 + len(self.context))
        for i, units in enumerate(self.units):
            dense = keras.layers.Dense(
                units, activation="relu", dtype=self.dtype_policy, name=f"hidden_{i}"
            )
            dense.build(shape)
            self.hidden.append(dense)
            shape = (shape[0], units)
        self.out = keras.layers.Dense(
            1,
            kernel_initializer="zeros" if self.residual else "glorot_uniform",
            dtype=self.dtype_policy,
            name="output",
        )
        self.out.build(shape)
        hand_down_trainable(self)
        self.built = True

    def call(self, teacher_logit: Any, context: Any = None) -> Any:
        """The corrected logit."""
        logit, _ = known_teacher(teacher_logit)
        logit = ops.cast(logit, self.compute_dtype)
        x = logit
        if self.context:
            x = ops.concatenate([x, self._scaled(context)], axis=-1)
        elif context is not None:
            raise ValueError(
                "This adapter was made without `context`. Received: context of shape "
                f"{tuple(context.shape)}"
            )
        for dense in self.hidden:
            x = dense(x)
        x = self.out(x)
        return logit + x if self.residual else x

    def _scaled(self, context: Any) -> Any:
        columns = len(self.context)
        shape = None if context is None else tuple(context.shape)
        if shape is None or len(shape) != 2 or shape[1] != columns:
            raise ValueError(
                f"`context` should have shape (batch, {columns}), the columns "
                f"{list(self.context)}. Received: shape={shape}"
            )
        # In float32: a large age in bfloat16 would be rounded before the logarithm.
        context, _ = known_teacher(context)
        units = ops.convert_to_tensor(list(self.context.values()), "float32")
        return ops.cast(ops.arcsinh(context / units), self.compute_dtype)

    def compute_output_shape(self, teacher_logit_shape: Any) -> tuple[Any, ...]:
        """`(batch, 1)`."""
        batch, _ = teacher_logit_shape
        return (batch, 1)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "residual": self.residual,
            "context": dict(self.context) or None,
        }
