"""How tables are stored in an export: numbers a row takes, and how they are looked up."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_exfm.export.errors import ExportError
from keras_exfm.layers.embedding_table import EmbeddingTable

Storage = Literal["float32", "float16", "int8"]
STORAGES = ("float32", "float16", "int8")

_CHUNK = 2**26  # bytes of float32 rows that are converted at a time
# Behind a table's own rows: NaN, which ids out of range read, and zeros for the missing id. As the
# last but one and the last row they have the indices -2 and -1 too.
_EXTRA = 2
_MOST_ROWS = 2**31 - 1 - _EXTRA


@dataclasses.dataclass(frozen=True)
class Part:
    """One stored array of a table, which is read piece by piece."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    table: StoredTable

    @property
    def bytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """Its values, in order of the rows."""
        step = max(1, _CHUNK // (4 * self.table.layer.dim))
        for start in range(0, self.table.layer.rows, step):
            rows = self.table.layer.read_rows(start, min(start + step, self.table.layer.rows))
            yield self.table.stored(rows)[self.name]
        yield self.table.stored(self.table.extra)[self.name]

    def array(self) -> np.ndarray:
        """All of it."""
        return np.concatenate(list(self.chunks()))


class StoredTable:
    """An `EmbeddingTable` in the numbers that it is exported with.

    `float16` halves a table; `int8` takes a quarter and one float32 scale a row, the row's largest
    magnitude over 127: a number's error is at most half a scale. Two rows more than the layer has
    stand for ids out of range (NaN) and for missing ones (zeros), so that a lookup selects among
    indices, not among vectors.
    """

    def __init__(self, layer: EmbeddingTable, storage: Storage, name: str) -> None:
        if layer.rows > _MOST_ROWS:
            raise ExportError(
                f"The table {layer.path!r} has {layer.rows} rows; an export takes {_MOST_ROWS}."
            )
        self.layer = layer
        self.storage = storage
        rows, dim = layer.rows + _EXTRA, layer.dim
        self.extra = np.zeros((_EXTRA, dim), np.float32)
        self.extra[0] = np.nan
        self.parts = [Part(name, (rows, dim), np.dtype(storage), self)]
        if storage == "int8":
            self.parts.append(Part(f"{name}_scale", (rows, 1), np.dtype("float32"), self))

    def stored(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Part's name -> what stands for these float32 rows."""
        if self.storage == "float32":
            return {self.parts[0].name: rows}
        if self.storage == "float16":
            with np.errstate(over="ignore"):
                half = rows.astype(np.float16)
            if np.isinf(half).any():
                raise ExportError(
                    f"The table {self.layer.path!r} holds {np.abs(rows).max():.4g}, which float16 "
                    "cannot: export it with tables='float32' or 'int8'."
                )
            return {self.parts[0].name: half}
        scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        safe = np.where(scale > 0, scale, 1)
        # A row of NaN has NaN as its scale.
        whole = np.rint(np.nan_to_num(rows / safe)).astype(np.int8)
        return {self.parts[0].name: whole, self.parts[1].name: scale.astype(np.float32)}

    def lookup(self, ids: Any, values: dict[str, Any]) -> Any:
        """Rows of ids from tensors of the parts: what `EmbeddingTable` gives."""
        at = ops.clip(ids, -_EXTRA, self.layer.rows)
        vectors = ops.cast(ops.take(values[self.parts[0].name], at, axis=0), "float32")
        if self.storage == "int8":
            vectors = vectors * ops.take(values[self.parts[1].name], at, axis=0)
        return ops.cast(vectors, self.layer.compute_dtype)


def stored_tables(model: keras.Model, storage: Storage) -> list[StoredTable]:
    """The model's tables, in the order of its layers."""
    found = [x for x in _layers(model) if isinstance(x, EmbeddingTable)]
    return [StoredTable(layer, storage, f"embeddings_{i}") for i, layer in enumerate(found)]


def _layers(value: Any, seen: set[int] | None = None) -> Iterator[keras.layers.Layer]:
    """The layers that a layer holds, at any depth, itself first."""
    seen = set() if seen is None else seen
    if isinstance(value, keras.layers.Layer):
        if id(value) in seen:
            return
        seen.add(id(value))
        yield value
        held: Any = [*getattr(value, "layers", []), *vars(value).values()]
    elif isinstance(value, dict):
        held = value.values()
    elif isinstance(value, (list, tuple)):
        held = value
    else:
        return
    for one in held:
        yield from _layers(one, seen)


@contextlib.contextmanager
def looked_up_in(tables: list[StoredTable], values: dict[str, Any]) -> Iterator[None]:
    """Graphs that are traced within read the tables from these tensors, not from the variables."""
    for table in tables:

        def call(
            ids: Any, training: Any = None, fresh: Any = None, table: StoredTable = table
        ) -> Any:
            return table.lookup(ids, values)

        # On the object alone, past Keras's tracking of attributes.
        object.__setattr__(table.layer, "call", call)
    try:
        yield
    finally:
        for table in tables:
            object.__delattr__(table.layer, "call")
