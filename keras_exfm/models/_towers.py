"""Parts that several models of the zoo are put together from."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.models._ranking_model import LOGIT, loud_relu


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


def summed_logit(representation: Any, others: list[Any]) -> Any:
    """A linear function of the representation, plus other logits, in float32."""
    if not others:
        return keras.layers.Dense(1, dtype="float32", name=LOGIT)(representation)
    own = keras.layers.Dense(1, dtype="float32", name="representation-logit")(representation)
    return keras.layers.Add(dtype="float32", name=LOGIT)([own, *others])
