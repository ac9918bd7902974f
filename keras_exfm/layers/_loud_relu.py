"""A ReLU that hides nothing."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_exfm")
def loud_relu(x: Any) -> Any:
    """ReLU that lets NaN through.

    TensorFlow on CPU fuses a Dense layer and its ReLU into a kernel that turns NaN into 0, which
    would hide an id out of range or a number that is none: the logit, and even the loss, would look
    healthy.
    """
    return ops.where(x <= 0, ops.zeros_like(x), x)
