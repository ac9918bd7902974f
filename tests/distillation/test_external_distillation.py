"""The model around the training step: logs, metrics, serving, files, and what it refuses."""

import json
import warnings
import zipfile

import keras
import numpy as np
import pytest

import keras_exfm
from keras_exfm.distillation import ExternalDistillation
from keras_exfm.layers import AuxiliaryHead, StudentAdapter, TeacherGate
from tests.distillation.restatement import crossentropy, sigmoid
from tests.distillation.students import FEATURES, all_parts, batch, distilled, functional
from tests.testing import to_numpy

EAGER = {"run_eagerly": True}


def fit_once(model, *, rate=0.0, **options):
    model.compile(keras.optimizers.SGD(rate), **{**EAGER, **options})
    x, y, weight = batch()
    return model.fit(
        x, y, sample_weight=weight, batch_size=len(x), shuffle=False, verbose=0
    ).history


def test_logs_of_fit():
    history = fit_once(distilled(**all_parts(shared_head_weight=0.2)))
    assert set(history) == {
        "loss",
        "label_loss",
        "auxiliary_loss",
        "adapter_loss",
        "adapter_head_loss",
        "shared_head_loss",
        "clipped_labels",
        "teacher_coverage",
    }
    logs = {name: values[0] for name, values in history.items()}
    terms = [v for name, v in logs.items() if name.endswith("_loss")]
    assert logs["loss"] == pytest.approx(sum(terms), rel=1e-6)
    _, y, weight = batch()
    teacher = y["teacher_logit"][weight > 0]
    known = np.isfinite(teacher)
    assert 0 < known.mean() < 1
    assert logs["teacher_coverage"] == pytest.approx(known.mean(), rel=1e-6)
    clipped = 1.6 * sigmoid(teacher[known]) > 1
    assert 0 < clipped.mean() < 1
    assert logs["clipped_labels"] == pytest.approx(clipped.mean(), rel=1e-6)


def test_logs_name_only_the_parts_that_exist():
    assert set(fit_once(distilled())) == {"loss", "label_loss", "teacher_coverage"}
    assert set(fit_once(distilled(student_adapter=StudentAdapter()))) == {
        "loss",
        "label_loss",
        "adapter_loss",
        "adapter_head_loss",
        "teacher_coverage",
    }


def test_evaluate_looks_at_the_serving_head_only():
    model = distilled(**all_parts(shared_head_weight=0.5))
    model.compile("sgd", metrics=["mse"])
    x, y, weight = batch()
    logs = model.evaluate(
        x, y, sample_weight=weight, batch_size=len(x), verbose=0, return_dict=True
    )
    assert set(logs) == {"loss", "label_loss", "mse"}
    z = to_numpy(model(x)).astype("float64")[:, 0]
    expected = (weight * crossentropy(z, y["label"])).mean()
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["label_loss"] == pytest.approx(expected, rel=1e-5)
    assert len(model.evaluate(x, y, verbose=0)) == 3
    history = model.fit(x, y, verbose=0, validation_data=(x, y, weight), batch_size=len(x)).history
    assert {n for n in history if n.startswith("val_")} == {"val_loss", "val_label_loss", "val_mse"}


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_metrics_see_label_serving_logit_and_weight(argument):
    model = distilled(**all_parts())
    history = fit_once(model, **{argument: [keras.metrics.MeanSquaredError(name="mse")]})
    x, y, weight = batch()
    z = to_numpy(model(x))[:, 0]
    expected = (weight * (z - y["label"]) ** 2).sum() / weight.sum()
    assert history["mse"][0] == pytest.approx(expected, rel=1e-5)


def test_padded_rows_change_no_metric():
    model = distilled(**all_parts())
    # One metric, not in a list, is accepted as by Keras.
    model.compile("sgd", metrics=keras.metrics.MeanSquaredError(name="mse"))
    x, y, weight = batch()
    y["label"][-2:] = np.nan
    whole = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    kept = {name: value[:-2] for name, value in y.items()}
    cut = model.evaluate(x[:-2], kept, sample_weight=weight[:-2], verbose=0, return_dict=True)
    assert whole["mse"] == pytest.approx(cut["mse"], rel=1e-5)


