"""A list of ids per example."""

from __future__ import annotations

import dataclasses
from typing import Literal

from keras_exfm.features import _checks
from keras_exfm.features.schema_error import SchemaError


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
        _checks.check_name(self.name)
        _checks.check_positive(
            self.name,
            vocabulary_size=self.vocabulary_size,
            length=self.length,
            embeddings=self.embeddings,
        )
        if self.dim is not None:
            _checks.check_positive(self.name, dim=self.dim)
        _checks.check_admission(self)
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
