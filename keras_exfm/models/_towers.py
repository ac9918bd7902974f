"""Parts that several models of the zoo are put together from."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_exfm.layers import _checks
from keras_exfm.layers._loud_relu import loud_relu
from keras_exfm.models._ranking_model import LOGIT


def dnn(
    x: Any,
    units: tuple[int, ...],
    name: str,
    dropout: float,
    batch_norm: bool,
    dtype: Any,
    last: str | None = None,
) -> Any:
    """Dense ReLU layers, each with BatchNorm before the ReLU and dropout behind it if asked for.

    The layer that gives the output is called `last`, if that is given. BatchNorm has the momentum
    and the epsilon of PyTorch, with which the published results were made: with Keras' own
    momentum, 0.99, the moving statistics lag behind on sets of a hundred steps an epoch.
    """
    for i, count in enumerate(units):
        activation = None if batch_norm else loud_relu
        steps: list[tuple[Any, str, dict[str, Any]]] = [
            (keras.layers.Dense, f"{name}-{i}", {"units": count, "activation": activation})
        ]
        if batch_norm:
            norm = {"momentum": 0.9, "epsilon": 1e-5}
            steps.append((keras.layers.BatchNormalization, f"{name}-norm-{i}", norm))
            steps.append((keras.layers.Activation, f"{name}-relu-{i}", {"activation": loud_relu}))
        if dropout:
            steps.append((keras.layers.Dropout, f"{name}-dropout-{i}", {"rate": dropout}))
        for j, (layer, label, config) in enumerate(steps):
            final = last is not None and (i, j) == (len(units) - 1, len(steps) - 1)
            x = layer(**config, dtype=dtype, name=last if final else label)(x)
    return x


def head_initializers(prior: float | None) -> dict[str, Any]:
    """Initializers of a serving head's kernel and bias.

    With a `prior` every logit starts there. Without one, a head on a normalized representation
    starts with logits of about unit spread around 0; the large gradients of the first steps, all
    of one sign, then stay in Adagrad's accumulators.
    """
    if prior is None:
        return {"kernel_initializer": "glorot_uniform", "bias_initializer": "zeros"}
    prior = _checks.probability("prior", prior)
    constant = keras.initializers.Constant(math.log(prior / (1 - prior)))
    return {"kernel_initializer": "zeros", "bias_initializer": constant}


def summed_logit(representation: Any, others: list[Any], prior: float | None = None) -> Any:
    """A linear function of the representation, plus other logits, in float32."""
    label = LOGIT if not others else "representation-logit"
    own = keras.layers.Dense(1, **head_initializers(prior), dtype="float32", name=label)(
        representation
    )
    if not others:
        return own
    return keras.layers.Add(dtype="float32", name=LOGIT)([own, *others])
