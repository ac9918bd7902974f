"""Arrow columns to NumPy arrays and back, checked and without a Python loop over rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keras_exfm.features import (
    PADDING,
    RESERVED_COLUMNS,
    Categorical,
    Feature,
    MultiHot,
    Numeric,
    Schema,
    SchemaError,
    fold_ids,
)

MS_PER_HOUR = 3_600_000
"""`hour = timestamp // MS_PER_HOUR`."""

Columns: TypeAlias = "pa.Table | pa.RecordBatch | Mapping[str, Any]"
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

# Column -> (type on disk, may be missing from the table, may hold nulls).
_OWN: dict[str, tuple[pa.DataType, bool, bool]] = {
    "example_id": (pa.int64(), False, False),
    "timestamp": (pa.int64(), False, False),
    "vertical": (pa.string(), False, False),
    "label": (pa.float32(), False, False),
    "group": (pa.int64(), True, False),
    "weight": (pa.float32(), True, False),
    "true_probability": (pa.float64(), True, False),
    "teacher_logit": (pa.float32(), False, True),
    "teacher_snapshot": (pa.string(), False, True),
    "teacher_age_s": (pa.float32(), False, True),
}
_TEACHER = ("teacher_logit", "teacher_snapshot", "teacher_age_s")
# A further task or teacher has a column of its own, `label_<task>` or `teacher_logit_<name>`, which
# may be missing and may hold nulls: not every task's label is known of every row.
_NAMED = ("label", "true_probability", *_TEACHER)
# Vectors are stored as bytes of little-endian float16: Delta has neither half floats nor lists of
# a fixed size, and Parquet would widen int16 and int8 to 4 bytes.
_VECTOR = "teacher_representation"
_SIZE_KEY = "keras_exfm.size"


class StreamError(SchemaError):
    """A labelled stream, or rows for one, that cannot be used; names file, column and value."""


def prepare_hour(data: Columns, hour: int, schema: Schema) -> pa.Table:
    """One hour's rows as they are stored: checked, in time order, in the table's types.

    Args:
        data: Arrow table or batch, or column name -> array-like. Multi-hot columns are lists, or a
            `(rows, length)` array padded with -1.
        hour: Hour that every `timestamp` should fall in.
        schema: The features; every other column should be one of the stream's own.

    Raises:
        SchemaError: Names the column, the row and the value.
    """
    columns = _as_arrow(data)
    if "hour" in columns:
        _refuse_first(
            "hour", _integers("hour", columns.pop("hour")), lambda x: x != hour, f"the hour {hour}"
        )
    unknown = sorted(n for n in columns if n not in schema.names and not _is_own(n))
    if unknown:
        raise SchemaError(
            f"Unknown columns {unknown}. A stream has its features {list(schema.names)} and "
            f"{list(RESERVED_COLUMNS)}, and for further tasks and teachers label_<task>, "
            + ", ".join(f"{name}_<name>" for name in (*_NAMED[1:], _VECTOR))
            + "."
        )
    required = [name for name, own in _OWN.items() if not own[1] and name not in _TEACHER]
    missing = [name for name in (*required, *schema.names) if name not in columns]
    if missing:
        raise SchemaError(f"Missing columns {missing}. Received columns: {sorted(columns)}")
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise SchemaError(f"Columns should have the same number of rows. Received: {sizes}")
    rows = sizes["example_id"]
    if rows == 0:
        raise SchemaError("An hour should have at least one row. Received none.")

    stored: dict[str, pa.Array] = {"hour": pa.array(np.full(rows, hour, np.int64))}
    for name in _OWN:
        if name in columns:
            stored[name] = _own_column(name, columns[name])
        elif name in _TEACHER:
            stored[name] = pa.nulls(rows, _OWN[name][0])
    sizes = {}
    for name in sorted(set(columns) - {*_OWN, *schema.names}):
        if _base(name) == _VECTOR:
            stored[name], sizes[name] = _stored_vectors(name, columns[name])
        else:
            stored[name] = _own_column(name, columns[name])
    timestamp = stored["timestamp"].to_numpy()
    _refuse_first(
        "timestamp",
        timestamp,
        lambda x: x // MS_PER_HOUR != hour,
        f"milliseconds of hour {hour} ({hour * MS_PER_HOUR}..{(hour + 1) * MS_PER_HOUR - 1})",
    )
    example_id = stored["example_id"].to_numpy()
    later, same = timestamp[1:] > timestamp[:-1], timestamp[1:] == timestamp[:-1]
    in_order = (later | (same & (example_id[1:] > example_id[:-1]))).all()
    ordered = np.sort(example_id)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        at = np.flatnonzero(example_id == twice[0])[:2].tolist()
        raise SchemaError(
            f"Column 'example_id': expected distinct ids. Received {twice[0]} in rows {at} "
            f"({len(twice)} repeats)."
        )
    raw = {f.name: raw_feature(columns[f.name], f) for f in schema}
    encoded = schema.encode(raw)
    for feature in schema:
        stored[feature.name] = _stored_feature(
            columns[feature.name], feature, encoded[feature.name]
        )
    table = pa.table(stored)
    for name, size in sizes.items():
        field = sized(table.schema.field(name), size)
        table = table.cast(table.schema.set(table.schema.get_field_index(name), field))
    if not in_order:
        table = table.take(pa.array(np.lexsort((example_id, timestamp))))
    return table.combine_chunks()


def raw_feature(column: pa.Array | pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """An Arrow column as the array that `Schema.encode` checks.

    Lists become a `(rows, length)` array padded with -1; null ids become -1. Lists of ids that
    need folding, and strings, are folded here; strings once per distinct string.
    """
    column = _flat(column)
    if isinstance(feature, Categorical):
        return _ids(feature.name, column, feature.hashed)
    if isinstance(feature, MultiHot):
        values, lengths = _ragged(feature.name, column)
        too_long = lengths > feature.length
        if too_long.any():
            row = int(np.argmax(too_long))
            raise SchemaError(
                f"Column {feature.name!r}: expected lists of at most {feature.length} ids. "
                f"Received {lengths[row]} ids in row {row} ({int(too_long.sum())} such rows)."
            )
        ids = _ids(feature.name, values, feature.hashed)
        if feature.hashed or feature.admit_after is not None:
            # Before the padding: half the bytes, and no work on what is no id.
            ids = fold_ids(ids)
        padded = empty_array((len(column), feature.length), ids.dtype)
        padded[...] = PADDING
        padded[np.arange(feature.length, dtype=lengths.dtype) < lengths[:, None]] = ids
        return padded
    if feature.size == 1:
        return _numbers(feature.name, column)
    values, lengths = _ragged(feature.name, column)
    wrong = lengths != feature.size
    if wrong.any():
        row = int(np.argmax(wrong))
        raise SchemaError(
            f"Column {feature.name!r}: expected lists of {feature.size} numbers. "
            f"Received {lengths[row]} in row {row}."
        )
    return _numbers(feature.name, values).reshape(-1, feature.size)


def empty_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled, from Arrow's allocator.

    It keeps large blocks for the next one, where `np.empty` gets each from the system anew, which
    costs more than filling it. TensorFlow takes over such an array without a copy: it is aligned.
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if dtype.hasobject or count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(pa.allocate_buffer(count * dtype.itemsize), dtype, count).reshape(shape)


def own_column(column: pa.Array | pa.ChunkedArray, size: int | None = None) -> np.ndarray:
    """A column that is no feature, for a batch: nulls of numbers become NaN, of strings "".

    With a `size`, a column of vectors: float32 `(rows, size)`, a missing one all NaN.
    """
    column = _flat(column)
    if size is not None:
        return _vectors(column, size)
    if pa.types.is_string(column.type):
        return column.fill_null("").to_numpy(zero_copy_only=False)
    return column.to_numpy(zero_copy_only=False)


def stored_vectors(column: pa.Array) -> pa.Array:
    """Lists of numbers of one length as they are stored: bytes of float16, null where missing."""
    return _stored_vectors(_VECTOR, column)[0]


def sized(field: pa.Field, size: int) -> pa.Field:
    """The field of a stored column of vectors of so many numbers."""
    return field.with_metadata({_SIZE_KEY: str(size)})


def vector_size(field: pa.Field) -> int | None:
    """Numbers in each vector of a stored column; `None` for a column of scalars."""
    size = (field.metadata or {}).get(_SIZE_KEY.encode())
    return None if size is None else int(size)


def of_a_teacher(name: str) -> bool:
    """Whether a column, one that a table may lack, is what a teacher says."""
    return _base(name) in (*_TEACHER, _VECTOR)


def with_nulls(rows: Rows, schema: pa.Schema) -> Rows:
    """Rows that have all of a schema's columns of teachers, with null in those that they lack."""
    for field in schema:
        if of_a_teacher(field.name) and field.name not in rows.schema.names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows


