import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

import keras_exfm as kx
from keras_exfm.features import Schema
from keras_exfm.streaming import StreamCheckpoint, StreamError, read
from keras_exfm.streaming import stream as stream_module
from keras_exfm.streaming._progress import Position, Progress
from tests.streaming import resumable
from tests.streaming.resumable import BATCH, SCHEMA, make_model, only_label, state
from tests.streaming.samples import hour_rows, schema

ROOT = Path(__file__).parents[2]
LENGTH = 30


class Crash(Exception):
    pass


class CrashAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Crash


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "stream"
    resumable.write(path)
    return path


@pytest.fixture
def folder(tmp_path, stream):
    (tmp_path / "stream").symlink_to(stream)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(stream, tmp_path_factory):
    """Final state of the program without a crash, by what `read` was asked for.

    Without the callback; with it where the dataset's length is unknown: on TensorFlow Keras draws
    another dropout mask for the batch that it then finds missing at the end of each epoch.
    """
    known = {}

    def run(fit_epochs=resumable.EPOCHS, **options):
        key = json.dumps([fit_epochs, options])
        if key not in known:
            model = make_model()
            used = {}
            if "vertical" in options:
                folder = tmp_path_factory.mktemp("uninterrupted")
                used = {"checkpoint": StreamCheckpoint(folder)}
            dataset = read(stream, SCHEMA, BATCH, **options, **used).map(only_label)
            history = model.fit(
                dataset, epochs=fit_epochs, verbose=0, callbacks=list(used.values())
            )
            known[key] = state(model), history.history
        return known[key]

    return run


def crash(folder, batches, **options):
    with pytest.raises(Crash):
        resumable.fit(folder, [CrashAfter(batches)], **options)


def steps(folder):
    return StreamCheckpoint(folder / "checkpoints").steps


def assert_same(received, expected):
    assert len(received) == len(expected)
    for number, (a, b) in enumerate(zip(received, expected)):
        np.testing.assert_array_equal(a, b, err_msg=str(number))


# The stream goes on at any place


class FakeCheckpoint:
    """Begins where it is told, and keeps what the reader notes."""

    def __init__(self, start=None):
        self.start = start or Position()

    def pin(self, path, stream, version):
        return stream

    def attach(self, stream):
        self.progress = Progress(stream, self.start)
        return self.progress


@pytest.mark.parametrize("files", ["one", "two"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad": "hour"},
        {"pad": "hour", "drop_remainder": True},
        {"drop_remainder": True, "epochs": 2},
        {"vertical": "feed", "epochs": 2},
        {"vertical": ("feed",), "pad": "hour", "columns": ("hour",)},
    ],
    ids=str,
)
def test_a_dataset_begins_after_any_of_its_batches(tmp_path, monkeypatch, options, files):
    path = tmp_path / "stream"
    for hour, rows in {1: 21, 2: 3, 4: 16}.items():
        data = hour_rows(hour, rows)
        if hour == 2:
            data["vertical"] = ["search"] * rows
        kx.streaming.write_hour(path, hour, data, schema())
    rows = DeltaTable(path).to_pyarrow_table()
    if files == "two":
        write_deltalake(path, rows.take(list(range(0, 40, 2))), mode="overwrite")
        write_deltalake(path, rows.take(list(range(1, 40, 2))), mode="append")
    else:
        # Small row groups, some of which a chunk joins.
        for hour in (1, 2, 4):
            (file,) = (path / f"hour={hour}").glob("*.parquet")
            pq.write_table(pq.ParquetFile(file).read(), file, row_group_size=4)
    monkeypatch.setattr(stream_module, "_CHUNK_ROWS", 6)
    options = {"columns": ("example_id",), **options}

    def batches(checkpoint=None):
        dataset = read(path, schema(), 4, checkpoint=checkpoint, prefetch=0, **options)
        return list(dataset.as_numpy_iterator())

    expected = batches()
    whole = FakeCheckpoint()
    got = batches(whole)
    assert whole.progress.length == len(expected) > 3
    assert whole.progress.stated == (None if "vertical" in options else len(expected))
    assert_same(keras.tree.flatten(got), keras.tree.flatten(expected))
    again = FakeCheckpoint()
    list(read(path, schema(), 4, checkpoint=again, **options))
    for number in range(1, len(expected)):
        place = again.progress.after(number)
        assert place.batches == number
        rest = FakeCheckpoint(place)
        got = batches(rest)
        assert rest.progress.length == len(expected)
        assert_same(keras.tree.flatten(got), keras.tree.flatten(expected[number:]))


