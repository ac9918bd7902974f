"""Ids of any kind as 32 bits."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from keras_exfm.features.conventions import PADDING
from keras_exfm.features.schema_error import SchemaError

_FOLD_BLOCK = 16_384


def fold_ids(ids: np.ndarray) -> np.ndarray:
    """Folds 64-bit integers or strings to int32 for a `hashed` or dynamic feature.

    Integers that fit in int32 stay as they are (so a model fed with int32 directly sees the same
    ids); larger ones become `murmur3_fmix64(id)`'s low 31 bits; strings take the first eight bytes
    of BLAKE2b and the same path. Nulls of an object array become -1.

    Args:
        ids: Array of integers or strings, or of objects that are all integers or all strings, or
            null: `None`, `NaN`, or pandas' `NA`.

    Returns:
        int32 array of the same shape; ids that are int32 already come back as they are.

    Raises:
        SchemaError: For an array of other kinds, such as floats.

    Example:

    >>> fold_ids(np.array([7, 2**40])).tolist()
    [7, 1391604470]
    """
    if ids.dtype.kind not in "biuUOS":
        raise SchemaError(f"Expected integer or string ids. Received dtype {ids.dtype}")
    if ids.dtype.kind == "O":
        null, known = known_ids(ids)
        out = np.full(ids.shape, PADDING, np.int32)
        out[~null] = fold_ids(known)
        return out
    if ids.dtype.kind in "US":
        if ids.dtype.kind == "S":
            ids = _decoded(ids)
        unique, inverse = np.unique(ids, return_inverse=True)
        digests = [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
            for text in unique.tolist()
        ]
        wide = np.array(digests, np.uint64)
        mixed, shifted = np.empty_like(wide), np.empty_like(wide)
        _fmix64(wide, mixed, shifted)
        folded = (mixed & np.uint64(0x7FFFFFFF)).astype(np.int32)
        return folded[inverse].reshape(ids.shape)
    if np.can_cast(ids.dtype, np.int32):
        return ids.astype(np.int32, copy=False)
    flat = np.ascontiguousarray(ids).reshape(-1)
    wide = flat.astype(np.uint64, copy=False) if flat.dtype.kind == "u" else (
        flat.astype(np.int64, copy=False).view(np.uint64)
    )  # fmt: skip
    folded = np.empty(len(flat), np.int32)
    # What a block needs stays in the processor's cache.
    scratch = np.empty((2, min(len(flat), _FOLD_BLOCK)), np.uint64)
    for start in range(0, len(flat), _FOLD_BLOCK):
        part = wide[start : start + _FOLD_BLOCK]
        _fold_block(part, flat.dtype.kind == "i", folded[start : start + len(part)], scratch)
    return folded.reshape(ids.shape)


def is_null(value: Any) -> bool:
    """Whether an object stands for nothing: `None`, a NaN, pandas' `NA` or `NaT`."""
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    # By name: pandas is no dependency.
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def known_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an object array is null, and what is elsewhere: integers, or strings."""
    kinds = set(map(type, ids.flat))
    if kinds == {str}:
        return np.zeros(ids.shape, bool), ids.astype(str)
    null = np.fromiter(map(is_null, ids.flat), bool, ids.size).reshape(ids.shape)
    known = ids[~null].tolist()
    kinds = set(map(type, known))
    whole = {k for k in kinds if issubclass(k, (int, np.integer)) and k is not bool}
    text = {k for k in kinds if issubclass(k, (str, bytes))}
    if wrong := kinds - whole - text:
        value = next(v for v in known if type(v) in wrong)
        raise SchemaError(f"Expected integer or string ids. Received {plain(value)!r}")
    if whole and text:
        one, other = (next(v for v in known if type(v) in part) for part in (whole, text))
        # A string's id and an integer's are folded in different ways.
        raise SchemaError(
            f"Expected ids that are all integers or all strings. Received {plain(one)!r} and "
            f"{plain(other)!r}"
        )
    if text:
        if bytes not in text:
            return null, np.array(known, str)
        return null, _decoded(np.array([v.encode() if isinstance(v, str) else v for v in known]))
    low, high = min(known, default=0), max(known, default=0)
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return null, np.array(known, dtype)
    raise SchemaError(f"Expected ids that fit in 64 bits. Received {low} and {high}")


def _decoded(ids: np.ndarray) -> np.ndarray:
    try:
        return np.char.decode(ids, "utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"Expected bytes that are UTF-8. Received {error.object!r}") from None


def _fold_block(ids: np.ndarray, signed: bool, folded: np.ndarray, scratch: np.ndarray) -> None:
    """Folds ids, given as their 64 bits, into `folded`."""
    one, other = scratch[:, : len(ids)]
    if signed:
        np.add(ids, np.uint64(2**31), out=one)
        large = one >= np.uint64(2**32)
    else:
        large = ids >= np.uint64(2**31)
    np.copyto(folded, ids, casting="unsafe")
    if large.any():
        _fmix64(ids, one, other)
        np.bitwise_and(one, np.uint64(0x7FFFFFFF), out=one)
        np.copyto(folded, one, where=large, casting="unsafe")


def _fmix64(x: np.ndarray, out: np.ndarray, shifted: np.ndarray) -> None:
    """murmur3's finalizer, into `out`; `shifted` is overwritten."""
    np.right_shift(x, np.uint64(33), out=shifted)
    np.bitwise_xor(x, shifted, out=out)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        np.multiply(out, np.uint64(factor), out=out)
        np.right_shift(out, np.uint64(33), out=shifted)
        np.bitwise_xor(out, shifted, out=out)


def plain(value: Any) -> Any:
    """NumPy's scalars as Python's, which messages show as a caller wrote them."""
    return value.item() if isinstance(value, np.generic) else value
