"""Which gradient reaches which weight, and how large."""

import numpy as np
import pytest

from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from tests.distillation.gradients import training_gradients
from tests.distillation.restatement import Restatement
from tests.distillation.students import all_parts, batch, columns, distilled

PARTS = {
    "no_teacher": dict,
    "vanilla": lambda: {"shared_head_weight": 0.8},
    "auxiliary": lambda: {"auxiliary_head": AuxiliaryHead()},
    "auxiliary_knobs": lambda: {"auxiliary_head": AuxiliaryHead((5, 3), 10.0, 5.0, 20.0)},
    "adapter": lambda: {"student_adapter": StudentAdapter()},
    "adapter_residual": lambda: {"student_adapter": StudentAdapter((), residual=True)},
    "adapter_head_knobs": lambda: {
        "student_adapter": StudentAdapter(),
        "adapter_head": AuxiliaryHead((2,), 3.0, 1.4, 0.5),
    },
    "all": all_parts,
    "all_strict": lambda: all_parts(strict=True),
    "all_and_vanilla": lambda: all_parts(shared_head_weight=0.3),
    "adapter_in_shared_head": lambda: all_parts(
        shared_head_weight=0.3, shared_head_source="adapter"
    ),
}


def compiled(seed=0, **parts):
    model = distilled(**parts)
    model.compile("sgd")
    return model


def by_layer(gradients, word):
    found = [g for path, g in gradients.items() if f"{word}/" in path]
    assert found, f"no variable of {word} in {list(gradients)}"
    return found


@pytest.mark.parametrize("name", list(PARTS))
def test_gradients_are_those_of_the_restatement(name):
    model = compiled(**PARTS[name]())
    x, y, weight = batch()
    restatement = Restatement(model)
    _, expected = restatement.step(*columns(x, y, weight))
    gradients = training_gradients(model, x, y, weight)
    seen = set()
    for part, layer, _ in restatement.layers_of(model):
        variables = [v.path for v in layer.weights]
        if part == "adapter" and model.strict:
            assert not set(variables) & set(gradients)
            continue
        for path, gradient in zip(variables, [g for pair in expected[part] for g in pair]):
            np.testing.assert_allclose(gradients[path], gradient, rtol=2e-4, atol=2e-6)
            seen.add(path)
    assert seen == set(gradients)


def test_teacher_terms_leave_the_serving_head_alone():
    x, y, weight = batch()
    plain = training_gradients(compiled(), x, y, weight)
    taught = training_gradients(compiled(**all_parts()), x, y, weight)
    for a, b in zip(by_layer(plain, "serving"), by_layer(taught, "serving")):
        np.testing.assert_array_equal(a, b)
    # ... while they do reach the backbone.
    a, b = by_layer(plain, "representation")[0], by_layer(taught, "representation")[0]
    assert np.abs(a - b).max() > 1e-3


def with_head(**knobs):
    model = compiled(auxiliary_head=AuxiliaryHead((5,), name="auxiliary", **knobs))
    rng = np.random.default_rng(1)
    model.auxiliary_head.set_weights(
        [rng.normal(size=v.shape) for v in model.auxiliary_head.weights]
    )
    x, y, weight = batch()
    return training_gradients(model, x, y, weight)


def test_gradient_scale_multiplies_the_distillation_part_of_the_backbone_only():
    none, one, four = (with_head(gradient_scale=beta) for beta in (0.0, 1.0, 4.0))
    for g0, g1, g4 in zip(*(by_layer(g, "representation") for g in (none, one, four))):
        assert np.abs(g1 - g0).max() > 1e-3
        np.testing.assert_allclose(g4 - g0, 4 * (g1 - g0), rtol=1e-4, atol=1e-6)
    for word in ("auxiliary", "serving"):
        for g0, g4 in zip(by_layer(none, word), by_layer(four, word)):
            np.testing.assert_allclose(g4, g0, rtol=1e-6, atol=1e-8)


def test_loss_weight_multiplies_the_whole_term():
    none, one, four = (with_head(loss_weight=w) for w in (0.0, 1.0, 4.0))
    for word in ("representation", "auxiliary"):
        for g0, g1, g4 in zip(*(by_layer(g, word) for g in (none, one, four))):
            np.testing.assert_allclose(g4 - g0, 4 * (g1 - g0), rtol=1e-4, atol=1e-6)
    for g in by_layer(none, "auxiliary"):
        np.testing.assert_array_equal(g, np.zeros_like(g))
    for g0, g4 in zip(by_layer(none, "serving"), by_layer(four, "serving")):
        np.testing.assert_array_equal(g4, g0)