def test_what_lies_before_the_place_is_neither_read_nor_encoded(tmp_path, monkeypatch):
    for hour in (1, 2, 3):
        kx.streaming.write_hour(tmp_path / "s", hour, hour_rows(hour, 40), schema())
        (file,) = (tmp_path / "s" / f"hour={hour}").glob("*.parquet")
        pq.write_table(pq.ParquetFile(file).read(), file, row_group_size=10)
    groups, encoded = [], []
    iterate, encode = pq.ParquetFile.iter_batches, Schema.encode

    def spy_iterate(self, *args, row_groups=None, **kwargs):
        groups.append(row_groups)
        return iterate(self, *args, row_groups=row_groups, **kwargs)

    def spy_encode(self, columns):
        encoded.append(len(columns["age"]))
        return encode(self, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy_iterate)
    monkeypatch.setattr(Schema, "encode", spy_encode)
    rest = FakeCheckpoint(Position(batches=8, repeat=0, hour=2, row=24))
    assert len(list(read(tmp_path / "s", schema(), 8, checkpoint=rest))) == 7
    assert groups == [[2, 3], [0, 1, 2, 3]]
    assert encoded == [16, 40]


# The same weights


def test_killed_again_and_again(folder, uninterrupted, backend):
    expected, _ = uninterrupted()
    rng = random.Random(7)
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-m", "tests.streaming.resumable", str(folder)]
    killed = []
    while not (folder / "weights.npz").exists():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if len(killed) < 3:
            # More than the four batches between checkpoints, so that it comes on.
            for _ in range(rng.randrange(9, 17)):
                if not process.stdout.readline():
                    break
                process.stdin.write(b"\n")
                process.stdin.flush()
            else:
                # It is somewhere in the next three batches, or in a checkpoint between them.
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(b"\n" * 2)
                    process.stdin.flush()
                time.sleep(rng.random() * 0.02)
                process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        if process.returncode == -signal.SIGKILL:
            killed.append(steps(folder)[-1])
        else:
            assert process.returncode == 0, errors.decode()
    assert len(killed) >= 2
    assert killed == sorted(set(killed))
    assert any(step % LENGTH for step in killed), "never killed in mid-epoch"
    with np.load(folder / "weights.npz") as arrays:
        received = [arrays[str(i)] for i in range(len(arrays.files))]
    assert_same(received, expected)


@pytest.mark.parametrize(
    ("options", "crashes"),
    [
        ({"fit_epochs": 3}, (3, 13, LENGTH + 1)),
        ({"fit_epochs": 1, "epochs": 2}, (41,)),
        ({"vertical": "feed"}, (10, 9)),
        ({"pad": "hour", "drop_remainder": True, "prefetch": 20}, (27, 2)),
    ],
    ids=str,
)
def test_goes_on_with_the_next_batch(folder, uninterrupted, options, crashes, backend):
    expected, history = uninterrupted(**options)
    for batches in crashes:
        crash(folder, batches, **options)
    model, resumed = resumable.fit(folder, **options)
    assert_same(state(model), expected)
    # The metrics of the epoch that was interrupted are those of the whole epoch.
    epochs = options.get("fit_epochs", 2)
    assert resumed.epoch[-1] == epochs - 1
    if backend == "tensorflow":
        return
    for name, values in history.items():
        np.testing.assert_allclose(resumed.history[name][-1], values[-1], rtol=1e-6)


def test_saves_what_is_trained_not_what_is_read_ahead(folder):
    crash(folder, 10, prefetch=50)
    assert steps(folder) == [4, 8]
    note = json.loads((folder / "checkpoints/step-000000000008/checkpoint.json").read_text())
    assert note["position"] == {"batches": 8, "repeat": 0, "hour": 1, "row": 64}


