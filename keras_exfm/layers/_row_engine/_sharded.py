"""A table on several devices: every device works on the rows that it holds.

What crosses the network is written out here: once the ids of the batch, once the vectors looked
up, once their gradients. Nothing grows with the table. (Left to itself, XLA would exchange places
in every round of the search for equal ids, and the new rows and their state as well.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from keras_exfm.layers._row_engine import _chunks
from keras_exfm.layers._row_engine._dedup import representatives


@dataclasses.dataclass(frozen=True)
class Placement:
    """How the rows of one table lie on a mesh of devices.

    Args:
        mesh: The mesh.
        batch: Its axis over which batches are split.
        rows: Its axis over which the rows are split; `None` if every device holds all rows.
    """

    mesh: jax.sharding.Mesh
    batch: str
    rows: str | None

    def lookup(self, table: Any, ids: Any, gather: Callable[[Any, Any], Any]) -> Any:
        """Vectors of `ids`; zeros or `gather`'s answer for ids that are no row.

        Every device gathers from its own rows for all ids, with zeros for the others, and a sum
        over the devices leaves each with the vectors of its part of the batch.

        Args:
            table: `(rows, ...)`.
            ids: int32 of any shape, the first axis that of the batch.
            gather: Function of rows and ids to vectors, zeros for -1. The same object each time.
        """
        return _lookup(self, gather, table, ids)

    def update(
        self,
        table: Any,
        slots: dict[str, Any],
        ids: Any,
        gradients: Any,
        scalars: Any,
        add: Callable[..., Any],
        apply: Callable[..., Any],
    ) -> Any:
        """The table and its slots after a step.

        Every device learns all ids of the batch and the summed gradients, and updates its rows.
        Where several devices hold the same rows, the sums come out of one reduction over these
        devices, which gives all of them the same bits: sums of their own could differ by the
        order of addition, and the copies would drift apart.

        Args:
            table: `(rows, dim)`.
            slots: Name -> state of the rows.
            ids: int32 of any shape, the first axis that of the batch.
            gradients: `ids.shape + (dim,)`.
            scalars: What `apply` gets last, the same on all devices.
            add: Function of places, gradients `(n, dim)` and a length to sums by place.
            apply: Function of table, slots, ids `(n,)`, representatives, sums, scalars and
                `first_row`, from which the ids count, to table and slots.
        """
        if 0 in ids.shape:
            return table, slots
        split = self._splits(ids)
        along = PartitionSpec(self.batch) if split else PartitionSpec()
        copies = [name for name, size in self.mesh.shape.items() if size > 1 and name != self.rows]

        def local(table: Any, slots: Any, ids: Any, gradients: Any, scalars: Any) -> Any:
            gradients = gradients.reshape(-1, gradients.shape[-1])
            mine = gradients.shape[0]
            if split:
                ids = jax.lax.all_gather(ids, self.batch, tiled=True)
                if self.batch not in copies:
                    gradients = jax.lax.all_gather(gradients, self.batch, tiled=True)
            ids = ids.reshape(-1)
            first = representatives(ids)
            places = first
            if split and self.batch in copies:
                begin = jax.lax.axis_index(self.batch) * mine
                places = jax.lax.dynamic_slice_in_dim(first, begin, mine)
            for name in copies:
                if name != self.batch or not split:
                    # They hold the same gradients, which must count once.
                    gradients = jnp.where(jax.lax.axis_index(name) == 0, gradients, 0)
            summed = add(places, gradients, ids.size)
            if copies:
                summed = jax.lax.psum(summed, tuple(copies))
            begin = 0
            if self.rows is not None:
                begin = jax.lax.axis_index(self.rows) * table.shape[0]
                ids = self._own(ids, table.shape[0])
            return apply(table, slots, ids, first, summed, *scalars, first_row=begin)

        specs = (self._spec, self._spec, along, along, PartitionSpec())
        return self._map(local, specs, (self._spec, self._spec))(
            table, slots, ids, gradients, scalars
        )

    def read(self, value: Any, start: int, stop: int) -> np.ndarray:
        """Rows of an array, in every process. All processes must call it."""
        if value.is_fully_addressable or self.rows is None:
            return _local_rows(value, start, stop)
        return np.asarray(_collect(self, value, np.int32(start), stop - start))

    def write(self, value: Any, start: int, rows: Any) -> Any:
        """An array with other rows; the old one is given up."""
        return _put(self, value, rows, np.int32(start))

    def draw(
        self,
        initializer: Any,
        shape: tuple[int, ...],
        dtype: str,
        finish: Callable[[Any], Any] = jnp.asarray,
    ) -> Any:
        """An array drawn where it is to lie: no device and no process holds more than its part.

        Args:
            initializer: A Keras initializer.
            shape: Shape of the array.
            dtype: Its dtype.
            finish: Function of drawn rows to the rows that are kept, of any width.

        Raises:
            ValueError: For rows that do not divide over the devices.
        """
        shards = 1 if self.rows is None else self.mesh.shape[self.rows]
        if shape[0] % shards:
            below = shape[0] // shards * shards
            raise ValueError(
                f"The rows of a table that is split over the {shards} devices of the mesh axis "
                f"{self.rows!r} should be a multiple of {shards}. Received: rows={shape[0]}. The "
                f"nearest sizes that fit are {f'{below} and ' if below else ''}{below + shards}. "
                "(A FeatureEmbedding's rows are the sum of vocabulary_size * embeddings over its "
                "tables: make one vocabulary larger.)"
            )
        sharding = self.sharding(shape)
        if _chunks.pieces(initializer, shape, dtype) is None:
            if math.prod(shape) > _chunks.ELEMENTS:
                draw = jax.jit(
                    lambda: finish(initializer(shape, dtype=dtype)), out_shardings=sharding
                )
                return draw()
            whole = np.asarray(finish(initializer(shape, dtype=dtype)))
            return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
        kept = jax.eval_shape(finish, jax.ShapeDtypeStruct(shape, dtype))
        parts = []
        for device, index in sharding.addressable_devices_indices_map(kept.shape).items():
            with jax.default_device(device):
                parts.append(_draw(initializer, shape, dtype, finish, index))
        return jax.make_array_from_single_device_arrays(kept.shape, sharding, parts)

    def full(self, value: float, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of one value, made where it is to lie."""
        # An argument: XLA would make a constant of the whole array while it compiles.
        fill = jax.jit(
            lambda value: jnp.full(shape, value, dtype), out_shardings=self.sharding(shape)
        )
        return fill(np.asarray(value, dtype))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where an array of this shape lies, its rows as those of the table."""
        return NamedSharding(self.mesh, PartitionSpec(self.rows, *[None] * (len(shape) - 1)))

    @property
    def _spec(self) -> Any:
        return PartitionSpec(self.rows)

    def _splits(self, ids: Any) -> bool:
        """Whether each device of the batch axis may take an equal part of `ids`."""
        size = ids.shape[0] if ids.ndim else None
        return isinstance(size, int) and size > 0 and size % self.mesh.shape[self.batch] == 0

    def _own(self, ids: Any, rows: int) -> Any:
        """`ids` as counted from this device's first row, -1 for rows of other devices."""
        begin = jax.lax.axis_index(self.rows) * rows
        # Compared before the subtraction, which could carry a large negative id round.
        return jnp.where((ids >= begin) & (ids - begin < rows), ids - begin, -1)

    def _map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def placement_of(path: str, shape: tuple[int, ...]) -> Placement | None:
    """Where Keras' current distribution puts a table that is to be made; `None` without one.

    Args:
        path: `path` of the variable to come.
        shape: Its shape.

    Raises:
        ValueError: For a layout that splits the vectors.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    variable = types.SimpleNamespace(path=path, shape=shape, name="table")
    layout = distribution.get_variable_layout(variable)
    sharding = getattr(layout, "backend_layout", layout)
    axis = _row_axis(sharding.spec)
    if axis is not None and sharding.mesh.shape[axis] == 1:
        axis = None
    batch = distribution.batch_dim_name or sharding.mesh.axis_names[0]
    return Placement(sharding.mesh, batch, axis)


def _row_axis(spec: Any) -> str | None:
    axes = tuple(spec) or (None,)
    if any(name is not None for name in axes[1:]) or isinstance(axes[0], tuple):
        raise ValueError(
            "A table with a row-sparse optimizer, of shape (rows, dim), may be split by rows, over "
            f"one axis of the device mesh: (axis, None). Received: {axes}"
        )
    return axes[0]


def initial_value(initializer: Callable[..., Any], shape: tuple[int, ...]) -> Any:
    """What to give Keras as the initial value of a variable that lies on several devices.

    The value itself: of what an initializer returns, Keras would hold a copy for a while. While
    Keras only asks for shapes (a subclassed model, built by its first `fit`) an initializer is all
    that it takes.
    """

    def later(shape: Any, dtype: Any, layout: Any = None) -> Any:
        if layout is None:
            return jnp.zeros(shape, dtype)  # Only the shape is looked at.
        # Keras calls it within a mesh context, where every operation would run on all devices.
        with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
            return initializer(tuple(shape), dtype)

    try:
        keras.Variable(np.zeros((), "float32"), trainable=False)
    except ValueError:
        return later
    return initializer(shape, "float32")


def _draw(initializer: Any, shape: tuple[int, ...], dtype: str, finish: Any, index: Any) -> Any:
    """The part of a large table that a device holds, the same numbers as on one device."""
    begin, end, _ = index[0].indices(shape[0])
    part = None
    for start, rows in _chunks.pieces(initializer, shape, dtype, begin, end) or ():
        first, last = max(start, begin), min(start + len(rows), end)
        piece = finish(rows[first - start : last - start])
        if part is None:
            part = jnp.zeros((end - begin, *piece.shape[1:]), piece.dtype)
        # Waiting keeps the pieces from piling up: JAX draws ahead otherwise.
        part = jax.block_until_ready(_fill(part, piece, first - begin))
    assert part is not None
    return part


@functools.partial(jax.jit, donate_argnums=0)
def _fill(part: Any, rows: Any, start: Any) -> Any:
    return jax.lax.dynamic_update_slice_in_dim(part, rows, start, 0)


def _local_rows(value: Any, start: int, stop: int) -> np.ndarray:
    rows = np.empty((stop - start, *value.shape[1:]), value.dtype)
    for shard in value.addressable_shards:
        begin, end, _ = shard.index[0].indices(value.shape[0])
        first, last = max(start, begin), min(stop, end)
        if first < last:
            piece = np.asarray(shard.data[first - begin : last - begin])
            rows[first - start : last - start] = piece
    return rows


# Compiled for eager calls, in which each operation would else be a program over all devices.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _lookup(placement: Placement, gather: Any, table: Any, ids: Any) -> Any:
    split = placement._splits(ids)
    along = PartitionSpec(placement.batch) if split else PartitionSpec()
    together = split and placement.rows == placement.batch

    def local(table: Any, ids: Any) -> Any:
        if placement.rows is None:
            return gather(table, ids)
        if together:
            ids = jax.lax.all_gather(ids, placement.batch, tiled=True)
        vectors = gather(table, placement._own(ids, table.shape[0]))
        if together:
            return jax.lax.psum_scatter(vectors, placement.batch, tiled=True)
        return jax.lax.psum(vectors, placement.rows)

    return placement._map(local, (placement._spec, along), along)(table, ids)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _collect(placement: Placement, value: Any, start: Any, size: int) -> Any:
    def local(value: Any) -> Any:
        ids = placement._own(start + jnp.arange(size, dtype=jnp.int32), value.shape[0])
        rows = value.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        # Sums of integers, for floats whose bits mean something else.
        bits = jax.lax.bitcast_convert_type(rows, jnp.int32)
        return jax.lax.bitcast_convert_type(jax.lax.psum(bits, placement.rows), rows.dtype)

    return placement._map(local, (placement._spec,), PartitionSpec())(value)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put(placement: Placement, value: Any, rows: Any, start: Any) -> Any:
    def local(value: Any, rows: Any, start: Any) -> Any:
        places = start + jnp.arange(rows.shape[0], dtype=jnp.int32)
        if placement.rows is not None:
            places = placement._own(places, value.shape[0])
        return value.at[places].set(rows, mode="drop", wrap_negative_indices=False)

    specs = (placement._spec, PartitionSpec(), PartitionSpec())
    return placement._map(local, specs, placement._spec)(value, rows, start)