def _base(name: str) -> str | None:
    """The column that a further task's or teacher's column is one more of."""
    if name == _VECTOR:
        return _VECTOR
    for base in (*_NAMED, _VECTOR):
        if name.startswith(f"{base}_") and name not in _OWN and name[len(base) + 1 :]:
            return base
    return None


def _is_own(name: str) -> bool:
    return name in _OWN or _base(name) is not None


def _vectors(column: pa.Array, size: int) -> np.ndarray:
    known = column.is_valid().to_numpy(zero_copy_only=False)
    held = column.drop_null()
    rows = np.full((len(column), size), np.nan, np.float32)
    if len(held):
        _, offsets, data = held.buffers()
        kind = np.int64 if pa.types.is_large_binary(held.type) else np.int32
        ends = np.frombuffer(offsets, kind)[held.offset : held.offset + len(held) + 1]
        wrong = np.diff(ends) != 2 * size
        if wrong.any():
            raise SchemaError(
                f"Expected vectors of {size} float16 numbers, {2 * size} bytes. Received "
                f"{int(np.diff(ends)[np.argmax(wrong)])} bytes."
            )
        values = np.frombuffer(data, "<f2", count=size * len(held), offset=int(ends[0]))
        rows[known] = values.reshape(-1, size)
    return rows


