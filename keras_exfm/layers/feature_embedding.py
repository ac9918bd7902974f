"""From the features of a batch to one matrix of embeddings an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.features import PADDING, Categorical, MultiHot, Schema
from keras_exfm.layers import _checks
from keras_exfm.layers._hashing import hash_to_rows
from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers.embedding_table import EmbeddingTable
from keras_exfm.optimizers import get

# What the table is asked for when an id is neither a row nor padding: it answers NaN.
_OUTSIDE = -2


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A run of gathered vectors: single vectors, or one multi-hot feature to pool."""

    width: int
    pool: MultiHot | None = None
    columns: tuple[int, int] = (0, 0)


class _Plan:
    """Where each column of ids reads in the stacked table, worked out once from the schema."""

    def __init__(self, schema: Schema) -> None:
        offsets: dict[str, int] = {}
        self.rows = 0
        for name, table in schema.tables().items():
            offsets[name] = self.rows
            self.rows += table.vocabulary_size * table.embeddings

        sizes: list[int] = []
        hashed: list[bool] = []
        gather_columns: list[int] = []
        gather_offsets: list[int] = []
        self.pieces: list[_Piece] = []
        for feature in schema.sparse:
            length = feature.length if isinstance(feature, MultiHot) else 1
            first = len(sizes)
            sizes += [feature.vocabulary_size] * length
            hashed += [feature.hashed] * length
            for e in range(feature.embeddings):
                gather_columns += range(first, first + length)
                gather_offsets += [
                    offsets[feature.table_name] + e * feature.vocabulary_size
                ] * length
            width = feature.embeddings * length
            if isinstance(feature, MultiHot):
                self.pieces.append(_Piece(width, feature, (first, first + length)))
            elif self.pieces and self.pieces[-1].pool is None:
                self.pieces[-1] = _Piece(self.pieces[-1].width + width)
            else:
                self.pieces.append(_Piece(width))
        if self.rows > np.iinfo(np.int32).max:
            raise ValueError(
                "The tables of one FeatureEmbedding should have at most 2**31 - 1 rows in all, "
                f"since row ids are int32. Received: {self.rows} rows. Split the schema over "
                "several layers with `Schema.select`, or hash into fewer rows."
            )
        self.sizes = np.array(sizes, "int32")
        self.hashed = np.array(hashed, bool)
        self.gather_columns = np.array(gather_columns, "int32")
        self.gather_offsets = np.array(gather_offsets, "int32")
        self.embeddings = sum(feature.embeddings for feature in schema.sparse)


