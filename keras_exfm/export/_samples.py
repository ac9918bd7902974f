"""Rows to compare a file with its model on."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_exfm.features import PADDING, Categorical, MultiHot, Numeric, Schema


def sample(schema: Schema, rows: int) -> dict[str, np.ndarray]:
    """Random rows that a schema allows, the ends of each range and missing values among them.

    Args:
        schema: The features.
        rows: Count.
    """
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {}
    for feature in schema:
        shape = (rows, *feature.shape)
        if isinstance(feature, Numeric):
            numbers = rng.normal(size=shape).astype(np.float32)
            numbers[: rows // 8] *= 100
            numbers[-1:] = 0
            batch[feature.name] = numbers
            continue
        free = feature.hashed or feature.admit_after is not None
        low, high = (-(2**31), 2**31) if free else (0, feature.vocabulary_size)
        ids = rng.integers(low, high, shape)
        if feature.admit_after is not None:
            # Ids that stand a chance to have a row.
            ids = np.where(rng.random(shape) < 0.7, ids % (4 * feature.vocabulary_size), ids)
        ids = np.where(rng.random(shape) < 0.1, PADDING, ids)
        if isinstance(feature, MultiHot):
            lengths = rng.integers(0, feature.length + 1, (rows, 1))
            ids = np.where(np.arange(feature.length) < lengths, ids, PADDING)
        assert isinstance(feature, (Categorical, MultiHot))
        ids[:2] = PADDING
        ids[2:3], ids[3:4] = low, high - 1
        batch[feature.name] = ids.astype(np.int32)
    return batch
