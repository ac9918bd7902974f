import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

import keras_exfm as kx
from keras_exfm.features import SchemaError, fold_ids
from keras_exfm.streaming import Stream, StreamError, _hour_writer, hours, read_hour, write_hour
from tests.streaming.samples import HOUR, hour_rows, schema

pytestmark = pytest.mark.backend_free


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "labelled")


def parquet_files(path):
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(".parquet")
    )


def test_rows_come_back_in_time_order(path):
    data = hour_rows(7, 50)
    # Equal timestamps: the example id decides.
    data["timestamp"][10:20] = data["timestamp"][10]
    assert write_hour(path, 7, data, schema()) is True
    got = read_hour(
        path,
        7,
        columns=("example_id", "timestamp", "group", "true_probability", "hour", "vertical"),
    )
    order = sorted(range(50), key=lambda i: (data["timestamp"][i], data["example_id"][i]))
    for name in ("example_id", "timestamp", "group", "label", "user", "true_probability"):
        assert got[name].tolist() == [data[name][i] for i in order], name
    np.testing.assert_array_equal(got["teacher_logit"], data["teacher_logit"][order])
    assert np.isnan(got["teacher_logit"]).sum() == 17
    np.testing.assert_array_equal(got["ad"], fold_ids(data["ad"])[order])
    np.testing.assert_array_equal(got["site"], fold_ids(np.array(data["site"]))[order])
    for row, i in enumerate(order):
        folded = fold_ids(np.array(data["history"][i], np.int64)).tolist()
        assert got["history"][row].tolist() == folded + [-1] * (4 - len(folded))
        kept = [t for t in data["topics"][i].tolist() if t != -1]
        assert got["topics"][row].tolist() == kept + [-1] * (3 - len(kept))
    np.testing.assert_allclose(got["age"], data["age"][order].astype("float32"))
    np.testing.assert_allclose(got["vector"], data["vector"][order].astype("float32"))
    assert got["hour"].tolist() == [7] * 50
    assert got["vertical"].tolist() == [data["vertical"][i] for i in order]
    assert {
        name: str(got[name].dtype) for name in ("user", "history", "age", "label", "weight")
    } == {
        "user": "int32",
        "history": "int32",
        "age": "float32",
        "label": "float32",
        "weight": "float32",
    }
    assert got["weight"].tolist() == [1.0] * 50


def test_arrow_input_equals_numpy_input(path, tmp_path):
    data = hour_rows(1, 20)
    other = str(tmp_path / "other")
    write_hour(path, 1, data, schema())
    arrow = pa.table(
        {
            **{k: v for k, v in data.items() if k not in ("topics", "vector", "site", "history")},
            "topics": pa.array(
                [[t for t in row if t >= 0] for row in data["topics"].tolist()],
                pa.large_list(pa.int16()),
            ),
            "vector": pa.FixedSizeListArray.from_arrays(data["vector"].ravel(), 2),
            "site": pa.array(data["site"]).dictionary_encode(),
            "history": pa.chunked_array([data["history"][:7], data["history"][7:]]),
        }
    )
    write_hour(other, 1, arrow, schema())
    first, second = read_hour(path, 1), read_hour(other, 1)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_nulls_are_missing_values(path):
    features = kx.Schema(
        [
            kx.Categorical("a", 5),
            kx.Categorical("b", 5, hashed=True),
            kx.Categorical("s", 5, hashed=True),
            kx.MultiHot("m", 5, length=2),
            kx.MultiHot("w", 5, length=2, hashed=True),
        ]
    )
    rows = {
        "example_id": [1, 2, 3], "timestamp": [0, 1, 2], "vertical": ["x"] * 3,
        "label": [0, 1, 0],
        "teacher_logit": pa.array([None, 1.0, float("nan")]),
        "a": pa.array([1, None, 4]), "b": pa.array([None, 2**33, 3]),
        "s": pa.array([None, "u", ""]),
        "m": pa.array([None, [3, None], []]), "w": pa.array([["p", None], None, ["q", "p"]]),
    }  # fmt: skip
    write_hour(path, 0, rows, features)
    got = read_hour(path, 0)
    fold = lambda x: fold_ids(np.array([x])).item()  # noqa: E731
    assert got["a"].tolist() == [1, -1, 4]
    assert got["b"].tolist() == [-1, fold(2**33), 3]
    assert got["s"].tolist() == [-1, fold("u"), fold("")]
    assert got["m"].tolist() == [[-1, -1], [3, -1], [-1, -1]]
    assert got["w"].tolist() == [[fold("p"), -1], [-1, -1], [fold("q"), fold("p")]]
    table = DeltaTable(path).to_pyarrow_table()
    assert table["teacher_logit"].to_pylist() == [None, 1.0, None]
    assert table["m"].to_pylist() == [[], [3], []]
    assert table["teacher_snapshot"].to_pylist() == [None] * 3


