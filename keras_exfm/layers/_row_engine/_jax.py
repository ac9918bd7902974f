"""The JAX engine: the lookup's backward pass returns the updated table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_exfm.layers._row_engine._dedup import representatives
from keras_exfm.layers._row_engine._guard import RowVariable

# The step counter must be a float to have a "gradient". Two words keep it exact to 2**31 steps.
_WORD = 2**20


class JaxRowEngine:
    """Variables and lookup of one table on JAX."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.slots: dict[str, Any] = {}
        # How often a backward pass of this table was traced, and as of when each variable has
        # taken the result.
        self._backwards = 0
        self._taken: dict[int, int] = {}

    def build(self) -> None:
        """Creates the variables as attributes of the layer."""
        layer = self.layer

        def variable(name: str, shape: tuple[int, ...], initializer: Any) -> Any:
            return RowVariable(
                initializer,
                shape=shape,
                dtype="float32",
                trainable=layer.trainable,
                autocast=False,
                name=name,
                overwrite=self._overwrite,
            )

        layer.table = variable("table", (layer.rows, layer.dim), layer.initializer)
        for name, slot in layer.optimizer.slots().items():
            shape = (layer.rows,) if slot.per_row else (layer.rows, layer.dim)
            self.slots[name] = variable(name, shape, keras.initializers.Constant(slot.initial))
            setattr(layer, f"slot_{name}", self.slots[name])
        layer.step_words = variable("step", (2,), keras.initializers.Zeros())

    def get_step(self) -> int:
        """Number of training steps that the table has seen."""
        high, low = keras.ops.convert_to_numpy(self.layer.step_words.value)
        return int(high) * _WORD + int(low)

    def set_step(self, step: int) -> None:
        """Sets the number of training steps."""
        self.layer.step_words.assign(jnp.asarray(divmod(step, _WORD), jnp.float32))

    def _overwrite(self, variable: RowVariable, value: Any) -> Any:
        if self._taken.get(id(variable), 0) == self._backwards:
            # No backward pass since the last update: no lookup reached the loss, so the "gradient"
            # is zeros, which must not become the table. Should the backward pass have run inside a
            # compiled function that Python did not see again, it is not zeros.
            value = jnp.where(jnp.any(value != 0), value, variable.value)
        self._taken[id(variable)] = self._backwards
        return variable.assign_directly(value)

    def lookup(self, ids: Any) -> Any:
        """Vectors of `ids`, with the row-sparse update as their backward pass."""
        layer = self.layer
        if not layer.trainable:
            return _gather(layer.table.value, ids)
        optimizer = layer.optimizer
        forward_at = self._backwards

        @jax.custom_vjp
        def embed(table: Any, slots: Any, words: Any, rate: Any, ids: Any) -> Any:
            return _gather(table, ids)

        def forward(table: Any, slots: Any, words: Any, rate: Any, ids: Any) -> Any:
            vectors = _gather(table, ids)
            return vectors, (vectors, table, slots, words, rate, ids)

        def backward(residuals: Any, gradients: Any) -> Any:
            if self._backwards != forward_at:
                raise RuntimeError(
                    f"The EmbeddingTable {layer.name!r} was looked up more than once in one "
                    "training step. On JAX a row-sparse table supports one lookup a step: "
                    "concatenate the ids, look them up once, and split the result."
                )
            self._backwards += 1
            vectors, table, slots, words, rate, ids = residuals
            step = words[0].astype(jnp.int32) * _WORD + words[1].astype(jnp.int32)
            table, slots = _update(optimizer, table, slots, ids, vectors, gradients, rate, step)
            step = step + 1
            words = jnp.stack([step // _WORD, step % _WORD]).astype(jnp.float32)
            return table, slots, words, jnp.zeros_like(rate), None

        embed.defvjp(forward, backward)
        slots = {name: variable.value for name, variable in self.slots.items()}
        rate = jnp.float32(0) if optimizer.scheduled else layer.rate_variable.value
        return embed(layer.table.value, slots, layer.step_words.value, rate, ids)


def _gather(table: Any, ids: Any) -> Any:
    rows = table.shape[0]
    inside = (ids >= 0) & (ids < rows)
    vectors = table.at[ids].get(mode="clip", wrap_negative_indices=False)
    outside = jnp.where(ids == -1, 0.0, jnp.nan).astype(table.dtype)
    return jnp.where(inside[..., None], vectors, outside[..., None])


def _update(
    optimizer: Any,
    table: Any,
    slots: Any,
    ids: Any,
    vectors: Any,
    gradients: Any,
    rate: Any,
    step: Any,
) -> tuple[Any, Any]:
    rows, dim = table.shape
    ids = ids.reshape(-1)
    if not ids.size:
        return table, slots
    vectors = vectors.reshape(-1, dim)
    first = representatives(ids)
    summed = (
        jnp.zeros_like(vectors).at[first].add(gradients.reshape(-1, dim), mode="promise_in_bounds")
    )
    # All arrays keep the length of `ids`: of each group of equal ids only the representative's
    # place holds the sum, the others and the ids that are no row write out of bounds, which drops
    # them.
    inside = (ids >= 0) & (ids < rows)
    mine = inside & (first == jnp.arange(ids.size, dtype=first.dtype))
    target = jnp.where(mine, ids, rows)
    state = {
        name: slot.at[ids].get(mode="clip", wrap_negative_indices=False)
        for name, slot in slots.items()
    }
    new_rows, new_state = optimizer.step(vectors, summed, state, rate, step)
    table = table.at[target].set(new_rows, mode="drop", wrap_negative_indices=False)
    slots = {
        name: slot.at[target].set(new_state[name], mode="drop", wrap_negative_indices=False)
        for name, slot in slots.items()
    }
    return table, slots