def _stored_vectors(name: str, column: pa.Array) -> tuple[pa.Array, int]:
    """Lists of one length as bytes of float16, null where missing, and their length."""
    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise SchemaError(f"Column {name!r}: expected lists of numbers. Received type {kind}")
    known = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(column).drop_null().to_numpy(zero_copy_only=False)
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else int(max(lengths, default=0))
    if size == 0 or (lengths != size).any():
        received = sorted({int(n) for n in lengths})
        raise SchemaError(
            f"Column {name!r}: expected vectors of one length (where every row is null, an Arrow "
            f"fixed-size list says it). Received lengths {received}."
        )
    values = _numbers(name, column.flatten()).astype(np.float32).reshape(-1, size)
    # All NaN and null both mean "no teacher"; the table has one spelling.
    missing = np.isnan(values).all(axis=1)
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    bad = ~np.isfinite(half).all(axis=1) & ~missing
    if bad.any():
        row = int(np.flatnonzero(known)[np.argmax(bad)])
        raise SchemaError(
            f"Column {name!r}: expected vectors of finite float16 numbers (up to 65504), or all "
            f"NaN for none. Received {values[np.argmax(bad)].tolist()} in row {row} "
            f"({int(bad.sum())} bad rows in {len(column)})."
        )
    known[np.flatnonzero(known)[missing]] = False
    half = half[~missing]
    offsets = np.concatenate([[0], np.cumsum(np.where(known, 2 * size, 0))]).astype(np.int32)
    valid = np.packbits(known, bitorder="little").tobytes()
    stored = pa.Array.from_buffers(
        pa.binary(),
        len(column),
        [pa.py_buffer(valid), pa.py_buffer(offsets.tobytes()), pa.py_buffer(half.tobytes())],
    )
    return stored, size


def _as_arrow(data: Columns) -> dict[str, pa.Array]:
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        return {name: _flat(data.column(name)) for name in data.schema.names}
    columns = {}
    for name, value in data.items():
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            columns[name] = _flat(value)
            continue
        if isinstance(value, np.ndarray) and value.ndim == 2:
            offsets = np.arange(0, value.size + 1, max(value.shape[1], 1))
            columns[name] = pa.LargeListArray.from_arrays(offsets, pa.array(value.ravel()))
            continue
        try:
            columns[name] = pa.array(value)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"Column {name!r}: {error}") from error
    return columns


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    return column


