"""Gate, schedules, vectors, context, several teachers and tasks, against the restatement."""

import json

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.distillation import ExternalDistillation, TeacherBranch
from keras_exfm.layers import AuxiliaryHead, RepresentationHead, StudentAdapter, TeacherGate
from tests.distillation.gradients import training_gradients
from tests.distillation.restatement import Restatement, network_of
from tests.distillation.students import (
    batch,
    chosen,
    columns,
    distilled,
    functional,
    functional_tasks,
    wide_batch,
)
from tests.distillation.test_training import EAGER, stream
from tests.testing import to_numpy

STEPS = 5
SCHEDULES = keras.optimizers.schedules


def ramp():
    return SCHEDULES.PolynomialDecay(0.0, 3, end_learning_rate=1.5)


def gate(margin=0.5, half_life=20.0, threshold=0.0):
    """A short memory and a wide margin: its factor moves through the whole of 0..1."""
    return TeacherGate(half_life=half_life, margin=margin, threshold=threshold)


def gated(**kwargs):
    return {
        "auxiliary_head": AuxiliaryHead((5,), loss_weight=0.7, label_scale=1.6, gradient_scale=2.5),
        "student_adapter": StudentAdapter((3,), residual=True),
        "shared_head_weight": 0.4,
        "gate": gate(margin=1.0, threshold=0.01),
        **kwargs,
    }


def scheduled(**kwargs):
    return {
        "auxiliary_head": AuxiliaryHead((), loss_weight=ramp(), gradient_scale=ramp()),
        "shared_head_weight": SCHEDULES.ExponentialDecay(1.0, 1, 0.5),
        "representation_head": RepresentationHead(3, loss_weight=ramp(), gradient_scale=ramp()),
        **kwargs,
    }


def two_teachers():
    return [
        TeacherBranch(
            auxiliary_head=AuxiliaryHead((4,), 0.5, 1.2, 2.0),
            student_adapter=StudentAdapter((3,), residual=True, context={"teacher_age_s": 3600.0}),
            gate=gate(),
        ),
        TeacherBranch(
            "second",
            auxiliary_head=AuxiliaryHead(),
            student_adapter=StudentAdapter((2,)),
            representation_head=RepresentationHead(3, half_life=20.0),
        ),
    ]


def task_teachers():
    return [
        TeacherBranch(
            None,
            "click",
            auxiliary_head=AuxiliaryHead((4,), 0.5),
            student_adapter=StudentAdapter((3,)),
            gate=gate(),
        ),
        TeacherBranch(
            "second",
            "conversion",
            student_adapter=StudentAdapter(residual=True),
            gate=gate(),
            shared_head_weight=0.3,
        ),
    ]


MODELS = {
    "gate": lambda **k: distilled(**gated(**k)),
    "gate_without_adapter": lambda: distilled(auxiliary_head=AuxiliaryHead(), gate=gate()),
    "hard_gate": lambda: distilled(shared_head_weight=2.0, gate=gate(margin=0.0)),
    "schedules": lambda: distilled(**scheduled()),
    "vectors": lambda: distilled(
        representation_head=RepresentationHead(3, (4,), 0.6, 1.7, half_life=15.0), gate=gate()
    ),
    "two_teachers": lambda **k: distilled(teachers=two_teachers(), **k),
    "tasks": lambda **k: distilled(functional_tasks(), teachers=task_teachers(), **k),
}
STRICT = {
    f"{name}_strict": lambda name=name: MODELS[name](strict=True)
    for name in ("gate", "two_teachers", "tasks")
}


