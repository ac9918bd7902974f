"""One embedding table that trains only the rows that a batch looked up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._row_engine import _chunks, _rounding, make_engine
from keras_exfm.layers._trainable import hand_down_trainable
from keras_exfm.optimizers import RowOptimizer, get
from keras_exfm.optimizers.row_optimizer import number

STORAGE_DTYPES = ("float32", "bfloat16")


def check_regularizer(name: str, regularizer: Any, optimizer: RowOptimizer | None) -> None:
    """Refuses a penalty on a table whose rows train themselves: it would not reach them."""
    if regularizer is not None and optimizer is not None:
        raise ValueError(
            f"`{name}` is a term of the loss over all rows, which a row optimizer does not see: "
            "it reads and writes the rows looked up alone. Give the row optimizer a "
            "`weight_decay` instead, or pass `optimizer=None`. Received: "
            f"{name}={regularizer!r}, optimizer={optimizer!r}"
        )


def in_range(ids: Any, rows: Any) -> Any:
    """Whether `0 <= ids < rows`."""
    # Not `ids < rows`: tf2onnx compares so in float32, where integers above 2 ** 24 run into each
    # other. `>=` it leaves to integers.
    return ops.logical_and(ids >= 0, ops.logical_not(ids >= rows))


def masked_lookup(ids: Any, rows: int, take: Callable[[Any], Any]) -> Any:
    """`take(ids)`, but zeros for the id -1 and NaN for any other id outside `0 .. rows - 1`."""
    inside = in_range(ids, rows)
    # The backends disagree on what a bad index reads, so none is ever passed on.
    vectors = take(ops.where(inside, ids, 0))
    # NaN stands only where it is the answer: tf2onnx turns a selection into a sum of products,
    # where a NaN that was not selected would show. `keras_exfm.export` makes it a selection again,
    # but it is not the only way to convert a model.
    known = ops.logical_or(inside, ops.equal(ids, -1))
    outside = ops.cast(ops.where(known, 0.0, float("nan")), vectors.dtype)
    return ops.where(inside[..., None], vectors, outside[..., None])


@keras.saving.register_keras_serializable(package="keras_exfm")
class EmbeddingTable(keras.layers.Layer):
    """An embedding table whose training cost does not grow with its number of rows.

    `output[..., :] = table[ids[...]]`. Id -1 gives the zero vector and no gradient; any other id
    outside `0 .. rows - 1` gives a row of NaN and no update.

    With a row optimizer (`keras_exfm.optimizers`) the table trains in any Keras training step,
    `model.fit` or a custom loop, under any `keras.optimizers.Optimizer` for the other weights: the
    gradients of equal ids are summed, and only the distinct rows of the batch and their state are
    read and written. `evaluate` and `predict` change nothing, nor does `trainable = False`.

    What the model's optimizer does to all weights does not reach such a table: its clipping and
    weight decay are those of the row optimizer. Gradient accumulation, moving averages of weights
    (EMA) and loss scaling are refused when training starts. On JAX the layer may be called once in
    a training step (concatenate the ids); on TensorFlow as often as you like. A term of the loss
    must not read `table` other than through the layer.

    Args:
        rows: Number of rows.
        dim: Size of a row.
        initializer: Initializer of the table. Defaults to `"uniform"` (between -0.05 and 0.05, as
            `keras.layers.Embedding`).
        optimizer: A `keras_exfm.optimizers.RowOptimizer`, the name of one such as
            `"rowwise_adagrad"`, or `None`: the table is a plain weight that the model's own
            optimizer trains. Defaults to `None`.
        storage_dtype: `"float32"`, or `"bfloat16"`: half the memory, `optimizer` computes in
            float32 and its result is rounded stochastically, so that small updates count on
            average. Needs an `optimizer` or `frozen`. Defaults to `"float32"`.
        frozen: If `True`, no row ever trains, whatever `trainable` is set to, and no optimizer
            state is kept. Defaults to `False`.
        regularizer: A `keras.regularizers.Regularizer` or the name of one, over all rows at each
            step. Needs `optimizer=None`; not applied to a frozen table. Defaults to `None`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`. The optimizer's state is
            float32 always, and the table has `storage_dtype` under every mixed policy.

    Call arguments:
        ids: int32 tensor of any shape.
        fresh: bool tensor of the same shape, or `None`. In training, the rows of the ids that it
            marks begin anew before they are looked up, as zeros with the optimizer's initial
            state: a row may thus pass from one id to another (`DynamicIds`). Needs an `optimizer`,
            and a step that takes the gradient. Defaults to `None`.

    Returns:
        Tensor of shape `ids.shape + (dim,)` in the compute dtype.

    Raises:
        ValueError: For ids that are not int32, or an argument out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from keras_exfm.optimizers import RowwiseAdagrad
    >>> ids = keras.Input((3,), dtype="int32")
    >>> table = EmbeddingTable(1000, 8, optimizer=RowwiseAdagrad(0.05))
    >>> score = keras.layers.Dense(1)(keras.layers.Flatten()(table(ids)))
    >>> model = keras.Model(ids, score)
    >>> model.compile("adam", "mse")
    >>> x, y = np.array([[1, 2, -1], [2, 2, 7]], "int32"), np.ones((2, 1), "float32")
    >>> _ = model.fit(x, y, verbose=0)
    >>> table.step
    1
    >>> table.learning_rate = 0.01

    References:
        - keras-rs' SparseCore lookup, which returns the updated table as its gradient.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        initializer: Any = "uniform",
        optimizer: RowOptimizer | str | dict[str, Any] | None = None,
        storage_dtype: str = "float32",
        frozen: bool = False,
        regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = _checks.positive_int("rows", rows)
        self.dim = _checks.positive_int("dim", dim)
        if self.rows > 2**31 - 1:
            raise ValueError(
                f"`rows` should be at most 2**31 - 1, since ids are int32. Received: rows={rows!r}"
            )
        self.initializer = keras.initializers.get(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.optimizer = get(optimizer)
        check_regularizer("regularizer", self.regularizer, self.optimizer)
        self.storage_dtype = _checks.one_of("storage_dtype", storage_dtype, STORAGE_DTYPES)
        self.frozen = bool(frozen)
        if storage_dtype == "bfloat16" and not (self.optimizer or self.frozen):
            raise ValueError(
                '`storage_dtype="bfloat16"` needs a row optimizer, which rounds stochastically, or '
                f"`frozen=True`. Received: optimizer={optimizer!r}, frozen={frozen}"
            )
        self.table: Any = None
        self.rate_variable: Any = None
        self._engine: Any = None

    def build(self, input_shape: Any = None) -> None:
        """Creates the table and the state of its optimizer."""
        if self.optimizer is None or self.frozen:
            self.table = self.add_weight(
                shape=(self.rows, self.dim),
                initializer=self.initializer,
                regularizer=None if self.frozen else self.regularizer,
                dtype=self.storage_dtype,
                trainable=not self.frozen,
                name="table",
                # A cast of the weight would copy the whole table; only the rows read are cast.
                autocast=False,
            )
        else:
            if not self.optimizer.scheduled:
                self.rate_variable = self.add_weight(
                    shape=(),
                    initializer=keras.initializers.Constant(self.optimizer.learning_rate),
                    dtype="float32",
                    trainable=False,
                    autocast=False,
                    name="learning_rate",
                )
            self._engine = make_engine(self)
            self._engine.build()
        hand_down_trainable(self)
        self.built = True

    def call(self, ids: Any, training: bool | None = None, fresh: Any = None) -> Any:
        """Looks ids up."""
        dtype = keras.backend.standardize_dtype(ids.dtype)
        if dtype != "int32":
            raise ValueError(f"EmbeddingTable expects int32 ids. Received dtype: {dtype}")
        if fresh is not None:
            self._check_fresh(ids, fresh)
            fresh = fresh if training else None
        if self._engine is not None:
            vectors = self._engine.lookup(ids, training, fresh)
        else:
            vectors = masked_lookup(ids, self.rows, lambda at: ops.take(self.table, at, axis=0))
        return ops.cast(vectors, self.compute_dtype)

    def _check_fresh(self, ids: Any, fresh: Any) -> None:
        if self._engine is None:
            raise ValueError(
                "`fresh` needs a table that a row optimizer trains, such as "
                '`optimizer="rowwise_adagrad"`: another optimizer keeps the state that the row had '
                f"before. Received: optimizer={self.optimizer!r}, frozen={self.frozen}"
            )
        dtype = keras.backend.standardize_dtype(fresh.dtype)
        if dtype != "bool" or tuple(fresh.shape) != tuple(ids.shape):
            raise ValueError(
                f"`fresh` should be bool of the shape of the ids, {tuple(ids.shape)}. Received: "
                f"{dtype} {tuple(fresh.shape)}"
            )

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`input_shape + (dim,)`."""
        return (*tuple(input_shape), self.dim)

    def _check_trains_itself(self, what: str) -> None:
        if self._engine is None:
            raise AttributeError(
                f"`{what}` belongs to a built EmbeddingTable with a row optimizer that is not "
                f"frozen. Received: optimizer={self.optimizer!r}, frozen={self.frozen}, "
                f"built={self.built}"
            )

    @property
    def step(self) -> int:
        """Number of training steps that the table has seen."""
        self._check_trains_itself("step")
        return self._engine.get_step()

    @property
    def learning_rate(self) -> Any:
        """The base learning rate: a float32 scalar variable that callbacks may assign.

        A schedule instead, if the row optimizer has one.
        """
        self._check_trains_itself("learning_rate")
        assert self.optimizer is not None
        return self.optimizer.learning_rate if self.optimizer.scheduled else self.rate_variable

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._check_trains_itself("learning_rate")
        assert self.optimizer is not None
        if self.optimizer.scheduled:
            raise ValueError(
                "The row optimizer's learning rate is a LearningRateSchedule, which cannot be "
                f"assigned. Received: learning_rate={value!r}"
            )
        self.rate_variable.assign(number("learning_rate", value, minimum=0.0))

    def read_rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values of the rows `start .. stop - 1` as a float32 array.

        Args:
            start: First row. Defaults to `0`.
            stop: Row after the last one. Defaults to `None`, the end of the table.
        """
        start, stop = self._check_span(start, self.rows if stop is None else stop)
        return self._read(start, stop).astype("float32")

    def write_rows(self, values: Any, start: int = 0) -> None:
        """Sets rows, as from a trained table, and their optimizer state to its initial value.

        Args:
            values: `(n, dim)` numbers, all finite.
            start: First row to write. Defaults to `0`.

        Raises:
            ValueError: For another shape, rows outside the table or numbers that are not finite;
                nothing is written then.
        """
        values = np.asarray(values, "float32")
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise ValueError(f"Rows should have shape (n, {self.dim}). Received: {values.shape}")
        self._check_span(start, start + len(values))
        if not np.isfinite(values).all():
            raise ValueError("Rows should be finite numbers. Received: NaN or infinite values")
        for first, last in _chunks.spans(values.shape):
            self._write(start + first, values[first:last])
            for name, (shape, _, write) in self._slots().items():
                assert self.optimizer is not None
                initial = self.optimizer.slots()[name].initial
                write(start + first, np.full((last - first, *shape[1:]), initial, "float32"))

    def _check_span(self, start: int, stop: int) -> tuple[int, int]:
        if not self.built:
            raise ValueError(f"The EmbeddingTable {self.name!r} is not built yet: call it once.")
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(
                f"Rows should lie in 0..{self.rows}, the first before the last. Received: "
                f"{start}..{stop}"
            )
        return start, stop

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self._engine is not None:
            return self._engine.read(self.table, start, stop)
        return ops.convert_to_numpy(self.table[start:stop])

    def _write(self, start: int, values: np.ndarray) -> None:
        if self._engine is not None:
            self._engine.write(self.table, start, values)
        elif len(values) == self.rows:
            self.table.assign(values)
        else:
            values = ops.cast(values, self.storage_dtype)
            self.table.assign(ops.slice_update(self.table.value, (start, 0), values))

    def _slots(self) -> dict[str, tuple[tuple[int, ...], Any, Any]]:
        if self._engine is None:
            return {}
        engine = self._engine
        return {
            name: (
                tuple(slot.shape),
                functools.partial(engine.read, slot),
                functools.partial(engine.write, slot),
            )
            for name, slot in engine.slots.items()
        }

    def _state(self) -> dict[str, tuple[tuple[int, ...], Any, Any]]:
        """Name -> shape, reader of rows and writer of rows, of all that a file holds by rows."""

        def read(start: int, stop: int) -> np.ndarray:
            values = self._read(start, stop)
            # HDF5 has no bfloat16.
            return _rounding.to_bits(values) if self.storage_dtype == "bfloat16" else values

        def write(start: int, values: np.ndarray) -> None:
            bits = values.dtype == np.uint16
            self._write(start, _rounding.from_bits(values) if bits else values)

        slots = {f"slot_{name}": slot for name, slot in self._slots().items()}
        return {"table": ((self.rows, self.dim), read, write), **slots}

    def save_own_variables(self, store: Any) -> None:
        """Writes the table and its optimizer's state under names that all backends share.

        Large variables go piece by piece: a file that is written directly
        (`save_weights("x.weights.h5")`) takes no second table in memory. bfloat16 rows are written
        as the uint16 of their bits.
        """
        for name, (shape, read, _) in self._state().items():
            _chunks.save(store, name, shape, read)
        if self._engine is not None:
            store["step"] = self._engine.get_step()
        if self.rate_variable is not None:
            store["learning_rate"] = self.rate_variable

    def load_own_variables(self, store: Any) -> None:
        """The inverse of `save_own_variables`; either `storage_dtype` reads the other's file."""
        expected = set()
        for name, (shape, _, _) in self._state().items():
            expected |= set(_chunks.names(name, shape))
        if self._engine is not None:
            expected.add("step")
        if self.rate_variable is not None:
            expected.add("learning_rate")
        found = set(store.keys())
        if found != expected:
            raise ValueError(
                f"The weights of the EmbeddingTable {self.name!r} with rows={self.rows}, "
                f"dim={self.dim} and optimizer={self.optimizer!r} should be {sorted(expected)}. "
                f"Received: {sorted(found)}. The file was written with another table or another "
                "row optimizer."
            )
        for name, (shape, _, write) in self._state().items():
            _chunks.load(store, name, shape, write)
        if self._engine is not None:
            self._engine.set_step(int(store["step"][()]))
        if self.rate_variable is not None:
            self.rate_variable.assign(store["learning_rate"])

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        optimizer = self.optimizer
        if optimizer is not None:
            optimizer = keras.saving.serialize_keras_object(optimizer)
        return {
            **super().get_config(),
            "rows": self.rows,
            "dim": self.dim,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "optimizer": optimizer,
            "storage_dtype": self.storage_dtype,
            "frozen": self.frozen,
        }
