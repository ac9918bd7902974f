"""Batches of arrays that lie in memory, without the thread that `fit` and `predict` wait for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.streaming.reader import without_autotune

if TYPE_CHECKING:
    import tensorflow as tf


def in_memory(
    features: Any,
    label: Any = None,
    weight: Any = None,
    *,
    batch_size: int = 4096,
    shuffle: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Arrays as a `tf.data` dataset for `fit`, `evaluate` and `predict`, on either backend.

    Given arrays themselves, Keras on TensorFlow reads them through a `tf.data` pipeline that tunes
    itself, and so does a pipeline of one's own that does not say otherwise. At the end of an epoch,
    and of `predict`, its iterator is destroyed, which often waits until the tuning thread wakes up:
    10, 30, 70, 150 ... ms after the start, each wait twice as long as the one before. So an epoch
    can take up to twice its time, idle. This dataset has nothing to tune.

    JAX does not read arrays through `tf.data`; there the arrays themselves do as well.

    Make it outside of a `tf.function`: in one, each call would begin with the first order again.

    Give `fit` its own `shuffle=False`, or Keras warns that it leaves the order to the dataset, and
    `validation_data=in_memory(...)`: it cannot split a dataset.

    Args:
        features: Array, or a structure of arrays such as the dict that `Schema.encode` gives; all
            with the same number of rows, at least one.
        label: Array or structure of arrays. Defaults to `None`: a dataset for `predict`.
        weight: Array of sample weights. Defaults to `None`: all weigh the same.
        batch_size: Rows of a batch; the last one has what is left. Defaults to `4096`.
        shuffle: Whether every pass has a new order. Defaults to `False`.
        seed: Seed of the orders, a 64-bit int. Defaults to `None`: a number from Python's own
            generator, which `keras.utils.set_random_seed` sets.

    Returns:
        Batches of `features`, `(features, label)` or `(features, label, weight)`. The arrays are
        copied into tensors once, at the call.

    Raises:
        ValueError: For arrays of unequal length, without rows or without a row axis, a weight
            without a label, a `batch_size` that is no int above 0, or a `seed` that is no int.

    Example:

    >>> import numpy as np
    >>> rows = in_memory({"ad": np.arange(5)}, np.zeros(5), batch_size=2)
    >>> [features["ad"].numpy().tolist() for features, label in rows]
    [[0, 1], [2, 3], [4]]
    """
    import keras
    import tensorflow as tf

    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise ValueError(f"`batch_size` should be an int. Received: {batch_size=}")
    if batch_size < 1:
        raise ValueError(f"`batch_size` should be at least 1. Received: {batch_size=}")
    whole_seed = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if seed is not None and not (whole_seed and -(2**63) <= seed < 2**63):
        raise ValueError(f"`seed` should be a 64-bit int. Received: {seed=}")
    if features is None:
        raise ValueError("`features` should be arrays. Received: None")
    if weight is not None and label is None:
        raise ValueError("`weight` needs a `label`. Received: a weight and label=None")
    parts = {"features": features, "label": label, "weight": weight}
    given = {name: _tuples(part) for name, part in parts.items() if part is not None}
    count = _rows(given)
    whole = tuple(given.values())
    # Keras takes a tuple apart: into features and label, or one tuple of features.
    if label is None and not isinstance(whole[0], tuple):
        (whole,) = whole
    size = int(batch_size)
    first_seed = random.randrange(1 << 31) if seed is None else int(seed)

    with tf.device("CPU:0"):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, whole)
    if shuffle:
        # Without Python in the pipeline: a generator in it, even for one number a pass, costs a
        # training step on TensorFlow 30,000 page faults where oneDNN's allocator is not in use.
        # Passes are counted by an iterator that all of them share.
        passes = iter(tf.data.Dataset.range(np.iinfo(np.int64).max))
        orders = tf.data.Dataset.from_tensors(np.int64(first_seed)).map(
            lambda seed: tf.random.experimental.stateless_shuffle(
                tf.range(count, dtype=tf.int64), [seed, next(passes)]
            )
        )
        rows = orders.flat_map(
            lambda order: tf.data.Dataset.range(0, count, size).map(
                lambda first: order[first : first + size]
            )
        )
        take = tf.gather
    else:
        rows = tf.data.Dataset.range(0, count, size)

        def take(column: Any, first: Any) -> Any:
            return column[first : first + size]

    # The tensors are an element of a dataset, not constants of the function that slices: a graph
    # with all of the data in it would be copied at each trace.
    batches = tf.data.Dataset.zip((rows, tf.data.Dataset.from_tensors(tensors).repeat())).map(
        lambda at, part: keras.tree.map_structure(lambda column: take(column, at), part)
    )
    batches = batches.apply(tf.data.experimental.assert_cardinality(-(-count // size)))
    return without_autotune(batches.prefetch(2))


def _tuples(structure: Any) -> Any:
    """The structure with tuples for lists, of which `tf.data` would make one tensor."""
    if isinstance(structure, dict):
        return {key: _tuples(part) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(_tuples(part) for part in structure)
    return structure


def _rows(given: dict[str, Any]) -> int:
    """The number of rows that all arrays have."""
    import keras

    counts: dict[str, int] = {}
    for name, part in given.items():
        for path, array in keras.tree.flatten_with_path(part):
            shape = np.shape(array)
            where = name + "".join(f"[{key!r}]" for key in path)
            if not shape:
                # A list is a structure to Keras, not an array.
                hint = "; make arrays of lists" if any(isinstance(k, int) for k in path) else ""
                raise ValueError(f"{where} should have rows. Received: {array!r}{hint}")
            counts[where] = shape[0]
    if not counts:
        raise ValueError(f"`features` should hold at least one array. Received: {given}")
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{where} {count}" for where, count in counts.items())
        raise ValueError(f"All arrays should have the same number of rows. Received: {found}")
    count = next(iter(counts.values()))
    if count == 0:
        raise ValueError(f"Arrays should have at least one row. Received: none in {list(counts)}")
    return count
