"""`fit` on both backends against the NumPy restatement, plain Keras and uninterrupted runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_exfm.distillation import ExternalDistillation
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from tests.distillation.restatement import Restatement, crossentropy, network_of, sigmoid
from tests.distillation.students import all_parts, batch, columns, distilled, functional
from tests.testing import to_numpy

STEPS = 5
# Compiling a step takes JAX seconds. Where compilation is not the point, run without.
EAGER = {"run_eagerly": True}


def stream(*batches):
    """A tf.data stream of whole batches."""
    parts = zip(*batches)
    stacked = [tf.nest.map_structure(lambda *v: np.stack(v), *part) for part in parts]
    return tf.data.Dataset.from_tensor_slices(tuple(stacked))


PARTS = {
    "no_teacher": dict,
    "vanilla": lambda: {"shared_head_weight": 0.8},
    "all": all_parts,
    "all_strict": lambda: all_parts(strict=True),
    "residual_strict": lambda: {
        "student_adapter": StudentAdapter((4,), residual=True),
        "strict": True,
    },
}


@pytest.mark.parametrize("name", list(PARTS))
def test_trajectory_of_descent(name):
    """Five steps by `fit` end where float64 NumPy ends, on either backend, hence on both alike."""
    model = distilled(**PARTS[name]())
    options = {} if name.startswith("all") else EAGER
    if model.strict:
        options = {**options, "adapter_optimizer": keras.optimizers.SGD(0.5)}
    model.compile(keras.optimizers.SGD(0.2), **options)
    restatement = Restatement(model)
    batches = [batch(seed=s) for s in range(STEPS)]
    history = model.fit(stream(*batches), verbose=0).history
    terms = [restatement.train(columns(*b), 0.2, adapter_rate=0.5) for b in batches]
    for part, layer, network in restatement.layers_of(model):
        for trained, expected in zip(network_of(layer), network):
            np.testing.assert_allclose(trained[0], expected[0], atol=2e-6, err_msg=part)
            np.testing.assert_allclose(trained[1], expected[1], atol=2e-6, err_msg=part)
    for term in terms[0]:
        mean = np.mean([t[term] for t in terms])
        assert history[term][0] == pytest.approx(mean, rel=1e-5), term
    total = np.mean([sum(t.values()) for t in terms])
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


def test_strict_order_differs_from_the_summed_loss():
    """Otherwise the trajectories above could not tell the two apart."""
    weights = []
    for strict in (False, True):
        model = distilled(**all_parts(strict=strict))
        model.compile(keras.optimizers.SGD(0.5), **EAGER)
        model.fit(stream(*(batch(seed=s) for s in range(2))), verbose=0)
        weights.append([to_numpy(v) for v in model.adapter_head.weights])
    assert max(np.abs(a - b).max() for a, b in zip(*weights)) > 1e-5


@pytest.mark.parametrize("parts", ["no_teacher", "all", "all_strict"])
def test_student_without_teacher_is_a_plain_student(parts):
    batches = [batch(seed=s) for s in range(STEPS)]
    plain = functional()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    options = {} if parts == "all" else EAGER
    plain.compile(keras.optimizers.Adam(0.05), loss=loss, **options)
    model = distilled(**PARTS[parts]())
    model.compile(keras.optimizers.Adam(0.05), **options)
    for a, b in zip(plain.weights, model.student.weights):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    labels = [(x, y["label"], w) for x, y, w in batches]
    plain_history = plain.fit(stream(*labels), verbose=0).history
    history = model.fit(stream(*labels), verbose=0).history
    for a, b in zip(plain.weights, model.student.weights):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6, rtol=0)
    assert history["loss"][0] == pytest.approx(plain_history["loss"][0], rel=1e-6)
    assert history["teacher_coverage"] == [0.0]


@pytest.mark.parametrize("parts", ["all", "all_strict"])
def test_saved_and_continued_is_uninterrupted(parts, tmp_path):
    model = distilled(**PARTS[parts]())
    strict = {"adapter_optimizer": keras.optimizers.Adam(0.03)} if model.strict else {}
    metric = keras.metrics.MeanSquaredError(name="mse")
    model.compile(keras.optimizers.Adam(0.05), metrics=[metric], **strict)
    model.fit(stream(*(batch(seed=s) for s in range(3))), verbose=0)
    path = tmp_path / "student.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is ExternalDistillation
    x = batch(seed=7)[0]
    np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(loaded(x)))
    more = stream(*(batch(seed=s) for s in range(3, 6)))
    history, loaded_history = (m.fit(more, verbose=0).history for m in (model, loaded))
    assert history == loaded_history
    assert "mse" in history
    assert len(model.variables) == len(loaded.variables)
    for a, b in zip(model.variables, loaded.variables):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)
    optimizers = [(model.optimizer, loaded.optimizer)]
    if model.strict:
        optimizers.append((model.adapter_optimizer, loaded.adapter_optimizer))
        assert float(to_numpy(loaded.adapter_optimizer.learning_rate)) == pytest.approx(0.03)
    for a, b in optimizers:
        assert int(to_numpy(b.iterations)) == 6
        for v, w in zip(a.variables, b.variables):
            np.testing.assert_array_equal(to_numpy(v), to_numpy(w), err_msg=v.path)


@pytest.mark.parametrize("how", ["other_jit", "eager", "two_steps"])
@pytest.mark.parametrize("strict", [False, True])
def test_ways_to_run_agree(how, strict, backend):
    options = {
        # By default JAX compiles and TensorFlow on a CPU does not (see the trajectories above).
        "other_jit": {"jit_compile": backend != "jax"},
        "eager": EAGER,
        "two_steps": {"steps_per_execution": 2},
    }[how]
    model = distilled(**all_parts(strict=strict))
    model.compile(keras.optimizers.SGD(0.2), **options)
    restatement = Restatement(model)
    batches = [batch(seed=s) for s in range(4)]
    model.fit(stream(*batches), verbose=0)
    for b in batches:
        restatement.train(columns(*b), 0.2, adapter_rate=0.2)
    for part, layer, network in restatement.layers_of(model):
        for trained, expected in zip(network_of(layer), network):
            np.testing.assert_allclose(trained[0], expected[0], atol=2e-6, err_msg=part)


class CountingModel(ExternalDistillation):
    """Counts how often Python runs through the training loss, that is, how often it is traced."""

    traces = 0

    def compute_loss(self, *args, training=True, **kwargs):
        self.traces += bool(training)
        return super().compute_loss(*args, training=training, **kwargs)


@pytest.mark.parametrize("strict", [False, True])
def test_repeated_fit_does_not_retrace(strict):
    model = CountingModel.from_model(functional(), **all_parts(strict=strict))
    model.compile(keras.optimizers.Adam(0.01))
    traces = []
    for i in range(5):
        model.fit(stream(batch(seed=i), batch(seed=i + 5)), verbose=0)
        model.predict(batch(seed=i)[0], verbose=0)
        traces.append(model.traces)
    # TensorFlow traces a nested function twice, at the first step only.
    assert traces == [1 if keras.backend.backend() == "jax" else 2] * 5
    assert int(to_numpy(model.optimizer.iterations)) == 10


def test_arrays_and_streams_train_alike():
    """`fit(x, y, sample_weight=...)` hands every key of `y` its own copy of the weights."""
    models = [distilled(**all_parts()) for _ in range(4)]
    x, y, weight = batch()
    column = {name: value[:, None] for name, value in y.items()}
    for model in models:
        model.compile(keras.optimizers.SGD(0.2), **EAGER)
    models[0].fit(stream((x, y, weight)), verbose=0)
    models[1].fit(x, y, sample_weight=weight, batch_size=len(x), shuffle=False, verbose=0)
    models[2].fit(stream((x, column, weight[:, None])), verbose=0)
    models[3].train_on_batch(x, y, weight)
    first = models[0].get_weights()
    for model in models[1:]:
        for a, b in zip(first, model.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_integer_labels():
    x, y, weight = batch()
    models = [distilled(), distilled()]
    for model, dtype in zip(models, ("float32", "int64")):
        model.compile(keras.optimizers.SGD(0.2), **EAGER)
        model.fit(stream((x, y["label"].astype(dtype), weight)), verbose=0)
    for a, b in zip(models[0].get_weights(), models[1].get_weights()):
        np.testing.assert_array_equal(a, b)


def test_state_of_other_layers_survives_the_strict_step():
    """Batch statistics and dropout seeds stand beside the adapter in the JAX state."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(inputs)
    x = keras.layers.Dropout(0.5, seed=1)(keras.layers.Dense(8, activation="relu")(x))
    h = keras.layers.Dense(4, activation="relu", name="representation")(x)
    model = distilled(keras.Model(inputs, keras.layers.Dense(1)(h)), **all_parts(strict=True))
    model.compile(keras.optimizers.SGD(0.1), adapter_optimizer=keras.optimizers.Adam(0.1))
    before = {v.path: to_numpy(v).copy() for v in model.non_trainable_variables}
    model.fit(stream(*(batch(seed=s) for s in range(3))), verbose=0)
    moved = [
        path
        for v, path in [(v, v.path) for v in model.non_trainable_variables]
        if not np.array_equal(before[path], to_numpy(v))
    ]
    for word in (
        "moving_mean",
        "moving_variance",
        "seed_generator",
        "student_adapter",
        "iteration",
    ):
        assert [path for path in moved if word in path], (word, moved)
    norm = model.student.layers[1]
    means = [0.0]
    for s in range(3):
        means.append(0.99 * means[-1] + 0.01 * batch(seed=s)[0].mean(0))
    np.testing.assert_allclose(to_numpy(norm.moving_mean), means[-1], atol=1e-6)


