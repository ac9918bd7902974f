"""Chunks cut into batches, against batches that are cut from the whole."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.streaming import _ahead, _blocks, read, read_hour, write_hour
from keras_exfm.streaming._ahead import ahead
from keras_exfm.streaming._blocks import BlockBuilder
from keras_exfm.streaming.columns import empty_array
from tests.streaming.samples import hour_rows, schema

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("h", 10, length=2), kx.Numeric("age")])


def rows(first, count):
    numbers = np.arange(first, first + count)
    return {
        "ad": numbers.astype("int32"),
        "h": np.stack([numbers, -numbers], 1).astype("int32"),
        "age": numbers.astype("float32"),
        "label": (numbers % 2).astype("float32"),
        "teacher_logit": numbers.astype("float32"),
        "word": np.array([f"w{n}" for n in numbers], object),
        "weight": np.ones(count, "float32"),
    }


def fill(builder, counts):
    """Chunks of these sizes in one hour; the blocks that were full."""
    taken, row = [], 0
    for count in counts:
        start = 0
        while start < count:
            start += builder.add(rows(row, count), start, 5, row)
            if builder.is_full:
                taken.append(builder.take())
        row += count
    return taken


@pytest.mark.parametrize("counts", [[23], [1] * 23, [8, 7, 8], [3, 17, 3], [4, 4, 4, 11]])
def test_blocks_hold_the_rows_in_order(monkeypatch, counts):
    monkeypatch.setattr(_blocks, "_ROWS", 8)
    builder = BlockBuilder(SCHEMA, 4)
    taken = fill(builder, counts)
    assert (builder.batches, builder.rest) == (1, 3)
    builder.end(6, 0, drop=False)
    taken.append(builder.take())
    assert [place for places, _ in taken for place in places] == [
        (5, 4), (5, 8), (5, 12), (5, 16), (5, 20), (6, 0)]  # fmt: skip
    assert all(block["ad"].shape[1:] == (4,) for _, block in taken)
    whole = rows(0, 23)
    for name, column in whole.items():
        flat = np.concatenate([block[name].reshape(-1, *column.shape[1:]) for _, block in taken])
        np.testing.assert_array_equal(flat[:23], column)
        assert flat.dtype == column.dtype
        fills = {"ad": -1, "h": -1, "age": 0, "label": 0, "weight": 0, "word": ""}
        np.testing.assert_array_equal(flat[23:], np.full_like(flat[23:], fills.get(name, np.nan)))


def test_a_tail_is_dropped_and_a_rest_stays(monkeypatch):
    monkeypatch.setattr(_blocks, "_ROWS", 12)
    builder = BlockBuilder(SCHEMA, 4)
    assert fill(builder, [6]) == []
    places, block = builder.take()
    assert places == [(5, 4)]
    assert block["ad"].tolist() == [[0, 1, 2, 3]]
    # Two rows are left; with two more they are a batch.
    assert builder.add(rows(6, 9), 0, 6, 0) == 9
    assert builder.batches == 2
    builder.end(6, 9, drop=True)
    places, block = builder.take()
    assert places == [(6, 2), (6, 6)]
    assert block["ad"].ravel().tolist() == list(range(4, 12))
    assert (builder.batches, builder.rest) == (0, 0)


@pytest.mark.parametrize(("size", "batches"), [(1, 64), (4096, 16), (65_536, 1), (100_000, 1)])
def test_a_block_is_of_bounded_size(size, batches):
    assert BlockBuilder(SCHEMA, size).capacity == size * batches


@pytest.mark.parametrize("block", [1, 10, 40, 10_000])
@pytest.mark.parametrize("options", [{}, {"pad": "hour"}, {"pad": "hour", "drop_remainder": True}])
def test_batches_do_not_depend_on_the_size_of_blocks(tmp_path, monkeypatch, options, block):
    sizes = {1: 23, 2: 3, 3: 10, 7: 31}
    for hour, count in sizes.items():
        write_hour(tmp_path / "s", hour, hour_rows(hour, count), schema())
    monkeypatch.setattr(_blocks, "_ROWS", block)
    ids = [
        read_hour(tmp_path / "s", h, columns=("example_id",))["example_id"].tolist() for h in sizes
    ]
    runs = ids if options else [[i for hour in ids for i in hour]]
    expected = [run[i : i + 5] for run in runs for i in range(0, len(run), 5)]
    if "drop_remainder" in options:
        expected = [batch for batch in expected if len(batch) == 5]
    found = read(tmp_path / "s", batch_size=5, columns=("example_id",), **options)
    assert [
        y["example_id"][w > 0].tolist() for _, y, w in found.as_numpy_iterator()
    ] == expected  # fmt: skip


def test_batches_before_a_fault_come_before_it(tmp_path):
    for hour in (1, 2):
        write_hour(tmp_path / "s", hour, hour_rows(hour, 10), schema())
    (file,) = (tmp_path / "s" / "hour=2").iterdir()
    file.write_bytes(b"PAR1 not really")
    batches = read(tmp_path / "s", batch_size=4, prefetch=0).as_numpy_iterator()
    assert [next(batches)[2].tolist() for _ in range(2)] == [[1.0] * 4] * 2
    with pytest.raises(Exception, match=f"{file.name}: cannot read the Parquet file"):
        next(batches)


def test_arrays_are_aligned_and_writable():
    for shape in ((3,), (5, 7), (0, 4), (1000, 3)):
        array = empty_array(shape, np.int32)
        assert array.shape == shape
        assert array.flags.writeable
        array[...] = 4
        assert array.size == 0 or array.ctypes.data % 64 == 0
    assert empty_array((2,), object).tolist() == [None, None]


def test_reading_ahead_keeps_order_and_errors():
    def numbers():
        yield from range(5)
        raise ValueError("five")

    found = ahead(numbers(), depth=2)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(found)
    assert list(ahead(iter([]), depth=1)) == []


def test_who_reads_ahead_ends_with_its_reader():
    made = []

    def numbers():
        for i in range(1000):
            made.append(i)
            yield i

    found = ahead(numbers(), depth=2)
    assert next(found) == 0
    until = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.001)
    found.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
    # The one that was read, two that waited, and those in the making.
    assert 4 <= len(made) <= 5


def test_the_thread_that_reads_ahead_may_end_its_reader():
    """As it does where it drops the last reference to it."""
    go, found = threading.Event(), []

    def numbers():
        yield 0
        go.wait(10)
        try:
            iterator.close()
        except RuntimeError as error:
            found.append(error)
        else:
            found.append("closed")
        yield 1

    iterator = ahead(numbers(), depth=1)
    assert next(iterator) == 0
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "read-ahead")
    go.set()
    thread.join(10)
    assert found == ["closed"]
    assert not thread.is_alive()


@pytest.mark.parametrize(("daemon", "printed"), [(False, "4950"), (True, "")])
def test_a_thread_reads_on_when_the_main_one_has_ended(daemon, printed):
    """But a daemon's reading does not keep the program."""
    program = f"""
import importlib.util, threading, time

spec = importlib.util.spec_from_file_location("read_ahead", {_ahead.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
begun = threading.Event()


def work():
    found = module.ahead(iter(range(100)), depth=1)
    total = next(found)
    begun.set()
    threading.main_thread().join()
    time.sleep(60 if {daemon} else 0)
    print(total + sum(found))


threading.Thread(target=work, daemon={daemon}).start()
begun.wait(10)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr
