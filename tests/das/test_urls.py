"""Sources, side outputs and streams at URLs hold what local folders hold."""

import sys

import fsspec
import pytest

import keras_exfm as kx
from keras_exfm.das import Worker
from keras_exfm.streaming import StreamError, partitions
from tests.das import made

pytestmark = pytest.mark.backend_free

HOURS = range(5, 8)


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield "memory://das-tests"
    if files.exists("/das-tests"):
        files.rm("/das-tests", recursive=True)


def test_a_source_and_a_side_output_in_memory(tmp_path, memory):
    made.source(tmp_path / "data", HOURS)
    made.source(f"{memory}/data", HOURS)
    kx.streaming.partitions.DatasetInfo("toy", "", made.SCHEMA, 5, 7, 1, ("feed",)).write(
        f"{memory}/data"
    )
    Worker(made.job(tmp_path)).run(ended=True)
    other = tmp_path / "other"
    url = f"file://{other}/out"
    job = made.job(
        other, source=f"{memory}/data", output=url, side_output=f"{memory}/side", features=None
    )
    Worker(job).run(ended=True)
    assert Worker(job).due(ended=True) == []
    for name in (*made.VERTICALS, "predictions"):
        assert made.contents(other / "out" / name) == made.contents(tmp_path / "out" / name)
    files = fsspec.filesystem("memory")
    root = "/das-tests/side"
    ours = {file.removeprefix(root) for file in files.find(root)}
    side = tmp_path / "out" / "side"
    assert ours == {str(f)[len(str(side)) :] for f in side.rglob("*") if f.is_file()}
    rows = kx.streaming.read_hour(f"file://{other}/out/feed", 6)
    assert len(rows["label"]) == kx.streaming.Stream(other / "out" / "feed").rows(6)


def test_partitions_at_a_url(tmp_path, memory):
    shown, _ = made.source(f"{memory}/data", HOURS, rows=4)
    assert partitions.hours(f"{memory}/data") == list(HOURS)
    table = partitions.read_impressions(f"{memory}/data", 6, made.SCHEMA)
    assert table["example_id"].to_pylist() == [r["example_id"] for r in shown[4:8]]
    assert partitions.read_labels(f"{memory}/data", 5, 20, folder="conversions").num_rows > 0
    written = partitions.write_impressions(f"{memory}/data", 6, table.slice(0, 2))
    assert written == f"{memory}/data/impressions/hour=6/part-0.parquet"
    assert partitions.read_impressions(f"{memory}/data", 6).num_rows == 2
    with pytest.raises(StreamError, match=r"memory://.*hour=9: no such partition.*5\.\.7"):
        partitions.read_impressions(f"{memory}/data", 9)
    with fsspec.open(f"{memory}/data/impressions/hour=7/part-0.parquet", "wb") as file:
        file.write(b"PAR1 and then nothing")
    with pytest.raises(StreamError, match=r"memory://.*hour=7/part-0.parquet: cannot read"):
        partitions.read_impressions(f"{memory}/data", 7)


def test_a_url_that_nothing_knows(monkeypatch):
    with pytest.raises(StreamError, match=r"nowhere://.*fsspec cannot open"):
        partitions.hours("nowhere://data")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StreamError, match=r"keras-exfm\[das\]"):
        partitions.hours("memory://data")
