"""From raw columns to what a model takes: arrays, lists, null values, ranges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from keras_exfm.features._ids import fold_ids, is_null, known_ids, plain
from keras_exfm.features._kinds import Feature
from keras_exfm.features.categorical import Categorical
from keras_exfm.features.conventions import PADDING
from keras_exfm.features.multi_hot import MultiHot
from keras_exfm.features.numeric import Numeric
from keras_exfm.features.schema_error import SchemaError


def _as_column(feature: Feature, values: Any) -> np.ndarray:
    """What a caller has, as an array; lists of ids are filled up to the feature's length."""
    if not isinstance(feature, Numeric):
        values = _with_nulls(values)
    try:
        column = np.asarray(values)
    except ValueError:
        # Rows of unequal length.
        column = np.fromiter(values, object, len(values))
    if isinstance(feature, Numeric):
        if feature.size > 1 and column.ndim == 1 and column.dtype.kind == "O":
            lengths = _lengths(feature.name, column, f"lists of {feature.size} numbers")
            _refuse(feature.name, lengths != feature.size, lengths, f"{feature.size} numbers")
            return np.array(column.tolist()).reshape(-1, feature.size)
        return column
    listed = isinstance(values, (list, tuple))
    if listed and column.dtype.kind in "USf":
        # NumPy made one kind of it all: of a NaN a word, of an integer a float.
        column = np.array(values, object)
    if isinstance(feature, Categorical):
        return column
    short = listed and column.ndim == 2 and column.shape[1] != feature.length
    if short or (column.ndim == 1 and column.dtype.kind == "O"):
        return _filled(feature, values if short else column)
    return column


def encode_column(feature: Feature, values: Any) -> np.ndarray:
    """The column of a feature, checked, in the dtype and shape of the model's input."""
    column = _as_column(feature, values)
    shape = (len(column) if column.ndim else -1, *feature.shape)
    if isinstance(feature, Numeric) and feature.size == 1 and column.ndim == 2:
        column = column.squeeze(-1) if column.shape[1] == 1 else column
    if column.shape != shape:
        expected = ", ".join(["rows", *map(str, feature.shape)]) + ("" if feature.shape else ",")
        raise SchemaError(
            f"Column {feature.name!r}: expected shape ({expected}). Received: {column.shape}"
        )
    if isinstance(feature, Numeric):
        if column.dtype.kind not in "fiub":
            raise SchemaError(
                f"Column {feature.name!r}: expected numbers. Received dtype {column.dtype}"
            )
        column = column.astype(np.float32, copy=False)
        bad = ~np.isfinite(column)
        if bad.any():
            raise _first_bad(feature, column, bad, "finite numbers")
        return column
    if feature.hashed or feature.admit_after is not None:
        return _fold_column(feature, column)
    if column.dtype.kind == "O":
        column = _integers(feature, column)
    if column.dtype.kind not in "iu":
        raise _not_ids(feature, column, "integer ids")
    bad = (column < PADDING) | (column >= feature.vocabulary_size)
    if bad.any():
        raise _first_bad(feature, column, bad, _range(feature))
    return column.astype(np.int32, copy=False)


def _with_nulls(values: Any) -> Any:
    """A column of a kind that knows nulls, where NumPy would make floats of its integers."""
    if isinstance(values, np.ma.MaskedArray):
        objects = np.array(values.data, object)
        objects[np.ma.getmaskarray(values)] = None
        return objects
    kind = str(getattr(values, "type", ""))
    if getattr(values, "null_count", 0) or "list<" in kind:
        # Arrow's; in a list, what is null shows inside only.
        return np.fromiter(values.to_pylist(), object, len(values))
    extension = hasattr(values, "isna") and not isinstance(values.dtype, np.dtype)
    if extension and getattr(values.dtype, "kind", "O") in "iu" and values.isna().any():
        # pandas' nullable integers.
        return values.to_numpy(dtype=object, na_value=None)
    return values


def _filled(feature: MultiHot, rows: Any) -> np.ndarray:
    """Lists of at most `length` ids as `(rows, length)`, with -1 behind them."""
    rows = [() if is_null(row) else row for row in rows]
    expected = f"lists of at most {feature.length} ids"
    lengths = _lengths(feature.name, rows, expected)
    _refuse(feature.name, lengths > feature.length, lengths, f"at most {feature.length} ids")
    flat = list(itertools.chain.from_iterable(rows))
    ids = np.fromiter(flat, object, len(flat))
    if feature.hashed or feature.admit_after is not None:
        ids = _fold_column(feature, ids)
    else:
        ids = _integers(feature, ids)
    padded = np.full((len(rows), feature.length), PADDING, ids.dtype)
    padded[np.arange(feature.length) < lengths[:, None]] = ids
    return padded


def _lengths(name: str, rows: Any, expected: str) -> np.ndarray:
    for number, row in enumerate(rows):
        # Text has a length as well.
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__"):
            raise SchemaError(
                f"Column {name!r}: expected {expected}. Received {plain(row)!r} in row {number}."
            )
    return np.fromiter(map(len, rows), np.int64, len(rows))


def _refuse(name: str, bad: np.ndarray, lengths: np.ndarray, expected: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise SchemaError(
            f"Column {name!r}: expected lists of {expected}. Received a list of {lengths[row]} in "
            f"row {row} ({int(bad.sum())} such rows)."
        )


def _named(feature: Feature, error: SchemaError) -> SchemaError:
    text = str(error)
    return SchemaError(f"Column {feature.name!r}: {text[0].lower()}{text[1:]}")


def _fold_column(feature: Feature, column: np.ndarray) -> np.ndarray:
    if column.dtype.kind not in "iuUOS":
        raise _not_ids(feature, column, "integer or string ids")
    try:
        return fold_ids(column)
    except SchemaError as error:
        raise _named(feature, error) from None


def _not_ids(feature: Feature, column: np.ndarray, expected: str) -> SchemaError:
    hint = ""
    if column.dtype.kind == "f" and np.isnan(column).any():
        # Casting back may give other ids: a float has 53 bits.
        hint = (
            f" with {int(np.isnan(column).sum())} missing values, which made floats of integers: "
            f"keep them integers, with {PADDING} or a null for what is missing (a list with None, "
            f"pandas' Int64, Arrow)"
        )
    return SchemaError(
        f"Column {feature.name!r}: expected {expected}. Received dtype {column.dtype}{hint}"
    )


def _integers(feature: Categorical | MultiHot, column: np.ndarray) -> np.ndarray:
    """An object column of integers and nulls, with -1 for these."""
    try:
        null, known = known_ids(column)
    except SchemaError as error:
        raise _named(feature, error) from None
    if known.dtype.kind not in "iu":
        raise _not_ids(feature, known, "integer ids")
    bad = np.zeros(column.shape, bool)
    bad[~null] = known > np.iinfo(np.int64).max
    if bad.any():
        raise _first_bad(feature, column, bad, _range(feature))
    whole = np.full(column.shape, PADDING, np.int64)
    whole[~null] = known.astype(np.int64)
    return whole


def _range(feature: Categorical | MultiHot) -> str:
    return f"ids in 0..{feature.vocabulary_size - 1}, or {PADDING} for a missing value"


def _first_bad(feature: Feature, column: np.ndarray, bad: np.ndarray, expected: str) -> SchemaError:
    position = np.argwhere(bad)[0]
    count = int(bad.sum())
    return SchemaError(
        f"Column {feature.name!r}: expected {expected}. "
        f"Received {plain(column[tuple(position)])!r} in row {int(position[0])} "
        f"({count} bad value{'s' if count > 1 else ''} in {len(column)} rows)."
    )