def test_table_on_disk_is_the_contract(path):
    write_hour(path, 3, hour_rows(3), schema())
    table = DeltaTable(path)
    assert table.metadata().partition_columns == ["hour"]
    types = {f.name: str(f.type) for f in pa.schema(table.schema().to_arrow())}
    assert types == {
        "hour": "int64", "example_id": "int64", "timestamp": "int64", "vertical": "string",
        "label": "float", "group": "int64", "true_probability": "double", "teacher_logit": "float",
        "teacher_snapshot": "string", "teacher_age_s": "float", "user": "int32", "ad": "int64",
        "site": "string", "history": "list<element: int64>", "topics": "list<element: int32>",
        "age": "float", "vector": "list<element: float>",
    }  # fmt: skip
    assert json.loads(table.metadata().configuration["keras_exfm.schema"]) == schema().to_dict()


def test_hours_versions_and_log_counts(path):
    assert hours(path) == []
    for hour in (5, 6, 9):
        write_hour(path, hour, hour_rows(hour, hour), schema())
    assert hours(path) == [5, 6, 9]
    stream = Stream(path)
    assert [stream.rows(h) for h in stream.hours] == [5, 6, 9]
    old = Stream(path, version=stream.version - 1)
    assert old.hours == [5, 6]
    assert hours(path, version=stream.version - 1) == [5, 6]
    write_hour(path, 10, hour_rows(10), schema())
    assert stream.hours == [5, 6, 9]
    assert stream.select_hours((6, None)) == [6, 9]
    assert stream.select_hours((None, 6)) == [5, 6]
    with pytest.raises(StreamError, match=r"no hour in \(7, 8\).*5\.\.9"):
        stream.select_hours((7, 8))
    with pytest.raises(StreamError, match="no hour 7"):
        read_hour(path, 7)
    with pytest.raises(StreamError, match="version=0"):
        read_hour(stream, 5, version=0)


def test_repeated_commit_changes_nothing(path):
    write_hour(path, 1, hour_rows(1), schema())
    write_hour(path, 2, hour_rows(2), schema())
    before = Stream(path).version
    # The repeat is decided by the log, not by its rows.
    assert write_hour(path, 2, hour_rows(2, seed=99), schema()) is False
    assert write_hour(path, 1, {}, schema()) is False
    assert Stream(path).version == before
    assert len(parquet_files(path)) == 2
    with pytest.raises(StreamError, match="hour 2 already, from another writer than 'other'"):
        write_hour(path, 2, hour_rows(2), schema(), app_id="other")
    with pytest.raises(StreamError, match="time order. Received hour 0 after 2"):
        write_hour(path, 0, hour_rows(0), schema())


