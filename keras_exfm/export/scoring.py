"""Parquet in, Parquet out, by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from keras_exfm.export._runtimes import OnnxRuntime, metadata
from keras_exfm.export.errors import ExportError
from keras_exfm.features import Schema, SchemaError
from keras_exfm.streaming._ahead import ahead
from keras_exfm.streaming.columns import StreamError, raw_feature

_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class ScoreReport:
    """What `score` did.

    Attributes:
        path: The file that was written.
        rows: Rows scored.
        seconds: Time that it took.
    """

    path: Path
    rows: int
    seconds: float

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds else float("nan")
        return f"{self.path}: {self.rows} rows in {self.seconds:.1f} s, {rate:,.0f} rows a second"


def score(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    batch_size: int = 8192,
    threads: int | None = None,
    schema: Schema | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Scores Parquet files with an ONNX model, however many rows they have.

    Columns are encoded as `Schema.encode` does, batches are read and encoded while others are
    scored, and the target appears when it is whole.

    Args:
        model: An `.onnx` file of `export.onnx`.
        source: A Parquet file, several, or a folder of them (`key=value` folders are columns).
        target: The Parquet file to write: the kept columns and the model's output.
        columns: Columns of the source to keep. Defaults to `None`: those that are no features.
        batch_size: Rows of a batch. Defaults to `8192`.
        threads: Threads of ONNX Runtime. Defaults to `None`: its own choice.
        schema: The features, for a model of another origin. Defaults to `None`: from the file.
        progress: Told the number of rows so far. Defaults to `None`.

    Raises:
        ExportError: If the model or the source cannot be used.
        SchemaError: For a value that does not fit the schema; names column, row and value.
        ImportError: If ONNX Runtime is not installed (`pip install keras-exfm[onnx]`).

    Example:

    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 50)])
    >>> _ = kx.export.onnx(kx.models.LogisticRegression(schema), "scored.onnx")
    >>> pq.write_table(pa.table({"id": [7, 8], "ad": [3, None]}), "rows.parquet")
    >>> kx.export.score("scored.onnx", "rows.parquet", "scores.parquet").rows
    2
    >>> pq.read_table("scores.parquet").column_names
    ['id', 'logit']
    """
    began = time.monotonic()
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ExportError(
            f"`batch_size` should be an integer of at least 1. Received: {batch_size!r}"
        )
    if Path(model).suffix != ".onnx" or not Path(model).is_file():
        what = "a file of another kind" if Path(model).exists() else "no such file"
        raise ExportError(
            f"{model}: expected an .onnx file, as `keras-exfm export` and `export.onnx` write it. "
            f"Received: {what}"
        )
    runtime = OnnxRuntime(Path(model), threads)
    if schema is None:
        held = metadata(model)["schema"]
        if held is None:
            raise ExportError(f"{model}: the file states no schema: pass `schema`.")
        schema = Schema.from_dict(held)
    schema = schema.select(list(runtime.inputs))
    rows = _open(source)
    missing = [name for name in schema.names if name not in rows.schema.names]
    if missing:
        raise ExportError(f"{source}: missing columns {missing}. It has: {rows.schema.names}")
    if columns is None:
        columns = [name for name in rows.schema.names if name not in schema]
    unknown = [name for name in columns if name not in rows.schema.names]
    taken = [name for name in columns if name in runtime.outputs]
    if unknown or taken:
        raise ExportError(
            f"`columns` should be columns of {source}, and no outputs of the model, "
            f"{list(runtime.outputs)}. Received: {[*unknown, *taken]}"
        )
    read = list(dict.fromkeys([*columns, *schema.names]))
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    done = 0
    writer: pq.ParquetWriter | None = None
    try:
        for kept, batch in ahead(_batches(rows, schema, columns, read, batch_size), _AHEAD):
            found = runtime(batch)
            table = kept
            for name, values in found.items():
                table = table.append_column(name, _column(values))
            if writer is None:
                writer = pq.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table)
            done += table.num_rows
            if progress is not None:
                progress(done)
        if writer is None:
            raise ExportError(f"{source}: no rows.")
        writer.close()
        os.replace(partial, place)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return ScoreReport(place, done, time.monotonic() - began)


def _open(source: Any) -> pads.Dataset:
    try:
        many = isinstance(source, (list, tuple))
        names = [os.fspath(s) for s in source] if many else os.fspath(source)
        return pads.dataset(names, format="parquet", partitioning="hive")
    except (OSError, pa.ArrowException) as error:
        raise ExportError(f"{source}: cannot read Parquet: {error}") from error


def _batches(
    rows: pads.Dataset, schema: Schema, columns: Sequence[str], read: list[str], size: int
) -> Iterator[tuple[pa.Table, dict[str, np.ndarray]]]:
    seen = 0
    try:
        for found in rows.to_batches(columns=read, batch_size=size):
            if not found.num_rows:
                continue
            table = pa.Table.from_batches([found])
            raw = {f.name: raw_feature(table.column(f.name), f) for f in schema}
            yield table.select(list(columns)), schema.encode(raw)
            seen += found.num_rows
    except SchemaError as error:
        raise StreamError(f"rows from {seen} on: {error}") from error
    except (OSError, pa.ArrowException) as error:
        raise ExportError(f"cannot read Parquet: {error}") from error


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1 or values.shape[1:] == (1,):
        return pa.array(values.reshape(-1))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
