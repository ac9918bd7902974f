"""Streams that grow while they are read."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.streaming import StreamCheckpoint, StreamError, read
from tests.streaming import following
from tests.streaming.resumable import BATCH, HOURS, SCHEMA, make_model, only_label, state, write
from tests.streaming.samples import hour_rows, schema

ROOT = Path(__file__).parents[2]


def grow(path, hours, pause):
    for hour, rows in hours.items():
        write(path, {hour: rows})
        time.sleep(pause)


def ids(dataset):
    """Example ids that weigh something, batch by batch."""
    return [y["example_id"].numpy()[w.numpy() > 0].tolist() for _, y, w in dataset]


@pytest.mark.parametrize("pad", ["end", "hour"])
def test_hours_that_come_later_are_read_as_if_they_had_been_there(tmp_path, pad):
    options = {"pad": pad, "columns": ("example_id",)}
    write(tmp_path / "whole")
    expected = ids(read(tmp_path / "whole", SCHEMA, BATCH, **options))
    write(tmp_path / "stream", {1: HOURS[1]})
    rest = {hour: rows for hour, rows in HOURS.items() if hour > 1}
    thread = threading.Thread(target=grow, args=(tmp_path / "stream", rest, 0.15))
    thread.start()
    dataset = read(
        tmp_path / "stream", SCHEMA, BATCH, follow=True, poll_s=0.02, hours=(None, 4), **options
    )
    assert ids(dataset) == expected
    thread.join()


def test_what_there_is_comes_at_once_and_stop_ends_it(tmp_path):
    write(tmp_path / "stream", {1: 2 * BATCH + 3})
    stop = threading.Event()
    dataset = read(
        tmp_path / "stream",
        SCHEMA,
        BATCH,
        columns=("example_id",),
        follow=True,
        poll_s=0.02,
        stop=stop.is_set,
        prefetch=0,
    )
    batches = iter(dataset)
    assert len({tuple(next(batches)[1]["example_id"].numpy()) for _ in range(2)}) == 2
    stop.set()
    (tail,) = ids(batches)
    assert len(tail) == 3


def test_a_stream_without_an_hour_yet(tmp_path):
    path = tmp_path / "stream"
    with pytest.raises(StreamError, match="no labelled stream"):
        read(path, SCHEMA, BATCH, follow=True)
    write(path, {1: 5})
    thread = threading.Thread(target=grow, args=(path, {2: 9}, 0.0))
    dataset = read(path, SCHEMA, BATCH, columns=("hour",), follow=True, poll_s=0.02, hours=(2, 2))
    thread.start()
    found = [h for _, y, w in dataset for h in y["hour"].numpy()[w.numpy() > 0]]
    assert found == [2] * 9
    thread.join()


def load(folder):
    with np.load(folder / "weights.npz") as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def test_fit_killed_at_any_moment_loses_and_repeats_no_row(tmp_path, backend):
    """The stream grows and the trainer is killed; the weights are those of an undisturbed one."""
    write(tmp_path / "whole")
    plain = make_model()
    plain.fit(read(tmp_path / "whole", SCHEMA, BATCH).map(only_label), verbose=0)
    path = tmp_path / "stream"
    write(path, {1: HOURS[1]})
    rng = random.Random(3)
    left = {hour: rows for hour, rows in HOURS.items() if hour > 1}
    kills = 0
    while not (tmp_path / "weights.npz").exists():
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.streaming.following", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if kills < 2:
            # At least a checkpoint further each time.
            for _ in range(rng.randrange(4, 8)):
                if not process.stdout.readline():
                    break
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            kills += 1
            if left:
                hour = min(left)
                write(path, {hour: left.pop(hour)})
        else:
            for hour in sorted(left):
                write(path, {hour: left.pop(hour)})
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    for received, expected in zip(load(tmp_path), state(plain), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_a_run_that_was_stopped_goes_on_when_there_is_more(tmp_path):
    path = tmp_path / "stream"
    rows = {1: 3 * BATCH, 2: 2 * BATCH, 4: BATCH}
    write(path, rows)
    plain = make_model()
    plain.fit(read(path, SCHEMA, BATCH).map(only_label), verbose=0)
    other = tmp_path / "other"
    write(other / "stream", {1: rows[1]})
    following.fit(other, hours=None, stop=lambda: True)
    assert StreamCheckpoint(other / "checkpoints").steps[-1] == 3
    write(other / "stream", {2: rows[2], 4: rows[4]})
    model = following.fit(other)
    assert StreamCheckpoint(other / "checkpoints").steps[-1] == 6
    for received, expected in zip(state(model), state(plain), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_a_program_that_leaves_a_stream_ends(tmp_path, backend):
    """Nothing waits for hours that nobody will read."""
    write(tmp_path / "stream", {1: 5 * BATCH})
    program = (
        "from tests.streaming.following import *\n"
        "class Stop(keras.callbacks.Callback):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        self.model.stop_training = True\n"
        f"fit(Path({str(tmp_path)!r}), [Stop()], hours=None)\n"
        "print('over', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "over" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"follow": True, "version": 1}, "version=1"),
        ({"follow": True, "epochs": 2}, "epochs=2"),
        ({"follow": True, "poll_s": 0}, "poll_s=0"),
        ({"follow": True, "hours": (1, 2, 3)}, r"\(first, last\)"),
        ({"stop": bool}, "follow=True"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, message):
    write(tmp_path / "stream", {1: 5})
    with pytest.raises(StreamError, match=message):
        read(tmp_path / "stream", SCHEMA, BATCH, **options)


def test_a_checkpoint_of_one_kind_is_not_gone_on_with_as_the_other(tmp_path):
    write(tmp_path / "stream", {1: 2 * BATCH})
    following.fit(tmp_path, hours=None, stop=lambda: True)
    checkpoint = StreamCheckpoint(tmp_path / "checkpoints")
    with pytest.raises(StreamError, match="version: received 1, expected None"):
        read(tmp_path / "stream", SCHEMA, BATCH, checkpoint=checkpoint)
    model = make_model()
    write(tmp_path / "stream", {2: BATCH})
    dataset = read(
        tmp_path / "stream", SCHEMA, BATCH, checkpoint=checkpoint, follow=True, hours=(None, 2)
    )
    with pytest.raises(StreamError, match=r"one epoch of `fit`.*epochs=2"):
        model.fit(dataset.map(only_label), epochs=2, callbacks=[checkpoint], verbose=0)


def test_a_backfill_of_hours_that_are_past_changes_nothing(tmp_path):
    """Only what has not been read yet comes from newer versions."""
    path = tmp_path / "stream"
    kx.streaming.write_hour(path, 1, hour_rows(1, 2 * BATCH), schema())
    stop = threading.Event()
    dataset = read(path, SCHEMA, BATCH, columns=("hour",), follow=True, poll_s=0.02,
                   stop=stop.is_set)  # fmt: skip
    batches = iter(dataset)
    next(batches)
    next(batches)
    kx.streaming.skip_hour(path, 2)
    kx.streaming.write_hour(path, 3, hour_rows(3, BATCH), schema())
    assert set(next(batches)[1]["hour"].numpy()) == {3}
    stop.set()
    assert list(batches) == []
