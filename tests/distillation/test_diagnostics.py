import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.distillation import TeacherDiagnostics, diagnose
from keras_exfm.layers import AuxiliaryHead, RepresentationHead, StudentAdapter, TeacherGate
from keras_exfm.metrics import functional
from tests.distillation.restatement import Restatement, sigmoid
from tests.distillation.students import batch, chosen, columns, distilled, wide_batch
from tests.distillation.test_branches import MODELS
from tests.testing import to_numpy


def gradients_by_hand(model, x, y, weight):
    """From the restatement's networks: the label's and the teacher's gradient in `relu(x W + b)`.

    For one linear auxiliary head and one linear representation head.
    """
    restatement = Restatement(model)
    x, y, weight = columns(x, y, weight)
    kernel, bias = restatement.networks["backbone"][0]
    rep = np.maximum(x @ kernel + bias, 0)
    weight = weight / len(x)

    def linear(name):
        ((kernel, bias),) = restatement.networks[name]
        return rep @ kernel + bias, kernel

    z, kernel = linear("serving")
    of_label = weight * (sigmoid(z) - y["label"]) @ kernel.T
    of_teacher = np.zeros_like(rep)
    teacher = y["teacher_logit"]
    known = np.isfinite(teacher)
    head = model.auxiliary_head
    if head is not None:
        logit, kernel = linear("auxiliary_head")
        target = np.minimum(head.label_scale * sigmoid(np.where(known, teacher, 0)), 1)
        delta = head.loss_weight * head.gradient_scale * weight * known
        of_teacher += delta * (sigmoid(logit) - target) @ kernel.T
    head = model.representation_head
    if head is not None:
        vectors = y["teacher_representation"]
        held = weight * np.isfinite(vectors).all(1, keepdims=True)
        target = restatement.standardise(y, weight * len(x))[""]
        vector, kernel = linear("representation_head")
        error = np.where(held > 0, vector - target, 0)
        of_teacher += head.loss_weight * 2 / head.size * held * error @ kernel.T
    return of_label, of_teacher


@pytest.mark.parametrize(
    "parts",
    [
        lambda: {"auxiliary_head": AuxiliaryHead((), 0.7, 1.6, 2.5)},
        lambda: {"representation_head": RepresentationHead(3, loss_weight=0.4)},
        lambda: {
            "auxiliary_head": AuxiliaryHead(),
            "representation_head": RepresentationHead(3),
            "student_adapter": None,
        },
    ],
)
def test_gradients_are_those_of_the_restatement(parts):
    model = distilled(**parts())
    x, y, weight = chosen(model, wide_batch(rows=32))
    figures = diagnose(model, x, y, weight)
    of_label, of_teacher = gradients_by_hand(model, x, y, weight)
    norms = [np.linalg.norm(g) for g in (of_label, of_teacher)]
    assert figures["gradient_ratio"] == pytest.approx(norms[1] / norms[0], rel=1e-4)
    cosine = (of_label * of_teacher).sum() / (norms[0] * norms[1])
    assert figures["gradient_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_figures_of_the_predictions():
    model = distilled(
        auxiliary_head=AuxiliaryHead(label_scale=1.6),
        student_adapter=StudentAdapter((3,)),
        gate=TeacherGate(),
    )
    x, y, weight = batch(rows=64)
    y["teacher_age_s"] = np.linspace(0, 1000, 64).astype("float32")
    y["unread"] = np.zeros(64)
    figures = diagnose(model, x, y, weight)
    teacher = y["teacher_logit"].astype("float64")
    known = np.isfinite(teacher) & (weight > 0)
    assert figures["teacher_coverage"] == pytest.approx(known[weight > 0].mean())
    assert figures["teacher_age_s"] == pytest.approx(y["teacher_age_s"][known].mean(), rel=1e-5)
    label, w = y["label"][known].astype("float64"), weight[known].astype("float64")
    logits = {
        "teacher": teacher[known],
        "adapter": to_numpy(model.student_adapter(y["teacher_logit"][:, None]))[known, 0],
        "student": to_numpy(model(x))[known, 0],
    }
    rate = (w * label).sum() / w.sum()
    for name, z in logits.items():
        p = sigmoid(z.astype("float64"))
        loss = -(w * (label * np.log(p) + (1 - label) * np.log(1 - p))).sum() / w.sum()
        entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        assert figures[f"{name}_ne"] == pytest.approx(loss / entropy, rel=1e-4), name
        assert figures[f"{name}_calibration"] == pytest.approx(
            (w * p).sum() / (w * label).sum(), rel=1e-4
        )
    assert figures["clipped_labels"] == pytest.approx((1.6 * sigmoid(teacher[known]) > 1).mean())
    # The gate is shut before the first step, and with it the teacher's gradient.
    assert figures["teacher_gate"] == figures["gradient_ratio"] == 0.0


def test_nothing_changes():
    model = MODELS["two_teachers"]()
    x, y, weight = chosen(model, wide_batch())
    before = [to_numpy(v).copy() for v in model.variables]
    figures = diagnose(model, x, y, weight)
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, to_numpy(b), err_msg=b.path)
    for name in ("teacher_ne", "adapter_ne", "gradient_ratio"):
        assert {name, f"{name}_second"} <= set(figures)
    assert "student_ne" in diagnose(MODELS["tasks"](), x, {**y, **task_labels()}, weight)


