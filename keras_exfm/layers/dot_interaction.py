"""DLRM's pairwise dot products."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.layers import _checks


@keras.saving.register_keras_serializable(package="keras_exfm")
class DotInteraction(keras.layers.Layer):
    """Dot products of all pairs of an example's embeddings.

    Formula, with the rows `x_1 .. x_n` of the input:

        DotInteraction(X) = [x_i · x_j for i < j]        (n (n - 1) / 2,)

    Pairs come in the order (1, 2), (1, 3), ..., (n - 1, n). The layer has no weights.

    `keras_rs.layers.DotInteraction` and tensorflow-recommenders' layer of this name give the same
    products in the order (2, 1), (3, 1), (3, 2), ... . They take a list with one tensor for each
    embedding; the former reads a tensor `(batch, n, dim)` as a list of examples, and gives dots of
    the examples with each other without an error.

    Args:
        **kwargs: `name` and `dtype` of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, n, dim)` with `n` of at least 2. The output is
            `(batch, n * (n - 1) / 2)`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> x = np.array([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]], "float32")
    >>> keras.ops.convert_to_numpy(DotInteraction()(x)).tolist()
    [[11.0, 2.0, 4.0]]

    References:
        - [Naumov et al., 2019, Deep Learning Recommendation
          Model](https://arxiv.org/abs/1906.00091), section 2.1.
    """

    def build(self, input_shape: Any) -> None:
        """Checks the input's shape."""
        n, _ = _checks.embedding_matrix_shape(self, input_shape)
        if n < 2:
            raise ValueError(
                f"DotInteraction needs at least two embeddings. Received: input_shape="
                f"{tuple(input_shape)}"
            )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Multiplies the pairs."""
        n = inputs.shape[1]
        rows, columns = np.triu_indices(n, k=1)
        products = ops.matmul(inputs, ops.transpose(inputs, (0, 2, 1)))
        flat = ops.reshape(products, (-1, n * n))
        return ops.take(flat, (rows * n + columns).astype("int32"), axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, n * (n - 1) / 2)`."""
        batch, n, _ = tuple(input_shape)
        return (batch, n * (n - 1) // 2)