def _ids(name: str, column: pa.Array, hashed: bool) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.full(len(column), PADDING, np.int32)
    if hashed and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        encoded = column.dictionary_encode()
        # One slot more: the code -1 of a null reads it.
        ids = np.full(len(encoded.dictionary) + 1, PADDING, np.int32)
        if len(encoded.dictionary):
            ids[:-1] = fold_ids(encoded.dictionary.to_numpy(zero_copy_only=False))
        return ids[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    if not pa.types.is_integer(column.type):
        wanted = "integer or string ids" if hashed else "integer ids"
        raise SchemaError(f"Column {name!r}: expected {wanted}. Received type {column.type}")
    if column.null_count:
        if not pa.types.is_signed_integer(column.type):
            column = _cast(name, column, pa.int64())
        column = column.fill_null(PADDING)
    return column.to_numpy(zero_copy_only=False)


def _numbers(name: str, column: pa.Array) -> np.ndarray:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise SchemaError(f"Column {name!r}: expected numbers. Received type {column.type}")
    return column.to_numpy(zero_copy_only=False)


def _ragged(name: str, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Values and list lengths, without nulls and -1."""
    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise SchemaError(f"Column {name!r}: expected lists. Received type {kind}")
    values = column.flatten()
    if column.null_count or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    else:
        lengths = np.diff(column.offsets.to_numpy())
    keep = values.is_valid().to_numpy(zero_copy_only=False) if values.null_count else None
    if pa.types.is_integer(values.type):
        ids = values.fill_null(0) if values.null_count else values
        there = ids.to_numpy() != PADDING
        keep = there if keep is None else keep & there
    if keep is not None and not keep.all():
        kept = np.concatenate([[0], np.cumsum(keep)])
        ends = np.cumsum(lengths)
        lengths = kept[ends] - kept[ends - lengths]
        values = values.filter(pa.array(keep))
    return values, lengths


def _stored_feature(column: pa.Array, feature: Feature, encoded: np.ndarray) -> pa.Array:
    if isinstance(feature, Numeric):
        return (
            _lists(encoded.ravel(), [feature.size] * len(encoded))
            if feature.size > 1
            else (pa.array(encoded))
        )
    if isinstance(feature, Categorical):
        if not feature.hashed:
            return pa.array(encoded)
        if pa.types.is_string(column.type):
            return column
        return _cast(feature.name, pa.array(raw_feature(column, feature)), pa.int64())
    values, lengths = _ragged(feature.name, column)
    if feature.hashed and not pa.types.is_null(values.type):
        if not pa.types.is_string(values.type):
            values = _cast(feature.name, values, pa.int64())
        return _lists(values, lengths)
    return _lists(values.cast(pa.int64() if feature.hashed else pa.int32()), lengths)


def _lists(values: Any, lengths: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _own_column(name: str, column: pa.Array) -> pa.Array:
    base = _base(name)
    kind, _, nullable = _OWN[base or name]
    nullable = nullable or base is not None
    if nullable and pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    if pa.types.is_string(kind):
        if not pa.types.is_string(column.type):
            raise SchemaError(f"Column {name!r}: expected strings. Received type {column.type}")
    elif pa.types.is_integer(kind):
        column = pa.array(_integers(name, column))
    elif pa.types.is_boolean(column.type) and (base or name) == "label":
        column = column.cast(kind)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise SchemaError(f"Column {name!r}: expected numbers. Received type {column.type}")
    if column.null_count and not nullable:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise SchemaError(f"Column {name!r}: expected a value in every row. Row {row} has none.")
    if pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False).astype(kind.to_pandas_dtype())
        check, expected = _RANGES[base or name]
        unknown = np.isnan(values) if base in ("label", "true_probability") else False
        _refuse_first(name, values, lambda x: ~(check(x) | unknown), expected)
        # NaN and null both mean "no teacher"; the table has one spelling.
        return pa.array(values, kind, from_pandas=nullable)
    return _cast(name, column, kind)


_RANGES: dict[str, tuple[Any, str]] = {
    "label": (lambda x: (x == 0) | (x == 1), "0 or 1"),
    "weight": (lambda x: np.isfinite(x) & (x >= 0), "finite numbers of at least 0"),
    "true_probability": (lambda x: (x >= 0) & (x <= 1), "probabilities in 0..1"),
    "teacher_logit": (lambda x: ~np.isinf(x), "finite logits, or NaN for none"),
    "teacher_age_s": (
        lambda x: np.isnan(x) | (np.isfinite(x) & (x >= 0)),
        "ages of at least 0 s (a snapshot newer than the example would leak its label)",
    ),
}


def _integers(name: str, column: pa.Array) -> np.ndarray:
    if not pa.types.is_integer(column.type):
        raise SchemaError(f"Column {name!r}: expected integers. Received type {column.type}")
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise SchemaError(f"Column {name!r}: expected a value in every row. Row {row} has none.")
    return column.to_numpy(zero_copy_only=False)


def _refuse_first(name: str, values: np.ndarray, is_bad: Any, expected: str) -> None:
    bad = is_bad(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise SchemaError(
            f"Column {name!r}: expected {expected}. Received {values[row]!r} in row {row} "
            f"({int(bad.sum())} bad values in {len(values)} rows)."
        )


def _cast(name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"Column {name!r}: {error}") from error
