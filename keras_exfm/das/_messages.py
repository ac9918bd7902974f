"""Messages of a topic to Arrow rows: whole batches at a time, one by one where one is bad."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from keras_exfm.features import Categorical, Feature, Numeric, Schema, SchemaError
from keras_exfm.streaming.columns import raw_feature

Decoder = Callable[[bytes], Mapping[str, Any]]

_OWN = {
    "example_id": pa.int64(),
    "timestamp": pa.int64(),
    "vertical": pa.string(),
    "group": pa.int64(),
    "weight": pa.float32(),
    "true_probability": pa.float64(),
    "label": pa.float32(),
}


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A message that is no row: its place in the batch, and why."""

    index: int
    reason: str


class MessageParser:
    """Turns messages into rows of one Arrow schema.

    Args:
        columns: The stream's own columns that every message has.
        schema: The features that every message has. Defaults to `None`: none.
        decode: Message -> column name -> value. Defaults to `None`: messages are JSON objects.
        strings: Hashed features whose ids are strings. Defaults to none.
    """

    def __init__(
        self,
        columns: Sequence[str],
        schema: Schema | None = None,
        decode: Decoder | None = None,
        strings: Sequence[str] = (),
    ) -> None:
        unknown = sorted(set(columns) - set(_OWN))
        if unknown:
            raise SchemaError(f"Unknown columns {unknown}. A stream's own are {list(_OWN)}.")
        self.schema = schema
        self.decode = decode
        fields = [(name, _OWN[name]) for name in columns]
        fields += [(f.name, _arrow_type(f, strings)) for f in schema or ()]
        self.arrow = pa.schema(fields)

    def parse(
        self, messages: Sequence[bytes | None]
    ) -> tuple[pa.Table, np.ndarray, list[Rejected]]:
        """Rows, the message that each came from, and the messages that gave none."""
        tables: list[pa.Table] = []
        kept: list[int] = []
        rejected: list[Rejected] = []
        waiting = [(0, len(messages))]
        while waiting:
            start, stop = waiting.pop()
            if start == stop:
                continue
            try:
                tables.append(self._rows(messages[start:stop]))
                kept.extend(range(start, stop))
            except (ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
                if stop - start == 1:
                    rejected.append(Rejected(start, str(error)[:500]))
                    continue
                middle = (start + stop) // 2
                # The first half comes off the stack first.
                waiting += [(middle, stop), (start, middle)]
        table = pa.concat_tables(tables) if tables else self.arrow.empty_table()
        return table, np.array(kept, np.int64), rejected

    def _rows(self, messages: Sequence[bytes | None]) -> pa.Table:
        if any(not message for message in messages):
            raise ValueError("an empty message")
        if self.decode is None:
            # Rows may not span lines, so that a message is one line and one line one message.
            if any(b"\n" in message for message in messages):  # type: ignore[operator]
                messages = [json.dumps(json.loads(m)).encode() for m in messages]  # type: ignore[arg-type]
            options = pajson.ParseOptions(
                explicit_schema=self.arrow, unexpected_field_behavior="ignore"
            )
            table = pajson.read_json(
                io.BytesIO(b"\n".join(messages)),  # type: ignore[arg-type]
                read_options=pajson.ReadOptions(use_threads=False),
                parse_options=options,
            )
        else:
            decode = self.decode
            rows = [dict(decode(message)) for message in messages if message is not None]
            table = pa.Table.from_pylist(rows, schema=self.arrow)
        if table.num_rows != len(messages):
            raise ValueError(f"{table.num_rows} rows in {len(messages)} messages")
        missing = [name for name in self.arrow.names if name not in table.column_names]
        if missing:
            raise ValueError(f"missing columns {missing}")
        table = table.select(self.arrow.names).cast(self.arrow)
        self._check(table)
        return table

    def _check(self, table: pa.Table) -> None:
        features = set(self.schema.names) if self.schema else set()
        for name in self.arrow.names:
            if name not in features and table.column(name).null_count:
                raise ValueError(f"Column {name!r}: no value")
        if (table.column("timestamp").to_numpy() < 0).any():
            raise ValueError("Column 'timestamp': expected milliseconds of at least 0")
        if "label" in self.arrow.names:
            label = table.column("label").to_numpy()
            odd = label[(label != 0) & (label != 1)]
            if len(odd):
                raise ValueError(f"Column 'label': expected 0 or 1. Received {odd[0]}")
        if self.schema is not None:
            self.schema.encode({f.name: raw_feature(table.column(f.name), f) for f in self.schema})


def _arrow_type(feature: Feature, strings: Sequence[str]) -> pa.DataType:
    if isinstance(feature, Numeric):
        return pa.float32() if feature.size == 1 else pa.list_(pa.float32())
    free = feature.hashed or feature.admit_after is not None
    kind = pa.int64() if free else pa.int32()
    if feature.name in strings:
        if not feature.hashed:
            raise SchemaError(f"Feature {feature.name!r}: only hashed features have string ids.")
        kind = pa.string()
    return kind if isinstance(feature, Categorical) else pa.list_(kind)