def test_a_run_that_ended_trains_no_more(folder, uninterrupted):
    expected, _ = uninterrupted()
    resumable.fit(folder)
    assert steps(folder) == [56, 60]
    model, history = resumable.fit(folder, [CrashAfter(1)])
    assert history.epoch == []
    assert_same(state(model), expected)
    # Two epochs of four are not the end.
    model, history = resumable.fit(folder, fit_epochs=3)
    assert history.epoch == [2]
    assert_same(state(model), uninterrupted(fit_epochs=3)[0])


def test_initial_epoch_is_given_back(folder):
    resumable.fit(folder, fit_epochs=1)
    model, _ = resumable.fit(folder, fit_epochs=2)
    dataset = read(folder / "stream", SCHEMA, BATCH).map(only_label)
    assert model.fit(dataset, epochs=1, verbose=0).epoch == [0]


def test_other_callbacks_may_stop_the_training(folder, uninterrupted):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 9:
                self.model.stop_training = True

    resumable.fit(folder, [Stop()])
    assert steps(folder) == [8, 10]

    class StopAtEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    # Also in the epoch that the checkpoint itself ends.
    _, history = resumable.fit(folder, [StopAtEnd()], fit_epochs=3)
    assert history.epoch == [0]
    assert steps(folder) == [28, 30]
    model, _ = resumable.fit(folder)
    assert_same(state(model), uninterrupted()[0])


def test_several_steps_an_execution(folder):
    def model():
        return make_model(steps_per_execution=4)

    plain = model()
    dataset = read(folder / "stream", SCHEMA, BATCH).map(only_label)
    plain.fit(dataset, verbose=0)
    crash(folder, 3, model=model(), every=8, fit_epochs=1)
    assert steps(folder) == [8]
    resumed, _ = resumable.fit(folder, model=model(), every=8, fit_epochs=1)
    assert_same(state(resumed), state(plain))
    assert steps(folder)[-1] == LENGTH
    with pytest.raises(StreamError, match=r"one epoch of `fit`\. Received: epochs=2"):
        resumable.fit(folder, model=model())


def test_the_stream_may_grow_meanwhile(tmp_path, uninterrupted):
    resumable.write(tmp_path / "stream")
    crash(tmp_path, 10)
    kx.streaming.write_hour(tmp_path / "stream", 5, hour_rows(5, 30), schema())
    model, _ = resumable.fit(tmp_path)
    assert_same(state(model), uninterrupted()[0])


# What is on the disk


def test_half_written_checkpoints_are_never_read(folder, uninterrupted):
    crash(folder, 10)
    checkpoints = folder / "checkpoints"
    left = checkpoints / ".step-000000000012.unfinished"
    shutil.copytree(checkpoints / "step-000000000008", left)
    weights = checkpoints / "step-000000000008" / "model.weights.h5"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"step-000000000008: passed over.*sizes"):
        model, _ = resumable.fit(folder)
    assert_same(state(model), uninterrupted()[0])
    assert not left.exists()
    for step in steps(folder):
        (checkpoints / f"step-{step:012d}" / "checkpoint.json").write_text("{")
    with pytest.raises(StreamError, match=r"none of the checkpoints of the steps \[56, 60\]"):
        resumable.fit(folder)


@pytest.mark.parametrize("where", ["weights", "rename"])
def test_a_full_disk_is_named_and_leaves_the_checkpoints_before(
    folder, uninterrupted, monkeypatch, where
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Fill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 8:
                if where == "weights":
                    monkeypatch.setattr(np, "savez", full)
                else:
                    monkeypatch.setattr(os, "rename", full)

    with pytest.raises(StreamError, match=r"step-000000000012: .*No space left.*\[4, 8\]"):
        resumable.fit(folder, [Fill()])
    monkeypatch.undo()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-000000000004",
        "step-000000000008",
    ]
    model, _ = resumable.fit(folder)
    assert_same(state(model), uninterrupted()[0])


# What is refused


