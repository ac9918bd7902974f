"""Where a probability stands, or is asked for, in place of a logit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_MANY = 100
_SQUASHING = {"sigmoid", "hardsigmoid", "softmax"}
_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)


def probability_layer(model: Any, tensor: Any = None) -> str | None:
    """Name of the layer that makes a model's output a probability.

    Args:
        model: A Keras model.
        tensor: The output, if the model is functional. Defaults to `None`: any of its outputs.

    Returns:
        The name; `None` if the output is no probability, or if that cannot be seen, as in a
        subclassed model.
    """
    if isinstance(model, keras.Sequential):
        return _squashing(model.layers[-1]) if model.layers else None
    if getattr(model, "operations", None) is None:
        return None
    wanted = keras.tree.flatten(model.outputs) if tensor is None else [tensor]
    ends = [one for one in model.operations if _makes(one, wanted)]
    if not ends and len(wanted) == 1:
        # A model within a model shows the output of its own graph, not what it gave here.
        ends = [one for one in model.operations[-1:] if len(getattr(one, "outputs", ())) == 1]
    return next((name for name in map(_squashing, ends) if name is not None), None)


def _makes(operation: Any, wanted: list[Any]) -> bool:
    try:
        made = keras.tree.flatten(operation.output)
    except (AttributeError, ValueError):  # Called more than once, or not at all.
        return False
    return any(one is output for one in made for output in wanted)


def _squashing(operation: Any) -> str | None:
    if isinstance(operation, keras.Model):
        return probability_layer(operation)
    activation = getattr(operation, "activation", None)
    names = {getattr(activation, "__name__", ""), type(operation).__name__}
    plain = {name.lower().replace("_", "") for name in names}
    return operation.name if plain & _SQUASHING else None


def takes_probabilities(measure: Any) -> bool:
    """Whether a loss or a metric was made for probabilities (`from_logits=False`)."""
    if any(measure is function for function in _FUNCTIONS):
        return True
    try:
        config = measure.get_config()
    except (AttributeError, NotImplementedError, TypeError):
        return False
    return isinstance(config, dict) and config.get("from_logits") is False


def looks_like_probabilities(logits: np.ndarray) -> bool:
    """Whether all of many values lie in 0..1, as logits of clicks hardly ever do."""
    return logits.size >= _MANY and float(logits.min()) >= 0 and float(logits.max()) <= 1