@keras.saving.register_keras_serializable(package="keras_exfm")
class FeatureEmbedding(keras.layers.Layer):
    """Turns a dict of features into a matrix of embeddings, `(batch, n, dim)`.

    Rows of the output, in this order:

    1. For each sparse feature in schema order, its `embeddings` vectors. A `Categorical` id `i`
       gives `T[o + e * V + i]` for `e = 0 .. embeddings - 1`, where `V` is the vocabulary size and
       `o` the first row of the feature's table; a `MultiHot` gives the mean or the sum of these
       vectors over the ids that are present.
    2. If there are numeric features, `numeric_embeddings` vectors
       `reshape(Dense(MLP(concatenate(numbers))))`.

    So `n = sum(embeddings) + numeric_embeddings`. All tables stand in **one** stacked weight `T`
    of `sum(V * embeddings)` rows (features that name one table share its rows), and a call gathers
    from it once, however many features there are.

    Id -1 (`keras_exfm.features.PADDING`) is a missing value: the zero vector and no gradient; a
    multi-hot list of nothing but -1 gives the zero vector. Any other id outside
    `0 .. vocabulary_size - 1` gives NaN: never wrapped, never clamped. Ids of `hashed` features
    may be any int32; id `i` reads row `murmur3_mix32(i) mod V`, the same on every backend.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives.
        dim: Size of every embedding.
        numeric_units: Widths of the ReLU layers that the numeric features pass before their
            embeddings. Defaults to `(64,)`.
        numeric_embeddings: Number of embeddings that all numeric features together give. Defaults
            to `1`.
        embeddings_initializer: Initializer of the stacked table. Defaults to `None`, normal with
            the standard deviation 0.01: the noise that an id starts with is what rare ids keep,
            and larger starts cost accuracy on a stream.
        optimizer: A `keras_exfm.optimizers.RowOptimizer`, or the name of one such as
            `"rowwise_adagrad"`: training then costs the same for a table of any size, see
            `EmbeddingTable`. `None`: the table is a plain weight that the model's optimizer
            trains. Defaults to `None`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Dict of feature name to tensor, as `Schema.inputs` and `Schema.encode` give: int32
            `(batch,)` or `(batch, length)`, float `(batch,)` or `(batch, size)`. Other keys are
            left aside.

    Raises:
        ValueError: For a missing feature, ids that are not int32, a wrong shape, or more than
            2**31 - 1 rows.

    Example:

    >>> import numpy as np
    >>> from keras_exfm import Categorical, MultiHot, Numeric, Schema
    >>> schema = Schema([
    ...     Categorical("user", 100, embeddings=2),
    ...     Categorical("ad", 50, hashed=True),
    ...     MultiHot("history", 50, length=3, table="ad", hashed=True),
    ...     Numeric("age"),
    ... ])
    >>> layer = FeatureEmbedding(schema, dim=8)
    >>> batch = schema.encode({
    ...     "user": [3, -1], "ad": [123456, 7], "history": [[7, 9, -1], [-1, -1, -1]],
    ...     "age": [0.5, 1.0],
    ... })
    >>> tuple(layer(batch).shape)
    (2, 5, 8)

    References:
        - [Zhang et al., 2024, Wukong: Towards a Scaling Law for Large-Scale
          Recommendation](https://arxiv.org/abs/2403.02545), section 3.2.
    """

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        dim: int,
        numeric_units: tuple[int, ...] | list[int] = (64,),
        numeric_embeddings: int = 1,
        embeddings_initializer: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(schema, Mapping):
            schema = Schema.from_dict(schema)
        if not isinstance(schema, Schema):
            raise ValueError(f"`schema` should be a Schema. Received: schema={schema!r}")
        self.schema = schema
        self.dim = _checks.positive_int("dim", dim)
        self.numeric_units = _checks.unit_counts("numeric_units", numeric_units)
        self.numeric_embeddings = _checks.positive_int("numeric_embeddings", numeric_embeddings)
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomNormal(stddev=0.01)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.optimizer = get(optimizer)
        self._plan = _Plan(schema)
        self.table: keras.layers.Layer | None = None
        self.numeric_mlp: keras.layers.Layer | None = None

    @property
    def num_embeddings(self) -> int:
        """`n`, the number of embeddings an example gets."""
        return self._plan.embeddings + (self.numeric_embeddings if self.schema.numeric else 0)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Creates the table and the numeric MLP."""
        self._check_shapes(input_shape)
        if self.schema.sparse:
            self.table = EmbeddingTable(
                self._plan.rows,
                self.dim,
                initializer=clone_initializer(self.embeddings_initializer),
                optimizer=self.optimizer,
                # Vectors are cast after pooling, not before.
                dtype=self.variable_dtype,
                name="embeddings",
            )
            self.table.build((None, len(self._plan.gather_columns)))
        if self.schema.numeric:
            self.numeric_mlp = MLP(
                self.numeric_units,
                self.numeric_embeddings * self.dim,
                dtype=self.dtype_policy,
                name="numeric_mlp",
            )
            self.numeric_mlp.build((None, sum(f.size for f in self.schema.numeric)))
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Embeds a batch."""
        self._check_shapes({name: tensor.shape for name, tensor in inputs.items()})
        parts = []
        if self.table is not None:
            parts += self._embed_sparse(inputs)
        if self.numeric_mlp is not None:
            numbers = [
                ops.cast(ops.reshape(inputs[f.name], (-1, f.size)), self.compute_dtype)
                for f in self.schema.numeric
            ]
            out = self.numeric_mlp(ops.concatenate(numbers, axis=1))
            parts.append(ops.reshape(out, (-1, self.numeric_embeddings, self.dim)))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)

    def _embed_sparse(self, inputs: Mapping[str, Any]) -> list[Any]:
        plan = self._plan
        columns = []
        for feature in self.schema.sparse:
            ids = inputs[feature.name]
            dtype = keras.backend.standardize_dtype(ids.dtype)
            if dtype != "int32":
                raise ValueError(
                    f"Feature {feature.name!r}: ids should be int32, as `Schema.inputs` and "
                    f"`Schema.encode` give. Received dtype: {dtype}"
                )
            columns.append(ids[:, None] if isinstance(feature, Categorical) else ids)
        ids = columns[0] if len(columns) == 1 else ops.concatenate(columns, axis=1)

        missing = ops.equal(ids, PADDING)
        sizes = ops.convert_to_tensor(plan.sizes)
        inside = ops.logical_and(ids >= 0, ids < sizes)
        local = ids
        if plan.hashed.any():
            hashed = ops.convert_to_tensor(plan.hashed)
            local = ops.where(hashed, hash_to_rows(ids, plan.sizes), local)
            inside = ops.logical_or(inside, ops.logical_and(hashed, ops.logical_not(missing)))
        # Below, `local` is a row of the feature's own table, or a negative flag that an offset
        # must not move: this also keeps huge bad ids from overflowing int32 into a good row.
        local = ops.where(inside, local, ops.where(missing, PADDING, _OUTSIDE))
        if len(plan.gather_columns) != len(plan.sizes):
            local = ops.take(local, plan.gather_columns, axis=1)
        rows = ops.where(local >= 0, local + ops.convert_to_tensor(plan.gather_offsets), local)

        assert self.table is not None
        vectors = self.table(rows)
        widths = [piece.width for piece in plan.pieces]
        # One split, not slices: its gradient is one concatenation of the pieces, where slices
        # would each be padded to the full width and summed.
        if len(widths) > 1:
            blocks = ops.split(vectors, np.cumsum(widths)[:-1].tolist(), axis=1)
        else:
            blocks = [vectors]
        return [self._pool(piece, block, missing) for piece, block in zip(plan.pieces, blocks)]

    def _pool(self, piece: _Piece, vectors: Any, missing: Any) -> Any:
        feature = piece.pool
        if feature is not None:
            vectors = ops.reshape(vectors, (-1, feature.embeddings, feature.length, self.dim))
            vectors = ops.sum(vectors, axis=2)
            if feature.combiner == "mean":
                start, stop = piece.columns
                present = ops.cast(ops.logical_not(missing[:, start:stop]), vectors.dtype)
                count = ops.maximum(ops.sum(present, axis=1), 1)
                vectors = vectors / count[:, None, None]
        return ops.cast(vectors, self.compute_dtype)

    def _check_shapes(self, shapes: Mapping[str, Any]) -> None:
        if not isinstance(shapes, Mapping):
            raise ValueError(
                "FeatureEmbedding expects a dict of feature name to tensor with the features "
                f"{list(self.schema.names)}. Received shapes: {shapes!r}"
            )
        missing = [name for name in self.schema.names if name not in shapes]
        if missing:
            raise ValueError(
                f"FeatureEmbedding misses the features {missing}. Received: {sorted(shapes)}"
            )
        for feature in self.schema:
            shape = tuple(shapes[feature.name])
            if shape[1:] != feature.shape or len(shape) != len(feature.shape) + 1:
                raise ValueError(
                    f"Feature {feature.name!r} should have the shape "
                    f"{('batch', *feature.shape)}. Received: {shape}"
                )

    def compute_output_shape(self, input_shape: Mapping[str, Any]) -> tuple[Any, ...]:
        """`(batch, n, dim)`."""
        batch, *_ = tuple(input_shape[self.schema.names[0]])
        return (batch, self.num_embeddings, self.dim)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "schema": self.schema.to_dict(),
            "dim": self.dim,
            "numeric_units": list(self.numeric_units),
            "numeric_embeddings": self.numeric_embeddings,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
        }
