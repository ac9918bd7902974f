import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.streaming import StreamError, partitions

pytestmark = pytest.mark.backend_free

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
    assert partitions.hours(tmp_path) == []
    full = rows(11, group=np.arange(4) // 2, true_probability=np.full(4, 0.25))
    file = partitions.write_impressions(tmp_path, 11, pa.table(full))
    assert file == tmp_path / "impressions" / "hour=11" / "part-0.parquet"
    partitions.write_impressions(tmp_path, 9, pa.table(rows(9)))
    assert partitions.hours(tmp_path) == [9, 11]
    table = partitions.read_impressions(tmp_path, 11, SCHEMA)
    assert table.equals(pa.table(full))
    assert "group" not in partitions.read_impressions(tmp_path, 9, SCHEMA).column_names


def test_writing_again_replaces_the_hour(tmp_path):
    partitions.write_impressions(tmp_path, 5, pa.table(rows(5)))
    partitions.write_impressions(tmp_path, 5, pa.table(rows(5, x=np.zeros(4, np.float32))))
    assert partitions.read_impressions(tmp_path, 5, SCHEMA)["x"].to_pylist() == [0.0] * 4
    assert [f.name for f in (tmp_path / "impressions").iterdir()] == ["hour=5"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(table, file, **kwargs):
        file.write(b"PAR1 half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(partitions.pq, "write_table", broken)
        with pytest.raises(OSError, match="disk full"):
            partitions.write_impressions(tmp_path, 5, pa.table(rows(5)))
    assert list((tmp_path / "impressions").iterdir()) == []
    partitions.write_impressions(tmp_path, 5, pa.table(rows(5)))
    assert partitions.hours(tmp_path) == [5]


def test_writing_refuses_what_the_tables_do_not_take(tmp_path):
    with pytest.raises(StreamError, match="hour=6.*'timestamp'.*of hour 6"):
        partitions.write_impressions(tmp_path, 6, pa.table(rows(5)))
    with pytest.raises(StreamError, match="missing columns.*vertical"):
        partitions.write_impressions(tmp_path, 5, pa.table(rows(5)).drop_columns("vertical"))
    with pytest.raises(StreamError, match="at least one row"):
        partitions.write_impressions(tmp_path, 5, pa.table(rows(5)).slice(0, 0))
    assert partitions.hours(tmp_path) == []


def test_several_files_make_one_hour(tmp_path):
    put(tmp_path, rows(5, 2))
    put(tmp_path, rows(5, 2, example_id=[7, 8]), name="part-1.parquet")
    put(tmp_path, rows(5, 2, example_id=[7, 8]), name=".half.parquet")
    table = partitions.read_impressions(tmp_path, 5, SCHEMA)
    assert table["example_id"].to_pylist() == [500, 501, 7, 8]


def test_no_partition_and_empty_partitions(tmp_path):
    fails(tmp_path, "hour=5", "no such partition", "none")
    put(tmp_path, rows(4), hour=4)
    fails(tmp_path, "hour=5", "no such partition", "4..4")
    (tmp_path / "impressions" / "hour=5").mkdir()
    fails(tmp_path, "hour=5", "empty partition", "no Parquet file")
    put(tmp_path, rows(5, 0))
    fails(tmp_path, "hour=5", "empty partition", "no rows")


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
    fails(tmp_path, file, "cannot read the Parquet file")


def test_missing_column_and_mixed_schema_name_the_file(tmp_path):
    table = rows(5)
    del table["seen"]
    file = put(tmp_path, table)
    fails(tmp_path, file, "missing columns ['seen']", "'ad'")
    put(tmp_path, rows(5))
    other = put(tmp_path, rows(5, ad=np.arange(4)), name="part-1.parquet")
    fails(tmp_path, other, "'ad': int32 and int64")


def test_labels(tmp_path):
    events = {"example_id": [3, 4], "timestamp": [7 * HOUR, 8 * HOUR - 1], "label": [1.0, 0.0]}
    nothing = partitions.read_labels(tmp_path, 5, 9)
    assert nothing.num_rows == 0
    partitions.write_labels(tmp_path, 7, pa.table(events))
    partitions.write_labels(tmp_path, 8, nothing)
    later = {"example_id": [5], "timestamp": [9 * HOUR], "label": [1.0]}
    partitions.write_labels(tmp_path, 9, pa.table(later))
    assert partitions.hours(tmp_path, "labels") == [7, 8, 9]
    table = partitions.read_labels(tmp_path, 7, 9)
    assert table.schema == nothing.schema
    assert table.schema.field("label").type == pa.float32()
    assert table["example_id"].to_pylist() == [3, 4, 5]
    assert partitions.read_labels(tmp_path, 8, 8).num_rows == 0
    assert partitions.read_labels(tmp_path, 9, 12)["timestamp"].to_pylist() == [9 * HOUR]


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"label": [1.0, np.nan]}, ["'label'", "0 to 1", "nan"]),
        ({"label": [1.0, 1.5]}, ["'label'", "0 to 1", "1.5"]),
        ({"label": ["yes", "no"]}, ["float"]),
        ({"example_id": pa.array([3, None])}, ["'example_id'", "every row"]),
    ],
)
def test_bad_labels_name_hour_column_and_value(tmp_path, changes, texts):
    events = {"example_id": [3, 4], "timestamp": [7 * HOUR, 7 * HOUR], "label": [1.0, 0.0]}
    file = put(tmp_path, events | changes, "labels", 7)
    with pytest.raises(StreamError) as error:
        partitions.read_labels(tmp_path, 7, 7)
    for text in [file.parent, *texts]:
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
