"""Rows of a table for the ids of a stream that are worth a row now."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.features import PADDING
from keras_exfm.layers import _checks
from keras_exfm.layers._eager import compiled_on_jax
from keras_exfm.layers._hashing import hash_to_rows, murmur3_mix32
from keras_exfm.layers._variable_rows import put_elements, take_rows

# Padding is never looked up, so its id can stand for an empty way.
_EMPTY = PADDING
# Later than every step: the ways that do not exist, and the spare set, are never free.
_NEVER_FREE = 2**31 - 1
# What a place holds: side by side, so that a set is one piece of memory, 64 bytes for 8 ways.
_KEY, _LAST_USED, _LOOKUPS = 0, 1, 2
# Words of the counters: exact beyond int32.
_WORD_BITS = 30
_COUNTERS = ("admissions", "evictions", "forgotten", "lookups", "default_lookups")


class _Shape:
    """`size` places in sets of at most `ways`, spread evenly.

    Place `p` is the way `p // sets` of the set `p % sets`, so only the last way may be missing in
    some sets.
    """

    def __init__(self, size: int, ways: int) -> None:
        self.sets = -(-size // ways)
        self.ways = -(-size // self.sets)
        self.whole = size - (self.ways - 1) * self.sets

    def empty(self, shape: Any, dtype: Any = None) -> Any:
        """What the cache holds at the start; 0 is before every step."""
        cache = np.zeros(tuple(shape), "int32")
        cache[..., _KEY] = _EMPTY
        cache[self.whole :, -1, _LAST_USED] = _NEVER_FREE
        cache[self.sets, :, _LAST_USED] = _NEVER_FREE
        return ops.convert_to_tensor(cache, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_exfm")
class DynamicIds(keras.layers.Layer):
    """Gives ids that recur a row of a table of fixed size, and takes rows back from idle ids.

    Ids may be any int32. Row 0 is the **default row**, which all ids without a row of their own
    share. In training, with `c(i)` the number of lookups of id `i` while it is a candidate:

    1. An id that has a row reads it: `row = 1 + set + sets * way`.
    2. Any other id is a candidate, and its lookups in the batch are added to `c(i)`. Once
       `c(i) >= admit_after` it is admitted: it gets an empty row, or the row that was used least
       recently. All of its lookups in this batch already read the new row, and are marked `fresh`.
    3. The others read row 0.

    Both the rows and the candidates are caches with sets of up to `ways` places: an id's set is
    `murmur3_mix32(id) mod sets`, and it takes the place of its set that is empty or was used least
    recently, never one that was used in the same batch. So candidates that do not recur are
    forgotten, and no id is admitted on account of another. Ids of one set that come in the same
    batch are served in the order of their first lookups; if no place is left, an id waits for a
    later batch. The outcome depends on the sequence of batches alone: the same on every backend
    and device.

    Without training nothing changes, and `fresh` is false. Id -1 (`keras_exfm.features.PADDING`)
    stays -1 and is not counted.

    The layer's weights are int32 and not trainable: 8 bytes for each row and 12 for each
    candidate. What a batch costs does not grow with them.

    Args:
        capacity: Number of rows that ids may have, without the default row.
        admit_after: Number of lookups after which an id gets a row. `1` admits every id at once.
            Defaults to `2`.
        candidates: Number of candidates that are remembered. `None` is `capacity`. There are none
            if `admit_after` is 1. Defaults to `None`.
        ways: Size of a set. With more ways the choice of the row to take back is closer to the
            one that was used least recently of all, and a batch costs more. Defaults to `8`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        ids: int32 tensor of any shape. Call the layer once in a training step: concatenate the
            ids that share a table.
        training: Whether ids are counted and admitted. Defaults to the calling context.

    Returns:
        Pair of int32 rows in `-1 .. capacity` and bool `fresh`, both of the shape of `ids`.

    Raises:
        ValueError: For ids that are not int32, or an argument out of its range.

    Example:

    >>> import numpy as np
    >>> layer = DynamicIds(capacity=100, admit_after=2)
    >>> rows, fresh = layer(np.array([7, 7, 8, -1], "int32"), training=True)
    >>> np.array(fresh).tolist(), np.array(rows)[2:].tolist()
    ([True, True, False, False], [0, -1])
    >>> rows, fresh = layer(np.array([7, 8], "int32"), training=True)
    >>> np.array(fresh).tolist()
    [False, True]
    >>> counters = layer.counters()
    >>> counters["occupancy"], counters["lookups"], counters["default_share"]
    (2, 5, 0.2)

    References:
        - Monolith, [Liu et al., 2022](https://arxiv.org/abs/2209.07663), section 2.1: admission
          after a number of occurrences and expiry, in a collisionless table.
    """

    def __init__(
        self,
        capacity: int,
        admit_after: int = 2,
        candidates: int | None = None,
        ways: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.capacity = _checks.positive_int("capacity", capacity)
        if self.capacity > 2**31 - 2:
            raise ValueError(
                "`capacity` should be at most 2**31 - 2, since rows are int32. "
                f"Received: capacity={capacity!r}"
            )
        self.admit_after = _checks.positive_int("admit_after", admit_after)
        if candidates is not None:
            candidates = _checks.positive_int("candidates", candidates)
        self.candidates = candidates
        self.ways = _checks.positive_int("ways", ways)
        self._rows = _Shape(self.capacity, self.ways)
        self._waiting: _Shape | None = None
        if self.admit_after > 1:
            self._waiting = _Shape(candidates or self.capacity, self.ways)

    def build(self, input_shape: Any = None) -> None:
        """Creates the caches and the counters."""
        # Behind the sets stands a spare one, where elements that are to be left alone write what
        # stands there already.
        rows, waiting = self._rows, self._waiting
        self.row_cache = self._weight("row_cache", (rows.sets + 1, rows.ways, 2), rows.empty)
        if waiting is not None:
            self.candidate_cache = self._weight(
                "candidate_cache", (waiting.sets + 1, waiting.ways, 3), waiting.empty
            )
        self.step = self._weight("step", (), "zeros")
        self.counts = self._weight("counts", (len(_COUNTERS), 2), "zeros")
        self.built = True

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any) -> Any:
        return self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype="int32",
            trainable=False,
            autocast=False,
            name=name,
        )

    def call(self, ids: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Looks ids up, and in training counts and admits them."""
        dtype = keras.backend.standardize_dtype(ids.dtype)
        if dtype != "int32":
            raise ValueError(f"DynamicIds expects int32 ids. Received dtype: {dtype}")
        shape = ops.shape(ids)
        flat = ops.reshape(ids, (-1,))
        present = ops.not_equal(flat, PADDING)
        sets = hash_to_rows(flat, self._rows.sets)
        way, found = _find(take_rows(self.row_cache, sets), flat)
        found = ops.logical_and(found, present)
        rows = ops.where(found, self._row(sets, way), ops.where(present, 0, PADDING))
        if not training:
            return ops.reshape(rows, shape), ops.zeros(shape, "bool")

        step = self.step.value + 1
        self.step.assign(step)
        _Place(self._rows, sets, way, found).put(self.row_cache, flat, step)

        missed = ops.logical_and(present, ops.logical_not(found))
        first = _first_places(flat, missed)
        count = _length(flat)
        # Of the lookups of one id that has no row, the first one acts for all.
        leads = ops.logical_and(missed, ops.equal(first, ops.arange(count, dtype="int32")))
        waiting = None
        ripe = leads
        if self._waiting is not None:
            lookups = ops.segment_sum(ops.cast(missed, "int32"), first, num_segments=count)
            waiting = self._wait(flat, leads, lookups)
            ripe = ops.logical_and(leads, waiting.lookups >= self.admit_after)
        place, evicted = _choose(self._rows, take_rows(self.row_cache, sets), sets, ripe, step)
        place.put(self.row_cache, flat, step)
        forgotten = ops.zeros((), "int32")
        if waiting is not None:
            forgotten = self._keep_waiting(flat, leads, waiting, place.mask, step)

        fresh = ops.logical_and(missed, ops.take(place.mask, first))
        new_rows = ops.take(self._row(place.sets, place.way), first)
        rows = ops.where(fresh, new_rows, rows)
        self._count(
            _number(place.mask),
            _number(evicted),
            forgotten,
            _number(present),
            _number(ops.equal(rows, 0)),
        )
        return ops.reshape(rows, shape), ops.reshape(fresh, shape)

    def _row(self, sets: Any, way: Any) -> Any:
        return 1 + sets + self._rows.sets * way

    def _wait(self, flat: Any, leads: Any, lookups: Any) -> _Waiting:
        """Where the candidates among the ids stand, and their lookups with this batch."""
        assert self._waiting is not None
        sets = hash_to_rows(flat, self._waiting.sets)
        held = take_rows(self.candidate_cache, sets)
        way, found = _find(held, flat)
        place = _Place(self._waiting, sets, way, ops.logical_and(found, leads))
        before = ops.take_along_axis(held[..., _LOOKUPS], way[:, None], axis=1)[:, 0]
        lookups = lookups + ops.where(place.mask, before, 0)
        # No more than what counts is kept: an id may wait long for a row in a full set.
        return _Waiting(place, ops.minimum(lookups, self.admit_after))

    def _keep_waiting(
        self, flat: Any, leads: Any, waiting: _Waiting, admitted: Any, step: Any
    ) -> Any:
        """Updates the candidates; returns how many were forgotten."""
        assert self._waiting is not None
        known, cache = waiting.place, self.candidate_cache
        # The admitted leave an empty place.
        known.put(
            cache,
            ops.where(admitted, _EMPTY, flat),
            ops.where(admitted, 0, step),
            ops.where(admitted, 0, waiting.lookups),
        )
        new = ops.logical_and(leads, ops.logical_not(ops.logical_or(known.mask, admitted)))
        held = take_rows(cache, known.sets)
        place, forgotten = _choose(self._waiting, held, known.sets, new, step)
        place.put(cache, flat, step, waiting.lookups)
        return _number(forgotten)

    def _count(self, *numbers: Any) -> None:
        counts = self.counts.value
        low = counts[:, 1] + ops.stack(numbers)
        carry = ops.floor_divide(low, 2**_WORD_BITS)
        high = counts[:, 0] + carry
        self.counts.assign(ops.stack([high, low - carry * 2**_WORD_BITS], axis=1))

    def counters(self) -> dict[str, int | float]:
        """What the layer did so far, in training.

        Returns:
            Dict of `occupancy` (rows that an id has), `capacity`, `admissions`, `evictions`
            (admissions that took a row from another id), `candidates` (remembered now),
            `forgotten` (candidates that made room for others before they were admitted),
            `lookups` (without padding), `default_lookups` (those that read the default row) and
            `default_share`, their share, `0.0` before the first lookup.
        """
        if not self.built:
            raise AttributeError(
                f"`counters` belongs to a DynamicIds layer that was built. Received: {self!r}"
            )
        words = ops.convert_to_numpy(self.counts.value).tolist()
        count = {name: high * 2**_WORD_BITS + low for name, (high, low) in zip(_COUNTERS, words)}
        candidates = 0
        if self._waiting is not None:
            keys = ops.convert_to_numpy(self.candidate_cache.value)[..., _KEY]
            candidates = int(np.count_nonzero(keys != _EMPTY))
        lookups = count["lookups"]
        return {
            # No row is ever given up but to another id.
            "occupancy": count["admissions"] - count["evictions"],
            "capacity": self.capacity,
            **count,
            "candidates": candidates,
            "default_share": count["default_lookups"] / lookups if lookups else 0.0,
        }

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, Any]:
        """Twice the shape of the ids."""
        return tuple(input_shape), tuple(input_shape)

    def compute_output_spec(self, ids: Any, training: bool | None = None) -> tuple[Any, Any]:
        """int32 rows and bool marks of the shape of the ids."""
        return (
            keras.KerasTensor(ids.shape, dtype="int32"),
            keras.KerasTensor(ids.shape, dtype="bool"),
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "capacity": self.capacity,
            "admit_after": self.admit_after,
            "candidates": self.candidates,
            "ways": self.ways,
        }


