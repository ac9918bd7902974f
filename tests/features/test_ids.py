import numpy as np
import pytest

from keras_exfm.features import SchemaError, _ids, fold_ids


def test_fold_keeps_small_ids_and_spreads_large_ones():
    ids = np.arange(1000) << 32
    assert len(np.unique(fold_ids(ids))) == 1000
    assert fold_ids(np.array([-1, 5])).tolist() == [-1, 5]
    words = np.array(["a", "b", "a"])
    folded = fold_ids(words)
    assert folded[0] == folded[2] != folded[1]
    # The values are part of the format: a model must find its rows again.
    assert folded.tolist() == fold_ids(np.array(["a", "b", "a"], object)).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "datetime64[s]"])
def test_fold_of_what_is_no_id_is_refused(dtype):
    with pytest.raises(SchemaError, match=rf"integer or string ids.*{dtype[:8]}"):
        fold_ids(np.array([-1, 5]).astype(dtype))


def fold(number):
    """murmur3's 64-bit finalizer in Python's integers, the low 31 bits."""
    if -(2**31) <= number < 2**31:
        return number
    x = number % 2**64
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD % 2**64
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 % 2**64
    x ^= x >> 33
    return x & 0x7FFFFFFF


@pytest.mark.parametrize("kind", ["int64", "uint64", "uint32", "int16", "uint8", ">i8"])
@pytest.mark.parametrize("block", [1, 7, 16_384])
def test_fold_is_murmur(monkeypatch, kind, block):
    monkeypatch.setattr(_ids, "_FOLD_BLOCK", block)
    info = np.iinfo(kind)
    edges = [0, -1, 1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**63 - 1, -(2**63), 2**63]
    edges += [info.min, info.max, 2**64 - 1, 123_456_789_012]
    ids = np.array([i for i in edges if info.min <= i <= info.max], kind)
    rng = np.random.default_rng(0)
    ids = np.concatenate([ids, rng.integers(info.min, info.max, 30, ids.dtype.newbyteorder("="))])
    for array in (ids, ids[::-1], np.stack([ids, ids])[:, ::2]):
        folded = fold_ids(array)
        assert folded.dtype == np.int32
        assert folded.shape == array.shape
        assert folded.ravel().tolist() == [fold(int(i)) for i in array.ravel()]
    assert fold_ids(ids[:0]).shape == (0,)
