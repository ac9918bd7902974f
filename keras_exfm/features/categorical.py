"""One id per example."""

from __future__ import annotations

import dataclasses

from keras_exfm.features import _checks


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
        _checks.check_name(self.name)
        _checks.check_positive(
            self.name, vocabulary_size=self.vocabulary_size, embeddings=self.embeddings
        )
        if self.dim is not None:
            _checks.check_positive(self.name, dim=self.dim)
        _checks.check_admission(self)

    @property
    def table_name(self) -> str:
        """Name of the table that the feature reads."""
        return self.table or self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return ()

    dtype = "int32"