@pytest.mark.parametrize("name", [*MODELS, *STRICT])
def test_trajectory_of_descent(name):
    model = {**MODELS, **STRICT}[name]()
    # One of each kind runs compiled.
    options = {} if name in ("two_teachers_strict", "tasks") else EAGER
    if model.strict:
        options = {**options, "adapter_optimizer": keras.optimizers.SGD(0.5)}
    model.compile(keras.optimizers.SGD(0.2), **options)
    restatement = Restatement(model)
    batches = [chosen(model, wide_batch(seed=s)) for s in range(STEPS)]
    factors, terms = [], []
    for b in batches:
        factors.append({end: g.factor for end, g in restatement.gates.items()})
        terms.append(restatement.train(columns(*b), 0.2, adapter_rate=0.5))
    history = model.fit(stream(*batches), verbose=0).history
    for part, layer, network in restatement.layers_of(model):
        for trained, expected in zip(network_of(layer), network, strict=True):
            np.testing.assert_allclose(trained[0], expected[0], atol=3e-6, err_msg=part)
            np.testing.assert_allclose(trained[1], expected[1], atol=3e-6, err_msg=part)
    for term in terms[0]:
        mean = np.mean([t[term] for t in terms])
        assert history[term][0] == pytest.approx(mean, rel=1e-5), term
    total = np.mean([sum(t.values()) for t in terms])
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)
    for branch in model.branches:
        end = branch.suffix
        if branch.gate is not None:
            expected = restatement.gates[end]
            assert float(branch.gate.factor) == pytest.approx(expected.factor, abs=1e-5)
            assert float(branch.gate.student_loss) == pytest.approx(
                expected.student / expected.rows, rel=1e-5
            )
            assert float(branch.gate.teacher_loss) == pytest.approx(
                expected.teacher / expected.rows, rel=1e-5
            )
            seen = [f[end] for f in factors]
            assert history[f"teacher_gate{end}"][0] == pytest.approx(np.mean(seen), abs=1e-5)
    if any(b.gate is not None for b in model.branches) and name != "hard_gate":
        # Otherwise the trajectory would not tell a gate from none.
        assert any(0 < f < 1 for seen in factors for f in seen.values()), factors


def test_the_hard_gate_is_open_or_shut():
    """And the trajectory above saw it in both positions."""
    model = MODELS["hard_gate"]()
    restatement = Restatement(model)
    seen = []
    for s in range(STEPS):
        seen.append(restatement.gates[""].factor)
        restatement.train(columns(*chosen(model, wide_batch(seed=s))), 0.2)
    assert set(seen) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["schedules", "vectors", "two_teachers", "tasks"])
def test_file_round_trip_and_training_goes_on(name, tmp_path):
    model = MODELS[name]()
    model.compile(keras.optimizers.Adam(0.05), **EAGER)
    model.fit(stream(*(chosen(model, wide_batch(seed=s)) for s in range(3))), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    config = model.get_config()
    json.dumps(config)
    # A functional model's own config comes back with lists for tuples.
    assert {**loaded.get_config(), "student": 0} == {**config, "student": 0}
    assert loaded.target_columns == model.target_columns
    more = stream(*(chosen(model, wide_batch(seed=s)) for s in range(3, 5)))
    histories = [m.fit(more, verbose=0).history for m in (model, loaded)]
    assert histories[0] == histories[1]
    assert len(model.variables) == len(loaded.variables)
    for a, b in zip(model.variables, loaded.variables):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), err_msg=a.path)


def test_a_shut_gate_leaves_the_plain_student():
    """With a teacher that is worse than the student from the first row on."""
    model = distilled(**gated(representation_head=RepresentationHead(3)))
    plain = distilled(functional())
    adapter = [w.copy() for w in model.student_adapter.get_weights()]
    head = [w.copy() for w in model.auxiliary_head.get_weights()]
    for m in (model, plain):
        # At this rate the adapter does not learn within three steps to undo the teacher.
        m.compile(keras.optimizers.SGD(0.01), **EAGER)
    # The adapter makes every teacher's logit about -30.
    model.student_adapter.set_weights([np.zeros_like(w) for w in adapter])
    model.student_adapter.out.bias.assign([-30.0])
    batches = [chosen(model, wide_batch(seed=s)) for s in range(3)]
    history = model.fit(stream(*batches), verbose=0).history
    plain.fit(stream(*((x, y["label"], w) for x, y, w in batches)), verbose=0)
    assert history["teacher_gate"] == [0.0]
    assert model.gates_closed
    model.gate._factor.assign(0.5)
    assert not model.gates_closed
    # A teacher without a gate is always heard; a student without a teacher hears none.
    assert not distilled(auxiliary_head=AuxiliaryHead()).gates_closed
    assert not distilled(functional()).gates_closed
    for a, b in zip(plain.student.get_weights(), model.student.get_weights()):
        np.testing.assert_array_equal(a, b)
    # The heads learn all the same.
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(head, model.auxiliary_head.get_weights()))


