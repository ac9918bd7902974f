import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.streaming import StreamError, partitions

HOUR = 3_600_000
SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, length=3), kx.Numeric("x")])


def rows(hour, n=4, **changes):
    data = {
        "example_id": np.arange(n) + 100 * hour,
        "timestamp": hour * HOUR + np.arange(n),
        "vertical": ["feed"] * n,
        "ad": np.arange(n, dtype=np.int32),
        "seen": pa.array([[1], [], [2, 3], [4]][:n], pa.list_(pa.int32())),
        "x": np.ones(n, np.float32),
    }
    return {**data, **changes}


def put(path, table, kind="impressions", hour=5, name="part-0.parquet"):
    folder = path / kind / f"hour={hour}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / name)
    return folder / name


def fails(path, *texts, hour=5, schema=SCHEMA):
    with pytest.raises(StreamError) as error:
        partitions.read_impressions(path, hour, schema)
    for text in texts:
        assert str(text) in str(error.value), f"{text} not in {error.value}"


def test_round_trip_and_optional_columns(tmp_path):
    assert partitions.impression_hours(tmp_path) == []
    full = rows(11, group=np.arange(4) // 2, true_probability=np.full(4, 0.25), extra=[0] * 4)
    assert partitions.write_impressions(tmp_path, 11, full)
    assert partitions.write_impressions(tmp_path, 9, rows(9))
    assert partitions.impression_hours(tmp_path) == [9, 11]
    table = partitions.read_impressions(tmp_path, 11, SCHEMA)
    own = ["example_id", "timestamp", "vertical", "group", "true_probability"]
    assert table.column_names == [*own, "ad", "seen", "x"]
    assert table["example_id"].to_pylist() == [1100, 1101, 1102, 1103]
    assert table["seen"].to_pylist() == [[1], [], [2, 3], [4]]
    assert table.schema.field("true_probability").type == pa.float64()
    assert "group" not in partitions.read_impressions(tmp_path, 9, SCHEMA).column_names


def test_an_hour_that_is_there_stays(tmp_path):
    assert partitions.write_impressions(tmp_path, 5, rows(5))
    assert not partitions.write_impressions(tmp_path, 5, rows(5, x=np.zeros(4, np.float32)))
    assert partitions.read_impressions(tmp_path, 5, SCHEMA)["x"].to_pylist() == [1.0] * 4


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(table, file, **kwargs):
        file.write(b"PAR1 half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(partitions.pq, "write_table", broken)
        with pytest.raises(OSError, match="disk full"):
            partitions.write_impressions(tmp_path, 5, rows(5))
    assert list((tmp_path / "impressions").iterdir()) == []
    # An empty folder, such as another tool may leave, does not count as written.
    (tmp_path / "impressions" / "hour=5").mkdir()
    assert partitions.write_impressions(tmp_path, 5, rows(5))


def test_writing_refuses_what_the_tables_do_not_take(tmp_path):
    with pytest.raises(StreamError, match="hour=6.*'timestamp'.*not in hour 6"):
        partitions.write_impressions(tmp_path, 6, rows(5))
    without = rows(5)
    del without["vertical"]
    with pytest.raises(StreamError, match="missing columns.*vertical"):
        partitions.write_impressions(tmp_path, 5, without)
    assert partitions.impression_hours(tmp_path) == []


def test_several_files_make_one_hour(tmp_path):
    put(tmp_path, rows(5, 2))
    put(tmp_path, rows(5, 2, example_id=[7, 8]), name="part-1.parquet")
    put(tmp_path, rows(5, 2, example_id=[7, 8]), name=".half.parquet")
    table = partitions.read_impressions(tmp_path, 5, SCHEMA)
    assert table["example_id"].to_pylist() == [500, 501, 7, 8]


def test_no_partition_and_empty_partitions(tmp_path):
    fails(tmp_path, "no partition of hour 5", "none")
    put(tmp_path, rows(4), hour=4)
    fails(tmp_path, "no partition of hour 5", "4..4")
    (tmp_path / "impressions" / "hour=5").mkdir()
    fails(tmp_path, "hour=5", "no Parquet file")
    put(tmp_path, rows(5, 0))
    fails(tmp_path, "hour=5", "no rows")


@pytest.mark.parametrize("damage", ["head", "tail", "body"])
def test_corrupt_parquet_names_the_file(tmp_path, damage):
    file = put(tmp_path, rows(5))
    content = bytearray(file.read_bytes())
    if damage == "tail":
        content = content[:-30]
    elif damage == "head":
        content = bytearray(b"not a parquet file")
    else:
        content[4:60] = b"\xff" * 56
    file.write_bytes(content)
    fails(tmp_path, file, "cannot be read as Parquet")


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"ad": [0, 1, 2, 10]}, ["'ad'", "0..9", "10", "row 3"]),
        ({"ad": ["a", "b", "c", "d"]}, ["'ad'", "integer ids", "string"]),
        ({"seen": [[1], [1, 2, 3, 4], [], []]}, ["'seen'", "at most 3", "row 1"]),
        ({"x": [0.0, np.nan, 0.0, 0.0]}, ["'x'", "finite", "row 1"]),
        ({"timestamp": np.arange(4) + 6 * HOUR}, ["'timestamp'", "hour 5"]),
        ({"timestamp": np.arange(4) / 2}, ["'timestamp'", "integers"]),
        ({"example_id": [1, 2, 1, 3]}, ["'example_id'", "1 more than once"]),
        ({"example_id": pa.array([1, None, 2, 3])}, ["'example_id'", "Row 1"]),
        ({"vertical": [1, 2, 3, 4]}, ["'vertical'", "strings"]),
        ({"true_probability": [0.1, 0.2, 1.5, 0.1]}, ["'true_probability'", "1.5", "row 2"]),
    ],
)
def test_bad_values_name_file_column_and_value(tmp_path, changes, texts):
    file = put(tmp_path, rows(5, **changes))
    fails(tmp_path, file.parent, *texts)


