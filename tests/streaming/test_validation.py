import warnings

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import keras_exfm as kx
from keras_exfm.streaming import (
    StreamError,
    ValidationResult,
    load_predictions,
    progressive_validation,
    read_hour,
    score_column,
    write_hour,
)
from tests.streaming.samples import hour_rows, schema

SIZES = {1: 20, 2: 33, 3: 16, 5: 9}
PART = kx.Schema([kx.Numeric("age"), kx.Numeric("vector", 2)])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "labelled"
    for hour, rows in SIZES.items():
        write_hour(path, hour, hour_rows(hour, rows), schema())
    return path


class Recorder:
    """Stands for a model: notes what it is asked, predicts the number of rows trained on."""

    def __init__(self):
        self.calls, self.seen = [], 0

    def predict_on_batch(self, x):
        self.calls.append(("predict", x["user"]))
        return np.full((len(x["user"]), 1), self.seen, "float32")

    def train_on_batch(self, x, y, sample_weight, return_dict):
        self.calls.append(("train", x["user"], y, sample_weight))
        self.seen += int(sample_weight.sum())
        return {"loss": float(len(self.calls))}


def logits(folder):
    return {hour: set(a["logit"].tolist()) for hour, a in load_predictions(folder).items()}


def test_each_hour_is_predicted_before_it_trains(path, tmp_path):
    model, windows = Recorder(), []
    progressive_validation(
        model, path, batch_size=16, teacher=True, predictions_path=tmp_path,
        on_window=lambda row, logs: windows.append((row["hour"], model.seen, logs["loss"])),
    )  # fmt: skip
    assert logits(tmp_path) == {1: {0.0}, 2: {20.0}, 3: {53.0}, 5: {69.0}}
    assert [(c[0], len(c[1])) for c in model.calls[:10]] == [("predict", 16)] * 2 + [
        ("train", 16)
    ] * 2 + [("predict", 16)] * 3 + [("train", 16)] * 3
    # Calls 3 and 4 train the first hour: 16 rows, then 4.
    assert windows[0] == (1, 20, (3 * 16 + 4 * 4) / 20)
    assert [w[:2] for w in windows[1:]] == [(2, 53), (3, 69), (5, 78)]
    expected = read_hour(path, 1)
    first, tail = model.calls[2], model.calls[3]
    np.testing.assert_array_equal(first[1], expected["user"][:16])
    np.testing.assert_array_equal(first[2]["teacher_logit"], expected["teacher_logit"][:16])
    np.testing.assert_array_equal(tail[2]["label"], [*expected["label"][16:], *[0.0] * 12])
    assert tail[3].tolist() == [1.0] * 4 + [0.0] * 12
    assert tail[1].tolist() == [*expected["user"][16:], *[-1] * 12]


@pytest.mark.parametrize(
    ("lag", "expected"),
    [
        (1, {1: 0, 2: 0, 3: 20, 5: 53}),
        (2, {1: 0, 2: 0, 3: 0, 5: 20}),
        (9, {1: 0, 2: 0, 3: 0, 5: 0}),
    ],
)
def test_labels_can_come_later(path, tmp_path, lag, expected):
    # Hour 4 is missing: at hour 5 with lag 2, hour 3 has its labels, after the prediction.
    progressive_validation(
        Recorder(), path, teacher=False, label_lag=lag, predictions_path=tmp_path
    )
    assert logits(tmp_path) == {hour: {float(n)} for hour, n in expected.items()}