def test_label_loss_can_be_replaced():
    x, y, weight = batch()
    model = distilled(**all_parts())
    history = fit_once(model, loss=keras.losses.MeanSquaredError())
    default = fit_once(model)
    z = to_numpy(model(x))[:, 0]
    expected = (weight * (z - y["label"]) ** 2).mean()
    assert history["label_loss"][0] == pytest.approx(expected, rel=1e-5)
    for name in ("auxiliary_loss", "adapter_loss", "adapter_head_loss"):
        assert history[name] == default[name]


def test_regularization_counts_to_the_label_loss():
    plain = fit_once(distilled(functional()))
    model = distilled(functional(kernel_regularizer=keras.regularizers.L2(0.1)))
    regular = fit_once(model)
    kernel = to_numpy(model.student.get_layer("representation").kernel)
    expected = plain["label_loss"][0] + 0.1 * (kernel**2).sum()
    assert regular["label_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert regular["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_call():
    model = distilled(**all_parts())
    x, _, _ = batch()
    logits = model(x, training=True)
    assert set(logits) == {"logit", "auxiliary", "adapter_head"}
    assert all(tuple(z.shape) == (16, 1) for z in logits.values())
    np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(logits["logit"]))
    assert set(distilled()(x, training=True)) == {"logit"}


def test_default_adapter_head_follows_the_auxiliary_head():
    head = distilled(**all_parts()).adapter_head
    config = head.get_config()
    assert config["units"] == [5]
    assert config["gradient_scale"] == 2.5
    assert config["label_scale"] == config["loss_weight"] == 1.0
    zero = AuxiliaryHead(output_initializer="zeros", prior=0.1)
    head = distilled(auxiliary_head=zero, student_adapter=StudentAdapter()).adapter_head
    assert not to_numpy(head.weights[0]).any()
    assert head.prior == 0.1
    alone = distilled(student_adapter=StudentAdapter()).adapter_head
    assert alone.units == ()
    assert alone.gradient_scale == 1.0


@pytest.mark.parametrize("strict", [False, True])
def test_serving_model_is_the_student_alone(strict, tmp_path):
    plain = functional()
    model = distilled(plain, **all_parts(strict=strict))
    fit_once(model, rate=0.1)
    model.compile("sgd")
    serving = model.serving_model()
    x, _, _ = batch(rows=33, seed=5)
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(serving.predict(x, verbose=0), expected)
    assert [v.path for v in serving.weights] == [v.path for v in plain.weights]

    path = tmp_path / "serving.keras"
    serving.save(path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert "keras_exfm" not in config
    assert "adapter" not in config
    loaded = keras.saving.load_model(path)
    assert type(loaded) is type(plain)
    assert loaded.count_params() == plain.count_params()
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)

    # Weights are shared, not copied.
    fit_once(model, rate=0.1)
    np.testing.assert_array_equal(to_numpy(serving(x)), to_numpy(model(x)))
    assert np.abs(to_numpy(serving(x)) - expected).max() > 1e-4


@pytest.mark.parametrize("name", ["DLRM", "Wukong", "DeepFM"])
def test_serving_costs_the_flops_of_the_plain_student(name):
    ids = [keras_exfm.Categorical(n, 20) for n in ("ad", "user")]
    schema = keras_exfm.Schema([*ids, keras_exfm.Numeric("age")])
    plain = getattr(keras_exfm.models, name)(schema, dim=8)
    expected = keras_exfm.models.flops(plain)
    model = distilled(plain, **all_parts(gate=TeacherGate(), strict=True))
    found = keras_exfm.models.flops(model.serving_model())
    assert found.layers == expected.layers
    assert found.inference == expected.inference > 0


