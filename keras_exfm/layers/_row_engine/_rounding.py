"""bfloat16 rows: unbiased rounding, and the bits on their way to files."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from keras import ops

from keras_exfm.layers._hashing import murmur3_mix32


def stochastic_round(values: Any, ids: Any, step: Any) -> Any:
    """Rounds float32 rows to bfloat16 numbers, up or down with probability by distance.

    To the 32 bits of each number 16 random bits are added, and the lower 16 are cut off: the
    expectation is the number itself, so updates far smaller than bfloat16's spacing (1/128 of a
    number) are not lost. The random bits are a hash of row id, step and column: equal on all
    backends, and the same when a run is repeated.

    Args:
        values: float32 `(n, dim)`.
        ids: int32 `(n,)`, the rows' numbers.
        step: int32 scalar, the training step.

    Returns:
        float32 `(n, dim)` whose lower 16 bits are 0.
    """

    def word(value: int) -> Any:
        return ops.convert_to_tensor(value, dtype="uint32")

    row = murmur3_mix32(ids) + ops.cast(step, "uint32") * word(0x9E3779B1)
    columns = ops.convert_to_tensor(
        (np.arange(1, values.shape[-1] + 1, dtype="uint64") * 0x9E3779B9 % 2**32).astype("uint32")
    )
    noise = ops.right_shift(
        murmur3_mix32(ops.expand_dims(murmur3_mix32(row), -1) + columns), word(16)
    )
    bits = ops.view(values, "uint32") + noise
    rounded = ops.view(ops.bitwise_and(bits, word(0xFFFF0000)), "float32")
    # Adding to the bits of an infinity or a NaN would make another NaN, or a number.
    return ops.where(ops.isfinite(values), rounded, values)


def to_bits(values: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 or, rounded to nearest, float32 values."""
    return np.asarray(values).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse of `to_bits`, as float32."""
    return np.asarray(bits).view(ml_dtypes.bfloat16).astype(np.float32)