class _Place:
    """One place of a cache for each lookup in `mask`; the others stand in the spare set."""

    def __init__(self, shape: _Shape, sets: Any, way: Any, mask: Any) -> None:
        self.shape = shape
        self.sets = sets
        self.way = way
        self.mask = mask

    def put(self, cache: Any, key: Any, last_used: Any, lookups: Any = None) -> None:
        """Writes what the places hold; the spare set keeps what it holds."""
        held = [
            ops.where(self.mask, key, _EMPTY),
            ops.where(self.mask, last_used, _NEVER_FREE),
        ]
        if lookups is not None:
            held.append(ops.where(self.mask, lookups, 0))
        put_elements(
            cache,
            ops.where(self.mask, self.sets, self.shape.sets),
            ops.where(self.mask, self.way, 0),
            ops.stack(held, axis=-1),
        )


class _Waiting:
    """Places of the candidates that are known, and the lookups of all ids that have no row."""

    def __init__(self, place: _Place, lookups: Any) -> None:
        self.place = place
        self.lookups = lookups


def _number(mask: Any) -> Any:
    return ops.sum(ops.cast(mask, "int32"))


def _length(flat: Any) -> Any:
    """Number of lookups: an integer, or a tensor in a graph of any batch size."""
    return ops.shape(flat)[0]


