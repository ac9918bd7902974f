"""Reads text tables block by block: typed columns, and errors that name file, line and column.

No file of these data sets quotes its fields, so a line is split at each delimiter.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from keras_exfm.datasets._formats import Column, TextTable
from keras_exfm.streaming.columns import StreamError

_BLOCK = 1 << 22
_NONE = "\x01"
_TIME = "timestamp"
_BOM = "\ufeff"
_NIBBLE = np.full(256, -1, np.int64)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_NIBBLE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, or a member of a `.zip` file."""

    file: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.file) if self.member is None else f"{self.file}/{self.member}"

    @property
    def name(self) -> str:
        """The file's name, without `.gz`."""
        return self.file.name.removesuffix(".gz")

    def open(self) -> BinaryIO:
        """The plain content."""
        if self.member is not None:
            # The archive is closed with its member.
            return cast(BinaryIO, zipfile.ZipFile(self.file).open(self.member))
        if self.file.suffix == ".gz":
            return cast(BinaryIO, gzip.open(self.file))
        return open(self.file, "rb")


def find(path: Path, table: TextTable, hint: str) -> list[Source]:
    """The files of a table: `path` itself, those of a folder, or a member of an archive."""
    if path.is_file() and path.suffix == ".zip":
        names = zipfile.ZipFile(path).namelist()
        members = [Source(path, n) for n in names for p in table.patterns if Path(n).match(p)]
        if members:
            return members[:1]
        raise StreamError(f"{path}: no member {list(table.patterns)}. Received: {names}. {hint}")
    if path.is_file():
        return [Source(path)]
    if not path.is_dir():
        raise StreamError(f"{path}: no such file or folder. {hint}")
    for pattern in table.patterns:
        found = [
            Source(file)
            for file in sorted({*path.glob(pattern), *path.glob(f"{pattern}.gz")}, key=_natural)
            # Not `day_0.md5`, where `day_*` is asked for.
            if file.is_file() and Source(file).name.count(".") <= pattern.count(".")
        ]
        names = [source.name for source in found]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise StreamError(
                f"{path}: expected each file once, plain or packed. Received both of {doubled}."
            )
        if found:
            return found
    raise StreamError(f"{path}: no file {' or '.join(table.patterns)} there. {hint}")