@pytest.mark.parametrize("missing", ["teacher_representation", "teacher_logit"])
def test_without_the_columns_it_is_a_plain_student(missing):
    x, y, weight = chosen(distilled(**scheduled()), wide_batch())
    model = distilled(representation_head=RepresentationHead(3), auxiliary_head=AuxiliaryHead())
    model.compile("sgd")
    plain = distilled(functional())
    plain.compile("sgd")
    expected = training_gradients(plain, x, y["label"], weight)
    none = {**y, missing: np.full_like(y[missing], np.nan)}
    absent = {name: value for name, value in y.items() if name != missing}
    found = [training_gradients(model, x, target, weight) for target in (none, absent)]
    for path, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][path])
    word = "representation_head" if missing == "teacher_representation" else "auxiliary_head"
    hit = [path for path in found[0] if word in path]
    assert hit
    for path in hit:
        np.testing.assert_array_equal(found[0][path], np.zeros_like(found[0][path]))
    both = {"label": y["label"]}
    bare = training_gradients(model, x, both, weight)
    for path, gradient in expected.items():
        np.testing.assert_array_equal(bare[path], gradient)


def test_a_student_of_several_tasks():
    model = MODELS["tasks"]()
    model.compile(
        keras.optimizers.SGD(0.1),
        metrics={"conversion": [keras.metrics.MeanSquaredError(name="mse")]},
        loss_weights={"click": 1.0, "conversion": 0.5},
    )
    x, y, weight = chosen(model, wide_batch())
    logs = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    assert set(logs) == {
        "loss", "label_loss", "click_loss", "conversion_loss", "conversion_mse"
    }  # fmt: skip
    logits = model.predict(x, verbose=0)
    assert set(logits) == {"click", "conversion"}
    rows = {}
    for task in logits:
        z, label = logits[task][:, 0].astype("float64"), y[f"label_{task}"]
        known = np.isfinite(label)
        counted = weight * known
        label = np.where(known, label, 0)
        rows[task] = (counted * (np.logaddexp(0, z) - label * z)).mean()
        assert logs[f"{task}_loss"] == pytest.approx(rows[task], rel=1e-5)
        if task == "conversion":
            mse = (counted * (z - label) ** 2).sum() / counted.sum()
            assert logs["conversion_mse"] == pytest.approx(mse, rel=1e-5)
    assert logs["loss"] == pytest.approx(rows["click"] + 0.5 * rows["conversion"], rel=1e-5)
    serving = model.serving_model()
    for task, logit in serving.predict(x, verbose=0).items():
        np.testing.assert_array_equal(logit, logits[task])
    logs = model.train_on_batch(x, y, weight, return_dict=True)
    assert {"adapter_loss", "adapter_loss_second", "teacher_coverage_second"} <= set(logs)
    # A weight of its own for each label.
    own = {"label_click": weight, "label_conversion": weight * 0}
    logs = model.evaluate(stream((x, y, own)), verbose=0, return_dict=True)
    assert logs["click_loss"] > 0
    assert logs["conversion_loss"] == 0.0


def test_representations_by_task():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    towers = {
        task: keras.layers.Dense(n, activation="relu", name=f"tower_{task}")(inputs)
        for task, n in (("click", 5), ("conversion", 7))
    }
    logits = {task: keras.layers.Dense(1)(tower) for task, tower in towers.items()}
    teachers = [
        TeacherBranch(task, task, auxiliary_head=AuxiliaryHead())
        for task in ("conversion", "click")
    ]
    model = ExternalDistillation.from_model(
        keras.Model(inputs, logits),
        representation={task: f"tower_{task}" for task in towers},
        teachers=teachers,
    )
    assert [b.auxiliary_head.weights[0].shape[0] for b in model.branches] == [7, 5]
    assert model.target_columns == (
        "label_click", "label_conversion", "teacher_logit_conversion", "teacher_logit_click",
        "label",
    )  # fmt: skip
    clone = ExternalDistillation.from_config(model.get_config())
    assert [b.auxiliary_head.weights[0].shape[0] for b in clone.branches] == [7, 5]
    model.compile("sgd", **EAGER)
    x, y, _ = batch()
    y = {
        "label_click": y["label"],
        "label_conversion": y["label"],
        "teacher_logit_conversion": y["teacher_logit"],
    }
    only = training_gradients(model, x, y)
    plain = {**y, "teacher_logit_conversion": np.full_like(y["label_click"], np.nan)}
    without = training_gradients(model, x, plain)
    for task, same in (("click", True), ("conversion", False)):
        kernel = next(path for path in only if f"tower_{task}/kernel" in path)
        assert np.array_equal(only[kernel], without[kernel]) == same