def _find(held: Any, ids: Any) -> tuple[Any, Any]:
    """The way of the set that holds the id, and whether there is one (padding finds the empty)."""
    equal = ops.equal(held[..., _KEY], ids[:, None])
    numbers = ops.arange(held.shape[1], dtype="int32")
    # With `initial`, an empty batch has a greatest number as well.
    return ops.max(ops.where(equal, numbers, 0), axis=1, initial=0), ops.any(equal, axis=1)


def _choose(shape: _Shape, held: Any, sets: Any, want: Any, step: Any) -> tuple[_Place, Any]:
    """The least recently used places for the lookups in `want`, all of different ids.

    The k-th of the lookups that want a place in the same set gets the k-th of the set's places, in
    the order of their last use (empty ones first) and then of their number.

    Returns:
        Pair of the places and whether another id had to leave each of them.
    """
    used = _without_oldest(held[..., _LAST_USED], _ranks(sets, want, most=shape.ways))
    way = ops.argmin(used, axis=1)
    free = ops.min(used, axis=1, initial=_NEVER_FREE) < step
    place = _Place(shape, sets, way, ops.logical_and(want, free))
    key = ops.take_along_axis(held[..., _KEY], way[:, None], axis=1)[:, 0]
    return place, ops.logical_and(place.mask, ops.not_equal(key, _EMPTY))


