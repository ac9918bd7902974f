"""A checksum of rows that does not depend on how they are cut into files, groups or batches."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class RowDigest:
    """One digest a column over all its values in order.

    Hashed are validity, values (0 where null) and, for strings and lists, lengths and what they
    hold, each as little-endian bytes: BLAKE2b, 8 bytes.

    Example:

    >>> whole, parts = RowDigest(), RowDigest()
    >>> rows = pa.table({"a": [1, None, 3], "s": ["x", "yz", ""]})
    >>> whole.update(rows)
    >>> for start in range(3):
    ...     parts.update(rows.slice(start, 1))
    >>> whole.columns() == parts.columns()
    True
    """

    def __init__(self) -> None:
        self._hashers: dict[str, Any] = {}

    def update(self, rows: pa.Table) -> None:
        """Adds rows."""
        for name in rows.column_names:
            for chunk in rows.column(name).chunks:
                self._add(name, chunk)

    def columns(self) -> dict[str, str]:
        """Column -> digest of the rows so far."""
        found: dict[str, Any] = {}
        for key in sorted(self._hashers):
            name = key.split("/", 1)[0]
            found.setdefault(name, hashlib.blake2b(digest_size=8)).update(
                key.encode() + self._hashers[key].digest()
            )
        return {name: hasher.hexdigest() for name, hasher in found.items()}

    def _add(self, key: str, values: pa.Array) -> None:
        kind = values.type
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        self._feed(f"{key}/valid", valid.astype(np.uint8))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(values).fill_null(0)
            self._feed(f"{key}/length", lengths.to_numpy(zero_copy_only=False).astype("<i4"))
            self._add(f"{key}/item", values.flatten())
            return
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            values = values.cast(pa.binary()).fill_null(b"")
            self._feed(
                f"{key}/length",
                pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<i4"),
            )
            _, offsets, data = values.buffers()
            ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
            if data is not None and len(values):
                self._feed(
                    f"{key}/data", np.frombuffer(data, np.uint8)[int(ends[0]) : int(ends[-1])]
                )
            return
        filled = values.fill_null(pa.scalar(0, kind)) if values.null_count else values
        array = filled.to_numpy(zero_copy_only=False)
        self._feed(f"{key}/value", array.astype(array.dtype.newbyteorder("<"), copy=False))

    def _feed(self, key: str, array: np.ndarray) -> None:
        if key not in self._hashers:
            self._hashers[key] = hashlib.blake2b(digest_size=8)
        self._hashers[key].update(np.ascontiguousarray(array).data)
