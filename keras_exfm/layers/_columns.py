"""Linear mixtures of embeddings that lie in columns.

A matrix of embeddings `(batch, n, dim)` is mixed along `n`, its middle axis, which no backend does
well on a CPU. Transposed to `(batch, dim, n)`, all mixtures of a layer are one matrix product with
the embeddings of the whole batch.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def mix_columns(columns: Any, kernels: list[Any]) -> list[Any]:
    """`columns @ kernel` for each kernel, as one product.

    Args:
        columns: `(batch, dim, n)`.
        kernels: Matrices `(n, m)`.

    Returns:
        For each kernel `(batch, dim, m)`.
    """
    if not kernels:
        return []
    kernels = [ops.convert_to_tensor(kernel) for kernel in kernels]
    whole = kernels[0] if len(kernels) == 1 else ops.concatenate(kernels, axis=1)
    _, dim, n = columns.shape
    mixed = ops.matmul(ops.reshape(columns, (-1, n)), whole)
    mixed = ops.reshape(mixed, (-1, dim, whole.shape[1]))
    if len(kernels) == 1:
        return [mixed]
    ends, end = [], 0
    for kernel in kernels[:-1]:
        end += kernel.shape[1]
        ends.append(end)
    return list(ops.split(mixed, ends, axis=2))