def digests(source: Source) -> dict[str, str]:
    """MD5 and SHA-256 of the plain content, or of an archive as it is."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with open(source.file, "rb") if source.member else source.open() as stream:
        while block := stream.read(1 << 20):
            md5.update(block)
            sha256.update(block)
    return {"md5": md5.hexdigest(), "sha256": sha256.hexdigest()}


def read(
    sources: Sequence[Source], table: TextTable, positive_rating: float
) -> Iterator[tuple[Source, pa.RecordBatch]]:
    """Typed blocks of rows, each with its source.

    Columns are named by feature; `label` is float32, `timestamp` is milliseconds, ids are int64
    or strings (null where missing), lists are lists of strings, numbers are float64.
    """
    for source in sources:
        for line, lines in _blocks(source, table.encoding):
            if line == 1:
                places = _places(source, table, lines[0].as_py() if len(lines) else "")
                if table.header:
                    line, lines = 2, lines.slice(1)
            if not len(lines):
                continue
            parts = _split(source, table, lines, line, len(places[0]))
            columns: dict[str, pa.Array] = {}
            flags: dict[str, list[tuple[str, np.ndarray]]] = {}
            for column, place in zip(table.columns, places[1]):
                if column.kind == "skip":
                    continue
                where = _Where(source, line, column)
                text = pc.list_element(parts, place)
                if column.kind == "flag":
                    on = where.parse(text, _label, "0 or 1").to_numpy() > 0
                    flags.setdefault(column.feature_name, []).append((column.name, on))
                    continue
                name, values = _typed(where, text, positive_rating)
                columns[name] = values
            for name, pairs in flags.items():
                columns[name] = _listed(pairs)
            yield source, pa.RecordBatch.from_pydict(columns)


def _blocks(source: Source, encoding: str) -> Iterator[tuple[int, pa.Array]]:
    try:
        with source.open() as stream:
            lines = pyarrow.csv.open_csv(
                pa.PythonFile(stream, "r"),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=["line"], block_size=_BLOCK, encoding=encoding
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=_NONE, quote_char=False, ignore_empty_lines=False
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={"line": pa.string()}, strings_can_be_null=False
                ),
            )
            first = 1
            for batch in lines:
                if batch.num_rows:
                    yield first, batch.column(0)
                first += batch.num_rows
    except (pa.ArrowException, OSError, EOFError, zipfile.BadZipFile) as error:
        raise StreamError(f"{source}: cannot be read: {error}") from error


def _places(source: Source, table: TextTable, first: str) -> tuple[list[str], list[int]]:
    """Names of the file's columns, and where each of the table's columns is."""
    if not table.header:
        return [c.name for c in table.columns], list(range(len(table.columns)))
    # RecBole writes `name:type`.
    found = [part.partition(":")[0].strip() for part in first.lstrip(_BOM).split(table.delimiter)]
    places = []
    for column in table.columns:
        names = [name for name in column.name.split("|") if name in found]
        if not names:
            raise StreamError(
                f"{source}: line 1: expected a header with the columns "
                f"{[c.name for c in table.columns]}. Received: {found} (no {column.name!r})"
            )
        places.append(found.index(names[0]))
    return found, places


def _split(
    source: Source, table: TextTable, lines: pa.Array, first: int, expected: int
) -> pa.Array:
    parts = pc.split_pattern(lines, table.delimiter)
    counts = pc.list_value_length(parts).to_numpy()
    wrong = np.flatnonzero(counts != expected)
    if len(wrong):
        row = int(wrong[0])
        raise StreamError(
            f"{source}: line {first + row}: expected {expected} columns separated by "
            f"{table.delimiter!r}. Received {counts[row]}: {_short(lines[row].as_py())}"
        )
    return parts


@dataclasses.dataclass(frozen=True)
class _Where:
    """A column of a block, for messages."""

    source: Source
    line: int
    column: Column

    def parse(self, text: pa.Array, parse: Callable[[pa.Array], pa.Array], expected: str) -> Any:
        """Parses a whole column; names the first value that cannot be."""
        try:
            return parse(text)
        except (pa.ArrowInvalid, ValueError):
            for row in range(len(text)):
                try:
                    parse(text.slice(row, 1))
                except (pa.ArrowInvalid, ValueError):
                    raise StreamError(
                        f"{self.source}: line {self.line + row}: column {self.column.name!r}: "
                        f"expected {expected}. Received {_short(text[row].as_py())}"
                    ) from None
            raise


def _typed(where: _Where, text: pa.Array, positive_rating: float) -> tuple[str, pa.Array]:
    """Name and values of a column."""
    column = where.column
    if column.kind == "label":
        return "label", where.parse(text, _label, "0 or 1")
    if column.kind == "rating":
        rating = where.parse(text, _required_number, "a rating")
        return "label", pc.greater_equal(rating, positive_rating).cast(pa.float32())
    if column.kind == "seconds":
        return _TIME, where.parse(text, _seconds, "seconds since 1970")
    if column.kind == "yymmddhh":
        return _TIME, where.parse(text, _yymmddhh, "an hour as YYMMDDHH")
    name = column.feature_name
    if column.kind == "hex":
        return name, where.parse(text, _hex, "eight hexadecimal digits, or nothing")
    if column.kind == "int":
        if column.first is None:
            return name, where.parse(text, _integer, "an integer, or nothing")
        last = column.first + column.rows - 1
        expected = f"an integer in {column.first}..{last}, or nothing"
        return name, where.parse(text, _between(column.first, last), expected)
    if column.kind == "number":
        return name, where.parse(text, _number, "a number, or nothing")
    if column.kind == "strings":
        lists = pc.split_pattern(text, column.separator)
        return name, _last(lists, column.length)
    if column.kind == "key":
        return name, where.parse(text, _present, "a value")
    return name, _or_null(text)


def _or_null(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _present(text: pa.Array) -> pa.Array:
    if pc.any(pc.equal(text, "")).as_py():
        raise ValueError
    return text


def _number(text: pa.Array) -> pa.Array:
    numbers = _or_null(text).cast(pa.float64())
    if not pc.all(pc.is_finite(numbers)).as_py() and len(numbers) > numbers.null_count:
        raise ValueError
    return numbers


def _required_number(text: pa.Array) -> pa.Array:
    return _number(_present(text))


def _label(text: pa.Array) -> pa.Array:
    numbers = _required_number(text)
    known = pc.or_(pc.equal(numbers, 0.0), pc.equal(numbers, 1.0))
    if not pc.all(known).as_py() and len(text):
        raise ValueError
    return numbers.cast(pa.float32())


def _integer(text: pa.Array) -> pa.Array:
    return _or_null(text).cast(pa.int64())


def _between(first: int, last: int) -> Callable[[pa.Array], pa.Array]:
    def parse(text: pa.Array) -> pa.Array:
        ids = _integer(text)
        if pc.any(pc.or_(pc.less(ids, first), pc.greater(ids, last))).as_py():
            raise ValueError
        return pc.subtract(ids, first)

    return parse


def _seconds(text: pa.Array) -> pa.Array:
    # A fraction may be finer than a millisecond.
    return pc.round(pc.multiply(_required_number(text), 1000)).cast(pa.int64())


def _yymmddhh(text: pa.Array) -> pa.Array:
    if pc.any(pc.not_equal(pc.binary_length(text), 8)).as_py():
        raise ValueError
    encoded = text.dictionary_encode()
    stamps = pc.strptime(encoded.dictionary, "%y%m%d%H", "ms").cast(pa.int64())
    return stamps.take(encoded.indices)


def _hex(text: pa.Array) -> pa.Array:
    missing = pc.equal(text, "")
    filled = pc.if_else(missing, "0" * 8, text)
    if pc.any(pc.not_equal(pc.binary_length(filled), 8)).as_py():
        raise ValueError
    digits = _NIBBLE[np.array(filled, dtype="S8").view(np.uint8).reshape(-1, 8)]
    if (digits < 0).any():
        raise ValueError
    values = digits @ (16 ** np.arange(7, -1, -1, dtype=np.int64))
    return pc.if_else(missing, pa.scalar(None, pa.int64()), pa.array(values))


def _last(lists: pa.Array, length: int) -> pa.Array:
    """The last `length` entries of each list, without empty ones."""
    values, ends = lists.flatten(), np.cumsum(pc.list_value_length(lists).to_numpy())
    kept = np.concatenate([[0], np.cumsum(pc.not_equal(values, "").to_numpy(False))])
    values = values.filter(pc.not_equal(values, ""))
    ends = kept[ends]
    counts = np.diff(ends, prepend=0)
    short = np.minimum(counts, length)
    offsets = np.concatenate([[0], np.cumsum(short)])
    rows = np.repeat(ends - short - offsets[:-1], short) + np.arange(offsets[-1])
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values.take(pa.array(rows)))


def _listed(flags: list[tuple[str, np.ndarray]]) -> pa.Array:
    """The names of the flags that are set, as lists."""
    on = np.stack([values for _, values in flags], 1)
    offsets = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int32)
    names = pa.array([name for name, _ in flags])
    return pa.ListArray.from_arrays(offsets, names.take(pa.array(np.nonzero(on)[1])))


def _natural(file: Path) -> list[str | int]:
    """So that `day_10` comes after `day_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _short(value: str) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
