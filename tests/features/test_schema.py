import json

import keras
import numpy as np
import pandas
import pyarrow as pa
import pytest

import keras_exfm as kx
from keras_exfm.features import SchemaError, fold_ids


def schema():
    return kx.Schema(
        [
            kx.Categorical("user", 10, embeddings=2),
            kx.Categorical("ad", 8, hashed=True, table="ads"),
            kx.MultiHot("history", 8, length=3, hashed=True, table="ads"),
            kx.Numeric("age"),
            kx.Numeric("vector", 2),
        ]
    )


def batch(**changes):
    data = {
        "user": np.array([0, 9]),
        "ad": np.array([2**40, -5]),
        "history": np.array([[1, 2, -1], [-1, -1, -1]]),
        "age": np.array([0.5, 1.0]),
        "vector": np.ones((2, 2)),
    }
    return {**data, **changes}


def test_dict_round_trip():
    config = json.loads(json.dumps(schema().to_dict()))
    assert kx.Schema.from_dict(config) == schema()
    assert list(schema().tables()) == ["user", "ads"]


def test_inputs_match_encoded_batches():
    encoded = schema().encode(batch())
    for name, tensor in schema().inputs().items():
        assert tensor.dtype == encoded[name].dtype
        assert tensor.shape[1:] == encoded[name].shape[1:]
    assert keras.backend.standardize_dtype(encoded["ad"].dtype) == "int32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": np.array([0, 10])}, r"'user'.*0\.\.9.*10.*row 1"),
        ({"user": np.array([-2, 1])}, r"'user'.*-2.*row 0"),
        ({"user": np.array([0.5, 1.0])}, "'user'.*integer ids.*float64"),
        ({"ad": np.array([1.0, 2.0])}, "'ad'.*integer or string"),
        ({"age": np.array([np.nan, 1.0])}, "'age'.*finite.*nan.*row 0"),
        ({"age": np.array(["a", "b"])}, "'age'.*numbers"),
        ({"history": np.ones((2, 4), int)}, r"'history'.*\(2, 4\)"),
        ({"user": np.array([1, 2, 3])}, "same number of rows"),
    ],
)
def test_bad_batch_is_refused(changes, message):
    with pytest.raises(SchemaError, match=message):
        schema().encode(batch(**changes))


def test_nulls_of_strings_are_missing_ids():
    """Whatever holds them: one null, one id."""
    known = fold_ids(np.array(["a"]))[0]
    part = kx.Schema(
        [kx.Categorical("ad", 8, hashed=True), kx.Categorical("new", 8, admit_after=1)]
    )
    for column in (
        ["a", None],
        ["a", float("nan")],
        (np.str_("a"), None),
        np.array(["a", None], object),
        np.array([b"a", None], object),
        np.ma.array(["a", "b"], mask=[False, True]),
        np.array(["a", float("nan")], object),
        np.array(["a", np.float32("nan")], object),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]], pa.string()),
    ):
        encoded = part.encode({"ad": column, "new": column})
        assert [x.tolist() for x in encoded.values()] == [[known, -1]] * 2
        assert all(x.dtype == np.int32 for x in encoded.values())
    # The text "nan" is a word, and so is none at all.
    assert (part.encode({"ad": ["nan", ""], "new": [1, 2]})["ad"] >= 0).all()


def test_integers_among_objects_are_integers():
    part = kx.Schema([kx.Categorical("ad", 8, hashed=True), kx.Categorical("user", 8)])
    encoded = part.encode({"ad": [2**40, None, -5], "user": [7, None, 0]})
    assert encoded["ad"].tolist() == [*fold_ids(np.array([2**40])), -1, -5]
    assert encoded["user"].tolist() == [7, -1, 0]
    wide = np.array([2**63 + 5, None], object)
    assert fold_ids(wide).tolist() == [*fold_ids(np.array([2**63 + 5], np.uint64)), -1]


@pytest.mark.parametrize(
    "column",
    [
        [2**60 + 1, None],
        [2**60 + 1, float("nan")],
        pa.array([2**60 + 1, None]),
        pa.chunked_array([[2**60 + 1], [None]], pa.int64()),
        np.ma.array([2**60 + 1, 5], mask=[False, True]),
    ],
)
def test_integers_beside_nulls_keep_all_bits(column):
    part = kx.Schema([kx.Categorical("ad", 8, hashed=True)])
    assert part.encode({"ad": column})["ad"].tolist() == [*fold_ids(np.array([2**60 + 1])), -1]


def test_columns_of_pandas():
    part = kx.Schema(
        [
            kx.Categorical("user", 8),
            kx.Categorical("ad", 8, hashed=True),
            kx.Categorical("shop", 8, hashed=True),
            kx.MultiHot("history", 8, length=2),
        ]
    )
    frame = pandas.DataFrame(
        {
            "user": pandas.Series([1, None, 3], dtype="Int64"),
            "ad": pandas.Series([2**60 + 1, None, 3], dtype="Int64"),
            "shop": pandas.Series(["a", None, "b"]),
            "history": [[1], None, [2, 3]],
        }
    )
    a, b = fold_ids(np.array(["a", "b"]))
    for shop in (frame["shop"], frame["shop"].astype("category"), frame["shop"].astype("object")):
        found = part.encode({**frame, "shop": shop})
        assert found["user"].tolist() == [1, -1, 3]
        assert found["ad"].tolist() == [*fold_ids(np.array([2**60 + 1])), -1, 3]
        assert found["shop"].tolist() == [a, -1, b]
        assert found["history"].tolist() == [[1, -1], [-1, -1], [2, 3]]
    with pytest.raises(SchemaError, match="keep them integers"):
        part.encode({**frame, "user": pandas.Series([1, None, 3])})