def test_the_teacher_can_come_before_the_labels(path, tmp_path):
    model = Recorder()
    progressive_validation(
        model, path, batch_size=16, teacher_batch_size=8, teacher=True, hours=(1, 2),
        predictions_path=tmp_path,
    )  # fmt: skip
    kinds = [(call[0], len(call[1])) for call in model.calls]
    early, late = [("predict", 8), ("train", 8)], [("train", 16)]
    assert kinds == early * 3 + late * 2 + early * 5 + late * 3
    whole = read_hour(path, 2)
    trained = [call for call in model.calls if call[0] == "train"][5:]
    for calls, size, labelled in ((trained[:5], 8, False), (trained[5:], 16, True)):
        for name in ("label", "teacher_logit"):
            column = np.concatenate([y[name][weight > 0] for _, _, y, weight in calls])
            known = labelled or name == "teacher_logit"
            np.testing.assert_array_equal(
                column, whole[name] if known else np.full(33, np.nan, "float32")
            )
        assert {len(call[1]) for call in calls} == {size}
    # Each piece is predicted with what the pieces before it taught.
    seen = load_predictions(tmp_path)[2]["logit"]
    assert seen.tolist() == [40.0 + 8 * (i // 8) for i in range(33)]
    quiet = Recorder()
    progressive_validation(quiet, path, teacher_batch_size=8, teacher=True, train=False)
    assert {call[0] for call in quiet.calls} == {"predict"}


def test_while_all_gates_are_closed_the_teacher_is_not_heard_early(path):
    model = Recorder()
    model.gates_closed = True
    progressive_validation(
        model, path, batch_size=16, teacher_batch_size=8, teacher=True, hours=(1, 2)
    )
    trained = [call for call in model.calls if call[0] == "train"]
    assert [len(call[1]) for call in trained] == [16] * 5
    assert not any(np.isnan(call[2]["label"]).any() for call in trained)


def test_without_training(path, tmp_path):
    model = Recorder()
    progressive_validation(model, path, train=False, teacher=False, predictions_path=tmp_path)
    assert {c[0] for c in model.calls} == {"predict"}


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("start", [2, 3, 4, 5, 6])
def test_resumed_run_equals_the_uninterrupted_one(path, tmp_path, lag, start):
    def run(model, folder, **options):
        return progressive_validation(
            model,
            path,
            teacher=False,
            label_lag=lag,
            predictions_path=folder,
            metrics_from=2,
            **options,
        )

    expected = run(Recorder(), tmp_path / "a")
    model = Recorder()
    run(model, tmp_path / "b", hours=(None, start - 1))
    # Killed after the next prediction, before the caller saved the model: it is done again.
    if start in SIZES:
        stale = (tmp_path / "b" / "hour=1.parquet").read_bytes()
        (tmp_path / "b" / f"hour={start}.parquet").write_bytes(stale)
    resumed = run(model, tmp_path / "b", start=start)
    np.testing.assert_equal(resumed.rows, expected.rows)
    np.testing.assert_equal(resumed.whole, expected.whole)
    assert logits(tmp_path / "a") == logits(tmp_path / "b")


def test_resuming_needs_the_predictions(path, tmp_path):
    with pytest.raises(StreamError, match="predictions_path"):
        progressive_validation(Recorder(), path, teacher=False, start=3)
    with pytest.raises(StreamError, match=r"no predictions of the hours \[1, 2\]"):
        progressive_validation(Recorder(), path, teacher=False, start=3, predictions_path=tmp_path)
    (tmp_path / "hour=1.parquet").write_bytes(b"half")
    with pytest.raises(StreamError, match=r"hour=1\.parquet: cannot read"):
        progressive_validation(Recorder(), path, teacher=False, start=3, predictions_path=tmp_path)


def logistic_model():
    inputs = PART.inputs()
    x = keras.layers.Concatenate()([inputs["age"][:, None], inputs["vector"]])
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.3), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def test_keras_model_equals_numpy(path, tmp_path):
    model = logistic_model()
    w, b = (np.array(v, "float64") for v in model.get_weights())
    logs = []
    result = progressive_validation(
        model, path, PART, batch_size=16, predictions_path=tmp_path, metrics_from=2,
        on_window=lambda row, log: logs.append(log["loss"]),
    )  # fmt: skip
    pooled = []
    for hour, rows in SIZES.items():
        data = read_hour(path, hour, PART, columns=("group", "true_probability"))
        x = np.column_stack([data["age"], data["vector"]])
        z = (x @ w + b)[:, 0]
        np.testing.assert_allclose(load_predictions(tmp_path)[hour]["logit"], z, atol=1e-5)
        (row,) = [row for row in result.rows if row["hour"] == hour]
        p, y = 1 / (1 + np.exp(-z)), data["label"].astype("float64")
        check_row(row, y, p, data["true_probability"])
        pooled.append((y, p, data["true_probability"]))
        for i in range(0, rows, 16):
            xb, yb = x[i : i + 16], y[i : i + 16]
            error = 1 / (1 + np.exp(-(xb @ w + b)[:, 0])) - yb
            # Padded rows stay in Keras' divisor.
            w -= 0.3 * (xb.T @ error)[:, None] / 16
            b -= 0.3 * error.sum() / 16
    np.testing.assert_allclose(model.get_weights()[0], w, atol=1e-5)
    assert len(logs) == 4
    assert all(np.isfinite(logs))
    assert (result.whole["first_hour"], result.whole["last_hour"], result.whole["hours"]) == (
        2,
        5,
        3,
    )
    check_row(result.whole, *(np.concatenate(parts) for parts in zip(*pooled[1:])))


def check_row(row, y, p, truth):
    rate = y.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert row["examples"] == len(y)
    assert row["clicks"] == y.sum()
    assert row["logloss"] == pytest.approx(log_loss(y, p), abs=1e-5)
    assert row["ne"] == pytest.approx(log_loss(y, p) / entropy, abs=1e-5)
    assert row["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-9)
    assert row["calibration"] == pytest.approx(p.sum() / y.sum(), abs=1e-5)
    assert row["coverage"] == 1.0
    bayes = -(truth * np.log(truth) + (1 - truth) * np.log(1 - truth)).mean() / entropy
    assert row["bayes_ne"] == pytest.approx(bayes, abs=1e-9)
    assert 0 <= row["group_auc"] <= 1


def test_one_trace_for_each_of_predict_and_train(path):
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    inputs = PART.inputs()
    x = Traced()(inputs["vector"])
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    counts = []
    progressive_validation(
        model, path, PART, batch_size=16, on_window=lambda row, logs: counts.append(len(traces))
    )
    assert counts[0] == counts[-1]


def test_a_model_with_its_own_loss_gets_the_teacher(path):
    inputs = PART.inputs()
    h = keras.layers.Dense(4)(inputs["vector"])
    student = kx.ExternalDistillation(
        inputs, keras.layers.Dense(1)(h), representation=h, auxiliary_head=kx.layers.AuxiliaryHead()
    )
    student.compile(keras.optimizers.SGD(0.1))
    logs = {}
    result = progressive_validation(
        student,
        path,
        PART,
        batch_size=16,
        on_window=lambda row, log: logs.update({row["hour"]: log}),
    )
    teacher = read_hour(path, 2)["teacher_logit"]
    assert logs[2]["teacher_coverage"] == pytest.approx(1 - np.isnan(teacher).mean())
    assert np.isfinite(result.whole["ne"])


def test_vertical_and_hours_without_rows(tmp_path):
    for hour, vertical in ((1, "feed"), (2, "search"), (3, "feed")):
        write_hour(tmp_path / "s", hour, hour_rows(hour, vertical=[vertical] * 10), schema())
    windows = []
    result = progressive_validation(
        Recorder(), tmp_path / "s", vertical="feed", teacher=False, predictions_path=tmp_path / "p",
        on_window=lambda row, logs: windows.append(row["hour"]),
    )  # fmt: skip
    assert [row["hour"] for row in result.rows] == windows == [1, 3]
    assert result.whole["examples"] == 20
    assert logits(tmp_path / "p") == {1: {0.0}, 2: set(), 3: {10.0}}


def test_logged_teacher_is_scored_where_it_is_known(path):
    result = score_column(path, metrics_from=2)
    data = read_hour(path, 3)
    known = ~np.isnan(data["teacher_logit"])
    (row,) = [row for row in result.rows if row["hour"] == 3]
    p = 1 / (1 + np.exp(-data["teacher_logit"][known].astype("float64")))
    assert row["examples"] == known.sum()
    assert row["coverage"] == known.mean()
    assert row["logloss"] == pytest.approx(log_loss(data["label"][known], p), abs=1e-6)
    assert row["auc"] == pytest.approx(roc_auc_score(data["label"][known], p))
    assert result.whole["hours"] == 3
    other = score_column(path, "true_probability")
    assert other.rows[0]["coverage"] == 1.0
    with pytest.raises(StreamError, match="'example_id' should hold logits"):
        score_column(path, "example_id")


def test_unknown_predictions_are_loud(path):
    class Diverged(Recorder):
        def predict_on_batch(self, x):
            return np.full((len(x["user"]), 1), np.nan)

    result = progressive_validation(Diverged(), path, teacher=False, train=False)
    for name in ("ne", "auc", "logloss", "calibration"):
        assert np.isnan(result.whole[name]), name


def test_result_survives_a_file(path, tmp_path):
    result = progressive_validation(Recorder(), path, teacher=False, metrics_from=3)
    result.save(tmp_path / "r.parquet")
    loaded = ValidationResult.load(tmp_path / "r.parquet")
    np.testing.assert_equal(loaded, result)
    nothing = progressive_validation(Recorder(), path, teacher=False, metrics_from=30)
    assert nothing.whole is None
    nothing.save(tmp_path / "n.parquet")
    assert ValidationResult.load(tmp_path / "n.parquet").whole is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_lag": -1}, "label_lag=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"teacher_batch_size": 0}, "teacher_batch_size=0"),
        ({"teacher_batch_size": 8}, r"the model reads \['label'\] of this stream"),
        ({"hours": (8, 9)}, "no hour in"),
        ({"schema": kx.Schema([kx.Numeric("colour")])}, "colour"),
    ],
)
def test_bad_arguments(path, options, message):
    with pytest.raises(StreamError, match=message):
        progressive_validation(Recorder(), path, teacher=False, **options)