def test_label_scale_moves_the_target_alone():
    one, five = with_head(label_scale=1.0), with_head(label_scale=5.0)
    for g1, g5 in zip(by_layer(one, "serving"), by_layer(five, "serving")):
        np.testing.assert_array_equal(g1, g5)
    # The output bias' gradient is mean(sigmoid(z) - target): it moves by the mean target.
    x, y, weight = batch()
    known = np.isfinite(y["teacher_logit"])
    p = 1 / (1 + np.exp(-np.where(known, y["teacher_logit"], 0)))
    moved = (weight * known * (np.minimum(5 * p, 1) - p)).sum() / len(x)
    change = by_layer(one, "auxiliary")[-1] - by_layer(five, "auxiliary")[-1]
    np.testing.assert_allclose(change, [moved], rtol=1e-5)


def test_the_student_has_no_say_in_the_adapter():
    x, y, weight = batch()
    model = compiled(**all_parts())
    rng = np.random.default_rng(0)
    before = by_layer(training_gradients(model, x, y, weight), "student_adapter")
    for layer in (model.student, model.auxiliary_head, model.adapter_head):
        layer.set_weights([rng.normal(scale=2.0, size=v.shape) for v in layer.weights])
    after = by_layer(training_gradients(model, x, y, weight), "student_adapter")
    assert np.abs(before[0]).max() > 1e-4
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)


def test_rows_without_a_teacher_only_lose_the_teacher_terms():
    """Removing a teacher changes the head's gradient by that row's share, and nothing is NaN."""
    x, y, weight = batch()
    y["teacher_logit"] = np.nan_to_num(y["teacher_logit"], nan=0.7)
    model = compiled(**all_parts())
    whole = training_gradients(model, x, y, weight)
    single = {}
    for row in (0, 5):
        alone = weight * (np.arange(len(x)) == row)
        none = {"label": y["label"], "teacher_logit": np.full_like(y["label"], np.nan)}
        with_teacher = training_gradients(model, x, y, alone)
        without = training_gradients(model, x, none, alone)
        for path in whole:
            single[path] = single.get(path, 0) + with_teacher[path] - without[path]
    y["teacher_logit"][[0, 5]] = np.nan
    holes = training_gradients(model, x, y, weight)
    for path in whole:
        np.testing.assert_allclose(
            holes[path], whole[path] - single[path], rtol=1e-4, atol=2e-6, err_msg=path
        )


@pytest.mark.parametrize("parts", ["vanilla", "all"])
def test_without_any_teacher_the_gradients_are_the_plain_ones(parts):
    x, y, weight = batch()
    plain = training_gradients(compiled(), x, y, weight)
    model = compiled(**PARTS[parts]())
    for target in (
        y["label"],
        {"label": y["label"]},
        {"label": y["label"], "teacher_logit": np.full_like(y["label"], np.nan)},
    ):
        gradients = training_gradients(model, x, target, weight)
        for word in ("representation", "serving"):
            for a, b in zip(by_layer(plain, word), by_layer(gradients, word)):
                np.testing.assert_array_equal(a, b)
        for path, gradient in gradients.items():
            if "representation" not in path and "serving" not in path:
                np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("name", ["vanilla", "auxiliary_knobs", "adapter_in_shared_head"])
def test_a_row_without_a_label_learns_from_the_teacher_alone(name):
    model = compiled(**PARTS[name]())
    x, y, weight = batch()
    y["label"][:9] = np.nan
    _, expected = Restatement(model).step(*columns(x, y, weight))
    gradients = training_gradients(model, x, y, weight)
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
    serving = by_layer(gradients, "serving")
    for gradient, restated in zip(serving, [g for pair in expected["serving"] for g in pair]):
        np.testing.assert_allclose(gradient, restated, rtol=2e-4, atol=2e-6)
    # Labels alone: a NaN among them is a fault, and shows.
    lost = training_gradients(model, x, {"label": y["label"]}, weight)
    assert all(np.isnan(gradient).any() for gradient in by_layer(lost, "serving"))


def test_padding_never_matters():
    x, y, weight = batch()
    assert (weight[-2:] == 0).all()
    model = compiled(**all_parts(shared_head_weight=0.5))
    clean = training_gradients(model, x, y, weight)
    y["label"][-2:] = np.nan, 7e30
    y["teacher_logit"][-2:] = np.inf, 1e30
    dirty = training_gradients(model, x, y, weight)
    for path in clean:
        np.testing.assert_array_equal(clean[path], dirty[path])
        assert np.isfinite(clean[path]).all()
