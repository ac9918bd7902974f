"""Arrow columns as arrays, against a loop over rows."""

import numpy as np
import pyarrow as pa
import pytest

import keras_exfm as kx
from keras_exfm.features import fold_ids
from keras_exfm.streaming.columns import raw_feature

LISTS = [[1, 2**40], None, [], [3, -1, 5], [None, 2**50], [7], [-1], None, [1, 2, 3]]


def plain(value):
    held = [i for i in value or [] if i is not None and i != -1]
    return held + [-1] * (4 - len(held))


@pytest.mark.parametrize("part", [slice(None), slice(1, 7), slice(2, 3), slice(5, 6), slice(0, 0)])
@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
@pytest.mark.parametrize("lists", [LISTS, [v for v in LISTS if v and None not in v]])
def test_lists_are_padded_and_folded(lists, kind, part):
    start, stop, _ = part.indices(len(lists))
    column = pa.array(lists, kind).slice(start, stop - start)
    expected = np.array([plain(v) for v in lists[part]], np.int64).reshape(-1, 4)
    expected = np.where(expected == -1, -1, fold_ids(expected))
    for option in ({"hashed": True}, {"admit_after": 2}):
        feature = kx.MultiHot("h", 10, length=4, **option)
        found = raw_feature(column, feature)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
        encoded = kx.Schema([feature]).encode({"h": found})
        np.testing.assert_array_equal(encoded["h"], expected)


def test_lists_of_unsigned_ids_may_hold_nulls():
    column = pa.array([[1, None], [2**63], None, [0]], pa.list_(pa.uint64()))
    found = raw_feature(column, kx.MultiHot("h", 10, length=2, hashed=True))
    (large,) = fold_ids(np.array([2**63], np.uint64))
    assert found.tolist() == [[1, -1], [large, -1], [-1, -1], [0, -1]]