@pytest.mark.parametrize(
    "column",
    [
        [[1, 2], [3], []],
        [[1, 2], (3,), None],
        np.array([[1, 2], [3], float("nan")], object),
        pa.array([[1, 2], [3], None]),
        pa.array([[1, 2, None], [3, None], None]),
        np.array([[1, 2], [3], np.float32("nan")], object),
        [np.array([1, 2]), np.array([3], "uint64"), ()],
        [[1, 2, -1], [3, -1, -1], [-1, -1, -1]],
    ],
)
@pytest.mark.parametrize("hashed", [False, True])
def test_lists_are_filled_up(column, hashed):
    part = kx.Schema([kx.MultiHot("history", 8, length=3, hashed=hashed)])
    encoded = part.encode({"history": column})["history"]
    assert encoded.tolist() == [[1, 2, -1], [3, -1, -1], [-1, -1, -1]]
    assert encoded.dtype == np.int32


def test_lists_of_one_length_and_of_strings_are_filled_up():
    part = kx.Schema([kx.MultiHot("history", 8, length=3, hashed=True)])
    assert part.encode({"history": [[1], [2]]})["history"].tolist() == [[1, -1, -1], [2, -1, -1]]
    a, b = fold_ids(np.array(["a", "b"]))
    for rows in ([["a", None], ["b"]], [["a", float("nan")], ["b", None]], [["a"], ["b"]]):
        found = part.encode({"history": rows})["history"]
        assert found.tolist() == [[a, -1, -1], [b, -1, -1]]
    assert part.encode({"history": [[], []]})["history"].tolist() == [[-1] * 3] * 2


def test_lists_of_one_number_are_numbers():
    part = kx.Schema([kx.Numeric("age")])
    for column in ([[0.5], [1.0]], ((0.5,), (1.0,)), [0.5, 1.0]):
        assert part.encode({"age": column})["age"].tolist() == [0.5, 1.0]


def test_lists_of_numbers_become_rows():
    part = kx.Schema([kx.Numeric("vector", 2)])
    found = part.encode({"vector": np.fromiter([[1, 2], np.array([3, 4])], object, 2)})["vector"]
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"history": [[1], [1, 2, 3, 4]]},
            "'history': expected lists of at most 3 ids.*4 in row 1",
        ),
        ({"history": [[1], "ab"]}, "'history'.*at most 3 ids. Received 'ab' in row 1"),
        ({"history": [[1], 7]}, "'history'.*Received 7 in row 1"),
        ({"vector": [[1.0, 2.0], [3.0]]}, "'vector'.*lists of 2 numbers.*list of 1 in row 1"),
        ({"vector": [[1.0, 2.0], None]}, "'vector'.*Received None in row 1"),
        ({"ad": [1.5, None]}, "'ad': expected integer or string ids. Received 1.5"),
        ({"ad": [True, None]}, "'ad': expected integer or string ids. Received True"),
        ({"ad": ["a", 5]}, "'ad': expected ids that are all integers or all strings.*5 and 'a'"),
        ({"ad": np.array([b"\xff", b"a"])}, "'ad': expected bytes that are UTF-8"),
        ({"user": np.array([2**64 - 1, None], object)}, f"0..9.*{2**64 - 1} in row 0"),
        ({"ad": [2**70, 1]}, f"'ad': expected ids that fit in 64 bits.*{2**70}"),
        ({"user": ["a", None]}, "'user': expected integer ids"),
        ({"user": np.array([1.0, np.nan])}, "'user'.*1 missing values.*keep them integers"),
        ({"user": np.array([300, 1])}, r"Received 300 in row 0 \(1 bad value in"),
        ({"vector": np.ones((2, 3))}, r"'vector': expected shape \(rows, 2\)"),
        ({"age": np.ones((2, 3))}, r"'age': expected shape \(rows,\)"),
    ],
)
def test_what_no_list_and_no_null_explains_is_refused(changes, message):
    with pytest.raises(SchemaError, match=message):
        schema().encode(batch(**changes))


def test_missing_column_is_named():
    data = batch()
    del data["age"]
    with pytest.raises(SchemaError, match=r"Missing columns \['age'\]"):
        schema().encode(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kx.Categorical("a b", 3), "identifier"),
        (lambda: kx.Categorical("label", 3), "reserved"),
        (lambda: kx.Categorical("a", 0), "vocabulary_size=0"),
        (lambda: kx.MultiHot("a", 3, length=2, combiner="max"), "combiner='max'"),
        (lambda: kx.Schema([]), "at least one"),
        (lambda: kx.Schema([kx.Numeric("a"), kx.Numeric("a")]), "twice"),
        (
            lambda: kx.Schema([kx.Categorical("a", 3), kx.Categorical("b", 4, table="a")]),
            "differ in `vocabulary_size`",
        ),
        (lambda: kx.Schema.from_dict({"features": [{"kind": "x"}]}), "kind"),
    ],
)
def test_bad_description_is_refused(make, message):
    with pytest.raises(SchemaError, match=message):
        make()


def test_encode_copies_only_what_it_changes():
    batch = {"age": np.ones(2, "float32"), "user": np.array([1, 2], "int32")}
    part = kx.Schema([kx.Categorical("user", 9), kx.Numeric("age")])
    encoded = part.encode(batch)
    assert all(encoded[name] is batch[name] for name in batch)
    wide = part.encode({"age": np.ones(2), "user": np.array([1, 2])})
    assert {name: column.dtype.name for name, column in wide.items()} == {
        "user": "int32",
        "age": "float32",
    }
