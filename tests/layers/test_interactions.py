import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_exfm.layers import (
    DotInteraction,
    FactorizationMachineBlock,
    LinearCompressionBlock,
    WukongLayer,
)
from keras_exfm.layers._columns import mix_columns
from tests.layers import reference
from tests.testing import run_layer_test, to_numpy

FORMS = ("static", "attentive", "dot")
B, N, D, K = 5, 6, 4, 3
C, A = 2, 7


def matrix(seed=0, size=B, n=N):
    return np.random.default_rng(seed).normal(size=(size, n, D)).astype("float32")


def scrambled(layer):
    """Every weight away from its initial value, so that no bias or gamma hides at 0 or 1."""
    rng = np.random.default_rng(7)
    for v in layer.trainable_variables:
        v.assign(to_numpy(v) + rng.normal(scale=0.3, size=v.shape))
    return layer


def block(form, n_out=2, units=(8, 5), **kw):
    return FactorizationMachineBlock(
        n_out,
        rank=K,
        mlp_units=units,
        form=form,
        attention_compression=C,
        attention_units=(A,),
        **kw,
    )


def wukong(form, n_fmb=2, n_lcb=3, **kw):
    return WukongLayer(
        n_fmb,
        n_lcb,
        rank=K,
        mlp_units=(8,),
        form=form,
        attention_compression=C,
        attention_units=(A,),
        **kw,
    )


def block_parameters(form, n, n_out, units):
    """The formula of the class documentation, written out."""
    width = n * n if form == "dot" else n * K
    count = 2 * width
    for before, after in zip((width, *units), (*units, n_out * D)):
        count += (before + 1) * after
    if form != "dot":
        count += n * K
    if form == "attentive":
        count += n * C + (C * D + 1) * A + A * n * K
    return count


class TestLinearCompressionBlock:
    def test_layer(self, tmp_path):
        run_layer_test(
            lambda **kw: LinearCompressionBlock(3, **kw),
            matrix(),
            output_shape=(B, 3, D),
            parameters=N * 3,
            tmp_path=tmp_path,
            reference=lambda layer, x: reference.lcb(reference.weights(layer), x),
        )

    def test_golden(self):
        layer = LinearCompressionBlock(2)
        x = np.array([[[1, 2], [10, 20], [100, 200]]], "float32")
        layer.build(x.shape)
        layer.kernel.assign([[1, 0], [1, 0], [0, -1]])
        np.testing.assert_array_equal(to_numpy(layer(x)), [[[11, 22], [-100, -200]]])

    def test_initial_variance_takes_its_fan_from_the_rows(self):
        """He-normal on a fan-in of n = 400 keeps 2 / 400 whatever n_out is."""
        layer = LinearCompressionBlock(50, kernel_initializer="he_normal")
        layer.build((None, 400, D))
        assert abs(to_numpy(layer.kernel).var() * 400 / 2 - 1) < 0.1

    def test_is_linear(self):
        layer = LinearCompressionBlock(2)
        x, y = matrix(1), matrix(2)
        np.testing.assert_allclose(
            to_numpy(layer(2 * x - y)), 2 * to_numpy(layer(x)) - to_numpy(layer(y)), atol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
class TestFactorizationMachineBlock:
    def test_layer(self, form, tmp_path):
        run_layer_test(
            lambda **kw: block(form, **kw),
            matrix(),
            output_shape=(B, 2, D),
            parameters=block_parameters(form, N, 2, (8, 5)),
            tmp_path=tmp_path,
            reference=lambda layer, x: reference.fmb(reference.weights(layer), x, form, 2),
        )

    def test_restatement_with_all_weights_moved(self, form):
        layer = block(form)
        layer(matrix())
        scrambled(layer)
        expected = reference.fmb(reference.weights(layer), matrix(3).astype("float64"), form, 2)
        np.testing.assert_allclose(to_numpy(layer(matrix(3))), expected, atol=2e-5, rtol=1e-4)

    def test_gradient_reaches_every_weight(self, form):
        model = keras.Sequential([keras.Input((N, D)), scrambled_on_build(block(form))])
        before = [to_numpy(v) for v in model.trainable_variables]
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(matrix(), np.ones((B, 2, D), "float32"), verbose=0)
        for v, old in zip(model.trainable_variables, before):
            assert not np.array_equal(to_numpy(v), old), v.path


def test_block_batch_of_one_and_none():
    layer = block("attentive")
    whole = to_numpy(layer(matrix()))
    np.testing.assert_allclose(to_numpy(layer(matrix()[:1])), whole[:1], atol=1e-5)
    assert tuple(layer(matrix()[:0]).shape) == (0, 2, D)


def test_nan_stays_in_its_example():
    x = matrix()
    x[2, 0, 0] = np.nan
    nan = np.isnan(to_numpy(block("attentive")(x))).any((1, 2))
    assert nan.tolist() == [False, False, True, False, False]


def test_block_without_hidden_layer():
    layer = block("static", units=())
    layer(matrix())
    scrambled(layer)
    out = to_numpy(layer(matrix()))
    expected = reference.fmb(reference.weights(layer), matrix().astype("float64"), "static", 2)
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=1e-4)
    # Linear output: a ReLU on it would leave no negative number.
    assert out.min() < -0.1