def task_labels():
    _, y, _ = wide_batch()
    return {name: y[name] for name in ("label_click", "label_conversion")}


def test_a_batch_without_a_teacher():
    model = distilled(auxiliary_head=AuxiliaryHead())
    x, y, weight = batch()
    figures = diagnose(model, x, y["label"], weight)
    assert figures["teacher_coverage"] == 0.0
    assert figures["gradient_ratio"] == 0.0
    assert np.isnan(figures["teacher_ne"])
    assert set(diagnose(distilled(), x, y, weight)) == {
        "teacher_coverage", "teacher_ne", "teacher_calibration", "student_ne", "student_calibration"
    }  # fmt: skip


def test_a_path_around_the_representation():
    """DeepFM's logit is a sum of a wide part and of what the representation gives."""
    schema = kx.Schema([kx.Categorical("ad", 20), kx.Numeric("age")])
    rng = np.random.default_rng(0)
    x = {
        "ad": rng.integers(0, 20, 16).astype("int32"),
        "age": rng.normal(size=16).astype("float32"),
        "unread": np.zeros(16),
    }
    y = {"label": rng.integers(0, 2, 16).astype("float32"), "teacher_logit": rng.normal(size=16)}
    model = distilled(
        kx.models.DeepFM(schema, dim=4, dnn_units=(8,)), auxiliary_head=AuxiliaryHead()
    )
    assert diagnose(model, x, y)["gradient_ratio"] > 0
    assert not any(
        to_numpy(v).any() for v in model.variables if v.path.endswith(("accumulator", "step"))
    )


def test_callback():
    model = distilled(auxiliary_head=AuxiliaryHead())
    model.compile(keras.optimizers.SGD(0.3))
    x, y, weight = batch(rows=64)
    watch = TeacherDiagnostics(x, y, weight, every=3)
    history = model.fit(
        x, y, sample_weight=weight, batch_size=16, epochs=2, shuffle=False, verbose=0,
        callbacks=[watch],
    ).history  # fmt: skip
    assert [r["batch"] for r in watch.records] == [3, 4, 6, 8]
    assert [r["epoch"] for r in watch.records] == [0, 0, 1, 1]
    for epoch, record in enumerate((watch.records[1], watch.records[3])):
        assert history["sample_student_ne"][epoch] == record["student_ne"]
    # The last record is of the trained model, and those in between are not.
    assert diagnose(model, x, y, weight) == pytest.approx(
        {k: v for k, v in watch.records[-1].items() if k not in ("batch", "epoch")}
    )
    assert len({r["student_ne"] for r in watch.records}) == 4
    other = distilled(auxiliary_head=AuxiliaryHead())
    other.compile(keras.optimizers.SGD(0.3))
    other.fit(x, y, sample_weight=weight, batch_size=16, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("every", [0, True, 1.5])
def test_bad_arguments(every):
    x, y, _ = batch()
    with pytest.raises(ValueError, match="`every` should be"):
        TeacherDiagnostics(x, y, every=every)
    with pytest.raises(ValueError, match="should be an ExternalDistillation"):
        diagnose(keras.Sequential(), x, y)


def test_the_cosine_tells_an_adversary():
    """A teacher that says the opposite of the labels pulls against them."""
    model = distilled(shared_head_weight=1.0)
    x, y, _ = batch(rows=256)
    truth = 1.5 * x[:, 0] - x[:, 1]
    cosines = [
        diagnose(model, x, {**y, "teacher_logit": sign * truth})["gradient_cosine"]
        for sign in (1.0, -1.0)
    ]
    assert cosines[0] > 0.5
    assert cosines[1] < 0
    assert functional.normalized_entropy(y["label"], truth) < 1