def test_strict_adapter_has_its_own_optimizer():
    model = distilled(**all_parts(strict=True))
    model.compile(keras.optimizers.SGD(0.0), adapter_optimizer=keras.optimizers.SGD(0.5), **EAGER)
    own = {v.path for v in model.adapter_variables}
    assert len(own) == 4
    assert not own & {v.path for v in model.trainable_variables}
    student, adapter = model.student.get_weights(), model.student_adapter.get_weights()
    model.fit(stream(batch()), verbose=0)
    for a, b in zip(student, model.student.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert all(
        not np.array_equal(a, b) for a, b in zip(adapter, model.student_adapter.get_weights())
    )
    # Thawing everything in between does not put the adapter under both optimizers.
    model.trainable = False
    model.trainable = True
    model.compile(keras.optimizers.SGD(0.1), **EAGER)
    assert not own & {v.path for v in model.trainable_variables}
    assert float(to_numpy(model.adapter_optimizer.learning_rate)) == pytest.approx(0.1)
    model.fit(stream(batch()), verbose=0)


def test_loss_scaling_of_the_adapter_optimizer_cancels():
    weights = []
    for scale in (None, 64.0):
        model = distilled(**all_parts(strict=True))
        optimizer = keras.optimizers.SGD(0.5, loss_scale_factor=scale)
        model.compile(keras.optimizers.SGD(0.1), adapter_optimizer=optimizer, **EAGER)
        model.fit(stream(batch(), batch(seed=1)), verbose=0)
        weights.append(model.student_adapter.get_weights())
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = distilled(**all_parts(strict=True, shared_head_weight=0.2))
    model.compile(keras.optimizers.Adam(0.05))
    x, y, weight = batch(rows=64)
    history = model.fit(stream(*[(x, y, weight)] * 20), epochs=2, verbose=0).history
    assert history["label_loss"][1] < history["label_loss"][0]
    for v in [*model.weights, *model.optimizer.variables[2:]]:
        assert keras.backend.standardize_dtype(v.dtype) == "float32"


def test_mixed_precision_leaves_float_inputs_alone():
    """A float32 layer at the input sees 1000.3 and not the nearest bfloat16, 1000."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((4,), dtype="float32")
    near = keras.layers.Rescaling(1.0, -1000.0, dtype="float32")(inputs)
    h = keras.layers.Dense(3, name="representation")(near)
    plain = keras.Model(inputs, keras.layers.Dense(1)(h))
    x = np.random.default_rng(0).uniform(1000, 1001, size=(8, 4)).astype("float32")
    model = distilled(plain, auxiliary_head=AuxiliaryHead())
    np.testing.assert_array_equal(
        model.predict(x, verbose=0).astype("float32"),
        plain.predict(x, verbose=0).astype("float32"),
    )


def biased_stream(batches, bias, seed=0):
    """Labels by `sigmoid(truth)`; the teacher's logit is too high by `bias`."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(batches):
        x = rng.normal(size=(256, 4)).astype("float32")
        truth = 1.5 * x[:, 0] - x[:, 1] - 1.0
        label = (rng.uniform(size=256) < sigmoid(truth)).astype("float32")
        y = {"label": label, "teacher_logit": (truth + bias).astype("float32")}
        result.append((x, y, np.ones(256, "float32")))
    return result


def test_learns_on_a_stream_and_the_adapter_cures_the_teachers_bias():
    model = distilled(
        auxiliary_head=AuxiliaryHead((8,)), student_adapter=StudentAdapter((8,), residual=True)
    )
    model.compile(keras.optimizers.Adam(0.02), metrics=[keras.metrics.AUC(from_logits=True)])
    model.fit(stream(*biased_stream(150, bias=2.0)), verbose=0)
    test = biased_stream(8, bias=2.0, seed=1)
    x = np.concatenate([b[0] for b in test])
    truth = (1.5 * x[:, 0] - x[:, 1] - 1.0)[:, None]
    logs = model.evaluate(stream(*test), verbose=0, return_dict=True)
    best = crossentropy(truth, sigmoid(truth)).mean()
    assert logs["loss"] < best + 0.03
    assert logs["auc"] > 0.8
    # The serving head ignores the bias, the auxiliary head copies it, the adapter removes it.
    heads = {k: to_numpy(v) for k, v in model(x, training=True).items()}
    assert abs((heads["logit"] - truth).mean()) < 0.2
    assert abs((heads["auxiliary"] - truth).mean() - 2.0) < 0.2
    assert abs((heads["adapter_head"] - truth).mean()) < 0.3
    adapted = to_numpy(model.student_adapter((truth + 2.0).astype("float32")))
    assert abs((adapted - truth).mean()) < 0.2


def test_vanilla_carries_the_teachers_bias_into_serving():
    """What the separate heads are there to avoid: w = 1 pulls the served rate half the way."""
    served = {}
    for name, parts in (
        ("vanilla", {"shared_head_weight": 1.0}),
        ("heads", {"auxiliary_head": AuxiliaryHead((8,))}),
    ):
        model = distilled(**parts)
        model.compile(keras.optimizers.Adam(0.02))
        model.fit(stream(*biased_stream(120, bias=2.0)), verbose=0)
        test = biased_stream(8, bias=2.0, seed=1)
        x, label, teacher = (
            np.concatenate(v)
            for v in zip(*((b[0], b[1]["label"], b[1]["teacher_logit"]) for b in test))
        )
        served[name] = sigmoid(to_numpy(model(x)).astype("float64")).mean()
    middle = (label.mean() + sigmoid(teacher.astype("float64")).mean()) / 2
    assert served["vanilla"] == pytest.approx(middle, abs=0.03)
    assert served["heads"] == pytest.approx(label.mean(), abs=0.03)