def scrambled_on_build(layer):
    layer.build((None, N, D))
    return scrambled(layer)


def interactions(layer, x):
    """`FM(X)` of a built block."""
    columns = keras.ops.transpose(keras.ops.convert_to_tensor(x), (0, 2, 1))
    products = mix_columns(columns, layer.mixtures())
    return to_numpy(layer._interactions(columns, products)).transpose(0, 2, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.permutations(range(N)))
def test_rows_permute_as_the_formula_says(order):
    """Dot: rows and columns of X Xᵀ move. Static: moving the rows of X and of Y together moves the
    rows of the output alone."""
    x = matrix()
    dot = block("dot")
    dot.build(x.shape)
    fm = interactions(dot, x)
    moved = interactions(dot, x[:, order])
    np.testing.assert_allclose(moved, fm[:, order][:, :, order], atol=1e-5)

    static = block("static")
    static.build(x.shape)
    fm = interactions(static, x)
    static.projection.assign(to_numpy(static.projection)[list(order)])
    moved = interactions(static, x[:, order])
    np.testing.assert_allclose(moved, fm[:, order], atol=1e-5)


def test_attentive_starts_as_the_static_form_on_tiny_embeddings():
    attentive, static = block("attentive"), block("static")
    x = 1e-4 * matrix()
    attentive.build(x.shape)
    static.build(x.shape)
    static.projection.assign(to_numpy(attentive.projection))
    a, s = (interactions(b, x) for b in (attentive, static))
    np.testing.assert_allclose(a, s, rtol=1e-2, atol=1e-10)


def test_attentive_projection_depends_on_the_input():
    """With a static Y the interactions are quadratic: doubling X gives four times as much."""
    layer = scrambled_on_build(block("attentive"))
    x = matrix()
    once = interactions(layer, x)
    twice = interactions(layer, 2 * x)
    assert not np.allclose(twice, 4 * once, rtol=0.05)


def test_epsilon_reaches_both_norms():
    layer = wukong("static", epsilon=0.5)
    layer(matrix())
    expected = reference.wukong_layer(reference.weights(layer), matrix(), "static", 2, epsilon=0.5)
    np.testing.assert_allclose(to_numpy(layer(matrix())), expected, atol=1e-5, rtol=1e-4)


def test_golden_block():
    """X = [[1, 0], [0, 2]], Y = [1, 1]ᵀ: FM = X (Xᵀ Y) = [1, 4]; LayerNorm gives [-1, 1]; the
    hidden unit is relu(-(-1) + 0 · 1) = 1; the output is [3, -2] · 1 + [0, 0.5]."""
    layer = FactorizationMachineBlock(1, rank=1, mlp_units=(1,), form="static")
    x = np.array([[[1, 0], [0, 2]]], "float32")
    layer.build(x.shape)
    layer.projection.assign([[1.0], [1.0]])
    hidden, bias, out, out_bias = layer.mlp.weights
    hidden.assign([[-1.0], [0.0]])
    bias.assign([0.0])
    out.assign([[3.0, -2.0]])
    out_bias.assign([0.0, 0.5])
    np.testing.assert_allclose(to_numpy(layer(x)), [[[3.0, -1.5]]], atol=1e-5)


@pytest.mark.parametrize(
    ("form", "n_fmb", "n_lcb"),
    [("static", 2, 3), ("static", 4, 2), ("attentive", 2, 3), ("dot", 4, 2)],
    ids=["static-projected", "static-identity", "attentive-projected", "dot-identity"],
)
class TestWukongLayer:
    def test_layer(self, form, n_fmb, n_lcb, tmp_path):
        count = n_fmb + n_lcb
        run_layer_test(
            lambda **kw: wukong(form, n_fmb, n_lcb, **kw),
            matrix(),
            output_shape=(B, count, D),
            parameters=block_parameters(form, N, n_fmb, (8,))
            + N * n_lcb
            + 2 * D
            + (N * count if count != N else 0),
            tmp_path=tmp_path,
            reference=lambda layer, x: reference.wukong_layer(
                reference.weights(layer), x, form, n_fmb
            ),
        )

    def test_restatement_with_all_weights_moved(self, form, n_fmb, n_lcb):
        layer = wukong(form, n_fmb, n_lcb)
        layer(matrix())
        scrambled(layer)
        x = matrix(5)
        expected = reference.wukong_layer(
            reference.weights(layer), x.astype("float64"), form, n_fmb
        )
        np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=5e-5, rtol=1e-4)


