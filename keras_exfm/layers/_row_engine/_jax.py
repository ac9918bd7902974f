"""The JAX engine: the lookup's backward pass returns the updated table."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_exfm.layers._row_engine import _chunks, _rounding, _sharded
from keras_exfm.layers._row_engine._dedup import representatives
from keras_exfm.layers._row_engine._guard import RowVariable

# The step counter must be a float to have a "gradient". Two words keep it exact to 2**31 steps.
_WORD = 2**20

# Arrays of fewer bytes are taken to stay in a CPU's cache from step to step.
_CACHE = 2**25
# In how many parts a batch is updated, and from how many lookups on.
_PARTS = 8
_PARTED = 4096


class JaxRowEngine:
    """Variables and lookup of one table on JAX."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.slots: dict[str, Any] = {}
        # How often a backward pass of this table was traced, and as of when each variable has
        # taken the result.
        self._backwards = 0
        self._taken: dict[int, int] = {}
        # XLA on a CPU writes a few rows of a bfloat16 array by way of a float32 copy of all of it.
        # So two bfloat16 numbers lie in the bits of one float32, which is only ever copied.
        # The size of a row of such a table; 0 for float32.
        self._packed = layer.dim if layer.storage_dtype == "bfloat16" else 0
        # How the table lies on several devices; None on one.
        self._placement: _sharded.Placement | None = None

    def build(self) -> None:
        """Creates the variables as attributes of the layer."""
        layer = self.layer

        width = (layer.dim + 1) // 2 if self._packed else layer.dim
        self._placement = _sharded.placement_of(f"{layer.path}/table", (layer.rows, width))

        def variable(name: str, shape: tuple[int, ...], initializer: Any) -> Any:
            layout = None
            if self._placement is not None:
                layout = self._placement.sharding(shape)
                initializer = _sharded.initial_value(initializer, shape)
            return RowVariable(
                initializer,
                shape=shape,
                dtype="float32",
                trainable=True,
                autocast=False,
                name=name,
                overwrite=self._overwrite,
                layout=layout,
            )

        def table(stored: Any, dtype: Any) -> Any:
            shape = (layer.rows, layer.dim)
            if self._placement is not None:
                finish = _pack if self._packed else jnp.asarray
                return self._placement.draw(layer.initializer, shape, dtype, finish)
            pieces = _chunks.pieces(layer.initializer, shape, dtype)
            if pieces is None:
                whole = layer.initializer(shape, dtype=dtype)
                return _pack(whole) if self._packed else whole
            if self._packed:
                pieces = ((start, _pack(rows)) for start, rows in pieces)
            return _fill(tuple(stored), pieces)

        layer.table = variable("table", (layer.rows, width), table)
        for name, slot in layer.optimizer.slots().items():
            shape = (layer.rows,) if slot.per_row else (layer.rows, layer.dim)
            initial = functools.partial(_full, self._placement, slot.initial)
            self.slots[name] = variable(name, shape, initial)
            setattr(layer, f"slot_{name}", self.slots[name])
        layer.step_words = RowVariable(
            keras.initializers.Zeros(),
            shape=(2,),
            dtype="float32",
            trainable=True,
            autocast=False,
            name="step",
            overwrite=self._overwrite,
        )

    def get_step(self) -> int:
        """Number of training steps that the table has seen."""
        high, low = keras.ops.convert_to_numpy(self.layer.step_words.value)
        return int(high) * _WORD + int(low)

    def set_step(self, step: int) -> None:
        """Sets the number of training steps."""
        self.layer.step_words.assign(jnp.asarray(divmod(step, _WORD), jnp.float32))

    def read(self, variable: Any, start: int, stop: int) -> np.ndarray:
        """Rows of a variable."""
        if self._placement is not None:
            rows = self._placement.read(variable.value, start, stop)
        else:
            rows = np.asarray(variable.value[start:stop])
        if self._packed and variable is self.layer.table:
            return _rounding.from_bits(rows.view(np.uint16)[:, : self._packed])
        return rows

    def write(self, variable: Any, start: int, rows: np.ndarray) -> None:
        """Overwrites rows of a variable."""
        if self._packed and variable is self.layer.table:
            bits = _rounding.to_bits(rows)
            rows = np.pad(bits, [(0, 0), (0, self._packed % 2)]).view(np.float32)
        if self._placement is not None:
            value = self._placement.write(variable.value, start, rows)
        else:
            # Waited for, else pieces that are read faster than put would queue up in memory.
            value = jax.block_until_ready(_put(variable.value, jnp.asarray(rows), start))
        variable.assign_directly(value)

    def _overwrite(self, variable: RowVariable, value: Any) -> Any:
        if self._taken.get(id(variable), 0) == self._backwards:
            # No backward pass since the last update: no lookup reached the loss, so the "gradient"
            # is zeros, which must not become the table. Should the backward pass have run inside a
            # compiled function that Python did not see again, it is not zeros.
            value = jnp.where(jnp.any(value != 0), value, variable.value)
        self._taken[id(variable)] = self._backwards
        return variable.assign_directly(value)

    def lookup(self, ids: Any, training: bool | None, fresh: Any = None) -> Any:
        """Vectors of `ids`, with the row-sparse update as their backward pass.

        The rows of the ids marked `fresh` are renewed first; it is the backward pass that keeps it.
        """
        del training  # A gradient that is taken is applied, as for any Keras weight.
        layer = self.layer
        placement, packed = self._placement, self._packed
        if not layer.trainable:
            return _anywhere(placement, packed, layer.table.value, ids)
        optimizer = layer.optimizer
        forward_at = self._backwards

        @jax.custom_vjp
        def embed(table: Any, slots: Any, words: Any, rate: Any, ids: Any, fresh: Any) -> Any:
            table, _ = _renew(optimizer, table, {}, ids, fresh)
            return _anywhere(placement, packed, table, ids)

        def forward(table: Any, slots: Any, words: Any, rate: Any, ids: Any, fresh: Any) -> Any:
            table, slots = _renew(optimizer, table, slots, ids, fresh)
            if placement is not None:
                vectors = _anywhere(placement, packed, table, ids)
                return vectors, (None, table, slots, words, rate, ids)
            raw = _rows_of(table, _touch([table], ids), packed)
            return _mask(raw, ids, layer.rows), (raw, table, slots, words, rate, ids)

        def backward(residuals: Any, gradients: Any) -> Any:
            if self._backwards != forward_at:
                raise RuntimeError(
                    f"The EmbeddingTable {layer.name!r} was looked up more than once in one "
                    "training step. On JAX a row-sparse table supports one lookup a step: "
                    "concatenate the ids, look them up once, and split the result."
                )
            self._backwards += 1
            raw, table, slots, words, rate, ids = residuals
            step = words[0].astype(jnp.int32) * _WORD + words[1].astype(jnp.int32)
            if placement is None:
                table, slots = _update(
                    optimizer, packed, table, slots, ids, raw, gradients, rate, step
                )
            else:
                table, slots = placement.update(
                    table,
                    slots,
                    ids,
                    gradients,
                    (rate, step),
                    _sum,
                    functools.partial(_apply, optimizer, packed),
                )
            step = step + 1
            words = jnp.stack([step // _WORD, step % _WORD]).astype(jnp.float32)
            return table, slots, words, jnp.zeros_like(rate), None, None

        embed.defvjp(forward, backward)
        slots = {name: variable.value for name, variable in self.slots.items()}
        rate = jnp.float32(0) if optimizer.scheduled else layer.rate_variable.value
        return embed(layer.table.value, slots, layer.step_words.value, rate, ids, fresh)


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: Any, rows: Any, start: Any) -> Any:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0)


