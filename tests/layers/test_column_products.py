import keras
import numpy as np
import pytest
from keras import ops

from keras_exfm.layers import _column_products
from keras_exfm.layers._column_products import LONGEST_SUM, column_products
from tests.distillation.gradients import gradient_of
from tests.testing import to_numpy


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# The last two are too long to write out.
@pytest.mark.parametrize(
    ("batch", "dim", "r", "n"),
    [
        (7, 5, 3, 4),
        (1, 1, 1, 1),
        (0, 4, 2, 3),
        (3, LONGEST_SUM + 1, 2, 3),
        (3, 2, LONGEST_SUM + 1, 3),
    ],
)
def test_products_and_their_gradients(batch, dim, r, n):
    left, right = normal(0, batch, dim, r), normal(1, batch, dim, n)
    upstream = normal(2, batch, r, n)
    product = to_numpy(column_products(ops.convert_to_tensor(left), ops.convert_to_tensor(right)))
    np.testing.assert_allclose(
        product, np.einsum("bdr,bdn->brn", left, right), rtol=1e-5, atol=1e-4
    )
    of_left = gradient_of(lambda x: ops.sum(column_products(x, right) * upstream), left)
    of_right = gradient_of(lambda x: ops.sum(column_products(left, x) * upstream), right)
    expected = np.einsum("brn,bdn->bdr", upstream, right)
    np.testing.assert_allclose(of_left, expected, rtol=1e-5, atol=1e-4)
    expected = np.einsum("brn,bdr->bdn", upstream, left)
    np.testing.assert_allclose(of_right, expected, rtol=1e-5, atol=1e-4)


def test_sums_are_written_out_where_it_pays(monkeypatch):
    """Short ones in float32 on JAX: a sum in bfloat16 would be rounded at each term."""
    taken = []
    real = _column_products._written_out
    monkeypatch.setattr(
        _column_products, "_written_out", lambda *args: taken.append(1) or real(*args)
    )
    on_jax = keras.backend.backend() == "jax"
    for dtype, dim, expected in (
        ("float32", LONGEST_SUM, on_jax),
        ("float32", LONGEST_SUM + 1, False),
        ("bfloat16", 4, False),
    ):
        taken.clear()
        x = ops.cast(normal(0, 2, dim, 3), dtype)
        assert keras.backend.standardize_dtype(column_products(x, x).dtype) == dtype
        assert bool(taken) == expected