def test_a_model_that_predicts_no_logit_is_refused(path):
    class Two(Recorder):
        def predict_on_batch(self, x):
            return np.zeros((len(x["user"]), 2))

    with pytest.raises(StreamError, match=r"one logit a row.*\(4096, 2\)"):
        progressive_validation(Two(), path, teacher=False)


def test_the_optimizer_is_built_before_the_step_is_traced(path, monkeypatch):
    """On TensorFlow a variable that is made within the traced step leaves a graph for good."""
    inputs = PART.inputs()
    joined = keras.layers.Concatenate()([inputs["age"][:, None], inputs["vector"]])
    model = keras.Model(inputs, keras.layers.Dense(1)(joined))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))

    def first(*args, **kwargs):
        assert model.optimizer.built
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "train_on_batch", first)
    with pytest.raises(KeyboardInterrupt):
        progressive_validation(model, path, PART, batch_size=16)


def test_predictions_of_nan_are_told_of(path):
    def model(size):
        found = kx.models.LogisticRegression(kx.Schema([kx.Categorical("user", size)]))
        found.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        return found

    stream = kx.streaming.Stream(path)
    size = stream.schema["user"].vocabulary_size
    users = kx.Schema([kx.Categorical("user", size)])
    with pytest.warns(UserWarning, match=rf"NaN.* hour 1: .*'user' has 2 ids .* {size} in") as told:
        result = progressive_validation(model(2), path, users, train=False, batch_size=16)
    assert len([w for w in told if "NaN" in str(w.message)]) == 1
    assert np.isnan(result.whole["ne"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*predicts NaN")
        progressive_validation(model(size), path, users, train=False, batch_size=16)


def test_a_model_of_some_features_reads_those(path):
    """By name: the stream has features that sort before its own."""
    users = kx.Schema([kx.Categorical("user", 100)])

    def made(build):
        keras.utils.set_random_seed(1)
        model = build()
        model.compile(keras.optimizers.Adam(0.1), keras.losses.BinaryCrossentropy(from_logits=True))
        return model

    def plain():
        inputs = users.inputs()
        table = keras.layers.Embedding(100, 1)(inputs["user"])
        return keras.Model(inputs, keras.layers.Dense(1)(table))

    def distilled():
        model = kx.models.LogisticRegression(users)
        return kx.distillation.ExternalDistillation.from_model(model, representation=None)

    for build in (lambda: kx.models.LogisticRegression(users), plain, distilled):
        told = progressive_validation(made(build), path, users, batch_size=16).whole
        assert progressive_validation(made(build), path, batch_size=16).whole == told
    other = kx.models.LogisticRegression(kx.Schema([kx.Categorical("visitor", 100)]))
    with pytest.raises(StreamError, match=r"reads \['visitor'\], which the stream does not have"):
        progressive_validation(other, path)