def _full(placement: Any, value: float, shape: tuple[int, ...], dtype: Any) -> Any:
    if placement is not None:
        return placement.full(value, shape, dtype)
    # Keras' Constant makes ones first, and the product beside them.
    return jnp.full(shape, value, dtype)


def _fill(shape: tuple[int, ...], pieces: Iterator[tuple[int, Any]]) -> Any:
    whole = None
    for start, rows in pieces:
        if whole is None:
            whole = jnp.zeros(shape, rows.dtype)
        # Waiting keeps the pieces from piling up: JAX draws ahead otherwise.
        whole = jax.block_until_ready(_put(whole, rows, start))
    return whole


def _touch(arrays: list[Any], ids: Any) -> Any:
    """`ids`, once a first pass has brought their rows of all `arrays` into the cache.

    On a CPU a gather of random rows of a large table waits for memory row by row: XLA's loop
    copies a row number by number, and the processor's queue of stores holds two rows, so it looks
    no further ahead. A pass that only reads one number of each cache line has many reads under
    way at once, and the gather after it finds the rows close by. At ten million rows this halves
    the time.
    """
    wide = [array for array in arrays if array.ndim > 1 and array.nbytes > _CACHE]
    if jax.default_backend() != "cpu" or 0 in ids.shape or not wide:
        return ids
    numbers = []
    for array in wide:
        inside = jnp.clip(ids, 0, array.shape[0] - 1)
        for column in range(0, array.shape[1], 64 // array.dtype.itemsize):
            numbers.append(array.at[inside, column].get(mode="promise_in_bounds"))
    total = sum(numbers[1:], numbers[0])
    zero = 0 * jnp.min(jnp.where(jnp.isfinite(total), total, 0))
    # A true dependence, which XLA cannot fold since 0 * x is not always 0 for floats. It would
    # drop an optimization barrier on a CPU, and the pass with it.
    return ids + zero.astype(ids.dtype)


def _rows_of(array: Any, ids: Any, packed: int = 0) -> Any:
    rows = array.at[ids].get(mode="clip", wrap_negative_indices=False)
    return _unpack(rows, packed) if packed else rows


def _pack(rows: Any) -> Any:
    """float32 `(n, dim)` as bfloat16, two in the bits of each float32 of `(n, ceil(dim / 2))`."""
    n, dim = rows.shape
    pairs = jnp.pad(rows.astype(jnp.bfloat16), ((0, 0), (0, dim % 2)))
    return jax.lax.bitcast_convert_type(pairs.reshape(n, (dim + 1) // 2, 2), jnp.float32)


def _unpack(rows: Any, dim: int) -> Any:
    pairs = jax.lax.bitcast_convert_type(rows, jnp.bfloat16)
    pairs = pairs.reshape(*rows.shape[:-1], 2 * rows.shape[-1])
    return pairs[..., :dim].astype(jnp.float32)


def _mask(vectors: Any, ids: Any, rows: int) -> Any:
    """`vectors` with zeros for -1 and NaN for other ids that are no row."""
    inside = (ids >= 0) & (ids < rows)
    outside = jnp.where(ids == -1, 0.0, jnp.nan).astype(vectors.dtype)
    return jnp.where(inside[..., None], vectors, outside[..., None])


def _lookup(table: Any, ids: Any, packed: int = 0) -> Any:
    return _mask(_rows_of(table, _touch([table], ids), packed), ids, table.shape[0])


@functools.cache
def _gather(packed: int) -> Any:
    """`_lookup`, one object each, by which compiled functions are found again."""
    return functools.partial(_lookup, packed=packed)


def _anywhere(placement: _sharded.Placement | None, packed: int, table: Any, ids: Any) -> Any:
    """`_lookup` in a table that may lie on several devices."""
    if placement is None:
        return _lookup(table, ids, packed)
    # Unpacked on each device, since sums over devices would change the bits.
    return _mask(placement.lookup(table, ids, _gather(packed)), ids, table.shape[0])


def _renew(
    optimizer: Any, table: Any, slots: dict[str, Any], ids: Any, fresh: Any
) -> tuple[Any, dict[str, Any]]:
    """Zeros in the rows marked `fresh`, and the state that every row has at the start."""
    if fresh is None:
        return table, slots
    rows = table.shape[0]
    target = jnp.where(fresh & (ids >= 0), ids, rows).reshape(-1)

    def put(array: Any, value: float) -> Any:
        return array.at[target].set(value, mode="drop", wrap_negative_indices=False)

    initial = {name: slot.initial for name, slot in optimizer.slots().items()}
    return put(table, 0.0), {name: put(slot, initial[name]) for name, slot in slots.items()}


def _update(
    optimizer: Any,
    packed: int,
    table: Any,
    slots: Any,
    ids: Any,
    vectors: Any,
    gradients: Any,
    rate: Any,
    step: Any,
) -> tuple[Any, Any]:
    dim = gradients.shape[-1]
    ids = ids.reshape(-1)
    if ids.shape == (0,):
        return table, slots
    first = representatives(ids)
    summed = _sum(first, gradients.reshape(-1, dim), ids.size)
    vectors = vectors.reshape(-1, dim)
    return _apply(optimizer, packed, table, slots, ids, first, summed, rate, step, vectors)


def _sum(places: Any, gradients: Any, size: Any) -> Any:
    zeros = jnp.zeros((size, *gradients.shape[1:]), gradients.dtype)
    return zeros.at[places].add(gradients, mode="promise_in_bounds")


def _apply(
    optimizer: Any,
    packed: int,
    table: Any,
    slots: Any,
    ids: Any,
    first: Any,
    summed: Any,
    rate: Any,
    step: Any,
    vectors: Any = None,
    first_row: Any = 0,
) -> tuple[Any, Any]:
    rows = table.shape[0]
    if vectors is None:
        vectors = _rows_of(table, _touch([table], ids), packed)
    # All arrays keep the length of `ids`: of each group of equal ids only the representative's
    # place holds the sum, the others and the ids that are no row write out of bounds, which drops
    # them.
    inside = (ids >= 0) & (ids < rows)
    mine = inside & (first == jnp.arange(ids.size, dtype=first.dtype))
    target = jnp.where(mine, ids, rows)

    def part(table: Any, slots: Any, ids: Any, target: Any, vectors: Any, summed: Any) -> Any:
        touched = _touch(list(slots.values()), ids)
        state = {name: _rows_of(slot, touched) for name, slot in slots.items()}
        new_rows, new_state = optimizer.step(vectors, summed, state, rate, step)
        if packed:
            new_rows = _pack(_rounding.stochastic_round(new_rows, ids + first_row, step))
        table = table.at[target].set(new_rows, mode="drop", wrap_negative_indices=False)
        slots = {
            name: slot.at[target].set(new_state[name], mode="drop", wrap_negative_indices=False)
            for name, slot in slots.items()
        }
        return table, slots

    count = _parts(slots, ids)
    if count == 1:
        return part(table, slots, ids, target, vectors, summed)
    size = -(-ids.size // count)

    def body(number: Any, carry: Any) -> Any:
        # The last slice is moved back to lie inside; what it shares with the one before is dropped.
        begin = jnp.minimum(number * size, ids.size - size)

        def take(array: Any) -> Any:
            return jax.lax.dynamic_slice_in_dim(array, begin, size)

        fresh = begin + jnp.arange(size) >= number * size
        places = jnp.where(fresh, take(target), rows)
        table, slots = carry
        return part(table, slots, take(ids), places, take(vectors), take(summed))

    return jax.lax.fori_loop(0, count, body, (table, slots))


def _parts(slots: dict[str, Any], ids: Any) -> int:
    """In how many parts to update.

    If the state is as wide as the table, the rows of a whole batch do not stay in a CPU's cache
    from the gather to the scatter; those of an eighth of it do. At ten million rows this saves a
    third of an Adam step.
    """
    wide = any(slot.ndim > 1 and slot.nbytes > _CACHE for slot in slots.values())
    many = isinstance(ids.size, int) and ids.size >= _PARTED
    return _PARTS if wide and many and jax.default_backend() == "cpu" else 1
