"""Feature descriptions: what a model reads, how an id becomes a table row.

A `Schema` is the one place that knows the columns of a stream. Layers build their tables from
it, the reader checks batches against it, and it travels inside every `.keras` file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import keras

PADDING = -1
"""The id that means "nothing here": a missing categorical value, or the tail of a multi-hot list.

Its embedding is the zero vector and it receives no gradient.
"""

RESERVED_COLUMNS = (
    "example_id",
    "timestamp",
    "hour",
    "vertical",
    "group",
    "label",
    "weight",
    "true_probability",
    "teacher_logit",
    "teacher_snapshot",
    "teacher_age_s",
    "teacher_representation",
)
"""Columns of the stream tables that are not features; no feature may take these names."""

_FOLD_BLOCK = 16_384


class SchemaError(ValueError):
    """A feature description, or data that does not fit it."""


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise SchemaError(f"A feature name should be a Python identifier. Received: name={name!r}")
    if name in RESERVED_COLUMNS:
        raise SchemaError(
            f"The feature name {name!r} is reserved for the stream's own columns "
            f"{RESERVED_COLUMNS}. Choose another name."
        )


def _check_positive(feature: str, **values: int) -> None:
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SchemaError(
                f"Feature {feature!r}: `{key}` should be an integer of at least 1. "
                f"Received: {key}={value!r}"
            )


def _check_admission(feature: Categorical | MultiHot) -> None:
    if feature.admit_after is None:
        return
    _check_positive(feature.name, admit_after=feature.admit_after)
    if feature.hashed:
        raise SchemaError(
            f"Feature {feature.name!r}: `hashed` and `admit_after` exclude each other: a dynamic "
            "table gives ids rows of their own. Received: hashed=True, "
            f"admit_after={feature.admit_after!r}"
        )


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One id per example.

    Args:
        name: Column name.
        vocabulary_size: Number of table rows. Ids are `0 .. vocabulary_size - 1` unless `hashed`.
        embeddings: Number of embeddings that the feature contributes (Wukong section 3.2 gives
            significant features several). Defaults to `1`.
        hashed: If `True`, any int32 id is allowed and an integer hash maps it to a row; strings
            and 64-bit ids are folded to int32 by the reader (`Schema.encode`).
            Defaults to `False`.
        table: Name of the table to read. Features that name one table share its rows. Defaults to
            the feature's own name.
        dim: Size of the feature's vectors if it should be smaller than the model's: a feature of
            little importance (Wukong section 3.2). `FeatureEmbedding` concatenates the vectors of
            all such features and turns them into vectors of the model's size by an MLP. In a
            layer whose own size is not larger it has no effect. Defaults to `None`, the model's
            size.
        admit_after: If set, the table is dynamic, for the ids of a stream: any id is allowed, as
            if `hashed`, and gets one of the `vocabulary_size` rows after it was looked up this
            many times in training; once the table is full, ids that were not seen for long give
            up their rows. An id without a row is a missing value. See `layers.DynamicIds`. Needs
            a row optimizer. Defaults to `None`.

    Example:

    >>> Categorical("user_id", 1_000_000, embeddings=2).table_name
    'user_id'
    """

    name: str
    vocabulary_size: int
    embeddings: int = 1
    hashed: bool = False
    table: str | None = None
    dim: int | None = None
    admit_after: int | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_positive(self.name, vocabulary_size=self.vocabulary_size, embeddings=self.embeddings)
        if self.dim is not None:
            _check_positive(self.name, dim=self.dim)
        _check_admission(self)

    @property
    def table_name(self) -> str:
        """Name of the table that the feature reads."""
        return self.table or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return ()

    dtype = "int32"


@dataclasses.dataclass(frozen=True)
class MultiHot:
    """A list of up to `length` ids per example, pooled to one vector.

    Lists are padded at the end with `PADDING` (-1). An empty list pools to the zero vector.

    Args:
        name: Column name.
        vocabulary_size: Number of table rows.
        length: Maximum number of ids per example.
        combiner: `"mean"` over the ids that are present, or `"sum"`. Defaults to `"mean"`.
        embeddings: Number of embeddings that the feature contributes. Defaults to `1`.
        hashed: As in `Categorical`. Defaults to `False`.
        table: As in `Categorical`. Defaults to the feature's own name.
        dim: As in `Categorical`. Defaults to `None`.
        admit_after: As in `Categorical`. Defaults to `None`.

    Example:

    >>> MultiHot("history", 200_000, length=20, table="ad_id").shape
    (20,)
    """

    name: str
    vocabulary_size: int
    length: int
    combiner: Literal["mean", "sum"] = "mean"
    embeddings: int = 1
    hashed: bool = False
    table: str | None = None
    dim: int | None = None
    admit_after: int | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_positive(
            self.name,
            vocabulary_size=self.vocabulary_size,
            length=self.length,
            embeddings=self.embeddings,
        )
        if self.dim is not None:
            _check_positive(self.name, dim=self.dim)
        _check_admission(self)
        if self.combiner not in ("mean", "sum"):
            raise SchemaError(
                f"Feature {self.name!r}: `combiner` should be 'mean' or 'sum'. "
                f"Received: combiner={self.combiner!r}"
            )

    @property
    def table_name(self) -> str:
        """Name of the table that the feature reads."""
        return self.table or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.length,)

    dtype = "int32"


