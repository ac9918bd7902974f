"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_exfm.optimizers.row_optimizer import RowOptimizer
from keras_exfm.optimizers.rowwise_adagrad import RowwiseAdagrad
from keras_exfm.optimizers.sparse_adagrad import SparseAdagrad
from keras_exfm.optimizers.sparse_adam import SparseAdam
from keras_exfm.optimizers.sparse_sgd import SparseSGD

_NAMES: dict[str, Callable[[], RowOptimizer]] = {
    "rowwise_adagrad": RowwiseAdagrad,
    "sparse_adagrad": SparseAdagrad,
    "sparse_adam": SparseAdam,
    "sparse_sgd": SparseSGD,
}


def get(identifier: Any) -> RowOptimizer | None:
    """The optimizer that an identifier means.

    Args:
        identifier: A `RowOptimizer`; its serialized config; `"rowwise_adagrad"`,
            `"sparse_adagrad"`, `"sparse_adam"` or `"sparse_sgd"`, with default arguments; or
            `None`.

    Returns:
        A `RowOptimizer`, or `None` for `None`.

    Raises:
        ValueError: For anything else.

    Example:

    >>> get("rowwise_adagrad").learning_rate
    0.05
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if identifier is None or isinstance(identifier, RowOptimizer):
        return identifier
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    raise ValueError(
        "A row-sparse optimizer should be a keras_exfm.optimizers.RowOptimizer, None, or one of "
        f"{sorted(_NAMES)}. Received: {identifier!r}"
    )
