"""Embeddings of chosen features, as a tensor of a model's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_exfm.layers import FeatureEmbedding


def embeddings_of(model: keras.Model, features: Sequence[str]) -> Any:
    """Embeddings of some features of a model, side by side.

    A teacher that logs them, and a student whose own embeddings are to match what was logged
    (`ExternalDistillation(embeddings=)`), name the same features.

    Args:
        model: A functional model with one `FeatureEmbedding` layer, such as those of the zoo.
        features: Names of sparse features, in the order that is wanted.

    Returns:
        A symbolic tensor `(batch, sum of the features' embeddings * dim)`.

    Raises:
        ValueError: If the model has no such layer, or the layer no vector of its own for a feature.

    Example:

    >>> import keras
    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.models import DLRM
    >>> model = DLRM(Schema([Categorical("user", 9), Categorical("ad", 5)]), dim=4)
    >>> embeddings_of(model, ["ad"]).shape
    (None, 4)
    >>> teacher = keras.Model(model.input, {
    ...     "logit": model.output, "vectors": embeddings_of(model, ["ad", "user"])})
    >>> teacher.output["vectors"].shape
    (None, 8)
    """
    layers = [layer for layer in model.layers if isinstance(layer, FeatureEmbedding)]
    if len(layers) != 1:
        raise ValueError(
            "`model` should have one FeatureEmbedding layer. "
            f"Received: {len(layers)} in {[layer.name for layer in model.layers]}"
        )
    names = [features] if isinstance(features, str) else list(features)
    first, places = 0, {}
    for feature in layers[0].schema.sparse:
        if feature.dim in (None, layers[0].dim):
            places[feature.name] = range(first, first + feature.embeddings)
            first += feature.embeddings
    unknown = [name for name in names if name not in places]
    if unknown or not names:
        raise ValueError(
            f"`features` should name sparse features of the model with vectors of its own size, of "
            f"{list(places)}. Received: {unknown or features!r}"
        )
    x = layers[0].output
    return ops.concatenate([x[:, i, :] for name in names for i in places[name]], axis=-1)
