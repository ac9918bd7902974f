"""Progressive validation's figures in TensorBoard, and Keras' own callback beside it."""

import builtins

import keras
import numpy as np
import pytest

import keras_exfm as kx

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
HOUR = 3_600_000


def scalars(folder):
    """Tag -> (step, wall time, value) of each event."""
    found = events.EventAccumulator(str(folder), size_guidance={events.TENSORS: 0})
    found.Reload()
    return {
        tag: [(e.step, e.wall_time, tensor_util.make_ndarray(e.tensor_proto)) for e in values]
        for tag in found.Tags()["tensors"]
        if (values := found.Tensors(tag))
    }


def model():
    inputs = kx.Schema([kx.Numeric("x")]).inputs()
    logit = keras.layers.Dense(1)(inputs["x"][:, None])
    found = keras.Model(inputs, logit)
    found.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    return found


def test_windows_of_progressive_validation(tmp_path):
    schema = kx.Schema([kx.Numeric("x")])
    for hour in (7, 9):
        rows = {
            "example_id": [10 * hour + i for i in range(4)],
            "timestamp": [hour * HOUR] * 4,
            "vertical": ["feed"] * 4,
            "x": [-1.0, 1.0, -2.0, 2.0],
            # The second hour has no click: its NE is not defined.
            "label": [0.0, float(hour == 7), 0.0, float(hour == 7)],
        }
        kx.streaming.write_hour(tmp_path / "labelled", hour, rows, schema)
    seen = []
    with kx.streaming.TensorBoardWindows(tmp_path / "all") as log:
        result = kx.streaming.progressive_validation(
            model(),
            tmp_path / "labelled",
            batch_size=4,
            on_window=lambda row, logs: (log(row, logs), seen.append(logs)),
        )
    found = scalars(tmp_path / "all")
    first, second = result.rows
    assert [tuple(x[:2]) for x in found["window/logloss"]] == [(7, 8 * 3600), (9, 10 * 3600)]
    for name in ("logloss", "calibration", "examples"):
        expected = [r[name] for r in (first, second) if np.isfinite(r[name])]
        assert [x[2] for x in found[f"window/{name}"]] == pytest.approx(expected), name
    assert [x[0] for x in found["window/ne"]] == [7]
    assert "window/group_auc" not in found
    assert "window/hour" not in found
    assert [x[2] for x in found["training/loss"]] == pytest.approx([logs["loss"] for logs in seen])


def test_chosen_figures_only(tmp_path):
    log = kx.streaming.TensorBoardWindows(tmp_path, figures=["ne"])
    log({"hour": 1, "ne": 0.5, "auc": 0.7}, {"loss": 0.1})
    # Flushed: readable while the run goes on.
    assert scalars(tmp_path) == {"window/ne": [(1, 7200.0, 0.5)]}
    log.close()


def test_the_callback_of_keras_logs_fit(tmp_path):
    x = np.array([-1.0, 1.0], np.float32)
    callback = keras.callbacks.TensorBoard(tmp_path)
    model().fit({"x": x}, (x > 0).astype("float32"), epochs=2, verbose=0, callbacks=[callback])
    assert [x[0] for x in scalars(tmp_path / "train")["epoch_loss"]] == [0, 1]


def test_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"keras-exfm\[tensorboard\]"):
        kx.streaming.TensorBoardWindows(tmp_path)