def test_another_model_is_refused(folder):
    crash(folder, 5)
    with pytest.raises(StreamError, match=r"another model.*weights.*\[12, 7\].*\[12, 6\]"):
        resumable.fit(folder, model=make_model(units=7))
    with pytest.raises(StreamError, match=r"optimizer: received \d+ variables, expected \d+"):
        resumable.fit(folder, model=make_model(optimizer="sgd"))
    note = folder / "checkpoints/step-000000000004/checkpoint.json"
    held = json.loads(note.read_text())
    note.write_text(json.dumps({**held, "backend": "abacus"}))
    with pytest.raises(StreamError, match=r"backend: received '\w+', expected 'abacus'"):
        resumable.fit(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad": "hour"}, "pad: received 'hour', expected 'end'"),
        ({"hours": (1, 2)}, r"hours: received \[1, 2\], expected \[1, 4\]"),
        ({"vertical": "feed"}, r"vertical: received \['feed'\], expected None"),
        ({"version": 1}, "version: received 1, expected 3"),
    ],
)
def test_the_same_stream_read_in_another_way_is_refused(folder, options, message):
    crash(folder, 5)
    with pytest.raises(StreamError, match=message):
        resumable.fit(folder, **options)


def test_another_stream_is_refused(folder):
    crash(folder, 5)
    resumable.write(folder / "other", {1: 50})
    checkpoint = StreamCheckpoint(folder / "checkpoints")
    with pytest.raises(StreamError, match="of another stream.*table: received"):
        read(folder / "other", SCHEMA, BATCH, checkpoint=checkpoint)


def test_batches_that_are_not_those_of_the_stream_are_refused(folder):
    def fit(change, **options):
        checkpoint = StreamCheckpoint(folder / "checkpoints", every=4)
        dataset = read(folder / "stream", SCHEMA, BATCH, checkpoint=checkpoint)
        make_model().fit(
            change(dataset.map(only_label)), callbacks=[checkpoint], verbose=0, **options
        )

    with pytest.raises(StreamError, match="5 batches.*the dataset has 30.*steps_per_epoch"):
        fit(lambda d: d, steps_per_epoch=5)
    with pytest.raises(StreamError, match="7 batches an epoch; the dataset has 30"):
        fit(lambda d: d.take(7))
    with pytest.raises(StreamError, match="unknown number of batches an epoch; the dataset has 30"):
        fit(lambda d: d.repeat())
    crash(folder, 5)
    with pytest.raises(StreamError, match="ended an epoch after 9 batches"):
        fit(lambda d: d.take(5))
    with pytest.raises(StreamError, match="needs to know the stream"):
        make_model().fit(
            read(folder / "stream", SCHEMA, BATCH).map(only_label),
            callbacks=[StreamCheckpoint(folder / "other")],
            verbose=0,
        )


def test_a_dataset_serves_one_fit(folder):
    model = make_model()
    checkpoint = StreamCheckpoint(folder / "checkpoints", every=4)
    dataset = read(folder / "stream", SCHEMA, BATCH, checkpoint=checkpoint).map(only_label)
    with pytest.raises(Crash):
        model.fit(dataset, callbacks=[checkpoint, CrashAfter(5)], verbose=0)
    with pytest.raises(StreamError, match="newest checkpoint is of step 4.*Call `read` again"):
        model.fit(dataset, callbacks=[checkpoint], verbose=0)


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 0}, {"every": 2.5}, {"keep": True}])
def test_bad_arguments(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"`{name}`.*{name}={value}"):
        StreamCheckpoint("folder", **options)
    with pytest.raises(ValueError, match="local folder"):
        StreamCheckpoint("s3://bucket/folder")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory: Linux only")
@pytest.mark.parametrize(
    ("rows", "share"),
    # What a few pieces of 16 MiB are to a quarter of a gigabyte, and to what tables are.
    [(2_000_000, 0.3), pytest.param(10_000_000, 0.15, marks=pytest.mark.slow)],
)
def test_a_large_table_is_written_and_read_in_pieces(tmp_path, backend, rows, share):
    found = subprocess.run(
        [sys.executable, "-m", "tests.streaming.large_table", str(rows), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        check=True,
        text=True,
        timeout=500,
    )
    memory = json.loads(found.stdout.splitlines()[-1])
    assert memory["table"] == rows * 33 * 4
    assert 0 < memory["written"] < share * memory["table"]
    # Pages that were freed before, and kept, may be enough.
    assert 0 <= memory["read"] < share * memory["table"]
    shutil.rmtree(tmp_path / "checkpoints")