def test_tasks_on_a_stream(tmp_path):
    """A stream calls the first task's label `label`; validation judges one task of the student."""
    keras.utils.set_random_seed(0)
    schema = kx.Schema([kx.Numeric("x", 4)])
    rng = np.random.default_rng(0)
    for hour in (0, 1):
        x, y, _ = wide_batch(rows=16, seed=hour)
        rows = {
            "example_id": np.arange(16) + 16 * hour,
            "timestamp": np.arange(16) + hour * 3_600_000,
            "vertical": ["feed"] * 16,
            "x": x,
            "label": y["label"],
            "label_conversion": y["label_conversion"],
            "teacher_logit": rng.normal(size=16),
        }
        kx.streaming.write_hour(tmp_path / "labelled", hour, rows, schema)
    model = distilled(functional_tasks(), teachers=task_teachers())
    model.compile(keras.optimizers.SGD(0.1), **EAGER)
    start = {t: to_numpy(z)[:, 0] for t, z in model(wide_batch(rows=16, seed=0)[0]).items()}
    result = kx.streaming.progressive_validation(
        model, tmp_path / "labelled", batch_size=16, task="conversion"
    )
    label = wide_batch(rows=16, seed=0)[1]["label_conversion"]
    known = np.isfinite(label)
    assert result.rows[0]["examples"] == known.sum()
    loss = np.logaddexp(0, start["conversion"]) - label * start["conversion"]
    assert result.rows[0]["logloss"] == pytest.approx(loss[known].mean(), rel=1e-5)
    with pytest.raises(kx.streaming.StreamError, match=r"predicts the tasks.*click.*task=None"):
        kx.streaming.progressive_validation(model, tmp_path / "labelled", batch_size=16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: distilled(teachers=[]), "one TeacherBranch or more"),
        (lambda: distilled(teachers=[AuxiliaryHead()]), "one TeacherBranch or more"),
        (
            lambda: distilled(teachers=[TeacherBranch("a"), TeacherBranch("a")]),
            r"differ in their names.*\['a', 'a'\]",
        ),
        (lambda: distilled(teachers=[TeacherBranch(task="click")]), r"\[None\].*\['click'\]"),
        (
            lambda: distilled(teachers=[TeacherBranch()], gate=TeacherGate()),
            r"takes the place.*\['gate'\]",
        ),
        (lambda: distilled(teachers=[TeacherBranch()], strict=True), "needs a `student_adapter`"),
        (
            lambda: distilled(functional_tasks(), auxiliary_head=AuxiliaryHead()),
            r"come as `teachers`.*\['click', 'conversion'\]",
        ),
        (lambda: TeacherBranch("a b"), r"`teacher` should be a name.*'a b'"),
        (lambda: TeacherBranch(gate=0.5), "`gate` should be a TeacherGate"),
        (
            lambda: distilled(gate=TeacherGate()).compile("sgd", loss_weights={"a": 1.0}),
            "for several tasks",
        ),
        (
            lambda: distilled(functional_tasks()).compile("sgd", metrics=["mse"]),
            "metrics come as a dict",
        ),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_are_not_shared_between_teachers():
    head = AuxiliaryHead()
    with pytest.raises(ValueError, match="a layer twice"):
        distilled(
            teachers=[
                TeacherBranch("a", auxiliary_head=head),
                TeacherBranch("b", auxiliary_head=head),
            ]
        )


def test_targets_of_another_shape():
    model = distilled(representation_head=RepresentationHead(3))
    model.compile("sgd", **EAGER)
    x, y, _ = batch()
    with pytest.raises(ValueError, match=r"`teacher_representation`.*\(batch, 3\).*\(16, 2\)"):
        model.train_on_batch(
            x, {"label": y["label"], "teacher_representation": np.zeros((16, 2), "float32")}
        )
    tasks = MODELS["tasks"]()
    tasks.compile("sgd", **EAGER)
    with pytest.raises(ValueError, match="label_conversion.*Received: y of type"):
        tasks.train_on_batch(x, y["label"])