@dataclasses.dataclass(frozen=True)
class Numeric:
    """`size` real numbers per example, used as they are: scale them before.

    Args:
        name: Column name.
        size: Count of numbers; `1` is a scalar column. Defaults to `1`.

    Example:

    >>> Numeric("age_hours").shape
    ()
    """

    name: str
    size: int = 1

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_positive(self.name, size=self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return () if self.size == 1 else (self.size,)

    dtype = "float32"


Feature = Categorical | MultiHot | Numeric
_KINDS: dict[str, type[Categorical] | type[MultiHot] | type[Numeric]] = {
    "categorical": Categorical,
    "multi_hot": MultiHot,
    "numeric": Numeric,
}


class Schema:
    """An ordered set of features.

    Args:
        features: `Categorical`, `MultiHot` and `Numeric` descriptions with distinct names.
            Features that share a table must agree on `vocabulary_size`, `embeddings`, `hashed`,
            `dim` and `admit_after`.

    Raises:
        SchemaError: For duplicate names or sharers of a table that disagree.

    Example:

    >>> schema = Schema([Categorical("user", 100), Numeric("age")])
    >>> list(schema.names)
    ['user', 'age']
    >>> Schema.from_dict(schema.to_dict()) == schema
    True
    """

    def __init__(self, features: list[Feature] | tuple[Feature, ...]) -> None:
        for feature in features:
            if not isinstance(feature, (Categorical, MultiHot, Numeric)):
                raise SchemaError(
                    "`features` should hold Categorical, MultiHot and Numeric. "
                    f"Received: {feature!r}"
                )
        if not features:
            raise SchemaError("`features` should hold at least one feature. Received none.")
        names = [feature.name for feature in features]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise SchemaError(f"Feature names should be distinct. Received twice: {doubles}")
        self.features: tuple[Feature, ...] = tuple(features)
        self.tables()

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def sparse(self) -> tuple[Categorical | MultiHot, ...]:
        """The features that read an embedding table."""
        return tuple(f for f in self.features if not isinstance(f, Numeric))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numeric features."""
        return tuple(f for f in self.features if isinstance(f, Numeric))

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"No feature {name!r}; the schema has {list(self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.features == other.features

    def __hash__(self) -> int:
        return hash(self.features)

    def __repr__(self) -> str:
        return f"Schema({list(self.features)!r})"

    def tables(self) -> dict[str, Categorical | MultiHot]:
        """Table name -> a feature that describes it, in order."""
        tables: dict[str, Categorical | MultiHot] = {}
        for feature in self.sparse:
            first = tables.setdefault(feature.table_name, feature)
            for key in ("vocabulary_size", "embeddings", "hashed", "dim", "admit_after"):
                if getattr(first, key) != getattr(feature, key):
                    raise SchemaError(
                        f"Features {first.name!r} and {feature.name!r} share the table "
                        f"{feature.table_name!r} but differ in `{key}`: "
                        f"{getattr(first, key)!r} and {getattr(feature, key)!r}"
                    )
        return tables

    def select(self, names: list[str] | tuple[str, ...]) -> Schema:
        """The sub-schema with these features, in this schema's order."""
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise SchemaError(f"Unknown features {unknown}. The schema has {list(self.names)}.")
        return Schema([feature for feature in self.features if feature.name in set(names)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        return {
            "features": [
                {"kind": kinds[type(feature)], **dataclasses.asdict(feature)}
                for feature in self.features
            ]
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`."""
        features: list[Feature] = []
        for item in config["features"]:
            item = dict(item)
            kind = item.pop("kind", None)
            if kind not in _KINDS:
                raise SchemaError(
                    f"A feature's `kind` should be one of {list(_KINDS)}. Received: {kind!r}"
                )
            try:
                features.append(_KINDS[kind](**item))
            except TypeError as error:
                raise SchemaError(f"Cannot read the feature {item!r}: {error}") from error
        return cls(features)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """Symbolic Keras inputs by feature name, for a functional model.

        Shapes: `(batch,)` int32 for `Categorical`, `(batch, length)` int32 for `MultiHot`,
        `(batch,)` or `(batch, size)` float32 for `Numeric`.
        """
        import keras

        return {
            feature.name: keras.Input(shape=feature.shape, dtype=feature.dtype, name=feature.name)
            for feature in self.features
        }

    def encode(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Checks raw columns and turns them into what the model's inputs take.

        Ids become int32; strings and 64-bit ids of `hashed` and dynamic features are folded to 32
        bits (`fold_ids`). A null (`None`, or `NaN` among strings) is a missing id, -1. Rows of a
        `MultiHot` may be lists of any length up to its own: -1 fills them up. Extra columns are
        dropped.

        Args:
            batch: Feature name -> array-like with one row per example: an array, a list, a column
                of pandas or Arrow.

        Returns:
            Feature name -> array of the input's dtype and shape; the array that was given, where
            it has both.

        Raises:
            SchemaError: For a missing column, a wrong dtype or shape, or an id out of range. It
                names the column, the first bad row and its value.

        Example:

        >>> schema = Schema([Categorical("user", 100), Numeric("age")])
        >>> schema.encode({"user": [3, 99], "age": [0.5, 1.0]})["user"].dtype
        dtype('int32')
        >>> words = Schema([MultiHot("words", 100, length=3, hashed=True)])
        >>> words.encode({"words": [["red", "shoes"], None]})["words"].tolist()
        [[95939479, 1608189340, -1], [-1, -1, -1]]
        """
        missing = [name for name in self.names if name not in batch]
        if missing:
            raise SchemaError(f"Missing columns {missing}. Received columns: {sorted(batch)}")
        encoded = {f.name: _encode_column(f, _as_column(f, batch[f.name])) for f in self.features}
        sizes = {name: len(column) for name, column in encoded.items()}
        if len(set(sizes.values())) > 1:
            raise SchemaError(f"Columns should have the same number of rows. Received: {sizes}")
        return encoded


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
        null, known = _known(ids)
        out = np.full(ids.shape, PADDING, np.int32)
        out[~null] = fold_ids(known)
        return out
    if ids.dtype.kind in "US":
        import hashlib

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


def _is_null(value: Any) -> bool:
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    # By name: pandas is no dependency.
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _known(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an object array is null, and what is elsewhere: integers, or strings."""
    kinds = set(map(type, ids.flat))
    if kinds == {str}:
        return np.zeros(ids.shape, bool), ids.astype(str)
    null = np.fromiter(map(_is_null, ids.flat), bool, ids.size).reshape(ids.shape)
    known = ids[~null].tolist()
    kinds = set(map(type, known))
    whole = {k for k in kinds if issubclass(k, (int, np.integer)) and k is not bool}
    text = {k for k in kinds if issubclass(k, (str, bytes))}
    if wrong := kinds - whole - text:
        value = next(v for v in known if type(v) in wrong)
        raise SchemaError(f"Expected integer or string ids. Received {_plain(value)!r}")
    if whole and text:
        one, other = (next(v for v in known if type(v) in part) for part in (whole, text))
        # A string's id and an integer's are folded in different ways.
        raise SchemaError(
            f"Expected ids that are all integers or all strings. Received {_plain(one)!r} and "
            f"{_plain(other)!r}"
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


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _first_bad(feature: Feature, column: np.ndarray, bad: np.ndarray, expected: str) -> SchemaError:
    position = np.argwhere(bad)[0]
    count = int(bad.sum())
    return SchemaError(
        f"Column {feature.name!r}: expected {expected}. "
        f"Received {_plain(column[tuple(position)])!r} in row {int(position[0])} "
        f"({count} bad value{'s' if count > 1 else ''} in {len(column)} rows)."
    )


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


def _with_nulls(values: Any) -> Any:
    """A column of a kind that knows nulls, where NumPy would make floats of its integers."""
    if isinstance(values, np.ma.MaskedArray):
        plain = np.array(values.data, object)
        plain[np.ma.getmaskarray(values)] = None
        return plain
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
    rows = [() if _is_null(row) else row for row in rows]
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
                f"Column {name!r}: expected {expected}. Received {_plain(row)!r} in row {number}."
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
        null, known = _known(column)
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


def _encode_column(feature: Feature, column: np.ndarray) -> np.ndarray:
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