def test_inputs_of_any_structure(tmp_path):
    inputs = {name: keras.Input((2,), name=name) for name in ("b", "a")}
    h = keras.layers.Dense(3)(keras.layers.Concatenate()([inputs["a"], inputs["b"]]))
    model = ExternalDistillation(
        inputs, keras.layers.Dense(1)(h), representation=h, auxiliary_head=AuxiliaryHead()
    )
    model.compile("sgd", **EAGER)
    x = {name: batch()[0][:, :2] * scale for name, scale in (("a", 1), ("b", 2))}
    model.fit(x, batch()[1], verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))
    np.testing.assert_array_equal(to_numpy(model.serving_model()(x)), to_numpy(model(x)))


@pytest.mark.parametrize("parts", [dict, all_parts])
def test_config_round_trip(parts):
    model = distilled(name="vm", shared_head_weight=0.25, **parts())
    config = model.get_config()
    json.dumps(config)
    clone = ExternalDistillation.from_config(config)
    assert clone.get_config() == config
    assert clone.name == "vm"
    paths = [[v.path.removeprefix("vm/") for v in m.weights] for m in (clone, model)]
    assert paths[0] == paths[1]


def test_the_source_of_the_shared_label_travels(tmp_path):
    model = distilled(**all_parts(shared_head_weight=0.5, shared_head_source="adapter"))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.shared_head_source == "adapter"
    x, y, weight = batch()
    losses = []
    for each in (model, loaded):
        each.compile(keras.optimizers.SGD(0.1))
        losses.append(each.train_on_batch(x, y, weight, return_dict=True)["shared_head_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_uncompiled_model_saves_and_weights_load(tmp_path):
    model = distilled(**all_parts(strict=True))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert not loaded.compiled
    assert not {v.path for v in loaded.adapter_variables} & {
        v.path for v in loaded.trainable_variables
    }
    model.save_weights(tmp_path / "m.weights.h5")
    other = distilled(functional(seed=9), **all_parts(strict=True))
    other.load_weights(tmp_path / "m.weights.h5")
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_package_name():
    assert keras_exfm.ExternalDistillation is ExternalDistillation


def test_from_model_takes_another_layer_or_none():
    inputs = keras.Input((FEATURES,))
    h = keras.layers.Dense(7, name="tower")(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(1)(h))
    model = ExternalDistillation.from_model(
        plain, representation="tower", auxiliary_head=AuxiliaryHead()
    )
    assert tuple(model.auxiliary_head.weights[0].shape) == (7, 1)
    vanilla = ExternalDistillation.from_model(plain, representation=None, shared_head_weight=1.0)
    assert len(vanilla.weights) == 4


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"auxiliary_head": "head"}, "`auxiliary_head` should be a AuxiliaryHead"),
        ({"student_adapter": AuxiliaryHead()}, "`student_adapter` should be a StudentAdapter"),
        ({"adapter_head": AuxiliaryHead()}, "needs a `student_adapter`"),
        ({"strict": True}, "needs a `student_adapter`"),
        ({"strict": 1, "student_adapter": StudentAdapter()}, "`strict` should be a bool"),
        ({"shared_head_weight": -0.1}, "`shared_head_weight` should be"),
        ({"shared_head_source": "label"}, '"teacher" or "adapter".*label'),
        (
            {"shared_head_source": "adapter", "shared_head_weight": 1.0},
            "needs a `student_adapter`",
        ),
        ({"representation": None, "auxiliary_head": AuxiliaryHead()}, "needs a `representation`"),
        ({"representation": "tower"}, r"name a layer.*'tower'.*'representation'"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        distilled(**parts)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="auxilary_head"):
        distilled(auxilary_head=AuxiliaryHead())
    head = AuxiliaryHead()
    with pytest.raises(ValueError, match="two layers"):
        distilled(auxiliary_head=head, adapter_head=head, student_adapter=StudentAdapter())
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=r"\(batch, 1\).*\(None, 2\)"):
        ExternalDistillation(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="symbolic tensor"):
        ExternalDistillation(inputs, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="functional"):
        ExternalDistillation.from_model(keras.layers.Dense(1))


