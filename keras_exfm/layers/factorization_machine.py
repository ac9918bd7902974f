"""The second-order term of a factorization machine."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks


@keras.saving.register_keras_serializable(package="keras_exfm")
class FactorizationMachine(keras.layers.Layer):
    """Sum of the dot products of all pairs of an example's embeddings.

    Formula, with the rows `x_1 .. x_n` of the input; the squares act on each coordinate:

        FM(X) = sum_{i<j} x_i · x_j = 1/2 sum over dim of ((sum_i x_i)^2 - sum_i x_i^2)

    The right-hand side costs `n * dim` instead of `n^2 * dim`. The layer has no weights: the
    embeddings are the factors. In mixed precision it computes in float32, because the
    difference of two close sums loses the few digits that bfloat16 has.

    Args:
        **kwargs: `name` and `dtype` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)`. The output is `(batch, 1)`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> x = np.array([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]], "float32")
    >>> keras.ops.convert_to_numpy(FactorizationMachine()(x)).tolist()
    [[17.0]]

    References:
        - Rendle, 2010, Factorization Machines, ICDM, equation 1 and lemma 3.1.
    """

    def build(self, input_shape: Any) -> None:
        """Checks the input's shape."""
        _checks.embedding_matrix_shape(self, input_shape)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Sums the pairs."""
        x = ops.cast(inputs, self.variable_dtype)
        pairs = ops.square(ops.sum(x, axis=1)) - ops.sum(ops.square(x), axis=1)
        return ops.cast(0.5 * ops.sum(pairs, axis=1, keepdims=True), self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, 1)`."""
        return (input_shape[0], 1)