def test_missing_column_and_mixed_schema_name_the_file(tmp_path):
    table = rows(5)
    del table["seen"]
    file = put(tmp_path, table)
    fails(tmp_path, file, "missing columns ['seen']", "'ad'")
    put(tmp_path, rows(5))
    other = put(tmp_path, rows(5, ad=np.arange(4)), name="part-1.parquet")
    fails(tmp_path, other, "mixed schema", "'ad': 'int64'", "'ad': 'int32'", "part-0.parquet")


def test_labels(tmp_path):
    events = {"example_id": [3, 4], "timestamp": [7 * HOUR, 8 * HOUR - 1], "label": [1.0, 0.0]}
    assert partitions.read_labels(tmp_path, 7).num_rows == 0
    assert partitions.write_labels(tmp_path, 7, events)
    assert not partitions.write_labels(tmp_path, 7, events)
    table = partitions.read_labels(tmp_path, 7)
    assert table.schema.field("label").type == pa.float32()
    assert table.to_pydict() == events
    assert partitions.write_labels(tmp_path, 9, {name: [] for name in events} | {"label": []})
    assert partitions.label_hours(tmp_path) == [7, 9]
    assert partitions.read_labels(tmp_path, 8).num_rows == 0


def test_an_hour_without_events_has_a_readable_partition(tmp_path):
    empty = partitions.read_labels(tmp_path, 7)
    assert partitions.write_labels(tmp_path, 7, empty)
    assert partitions.read_labels(tmp_path, 7).schema == empty.schema


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"label": [1.0, np.nan]}, ["'label'", "0 or 1", "nan", "row 1"]),
        ({"label": [1.0, 0.5]}, ["'label'", "0 or 1", "0.5"]),
        ({"timestamp": [7 * HOUR, 0]}, ["'timestamp'", "hour 7", "row 1"]),
    ],
)
def test_bad_labels_name_file_column_and_value(tmp_path, changes, texts):
    events = {"example_id": [3, 4], "timestamp": [7 * HOUR, 7 * HOUR], "label": [1.0, 0.0]}
    file = put(tmp_path, events | changes, "labels", 7)
    with pytest.raises(StreamError) as error:
        partitions.read_labels(tmp_path, 7)
    for text in [file, *texts]:
        assert str(text) in str(error.value)


def test_description_round_trip_and_faults(tmp_path):
    info = partitions.DatasetInfo(
        "toy", "Toy.", SCHEMA, 3, 9, 6, ("feed", "video"), {"seed": 1}, {"file": "a", "sha256": "b"}
    )
    with pytest.raises(StreamError, match="not finished"):
        partitions.DatasetInfo.read(tmp_path)
    info.write(tmp_path)
    assert partitions.DatasetInfo.read(tmp_path) == info
    assert [f.name for f in tmp_path.iterdir()] == ["dataset.json"]
    file = tmp_path / "dataset.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in values.items() if k != "last_hour"}))
    with pytest.raises(StreamError, match="dataset.json.*last_hour"):
        partitions.DatasetInfo.read(tmp_path)
    file.write_text(json.dumps(values | {"schema": {"features": []}}))
    with pytest.raises(StreamError, match="at least one feature"):
        partitions.DatasetInfo.read(tmp_path)
    file.write_text("{")
    with pytest.raises(StreamError, match="not valid JSON"):
        partitions.DatasetInfo.read(tmp_path)
