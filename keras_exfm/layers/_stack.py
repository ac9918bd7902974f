"""Which tables stand on top of each other in one weight, and where each id finds its row."""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_exfm.features import Categorical, MultiHot, Schema


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of gathered vectors: single vectors, or one multi-hot feature to pool.

    Args:
        order: Place of the run's first feature among the sparse features of the schema.
        width: Number of gathered vectors.
        pool: The multi-hot feature that they belong to, if any.
        columns: First column of ids of that feature and the one after its last.
    """

    order: int
    width: int
    pool: MultiHot | None = None
    columns: tuple[int, int] = (0, 0)


class Stack:
    """The tables of one size of vector, stacked to one weight that is gathered from at once.

    Args:
        name: Name of the stack.
        dim: Size of its vectors.
        frozen: Whether its rows never train.
        features: The features that read it, each with its place among the sparse features.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        frozen: bool,
        features: list[tuple[int, Categorical | MultiHot]],
    ) -> None:
        self.name = name
        self.dim = dim
        self.frozen = frozen
        self.features = [feature for _, feature in features]
        # Table name -> first row and one past the last.
        self.tables: dict[str, tuple[int, int]] = {}
        self.rows = 0
        for feature in self.features:
            if feature.table_name not in self.tables:
                count = feature.vocabulary_size * feature.embeddings
                self.tables[feature.table_name] = (self.rows, self.rows + count)
                self.rows += count
        if self.rows > np.iinfo(np.int32).max:
            raise ValueError(
                "The tables of one FeatureEmbedding should have at most 2**31 - 1 rows in all, "
                f"since row ids are int32. Received: {self.rows} rows. Split the schema over "
                "several layers with `Schema.select`, or hash into fewer rows."
            )

        sizes: list[int] = []
        hashed: list[bool] = []
        tables: list[str] = []
        gather_columns: list[int] = []
        gather_offsets: list[int] = []
        self.pieces: list[Piece] = []
        previous = None
        for order, feature in features:
            length = feature.length if isinstance(feature, MultiHot) else 1
            first = len(sizes)
            sizes += [feature.vocabulary_size] * length
            hashed += [feature.hashed] * length
            tables += [feature.table_name] * length
            start, _ = self.tables[feature.table_name]
            for e in range(feature.embeddings):
                gather_columns += range(first, first + length)
                gather_offsets += [start + e * feature.vocabulary_size] * length
            width = feature.embeddings * length
            if isinstance(feature, MultiHot):
                self.pieces.append(Piece(order, width, feature, (first, first + length)))
            elif self.pieces and self.pieces[-1].pool is None and previous == order - 1:
                last = self.pieces[-1]
                self.pieces[-1] = Piece(last.order, last.width + width)
            else:
                self.pieces.append(Piece(order, width))
            previous = order
        # Dynamic table -> the columns of ids that read it.
        self.dynamic: dict[str, np.ndarray] = {}
        for name in self.tables:
            sharers = [f for f in self.features if f.table_name == name]
            if sharers[0].admit_after is not None:
                self.dynamic[name] = np.flatnonzero([t == name for t in tables]).astype("int32")
        self.sizes = np.array(sizes, "int32")
        self.hashed = np.array(hashed, bool)
        self.gather_columns = np.array(gather_columns, "int32")
        self.gather_offsets = np.array(gather_offsets, "int32")

    @property
    def embeddings(self) -> int:
        """Number of vectors that an example gets from it."""
        return sum(feature.embeddings for feature in self.features)


def stacks(schema: Schema, dim: int, frozen: frozenset[str]) -> list[Stack]:
    """The stacks of a schema: one for each size of vector, trained and frozen apart.

    Args:
        schema: The features.
        dim: Size of the vectors of a feature that has no smaller `dim` of its own.
        frozen: Names of the tables that never train.
    """
    groups: dict[tuple[int, bool], list[tuple[int, Categorical | MultiHot]]] = {}
    for order, feature in enumerate(schema.sparse):
        size = min(dim, feature.dim or dim)
        groups.setdefault((size, feature.table_name in frozen), []).append((order, feature))
    out = []
    for (size, fixed), features in groups.items():
        name = "frozen_embeddings" if fixed else "embeddings"
        out.append(Stack(name if size == dim else f"{name}_{size}", size, fixed, features))
    return out
