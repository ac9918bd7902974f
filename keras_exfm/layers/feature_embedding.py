"""From the features of a batch to one matrix of embeddings an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.features import PADDING, Categorical, Schema
from keras_exfm.layers import _checks
from keras_exfm.layers._hashing import hash_to_rows
from keras_exfm.layers._initializers import stacked
from keras_exfm.layers._loud_relu import loud_relu
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._stack import Piece, Stack, stacks
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.layers.dynamic_ids import DynamicIds
from keras_exfm.layers.embedding_table import (
    STORAGE_DTYPES,
    EmbeddingTable,
    check_regularizer,
    in_range,
)
from keras_exfm.optimizers import get

# What the table is asked for when an id is neither a row nor padding: it answers NaN.
_OUTSIDE = -2


@keras.saving.register_keras_serializable(package="keras_exfm")
class FeatureEmbedding(keras.layers.Layer):
    """Turns a dict of features into a matrix of embeddings, `(batch, n, dim)`.

    Rows of the output, in this order:

    1. For each sparse feature in schema order, its `embeddings` vectors. A `Categorical` id `i`
       gives `T[o + e * V + i]` for `e = 0 .. embeddings - 1`, where `V` is the vocabulary size and
       `o` the first row of the feature's table; a `MultiHot` gives the mean or the sum of these
       vectors over the ids that are present.
    2. If there are features with a smaller `dim` of their own, `small_embeddings` vectors
       `reshape(Dense(MLP(concatenate(their vectors))))`; these features are left out of 1.
    3. If there are numeric features, `numeric_embeddings` vectors
       `reshape(Dense(MLP(concatenate(numbers))))`.

    So `n = sum(embeddings) + small_embeddings + numeric_embeddings`. All tables of one size of
    vector stand in **one** stacked weight `T` of `sum(V * embeddings)` rows (features that name one
    table share its rows), and a call gathers from it once, however many features there are. Frozen
    tables have a stack of their own.

    Id -1 (`keras_exfm.features.PADDING`) is a missing value: the zero vector and no gradient; a
    multi-hot list of nothing but -1 gives the zero vector. Any other id outside
    `0 .. vocabulary_size - 1` gives NaN: never wrapped, never clamped. Ids of `hashed` features
    may be any int32; id `i` reads row `murmur3_mix32(i) mod V`, the same on every backend.

    Tables of features with `admit_after` are dynamic: ids may be any int32, a `DynamicIds` layer
    gives those that recur a row in training, and a row that passes to another id begins anew, as
    zeros. An id without a row is a missing value: a row that all of them share would be trained by
    the first lookups of many rare ids, and read by every lookup of a new and popular one. While
    the layer does not train (`trainable = False`) no id is counted or admitted.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives.
        dim: Size of every embedding.
        numeric_units: Widths of the ReLU layers that the numeric features pass before their
            embeddings. Defaults to `(64,)`.
        numeric_embeddings: Number of embeddings that all numeric features together give. Defaults
            to `1`.
        embeddings_initializer: Initializer of all tables, or a dict of table name to
            initializer; tables that are not in it take the default. Defaults to `None`, normal
            with the standard deviation 0.01: the noise that an id starts with is what rare ids
            keep, and larger starts cost accuracy on a stream.
        embeddings_regularizer: A `keras.regularizers.Regularizer` or the name of one, of every
            table that trains: `loss += embeddings_regularizer(table)` at each step, over all rows
            of the table, those that the batch did not look up included, as FuxiCTR does (its
            `embedding_regularizer=l` is `keras.regularizers.L2(l / 2)`). Needs `optimizer=None`;
            row optimizers have a `weight_decay` of the rows looked up. Defaults to `None`.
        optimizer: A `keras_exfm.optimizers.RowOptimizer`, or the name of one such as
            `"rowwise_adagrad"`: training then costs the same for a table of any size, see
            `EmbeddingTable`. `None`: the tables are plain weights that the model's optimizer
            trains as a whole. Defaults to `"rowwise_adagrad"`.
        small_units: Widths of the ReLU layers that the vectors of the features with a smaller
            `dim` pass. Defaults to `(64,)`.
        small_embeddings: Number of vectors that these features give together. Defaults to
            `None`: their sizes' sum over `dim`, rounded up.
        storage_dtype: `"float32"` or `"bfloat16"`, of the tables; see `EmbeddingTable`. Defaults
            to `"float32"`.
        frozen: Names of tables that never train. Defaults to `()`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: Dict of feature name to tensor, as `Schema.inputs` and `Schema.encode` give: int32
            `(batch,)` or `(batch, length)`, float `(batch,)` or `(batch, size)`. Other keys are
            left aside.

    Raises:
        ValueError: For a missing feature, ids that are not int32, a wrong shape, a table that is
            not in the schema, more than 2**31 - 1 rows, or a regularizer beside a row optimizer.

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
        embeddings_regularizer: Any = None,
        optimizer: Any = "rowwise_adagrad",
        small_units: tuple[int, ...] | list[int] = (64,),
        small_embeddings: int | None = None,
        storage_dtype: str = "float32",
        frozen: Iterable[str] = (),
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
        self.embeddings_initializer = self._initializers(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.optimizer = get(optimizer)
        self.small_units = _checks.unit_counts("small_units", small_units)
        self.storage_dtype = _checks.one_of("storage_dtype", storage_dtype, STORAGE_DTYPES)
        self.frozen = self._known_tables("frozen", (frozen,) if isinstance(frozen, str) else frozen)
        self._stacks = stacks(schema, self.dim, frozenset(self.frozen))
        small = sum(s.embeddings * s.dim for s in self._stacks if s.dim < self.dim)
        if small_embeddings is None:
            small_embeddings = max(1, -(-small // self.dim))
        self.small_embeddings = _checks.positive_int("small_embeddings", small_embeddings)
        self._small_width = small
        self.tables: list[EmbeddingTable] = []
        self.dynamic_ids: dict[str, DynamicIds] = {}
        self._check_dynamic()
        check_regularizer("embeddings_regularizer", self.embeddings_regularizer, self.optimizer)
        self.small_mlp: keras.layers.Layer | None = None
        self.numeric_mlp: keras.layers.Layer | None = None

    def _known_tables(self, argument: str, names: Iterable[str]) -> tuple[str, ...]:
        names = tuple(names)
        unknown = sorted(set(names) - set(self.schema.tables()))
        if unknown:
            raise ValueError(
                f"`{argument}` should name tables of the schema, {list(self.schema.tables())}. "
                f"Received: {unknown}"
            )
        return names

    def _check_dynamic(self) -> None:
        for stack in self._stacks:
            if stack.dynamic and (stack.frozen or self.optimizer is None):
                raise ValueError(
                    f"The tables {list(stack.dynamic)} are dynamic (`admit_after`): their rows "
                    "pass from id to id, and begin anew, in the update of a row optimizer. Pass "
                    '`optimizer="rowwise_adagrad"` or another one, and do not freeze them. '
                    f"Received: optimizer={self.optimizer!r}, frozen={list(self.frozen)}"
                )

    def _initializers(self, given: Any) -> Any:
        """One initializer, or one for each table that has its own."""
        if isinstance(given, Mapping) and "class_name" not in given:
            self._known_tables("embeddings_initializer", given)
            return {name: keras.initializers.get(one) for name, one in given.items()}
        if given is None:
            given = keras.initializers.RandomNormal(stddev=0.01)
        return keras.initializers.get(given)

    def _initializer(self, stack: Stack) -> Any:
        given = self.embeddings_initializer
        default = self._initializers(None) if isinstance(given, dict) else given
        own = given if isinstance(given, dict) else {}
        sections = [
            (stop - start, own.get(name, default)) for name, (start, stop) in stack.tables.items()
        ]
        return stacked(sections)

    @property
    def num_embeddings(self) -> int:
        """`n`, the number of embeddings an example gets."""
        full = sum(stack.embeddings for stack in self._stacks if stack.dim == self.dim)
        small = self.small_embeddings if self._small_width else 0
        return full + small + (self.numeric_embeddings if self.schema.numeric else 0)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Creates the table and the numeric MLP."""
        self._check_shapes(input_shape)
        for stack in self._stacks:
            table = EmbeddingTable(
                stack.rows,
                stack.dim,
                initializer=self._initializer(stack),
                regularizer=None if stack.frozen else self.embeddings_regularizer,
                optimizer=None if stack.frozen else self.optimizer,
                storage_dtype=self.storage_dtype,
                frozen=stack.frozen,
                # Vectors are cast after pooling, not before.
                dtype=self.variable_dtype,
                name=stack.name,
            )
            table.build((None, len(stack.gather_columns)))
            self.tables.append(table)
            for name in stack.dynamic:
                feature = self.schema.tables()[name]
                assert feature.admit_after is not None
                rows, number = feature.vocabulary_size, feature.admit_after
                ids = DynamicIds(rows, number, name=f"dynamic_{name}")
                ids.build((None, len(stack.dynamic[name])))
                self.dynamic_ids[name] = ids
        if self._small_width:
            self.small_mlp = MLP(
                self.small_units,
                self.small_embeddings * self.dim,
                activation=loud_relu,
                dtype=self.dtype_policy,
                name="small_mlp",
            )
            self.small_mlp.build((None, self._small_width))
        if self.schema.numeric:
            self.numeric_mlp = MLP(
                self.numeric_units,
                self.numeric_embeddings * self.dim,
                activation=loud_relu,
                dtype=self.dtype_policy,
                name="numeric_mlp",
            )
            self.numeric_mlp.build((None, sum(f.size for f in self.schema.numeric)))
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Embeds a batch."""
        self._check_shapes({name: tensor.shape for name, tensor in inputs.items()})
        full: list[tuple[int, Any]] = []
        small: list[tuple[int, Any]] = []
        for stack, table in zip(self._stacks, self.tables):
            blocks = self._embed(stack, table, inputs, training)
            orders = [piece.order for piece in stack.pieces]
            (full if stack.dim == self.dim else small).extend(zip(orders, blocks))
        parts = [block for _, block in sorted(full, key=lambda item: item[0])]
        if self.small_mlp is not None:
            flat = [
                ops.reshape(block, (-1, block.shape[1] * block.shape[2]))
                for _, block in sorted(small, key=lambda item: item[0])
            ]
            out = self.small_mlp(flat[0] if len(flat) == 1 else ops.concatenate(flat, axis=1))
            parts.append(ops.reshape(out, (-1, self.small_embeddings, self.dim)))
        if self.numeric_mlp is not None:
            numbers = [
                ops.cast(ops.reshape(inputs[f.name], (-1, f.size)), self.compute_dtype)
                for f in self.schema.numeric
            ]
            out = self.numeric_mlp(ops.concatenate(numbers, axis=1))
            parts.append(ops.reshape(out, (-1, self.numeric_embeddings, self.dim)))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)

    def _embed(
        self, stack: Stack, table: EmbeddingTable, inputs: Mapping[str, Any], training: bool | None
    ) -> list[Any]:
        """The pooled vectors of each piece of a stack, `(batch, number, size)`."""
        columns = []
        for feature in stack.features:
            ids = inputs[feature.name]
            dtype = keras.backend.standardize_dtype(ids.dtype)
            if dtype != "int32":
                raise ValueError(
                    f"Feature {feature.name!r}: ids should be int32, as `Schema.inputs` and "
                    f"`Schema.encode` give. Received dtype: {dtype}"
                )
            columns.append(ids[:, None] if isinstance(feature, Categorical) else ids)
        ids = columns[0] if len(columns) == 1 else ops.concatenate(columns, axis=1)

        fresh = None
        if stack.dynamic:
            ids, fresh = self._dynamic_rows(stack, ids, bool(training) and table.trainable)
        missing = ops.equal(ids, PADDING)
        sizes = ops.convert_to_tensor(stack.sizes)
        inside = in_range(ids, sizes)
        local = ids
        if stack.hashed.any():
            hashed = ops.convert_to_tensor(stack.hashed)
            local = ops.where(hashed, hash_to_rows(ids, stack.sizes), local)
            inside = ops.logical_or(inside, ops.logical_and(hashed, ops.logical_not(missing)))
        # An offset must not move a flag, nor bring a huge bad id, which overflows, into a good row:
        # ids that are not inside never pass through it.
        flags = ops.where(missing, PADDING, _OUTSIDE)
        offsets = ops.convert_to_tensor(stack.gather_offsets)
        if len(stack.gather_columns) == len(stack.sizes):
            rows = ops.where(inside, local + offsets, flags)
        else:
            local = ops.take(ops.where(inside, local, flags), stack.gather_columns, axis=1)
            fresh = None if fresh is None else ops.take(fresh, stack.gather_columns, axis=1)
            rows = ops.where(local >= 0, local + offsets, local)

        vectors = table(rows, training=training, fresh=fresh)
        widths = [piece.width for piece in stack.pieces]
        # One split, not slices: its gradient is one concatenation of the pieces, where slices
        # would each be padded to the full width and summed.
        if len(widths) > 1:
            blocks = ops.split(vectors, np.cumsum(widths)[:-1].tolist(), axis=1)
        else:
            blocks = [vectors]
        return [self._pool(piece, block, missing) for piece, block in zip(stack.pieces, blocks)]

    def _dynamic_rows(self, stack: Stack, ids: Any, training: bool) -> tuple[Any, Any]:
        """`ids` with rows or -1 in the columns of dynamic tables, and which rows are new."""
        columns = np.arange(len(stack.sizes))
        parts, marks = [ids], [ops.zeros_like(ids, dtype="bool")]
        width = len(columns)
        for name, own in stack.dynamic.items():
            rows, fresh = self.dynamic_ids[name](ops.take(ids, own, axis=1), training=training)
            # Row 0 stands for no row, -1 for no id.
            parts.append(ops.where(rows > 0, rows - 1, PADDING))
            marks.append(fresh)
            columns[own] = width + np.arange(len(own))
            width += len(own)
        columns = columns.astype("int32")
        rows = ops.take(ops.concatenate(parts, axis=1), columns, axis=1)
        if not training:
            return rows, None
        return rows, ops.take(ops.concatenate(marks, axis=1), columns, axis=1)

    def _pool(self, piece: Piece, vectors: Any, missing: Any) -> Any:
        feature = piece.pool
        if feature is not None:
            vectors = ops.reshape(
                vectors, (-1, feature.embeddings, feature.length, vectors.shape[-1])
            )
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

    def dynamic_counters(self) -> dict[str, dict[str, int | float]]:
        """Name of each dynamic table -> what `DynamicIds.counters` says of it.

        Example:

        >>> from keras_exfm import Categorical, Schema
        >>> schema = Schema([Categorical("article", 1000, admit_after=2)])
        >>> layer = FeatureEmbedding(schema, dim=4, optimizer="rowwise_adagrad")
        >>> _ = layer({"article": np.array([7, 7, 8], "int32")}, training=True)
        >>> counters = layer.dynamic_counters()["article"]
        >>> counters["occupancy"], counters["default_lookups"]
        (1, 1)

        A callback may put them in the logs of `fit`:

        >>> def log_counters(epoch, logs):
        ...     for table, counters in layer.dynamic_counters().items():
        ...         logs[f"{table}_default_share"] = counters["default_share"]
        >>> callback = keras.callbacks.LambdaCallback(on_epoch_end=log_counters)
        >>> ids = keras.Input((), dtype="int32", name="article")
        >>> outputs = keras.layers.Dense(1)(keras.layers.Flatten()(layer({"article": ids})))
        >>> model = keras.Model({"article": ids}, outputs)
        >>> model.compile("adam", "mse")
        >>> x, y = {"article": np.array([7, 8, 9], "int32")}, np.zeros(3, "float32")
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[callback]).history
        >>> [round(share, 2) for share in history["article_default_share"]]
        [0.33, 0.22]
        """
        if not self.built:
            raise ValueError(f"The layer {self.name!r} is not built yet: call it once.")
        return {name: layer.counters() for name, layer in self.dynamic_ids.items()}

    def read_table(self, name: str) -> np.ndarray:
        """Rows of one table of the schema, float32 `(vocabulary_size * embeddings, size)`.

        Row `e * vocabulary_size + i` is the `e`-th vector of id `i`.

        Args:
            name: Name of the table.

        Raises:
            ValueError: For a name that is no table, or a layer that is not built.
        """
        table, start, stop = self._locate(name)
        return table.read_rows(start, stop)

    def write_table(self, name: str, values: Any) -> None:
        """Sets the rows of one table, to start warm from another model or from known vectors.

        The optimizer's state of these rows goes back to its start. Frozen tables take them too.

        Args:
            name: Name of the table.
            values: Array of the shape that `read_table` gives.

        Raises:
            ValueError: As `read_table`, and for values of another shape or that are not finite;
                nothing is written then.

        Example:

        >>> from keras_exfm import Categorical, Schema
        >>> schema = Schema([Categorical("ad", 4)])
        >>> old, new = FeatureEmbedding(schema, 2), FeatureEmbedding(schema, 2, frozen=["ad"])
        >>> old.build({"ad": (None,)}), new.build({"ad": (None,)})
        (None, None)
        >>> new.write_table("ad", old.read_table("ad"))
        >>> bool((new.read_table("ad") == old.read_table("ad")).all())
        True
        """
        table, start, stop = self._locate(name)
        values = np.asarray(values)
        expected = (stop - start, table.dim)
        if values.shape != expected:
            raise ValueError(
                f"Values of the table {name!r} should have the shape {expected}. Received: "
                f"{values.shape}"
            )
        table.write_rows(values, start)

    def _locate(self, name: str) -> tuple[EmbeddingTable, int, int]:
        self._known_tables("name", [name])
        if not self.built:
            raise ValueError(f"The layer {self.name!r} is not built yet: call it once.")
        index = next(i for i, stack in enumerate(self._stacks) if name in stack.tables)
        return self.tables[index], *self._stacks[index].tables[name]

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
            "embeddings_initializer": self._serialized_initializers(),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "small_units": list(self.small_units),
            "small_embeddings": self.small_embeddings,
            "storage_dtype": self.storage_dtype,
            "frozen": list(self.frozen),
        }

    def _serialized_initializers(self) -> Any:
        given = self.embeddings_initializer
        if isinstance(given, dict):
            return {name: keras.initializers.serialize(one) for name, one in given.items()}
        return keras.initializers.serialize(given)