def test_two_writers_that_race_leave_one_copy(path, monkeypatch):
    write_hour(path, 1, hour_rows(1), schema())
    real = DeltaTable.create_write_transaction

    def late(table, *args, **kwargs):
        monkeypatch.setattr(DeltaTable, "create_write_transaction", real)
        assert write_hour(path, 2, hour_rows(2), schema()) is True
        return real(table, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", late)
    assert write_hour(path, 2, hour_rows(2), schema()) is False
    assert Stream(path).rows(2) == 10
    # The loser's file is gone.
    assert len(parquet_files(path)) == 2


@pytest.mark.parametrize("failures", [1, 9])
def test_a_commit_that_another_writer_upset_is_tried_again(path, monkeypatch, failures):
    write_hour(path, 1, hour_rows(1), schema())
    real, tried = DeltaTable.create_write_transaction, []

    def upset(table, *args, **kwargs):
        tried.append(table)
        if len(tried) <= failures:
            raise CommitFailedError("Metadata changed since last commit.")
        real(table, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", upset)
    if failures == 1:
        assert write_hour(path, 2, hour_rows(2), schema()) is True
        assert len(tried) == 2
        assert Stream(path).rows(2) == 10
    else:
        with pytest.raises(StreamError, match="the commit failed: Metadata changed"):
            write_hour(path, 2, hour_rows(2), schema())
        assert hours(path) == [1]


def test_an_error_after_the_commit_leaves_its_files(path, monkeypatch):
    write_hour(path, 1, hour_rows(1), schema())
    real = DeltaTable.create_write_transaction

    def broken(table, *args, **kwargs):
        real(table, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(DeltaTable, "create_write_transaction", broken)
    with pytest.raises(KeyboardInterrupt):
        write_hour(path, 2, hour_rows(2), schema())
    assert read_hour(path, 2)["label"].shape == (10,)


def test_a_crash_between_creation_and_the_first_commit_is_repaired(path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", killed)
        with pytest.raises(KeyboardInterrupt):
            write_hour(path, 1, hour_rows(1), schema())
    assert hours(path) == []
    assert write_hour(path, 1, hour_rows(1), schema()) is True
    assert hours(path) == [1]


def test_an_hour_in_batches_is_that_of_the_whole(path, tmp_path, monkeypatch):
    data = hour_rows(1, 60)
    order = np.lexsort((data["example_id"], data["timestamp"]))
    batches = [
        {name: [column[i] for i in part] for name, column in data.items()}
        for part in np.split(order, [7, 20, 21])
    ]
    monkeypatch.setattr(_hour_writer, "_FILE_BYTES", 4000)
    assert write_hour(path, 1, iter(batches), schema()) is True
    other = str(tmp_path / "other")
    write_hour(other, 1, data, schema())
    assert len(parquet_files(path)) > 1
    assert Stream(path).rows(1) == 60
    columns = ("example_id", "timestamp", "vertical", "group")
    got, expected = read_hour(path, 1, columns=columns), read_hour(other, 1, columns=columns)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    # The digests in the log do not depend on the cut.
    one, two = Stream(path).notes()[1], Stream(other).notes()[1]
    assert one["rows"] == 60
    assert one["digest"] == two["digest"]
    assert set(one["digest"]) == {*data, "teacher_snapshot", "teacher_age_s"}
    with pytest.raises(StreamError, match="in the order of"):
        write_hour(path, 2, [hour_rows(2, 5, seed=1), hour_rows(2, 5, seed=2)], schema())
    assert hours(path) == [1]


def test_a_flipped_bit_is_found(path):
    write_hour(path, 1, hour_rows(1, 2000), schema())
    (file,) = parquet_files(path)
    content = bytearray(Path(file).read_bytes())
    content[len(content) // 3] ^= 4
    Path(file).write_bytes(content)
    with pytest.raises(StreamError, match=rf"{os.path.basename(file)}: cannot read the Parquet"):
        read_hour(path, 1)


def bad(name, row, value):
    data = hour_rows(4)
    column = list(data[name])
    column[row] = value
    return {**data, name: column}


def without(name):
    data = hour_rows(4)
    del data[name]
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without("label"), r"Missing columns \['label'\]"),
        (without("age"), r"Missing columns \['age'\]"),
        (without("vertical"), r"Missing columns \['vertical'\]"),
        (hour_rows(4, colour=np.zeros(10)), r"Unknown columns \['colour'\]"),
        (hour_rows(4, rows=0), "at least one row"),
        (hour_rows(4, user=np.arange(9)), "same number of rows"),
        (bad("user", 3, 100), r"'user'.*0\.\.99.*100.*row 3"),
        (bad("user", 3, -7), r"'user'.*-7.*row 3"),
        (hour_rows(4, user=np.ones(10)), "'user'.*integer ids.*double"),
        (hour_rows(4, ad=np.ones(10)), "'ad'.*integer or string ids.*double"),
        (bad("topics", 2, [1, 9, 2]), r"'topics'.*0\.\.8.*9.*row 2"),
        (bad("history", 2, [1, 2, 3, 4, 5]), "'history'.*at most 4.*5 ids in row 2"),
        (hour_rows(4, history=np.arange(10)), "'history'.*expected lists.*int64"),
        (hour_rows(4, vector=[[1.0, 2.0]] * 9 + [[1.0]]), "'vector'.*2 numbers.*1 in row 9"),
        (bad("age", 5, float("nan")), "'age'.*finite.*nan.*row 5"),
        (hour_rows(4, age=["x"] * 10), "'age'.*numbers.*string"),
        (bad("label", 1, float("nan")), "'label'.*0 or 1.*nan.*row 1"),
        (bad("label", 1, 2.0), "'label'.*0 or 1.*2.*row 1"),
        (bad("label", 1, None), "'label'.*Row 1 has none"),
        (bad("true_probability", 1, 1.5), r"'true_probability'.*0\.\.1.*1\.5.*row 1"),
        (bad("teacher_logit", 6, float("inf")), "'teacher_logit'.*finite.*inf.*row 6"),
        (hour_rows(4, teacher_age_s=np.full(10, -1.0)), "'teacher_age_s'.*at least 0.*-1.*row 0"),
        (hour_rows(4, weight=np.full(10, -1.0)), "'weight'.*at least 0.*-1.*row 0"),
        (bad("example_id", 8, hour_rows(4)["example_id"][2]), r"'example_id'.*distinct.*\[2, 8\]"),
        (bad("timestamp", 7, 5 * HOUR), "'timestamp'.*hour 4.*18000000.*row 7"),
        (hour_rows(4, timestamp=np.ones(10)), "'timestamp'.*integers.*double"),
        ({**hour_rows(4), "hour": np.full(10, 5)}, "'hour'.*hour 4.*5.*row 0"),
        (hour_rows(4, vertical=np.ones(10)), "'vertical'.*strings.*double"),
        (bad("vertical", 4, None), "'vertical'.*Row 4 has none"),
        (hour_rows(4, group=[{"a": 1}] * 10), "'group'.*integers.*struct"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(path, data, message):
    with pytest.raises(StreamError, match=message) as info:
        write_hour(path, 4, data, schema(), source="in/hour=4/a.parquet")
    assert "in/hour=4/a.parquet" in str(info.value)
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ad": ["a"] * 10}, "mixed schema: column 'ad' is string; in the table it is int64"),
        ({"weight": np.ones(10)}, "mixed schema: column 'weight' is float; .*missing"),
        ({"group": None}, "mixed schema: column 'group' is missing"),
    ],
)
def test_hours_of_another_kind_are_refused(path, changes, message):
    write_hour(path, 4, hour_rows(4), schema())
    data = {k: v for k, v in hour_rows(5, **changes).items() if v is not None}
    with pytest.raises(StreamError, match=message):
        write_hour(path, 5, data, schema())
    other = kx.Schema([*schema().features[:-1], kx.Numeric("vector", 3)])
    with pytest.raises(StreamError, match=r"mixed schema.*'vector'.*size=3.*size=2"):
        write_hour(path, 5, hour_rows(5, vector=np.ones((10, 3))), other)
    assert hours(path) == [4]
    assert len(parquet_files(path)) == 1


def test_part_of_the_schema_reads_part_of_the_file(path, monkeypatch):
    write_hour(path, 1, hour_rows(1), schema())
    asked = []
    real = pq.ParquetFile.iter_batches

    def spy(self, *args, columns=None, **kwargs):
        asked.extend(columns)
        return real(self, *args, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    part = schema().select(["user", "history"])
    got = read_hour(path, 1, part, columns=("group",))
    assert set(got) == {"user", "history", "label", "teacher_logit", "weight", "group"}
    assert sorted(asked) == ["group", "history", "label", "teacher_logit", "user"]
    with pytest.raises(StreamError, match=r"lacks the columns \['colour'\]"):
        read_hour(path, 1, kx.Schema([kx.Categorical("colour", 3)]))
    with pytest.raises(StreamError, match=r"lacks the columns \['nothing'\]"):
        read_hour(path, 1, part, columns=("nothing",))
    with pytest.raises(StreamError, match=r"has anyway: \['label'\]"):
        read_hour(path, 1, part, columns=("label",))


def test_reader_checks_against_its_own_schema_and_names_the_file(path):
    write_hour(path, 1, hour_rows(1), schema())
    narrow = kx.Schema([kx.Categorical("user", 2)])
    with pytest.raises(SchemaError, match=r"hour=1/.*\.parquet \(hour 1, rows 0\.\.9\).*'user'"):
        read_hour(path, 1, narrow)
    with pytest.raises(SchemaError, match=r"parquet.*'history'.*at most 1"):
        read_hour(path, 1, kx.Schema([kx.MultiHot("history", 64, length=1, hashed=True)]))


def test_verticals(path):
    data = hour_rows(1, 40)
    write_hour(path, 1, data, schema())
    feed = read_hour(path, 1, vertical="feed", columns=("example_id",))
    chosen = np.array(data["vertical"]) == "feed"
    assert set(feed["example_id"]) == set(data["example_id"][chosen])
    assert len(read_hour(path, 1, vertical=("feed", "search"))["label"]) == 40
    none = read_hour(path, 1, vertical="video", columns=("group",))
    assert {name: column.shape for name, column in none.items()} == {
        name: (0, *column.shape[1:])
        for name, column in read_hour(path, 1, columns=("group",)).items()
    }


def test_stored_weights_are_the_sample_weights(path):
    weight = np.linspace(0, 2, 10)
    data = hour_rows(1, weight=weight, timestamp=HOUR + np.arange(10))
    write_hour(path, 1, data, schema())
    np.testing.assert_allclose(read_hour(path, 1)["weight"], weight, rtol=1e-6)


def test_an_hour_in_several_files_is_merged_in_time_order(path):
    write_hour(path, 1, hour_rows(1, 30), schema())
    expected = read_hour(path, 1, columns=("example_id",))
    rows = DeltaTable(path).to_pyarrow_table()
    # Another writer replaces the hour by two files whose times interleave.
    write_deltalake(path, rows.take(list(range(0, 30, 2))), mode="overwrite")
    write_deltalake(path, rows.take(list(range(1, 30, 2))), mode="append")
    got = read_hour(path, 1, columns=("example_id",))
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_corrupt_or_lost_files_are_named(path):
    write_hour(path, 1, hour_rows(1, 2000), schema())
    (file,) = parquet_files(path)
    os.truncate(file, os.path.getsize(file) // 2)
    with pytest.raises(StreamError, match=rf"{os.path.basename(file)}: cannot read the Parquet"):
        read_hour(path, 1)
    os.remove(file)
    with pytest.raises(StreamError, match=rf"{os.path.basename(file)}: cannot read the Parquet"):
        read_hour(path, 1)


def test_what_is_no_stream_is_refused(path, tmp_path):
    with pytest.raises(StreamError, match="no labelled stream"):
        Stream(path)
    write_deltalake(path, pa.table({"a": [1]}))
    with pytest.raises(StreamError, match=r"lacks the property 'keras_exfm\.schema'"):
        Stream(path)
    with pytest.raises(StreamError, match=r"lacks the property 'keras_exfm\.schema'"):
        write_hour(path, 1, hour_rows(1), schema())
    write_hour(tmp_path / "good", 1, hour_rows(1), schema())
    with pytest.raises(StreamError, match="no labelled stream at version 9"):
        Stream(tmp_path / "good", version=9)
