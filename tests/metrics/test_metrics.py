"""What all the metrics do alike, and the values of those that are sums over rows."""

import json

import keras
import numpy as np
import pytest
from sklearn import metrics as sk

from keras_exfm.metrics import (
    AUC,
    Calibration,
    CalibrationError,
    GroupedAUC,
    LogLoss,
    NormalizedEntropy,
)
from tests.metrics.compiled import update

SUMS = [NormalizedEntropy, LogLoss, Calibration, CalibrationError]
ALL = [*SUMS, AUC, GroupedAUC]


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, "float64")))


def batches(count=6, rows=64, seed=0, rate=0.3):
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        y = (rng.random(rows) < rate).astype("float32")
        z = (rng.normal(size=rows) + y - 1).astype("float32")
        result.append((y, z, rng.integers(0, 3, rows).astype("float32")))
    return result


def adapt(cls, batch):
    """The batch as the metric takes it; here each 8 rows are a group."""
    y, z, w = batch
    if cls is GroupedAUC:
        return {"label": y, "group": (np.arange(len(y)) // 8).astype("int32")}, z, w
    return y, z, w


def expected(cls, parts):
    y, z, w = (np.concatenate(column).astype("float64") for column in zip(*parts))
    p = sigmoid(z)
    if cls is LogLoss:
        return sk.log_loss(y, p, sample_weight=w)
    if cls is NormalizedEntropy:
        rate = np.full(len(y), np.average(y, weights=w))
        return sk.log_loss(y, p, sample_weight=w) / sk.log_loss(y, rate, sample_weight=w)
    if cls is Calibration:
        return (w * p).sum() / (w * y).sum()
    if cls is CalibrationError:
        return abs(np.log((w * p).sum() / (w * y).sum()))
    if cls is AUC:
        return sk.roc_auc_score(y, z, sample_weight=w)
    areas, sizes = [], []
    for rows in np.split(np.arange(len(y)), len(y) // 8):
        rows = rows[w[rows] > 0]
        if len(np.unique(y[rows])) == 2:
            areas.append(sk.roc_auc_score(y[rows], z[rows], sample_weight=w[rows]))
            sizes.append(w[rows].sum())
    return np.average(areas, weights=sizes)


@pytest.mark.parametrize("cls", ALL)
def test_lifetime_and_window_equal_scikit_learn(cls):
    data = batches()
    metric = cls(window=2)
    update(metric, [adapt(cls, b) for b in data[:1]])
    assert float(metric.window_result()) == pytest.approx(expected(cls, data[:1]), abs=2e-6)
    update(metric, [adapt(cls, b) for b in data[1:]])
    assert float(metric.result()) == pytest.approx(expected(cls, data), abs=2e-6)
    assert float(metric.window_result()) == pytest.approx(expected(cls, data[-2:]), abs=2e-6)
    metric.reset_state()
    assert np.isnan(float(metric.result()))
    assert np.isnan(float(metric.window_result()))
    update(metric, [adapt(cls, data[3])])
    assert float(metric.result()) == pytest.approx(expected(cls, data[3:4]), abs=2e-6)


@pytest.mark.parametrize("cls", ALL)
def test_merging_equals_one_metric_over_all(cls):
    data = batches(8)
    a, b = cls(window=2, name="a"), cls(window=2, name="b")
    # Windows that stand at different slots of their rings.
    update(a, [adapt(cls, x) for x in data[:3]])
    update(b, [adapt(cls, x) for x in data[3:5]])
    a.merge_state([b])
    assert float(a.result()) == pytest.approx(expected(cls, data[:5]), abs=2e-6)
    assert float(a.window_result()) == pytest.approx(expected(cls, data[1:5]), abs=2e-6)
    # The next update pushes the older half of either window out.
    update(a, [adapt(cls, data[5])])
    kept = [data[2], data[4], data[5]]
    assert float(a.window_result()) == pytest.approx(expected(cls, kept), abs=2e-6)
    with pytest.raises(ValueError, match="configuration"):
        a.merge_state([cls(window=3)])


@pytest.mark.parametrize("cls", ALL)
def test_padded_rows_do_not_matter(cls):
    (y, z, w), nan = batches(1)[0], np.full(16, np.nan, "float32")
    padded = adapt(cls, (np.r_[y, nan], np.r_[z, nan], np.r_[w, nan * 0 == 0].astype("float32")))
    metric = update(cls(window=1), [padded])
    assert float(metric.result()) == pytest.approx(expected(cls, [(y, z, w)]), abs=2e-6)
    assert float(metric.window_result()) == pytest.approx(float(metric.result()), abs=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_nan_is_loud(cls):
    y, z, w = batches(1)[0]
    z[3], w[3] = np.nan, 1.0
    metric = update(cls(window=1), [adapt(cls, (y, z, w)), adapt(cls, batches(1)[0])])
    assert np.isnan(float(metric.result()))
    assert np.isfinite(float(metric.window_result()))


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_undefined(cls, label):
    y = np.full(16, label, "float32")
    batch = (y, np.zeros(16, "float32"), np.ones(16, "float32"))
    metric = update(cls(), [adapt(cls, batch)])
    defined = cls is LogLoss or (cls in (Calibration, CalibrationError) and label == 1)
    assert np.isfinite(float(metric.result())) == defined


@pytest.mark.parametrize("cls", ALL)
def test_shapes_and_missing_weights(cls):
    y, z, _ = batches(1)[0]
    ones = np.ones_like(y)
    column, flat = cls(), cls()
    labels = adapt(cls, (y, z, ones))[0]
    if cls is GroupedAUC:
        column.update_state({k: v[:, None] for k, v in labels.items()}, z[:, None])
    else:
        column.update_state(labels[:, None], z[:, None], ones[:, None])
    flat.update_state(labels, z)
    assert float(column.result()) == float(flat.result())
    assert float(flat.result()) == pytest.approx(expected(cls, [(y, z, ones)]), abs=2e-6)
    with pytest.raises(ValueError, match="one value a row"):
        cls().update_state(labels, z[:-1])


@pytest.mark.parametrize("cls", ALL)
def test_config_round_trip(cls):
    options = {"window": 3, "name": "mine"}
    options |= {"definition": "mean"} if cls is GroupedAUC else {}
    options |= {"bins": 64} if cls is AUC else {}
    options |= {"from_logits": False} if cls in SUMS else {}
    metric = cls(**options)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(metric)))
    clone = keras.saving.deserialize_keras_object(config)
    assert type(clone) is cls
    assert clone.get_config() == metric.get_config()
    assert options.items() <= clone.get_config().items()


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("window", [0, -1, 1.5, True])
def test_bad_window(cls, window):
    with pytest.raises(ValueError, match=f"window={window!r}"):
        cls(window=window)


@pytest.mark.parametrize("cls", ALL)
def test_no_window(cls):
    with pytest.raises(ValueError, match="has no window"):
        cls().window_result()


@pytest.mark.parametrize("cls", SUMS)
def test_probabilities(cls):
    y, z, w = batches(1)[0]
    metric = cls(from_logits=False)
    metric.update_state(y, sigmoid(z).astype("float32"), w)
    assert float(metric.result()) == pytest.approx(expected(cls, [(y, z, w)]), abs=2e-6)


def test_impossible_probabilities_are_clipped():
    metric = LogLoss(from_logits=False)
    metric.update_state([0.0, 1.0], [0.0, 0.0])
    assert float(metric.result()) == pytest.approx(-np.log(1e-7) / 2, rel=1e-4)


@pytest.mark.parametrize("cls", SUMS)
def test_logits_are_no_probabilities(cls):
    metric = cls(from_logits=False)
    # Clipped, these would be a perfect prediction.
    metric.update_state([0.0, 1.0, 1.0], [-3.0, 3.0, 0.5], [1.0, 1.0, 0.0])
    assert np.isnan(float(metric.result()))
    metric.reset_state()
    # Rows that do not count do not matter, nor does what rounding does to a 1.
    metric.update_state([0.0, 1.0, 1.0], [0.2, 1.00001, 7.0], [1.0, 1.0, 0.0])
    assert np.isfinite(float(metric.result()))


def test_values_by_hand():
    y, z = [1.0, 0.0, 0.0, 0.0], [np.log(3), 0.0, 0.0, 0.0]
    loss = (np.log(4 / 3) + 3 * np.log(2)) / 4
    entropy = (np.log(4) + 3 * np.log(4 / 3)) / 4
    for cls, value in ((LogLoss, loss), (NormalizedEntropy, loss / entropy), (Calibration, 2.25)):
        metric = cls()
        metric.update_state(y, z)
        assert float(metric.result()) == pytest.approx(value, rel=1e-6)


def test_large_logits():
    metric = LogLoss()
    metric.update_state([1.0, 0.0, 0.0], [200.0, -200.0, 200.0])
    assert float(metric.result()) == pytest.approx(200 / 3)


def test_float32_sums_keep_counting():
    """2**24 + 1 is no float32: plain sums would lose every one of these rows."""
    small = np.array([1.0, 0.0], "float32")
    first = (
        np.array([1.0, 0.0], "float32"),
        np.zeros(2, "float32"),
        np.full(2, 2.0**27, "float32"),
    )
    later = (np.array([1.0, 0.0], "float32"), np.array([-8.0, -8.0], "float32"), small)
    count = 3000
    metric = update(LogLoss(), [first, *[later] * count])
    total = 2 * 2.0**27 * np.log(2) + count * np.logaddexp(0, 8.0)
    assert float(metric.result()) == pytest.approx(total / (2.0**28 + count), rel=2e-7)
    other = update(LogLoss(), [later] * count)
    other.merge_state([update(LogLoss(), [first])])
    assert float(other.result()) == pytest.approx(total / (2.0**28 + count), rel=2e-7)


class Watch(keras.callbacks.Callback):
    def __init__(self, metrics):
        super().__init__()
        self.watched, self.windows = metrics, []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.windows.append([float(m.window_result()) for m in self.watched])


def test_in_fit_and_evaluate(tmp_path, monkeypatch):
    """Through `compile(weighted_metrics=...)`, with padded rows, compiled once."""
    traces = []
    for cls in (NormalizedEntropy, LogLoss, Calibration, AUC):
        real = cls._rows
        monkeypatch.setattr(
            cls, "_rows", lambda self, *a, real=real: traces.append(self.name) or real(self, *a)
        )
    data = batches(5, rows=32)
    y, z, w = (np.concatenate(column) for column in zip(*data))
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(inputs))
    watched = [cls(window=2) for cls in (NormalizedEntropy, LogLoss, Calibration, AUC)]
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.BinaryCrossentropy(from_logits=True),
        weighted_metrics=watched,
    )
    watch = Watch(watched)
    history = model.fit(
        z[:, None],
        y,
        sample_weight=w,
        batch_size=32,
        shuffle=False,
        epochs=2,
        verbose=0,
        callbacks=[watch],
    ).history
    once = len(traces)
    assert {name: traces.count(name) for name in set(traces)} == {
        name: traces.count("auc")
        for name in ("normalized_entropy", "log_loss", "calibration", "auc")
    }
    scores = model.evaluate(
        z[:, None], y, sample_weight=w, batch_size=32, verbose=0, return_dict=True
    )
    for metric in watched:
        value = expected(type(metric), data)
        assert history[metric.name] == pytest.approx([value] * 2, abs=2e-6)
        assert scores[metric.name] == pytest.approx(value, abs=2e-6)
    for step, values in enumerate(watch.windows):
        # Keras resets metrics at the start of an epoch.
        parts = data[: step % 5 + 1][-2:]
        assert values == pytest.approx([expected(type(m), parts) for m in watched], abs=2e-6)
    model.fit(z[:, None], y, sample_weight=w, batch_size=32, verbose=0)
    model.evaluate(z[:, None], y, sample_weight=w, batch_size=32, verbose=0)
    # `evaluate` adds its own trace; more steps, epochs and calls add none.
    assert len(traces) <= 2 * once
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    again = loaded.evaluate(
        z[:, None], y, sample_weight=w, batch_size=32, verbose=0, return_dict=True
    )
    assert again == pytest.approx(scores, rel=1e-6)


def test_grouped_auc_in_fit():
    """Label and group as the two columns of `y`."""
    data = batches(4, rows=32)
    z, w = (np.concatenate([b[i] for b in data]) for i in (1, 2))
    y = np.concatenate(
        [np.stack([adapt(GroupedAUC, b)[0][k] for k in ("label", "group")], 1) for b in data]
    )
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(inputs))
    model.compile(
        keras.optimizers.SGD(0.0),
        lambda y, z: keras.losses.binary_crossentropy(y[:, :1], z, from_logits=True),
        weighted_metrics=[GroupedAUC()],
    )
    history = model.fit(z[:, None], y, sample_weight=w, batch_size=32, shuffle=False, verbose=0)
    assert history.history["grouped_auc"] == pytest.approx([expected(GroupedAUC, data)], abs=2e-6)