def test_compile_refuses():
    with pytest.raises(ValueError, match="needs `strict=True`"):
        distilled(**all_parts()).compile("sgd", adapter_optimizer="adam")
    with pytest.raises(ValueError, match="moving average"):
        distilled(**all_parts(strict=True)).compile(
            "sgd", adapter_optimizer=keras.optimizers.SGD(use_ema=True)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: {"teacher_logit": y["teacher_logit"]}, r"\['teacher_logit'\]"),
        (lambda y: {**y, "teacher": y["label"]}, r"\['label', 'teacher', 'teacher_logit'\]"),
        (lambda y: (y["label"], y["teacher_logit"]), "type tuple"),
        (lambda y: None, "NoneType"),
        (lambda y: {**y, "label": np.zeros((16, 2), "float32")}, r"`label`.*\(16, 2\)"),
        (
            lambda y: {**y, "teacher_logit": np.zeros((16, 1, 1), "float32")},
            r"`teacher_logit`.*\(16, 1, 1\)",
        ),
    ],
)
def test_targets_that_do_not_fit(change, message):
    model = distilled(**all_parts())
    model.compile("sgd", **EAGER)
    x, y, _ = batch()
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, change(y))


def test_a_probability_as_logit_is_refused():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3)(inputs)
    logit = keras.layers.Dense(1)(hidden)
    squashed = keras.layers.Activation("sigmoid", name="click")(logit)
    with pytest.raises(ValueError, match="before any sigmoid.*layer 'click', a probability"):
        ExternalDistillation(inputs, squashed)
    with pytest.raises(ValueError, match="layer 'click'"):
        ExternalDistillation(inputs, {"view": logit, "click": squashed})


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "binary_crossentropy"},
        {"loss": keras.losses.BinaryCrossentropy()},
        {"metrics": [keras.metrics.MeanSquaredError(), keras.metrics.AUC()]},
        {"weighted_metrics": ["AUC"]},
        {"metrics": keras_exfm.metrics.NormalizedEntropy(from_logits=False)},
    ],
)
def test_measures_of_probabilities_are_refused(options):
    with pytest.raises(ValueError, match=r"`(loss|metrics)` should take logits.*from_logits=True"):
        distilled().compile("sgd", **options)


def test_measures_of_logits_are_taken():
    model = distilled()
    logs = fit_once(
        model,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=["mse", keras.metrics.AUC(from_logits=True, name="auc")],
    )
    assert {"mean_squared_error", "auc"} <= set(logs) or {"mse", "auc"} <= set(logs)


@pytest.mark.parametrize("bad", [5.0, -1.0])
def test_labels_outside_of_their_range_are_refused_before_training(bad):
    model = distilled(**all_parts())
    model.compile(keras.optimizers.SGD(0.1), **EAGER)
    x, y, weight = batch()
    before = [to_numpy(v) for v in model.weights]
    label = np.array(y["label"])
    label[[2, 4]] = bad
    with pytest.raises(ValueError, match=rf"`label`.* Received: {bad:g} in row 2 \(2 such rows\)"):
        model.fit(x, {**y, "label": label}, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match="`label`"):
        model.fit(x, label, verbose=0)
    assert all(np.array_equal(to_numpy(v), was) for v, was in zip(model.weights, before))
    # Rows that do not count may hold anything, and so may labels of another loss.
    none = np.where(np.isin(np.arange(len(label)), (2, 4)), 0, weight)
    model.fit(x, {**y, "label": label}, sample_weight=none, verbose=0)
    model.compile("sgd", loss="mse", **EAGER)
    model.fit(x, {**y, "label": label}, sample_weight=weight, verbose=0)
    model.compile("sgd", **EAGER)
    label[[2, 4]] = np.nan
    model.fit(x, {**y, "label": label}, sample_weight=weight, verbose=0)


def test_probabilities_of_a_teacher_are_told_of():
    model = distilled(**all_parts())
    model.compile(keras.optimizers.SGD(0.1), **EAGER)
    x, y, _ = batch(300)
    label, logit = y["label"], y["teacher_logit"]
    assert np.isfinite(logit).sum() >= 100
    with pytest.warns(UserWarning, match="`teacher_logit` lie between 0 and 1") as told:
        model.fit(x, {"label": label, "teacher_logit": sigmoid(logit)}, verbose=0)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lie between 0 and 1")
        model.fit(x, {"label": label, "teacher_logit": logit}, verbose=0)
