import keras
import numpy as np
import pytest

from keras_exfm.layers import StudentAdapter
from tests.distillation.gradients import layer_gradients
from tests.layers.test_auxiliary_head import dense_stack
from tests.testing import run_layer_test, to_numpy

TEACHER = np.array([[-4.0], [-1.0], [0.0], [0.5], [2.0], [9.0]], "float32")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("units", "parameters"), [((), 2), ((8,), 25), ((4, 3), 27)])
def test_layer(units, parameters, residual, tmp_path):
    def reference(layer, t):
        return dense_stack(layer, t) + (t if residual else 0)

    run_layer_test(
        lambda **kwargs: StudentAdapter(units, residual=residual, **kwargs),
        TEACHER,
        output_shape=(6, 1),
        parameters=parameters,
        reference=reference,
        tmp_path=tmp_path,
    )


def test_golden_values():
    adapter = StudentAdapter((2,))
    adapter.build((None, 1))
    # hidden = relu([t, -t + 1]), out = 2 * hidden_0 - hidden_1 + 0.5
    weights = [[[1.0, -1.0]], [0.0, 1.0], [[2.0], [-1.0]], [0.5]]
    adapter.set_weights([np.array(w) for w in weights])
    out = to_numpy(adapter(np.array([[-2.0], [0.5], [3.0]], "float32")))
    np.testing.assert_allclose(out[:, 0], [-2.5, 1.0, 6.5])


def test_residual_form_starts_at_the_teacher():
    adapter = StudentAdapter((8,), residual=True)
    np.testing.assert_array_equal(to_numpy(adapter(TEACHER)), TEACHER)
    plain = StudentAdapter((8,))
    assert np.abs(to_numpy(plain(TEACHER)) - TEACHER).max() > 0.1


@pytest.mark.parametrize("residual", [False, True])
def test_missing_teacher_gives_finite_values_and_gradients(residual):
    adapter = StudentAdapter((8,), residual=residual)
    adapter(TEACHER)
    holes = TEACHER.copy()
    holes[[1, 3, 5], 0] = np.nan, np.inf, -np.inf
    weight = np.isfinite(holes).astype("float32")
    _, own = layer_gradients(adapter, holes, lambda z: keras.ops.sum(z * weight))
    _, whole = layer_gradients(adapter, TEACHER, lambda z: keras.ops.sum(z * weight))
    assert np.isfinite(to_numpy(adapter(holes))).all()
    for a, b in zip(own, whole):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="units"):
        StudentAdapter(units=(8, -1))
    with pytest.raises(ValueError, match="residual"):
        StudentAdapter(residual=1)
    for shape in [(None, 2), (None,), (None, 1, 1)]:
        with pytest.raises(ValueError, match=r"\(batch, 1\)"):
            StudentAdapter().build(shape)


def test_context(tmp_path):
    adapter = StudentAdapter((3,), residual=True, context={"age": 3600.0, "share": 0.5})
    adapter.build((None, 1))
    rng = np.random.default_rng(0)
    adapter.set_weights([rng.normal(size=v.shape) for v in adapter.weights])
    context = np.array([[7200.0, 0.1], [np.nan, -2.0], [0, 0], [1e5, 1], [1, 1], [60, 3]])
    out = to_numpy(adapter(TEACHER, context.astype("float32")))
    scaled = np.arcsinh(np.nan_to_num(context) / [3600.0, 0.5])
    expected = TEACHER + dense_stack(adapter, np.concatenate([TEACHER, scaled], 1))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    config = adapter.get_config()
    assert config["context"] == {"age": 3600.0, "share": 0.5}
    assert StudentAdapter.from_config(config).get_config() == config
    # A layer over both inputs, in a file.
    inputs = [keras.Input((1,)), keras.Input((2,))]
    model = keras.Model(inputs, adapter(*inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(to_numpy(loaded([TEACHER, context.astype("float32")])), out)


@pytest.mark.parametrize(
    ("context", "given", "message"),
    [
        ({"age": 1.0}, None, r"\(batch, 1\).*\['age'\].*shape=None"),
        ({"age": 1.0}, np.zeros((6, 2), "float32"), r"\(batch, 1\).*shape=\(6, 2\)"),
        (None, np.zeros((6, 1), "float32"), r"without `context`.*\(6, 1\)"),
        ({"age": 0.0}, None, r"`context\['age'\]` should be a finite number above 0"),
        (["age"], None, r"`context` should be a dict.*\['age'\]"),
    ],
)
def test_context_that_does_not_fit(context, given, message):
    with pytest.raises(ValueError, match=message):
        StudentAdapter(context=context)(TEACHER, given)
