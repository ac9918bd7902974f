"""From a logged teacher logit to a training target."""

from __future__ import annotations

from typing import Any

from keras import ops


def known_teacher(teacher_logit: Any) -> tuple[Any, Any]:
    """Splits teacher logits into values that are safe to compute with, and who has one.

    A logged logit that is NaN (no teacher scored the row) or infinite counts as missing. Its value
    is replaced before anything is computed from it: masking a result that came from NaN would
    still send NaN back through the gradient (`0 * NaN`).

    Args:
        teacher_logit: Float tensor of any shape.

    Returns:
        `(logit, known)`: the logits in float32 with `0` in place of the missing ones, and a
        boolean tensor of the same shape.

    Example:

    >>> import numpy as np
    >>> logit, known = known_teacher(np.array([-2.0, np.nan], "float32"))
    >>> [float(v) for v in logit], [bool(v) for v in known]
    ([-2.0, 0.0], [True, False])
    """
    logit = ops.cast(teacher_logit, "float32")
    known = ops.isfinite(logit)
    return ops.where(known, logit, ops.zeros_like(logit)), known


def soft_targets(teacher_logit: Any, label_scale: float = 1.0) -> Any:
    """The probability that a student's head is trained on, with label scaling.

        target = min(label_scale * sigmoid(teacher_logit), 1)

    No gradient flows into the teacher's logit. Where it is missing the value means nothing (it is
    finite); `known_teacher` says where.

    Args:
        teacher_logit: Float tensor of any shape.
        label_scale: The factor alpha of ExFM. Defaults to `1.0`.

    Returns:
        float32 tensor of probabilities, shape of `teacher_logit`.

    Example:

    >>> import numpy as np
    >>> [float(v) for v in soft_targets(np.array([0.0, 3.0], "float32"), label_scale=1.5)]
    [0.75, 1.0]

    References:
        - [Liang et al., 2025, ExFM](https://arxiv.org/abs/2502.17494), label scaling (Eq. 4).
    """
    logit, _ = known_teacher(ops.stop_gradient(ops.convert_to_tensor(teacher_logit)))
    return ops.minimum(label_scale * ops.sigmoid(logit), 1.0)


def clipped_targets(teacher_logit: Any, label_scale: float = 1.0) -> Any:
    """Where label scaling runs into its limit: `label_scale * sigmoid(teacher_logit) > 1`.

    Above the limit the teacher's ranking is lost, so the share of such rows is worth watching.

    Args:
        teacher_logit: Float tensor of any shape; a missing logit is not clipped.
        label_scale: The factor alpha of ExFM. Defaults to `1.0`.

    Returns:
        Boolean tensor, shape of `teacher_logit`.

    Example:

    >>> import numpy as np
    >>> [bool(v) for v in clipped_targets(np.array([0.0, 3.0, np.nan], "float32"), 1.5)]
    [False, True, False]
    """
    logit, known = known_teacher(teacher_logit)
    return ops.logical_and(known, label_scale * ops.sigmoid(logit) > 1.0)