@compiled_on_jax()
def _without_oldest(used: Any, number: Any) -> Any:
    """`used` with the `number` least values of each line struck out, the first of equal ones."""
    ways = ops.arange(used.shape[1], dtype="int32")

    def unfinished(used: Any, number: Any) -> Any:
        return ops.any(number > 0)

    def strike(used: Any, number: Any) -> tuple[Any, Any]:
        oldest = ops.equal(ops.argmin(used, axis=1)[:, None], ways)
        struck = ops.logical_and(oldest, number[:, None] > 0)
        return ops.where(struck, _NEVER_FREE, used), ops.maximum(number - 1, 0)

    return ops.while_loop(unfinished, strike, (used, number))[0]


def _buckets(flat: Any) -> int:
    """With four buckets or more for each lookup, few rounds are enough."""
    length = flat.shape[0]
    return 1 << max(4, (4 * length - 1).bit_length()) if isinstance(length, int) else 1 << 16


def _winners(words: Any, open_: Any, factor: Any, buckets: int) -> Any:
    """For each open place the first open place of its bucket; equal words share a bucket.

    The bucket is the upper bits of `words * factor`. Sorting would cost several times as much on a
    CPU.
    """
    shift = ops.convert_to_tensor(32 - (buckets.bit_length() - 1), dtype="uint32")
    bucket = ops.cast(ops.right_shift(ops.multiply(words, factor), shift), "int32")
    places = ops.arange(_length(words), dtype="int32")
    # The others share a bucket of their own.
    bucket = ops.where(open_, bucket, buckets)
    return ops.take(ops.segment_min(places, bucket, num_segments=buckets + 1), bucket)


def _next_factor(factor: Any = None) -> Any:
    """Another odd number."""
    golden = ops.convert_to_tensor(0x9E3779B1, dtype="uint32")
    return golden if factor is None else ops.multiply(factor, golden)


@compiled_on_jax()
def _first_places(ids: Any, among: Any) -> Any:
    """For each place in `among` the first place in `among` with the same id; others their own.

    In each round the first place of a bucket settles all places of its id; the rest go on with
    another hash.
    """
    buckets = _buckets(ids)
    places = ops.arange(_length(ids), dtype="int32")
    words = murmur3_mix32(ids)

    def unfinished(open_: Any, first: Any, factor: Any) -> Any:
        return ops.any(open_)

    def one_round(open_: Any, first: Any, factor: Any) -> tuple[Any, Any, Any]:
        winner = _winners(words, open_, factor, buckets)
        same = ops.logical_and(open_, ops.equal(ops.take(ids, winner), ids))
        return (
            ops.logical_and(open_, ops.logical_not(same)),
            ops.where(same, winner, first),
            _next_factor(factor),
        )

    return ops.while_loop(unfinished, one_round, (among, places, _next_factor()))[1]


@compiled_on_jax(static=["most"])
def _ranks(sets: Any, among: Any, most: int) -> Any:
    """How many places in `among` come before each one and have the same set, up to `most`."""
    buckets = _buckets(sets)
    places = ops.arange(_length(sets), dtype="int32")
    words = ops.cast(sets, "uint32")

    def unfinished(open_: Any, rank: Any, factor: Any) -> Any:
        return ops.any(open_)

    def one_round(open_: Any, rank: Any, factor: Any) -> tuple[Any, Any, Any]:
        winner = _winners(words, open_, factor, buckets)
        behind = ops.logical_and(ops.equal(ops.take(sets, winner), sets), winner < places)
        behind = ops.logical_and(open_, behind)
        rank = rank + ops.cast(behind, "int32")
        open_ = ops.logical_and(open_, ops.not_equal(winner, places))
        return ops.logical_and(open_, rank < most), rank, _next_factor(factor)

    carry = (among, ops.zeros_like(sets), _next_factor())
    return ops.while_loop(unfinished, one_round, carry)[1]