def test_golden_wukong_layer():
    """FMB silenced (its output is its last bias, 0), LCB = 0, counts equal: LayerNorm(X)."""
    layer = wukong("static", 4, 2)
    x = matrix()
    layer.build(x.shape)
    for v in layer.weights:
        if v.path.endswith(("mlp/output/kernel", "lcb/kernel")):
            v.assign(np.zeros(v.shape))
    centered = x - x.mean(-1, keepdims=True)
    expected = centered / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)


def test_fmb_rows_come_before_lcb_rows():
    layer = wukong("static", 2, 3)
    x = matrix()
    layer.build(x.shape)
    before = to_numpy(layer(x))
    layer.lcb.kernel.assign(10 * to_numpy(layer.lcb.kernel))
    changed = (np.abs(to_numpy(layer(x)) - before) > 1e-3).any((0, 2))
    assert changed.tolist() == [False, False, True, True, True]


def test_wukong_layer_nan_stays_in_its_example():
    """LCB and residual carry it on, whatever a backend's ReLU makes of NaN in the FMB."""
    x = matrix()
    x[1, 2, 3] = np.nan
    nan = np.isnan(to_numpy(wukong("static")(x))).any((1, 2))
    assert nan.tolist() == [False, True, False, False, False]


def test_dropout_acts_in_training_only_and_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input((N, D)), wukong("static", dropout=0.5)])
    x = matrix()
    quiet = to_numpy(model(x, training=False))
    assert np.array_equal(to_numpy(model(x, training=False)), quiet)
    assert not np.array_equal(to_numpy(model(x, training=True)), quiet)
    model.save(tmp_path / "m.keras")
    reloaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(to_numpy(reloaded(x, training=False)), quiet)


def test_without_dropout_there_is_no_random_state():
    layer = wukong("static")
    layer.build((None, N, D))
    assert not layer.non_trainable_variables


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_every_dtype_policy(dtype):
    layer = wukong("attentive", dtype=dtype)
    x = matrix()
    given = ops.cast(x, layer.compute_dtype)  # float64 is float32 on JAX as it is set up.
    y = layer(given)
    assert y.dtype == given.dtype
    expected = reference.wukong_layer(reference.weights(layer), x, "attentive", 2)
    atol = {"float64": 1e-6, "float16": 0.02}.get(dtype, 0.15)
    np.testing.assert_allclose(to_numpy(ops.cast(y, "float32")), expected, atol=atol)


class TestDotInteraction:
    def test_layer(self, tmp_path):
        run_layer_test(
            DotInteraction,
            matrix(),
            output_shape=(B, N * (N - 1) // 2),
            parameters=0,
            tmp_path=tmp_path,
            reference=lambda layer, x: reference.triangle_of_dots(x),
        )

    def test_small_batches(self):
        layer = DotInteraction()
        assert tuple(layer(matrix(size=1)).shape) == (1, 15)
        assert tuple(layer(matrix(size=0)).shape) == (0, 15)

    def test_one_embedding(self):
        with pytest.raises(ValueError, match="at least two embeddings"):
            DotInteraction()(matrix(n=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorizationMachineBlock(2), "`rank` should be given.*static"),
        (lambda: FactorizationMachineBlock(2, rank=0), "rank=0"),
        (lambda: FactorizationMachineBlock(2, rank=2, form="fm"), "`form`.*'fm'"),
        (lambda: FactorizationMachineBlock(0, rank=2), "n_out=0"),
        (lambda: FactorizationMachineBlock(2, rank=2, mlp_units=[8, "9"]), r"mlp_units\[1\]='9'"),
        (lambda: FactorizationMachineBlock(2, rank=2, dropout=1.0), r"\[0, 1\).*dropout=1.0"),
        (lambda: LinearCompressionBlock(True), "n_out=True"),
        (lambda: WukongLayer(2, 0, rank=2), "n_lcb=0"),
        (lambda: WukongLayer(2, 2, rank=None), "`rank` should be given"),
        (lambda: WukongLayer(2, 2, rank=2, form="x"), "`form`"),
        (lambda: WukongLayer(2, 2, rank=2, attention_compression=0), "attention_compression=0"),
        (lambda: WukongLayer(2, 2, rank=2)(np.zeros((3, 4), "float32")), r"\(batch, n, dim\)"),
        (
            lambda: LinearCompressionBlock(2)(keras.Input((None, 4))),
            r"LinearCompressionBlock expects .*\(None, None, 4\)",
        ),
    ],
)
def test_errors_say_what_was_received(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_misspelt_argument():
    with pytest.raises((TypeError, ValueError), match="n_fbm"):
        WukongLayer(2, 2, rank=2, n_fbm=3)
