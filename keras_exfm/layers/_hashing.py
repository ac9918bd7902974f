"""A hash of int32 ids that is the same on every backend."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from keras import ops

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable_arithmetic() -> Iterator[None]:
    """Graphs that are traced within use integers that every serving runtime divides.

    LiteRT has no remainder of unsigned integers. The rows are the same.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def murmur3_mix32(ids: Any) -> Any:
    """The 32-bit finalizer of MurmurHash3, a bijection on 32-bit words.

    Formula, in uint32 arithmetic that wraps:

        x ^= x >> 16;  x *= 0x85ebca6b;  x ^= x >> 13;  x *= 0xc2b2ae35;  x ^= x >> 16

    Args:
        ids: int32 or uint32 tensor; negative ids count as their two's complement.

    Returns:
        uint32 tensor of the same shape.
    """

    def word(value: int) -> Any:
        return ops.convert_to_tensor(value, dtype="uint32")

    x = ops.cast(ids, "uint32")
    x = ops.bitwise_xor(x, ops.right_shift(x, word(16)))
    x = ops.multiply(x, word(0x85EBCA6B))
    x = ops.bitwise_xor(x, ops.right_shift(x, word(13)))
    x = ops.multiply(x, word(0xC2B2AE35))
    return ops.bitwise_xor(x, ops.right_shift(x, word(16)))


def hash_to_rows(ids: Any, sizes: Any) -> Any:
    """int32 rows `murmur3_mix32(ids) mod sizes`; `sizes` broadcasts against `ids`."""
    if _portable.get():
        wide = ops.cast(murmur3_mix32(ids), "int64")
        sizes = ops.cast(ops.convert_to_tensor(sizes, dtype="int32"), "int64")
        return ops.cast(ops.mod(wide, sizes), "int32")
    sizes = ops.cast(ops.convert_to_tensor(sizes, dtype="int32"), "uint32")
    return ops.cast(ops.mod(murmur3_mix32(ids), sizes), "int32")
