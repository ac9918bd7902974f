"""Interaction layers of the baselines: restated in NumPy, and by hand where it fits on a line."""

import keras
import numpy as np
import pytest

from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
from keras_exfm.layers import (
    BilinearFusion,
    CompressedInteractionNetwork,
    CrossLayer,
    FactorizationMachine,
    FeatureSelection,
    FieldwiseLayerNormalization,
    FirstOrder,
    InteractingAttention,
    LogarithmicTransformation,
    MaskBlock,
)
from tests.layers.baseline_reference import (
    attention,
    bilinear,
    cin,
    cross,
    feature_selection,
    fieldwise,
    first_order,
    initialize_with_numpy,
    mask_block,
    pairs,
    powers,
    weights,
)
from tests.testing import parameter_count, run_layer_test, to_numpy

# Three examples, and no two sizes equal, so that a mix-up of axes shows.
BATCH, N, DIM = 3, 5, 4


@pytest.fixture(autouse=True)
def _initial_values(monkeypatch):
    initialize_with_numpy(monkeypatch)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


X = normal(BATCH, N, DIM)
FLAT = normal(BATCH, 6)
OTHER = normal(BATCH, 6, seed=1)


def randomize(layer, *inputs):
    """Gives every weight a value that is not its initial one (zeros and ones hide mistakes)."""
    if inputs:
        layer(*inputs)
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32") * 0.5)
    return layer


# Class, arguments, inputs, output shape, number of weights, restatement.
CASES = {
    "cross": (CrossLayer, {"rank": 2}, [FLAT, OTHER], (6,), 6 * (2 * 2 + 1), cross),
    "attention": (
        InteractingAttention,
        {"units": 6, "num_heads": 3, "layer_norm": True},
        X,
        (N, 6),
        4 * DIM * 6 + 2 * 6,
        attention,
    ),
    "logarithmic": (
        LogarithmicTransformation,
        {"neurons": 7},
        X,
        (7, DIM),
        N * 7 + 2 * N + 2 * 7,
        powers,
    ),
    "cin": (
        CompressedInteractionNetwork,
        {"units": (3, 2)},
        X,
        (5,),
        (N * N + 1) * 3 + (N * 3 + 1) * 2,
        cin,
    ),
    "mask_block": (
        MaskBlock,
        {"units": 4, "reduction_ratio": 1.5},
        [OTHER, normal(BATCH, 5)],
        (4,),
        (6 + 1) * 7 + (7 + 1) * 5 + 5 * 4 + 2 * 4,
        mask_block,
    ),
    "feature_selection": (
        FeatureSelection,
        {"units": (7,)},
        [FLAT, normal(BATCH, 2)],
        (6,),
        (2 + 1) * 7 + (7 + 1) * 6,
        feature_selection,
    ),
    "bilinear": (
        BilinearFusion,
        {"first": 4, "num_heads": 2},
        normal(BATCH, 10),
        (1,),
        1 + 10 + 4 * 6 // 2,
        bilinear,
    ),
    "factorization_machine": (FactorizationMachine, {}, X, (1,), 0, pairs),
    "fieldwise": (FieldwiseLayerNormalization, {}, X, (N, DIM), 2 * N * DIM, fieldwise),
}
VARIANTS = {
    "cross_full": (CrossLayer, {}, [FLAT, OTHER], (6,), 6 * 7, cross),
    "attention_scaled": (
        InteractingAttention,
        {"units": DIM, "scale": True},
        X,
        (N, DIM),
        3 * DIM * DIM,
        attention,
    ),
    "attention_no_residual": (
        InteractingAttention,
        {"units": 6, "num_heads": 1, "residual": False},
        X,
        (N, 6),
        3 * DIM * 6,
        attention,
    ),
    "logarithmic_no_norm": (
        LogarithmicTransformation,
        {"neurons": 7, "batch_norm": False},
        X,
        (7, DIM),
        N * 7,
        powers,
    ),
    "mask_block_no_norm": (
        MaskBlock,
        {"units": 4, "reduction_ratio": 0.01, "layer_norm": False},
        [FLAT, OTHER],
        (4,),
        (6 + 1) * 1 + (1 + 1) * 6 + 6 * 4,
        mask_block,
    ),
    "feature_selection_learned": (
        FeatureSelection,
        {"units": (7,), "context_dim": 2},
        FLAT,
        (6,),
        (2 + 1) * 7 + (7 + 1) * 6 + 2,
        feature_selection,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layer(case, tmp_path):
    cls, config, inputs, output_shape, parameters, reference = case
    layer = run_layer_test(
        lambda **kwargs: cls(**config, **kwargs),
        inputs,
        output_shape=(BATCH, *output_shape),
        parameters=parameters,
        tmp_path=tmp_path,
    )
    randomize(layer)
    out = to_numpy(layer(inputs))
    np.testing.assert_allclose(out, reference(layer, inputs), atol=1e-4, rtol=1e-4)
    one = layer(keras.tree.map_structure(lambda x: x[:1], inputs))
    np.testing.assert_allclose(to_numpy(one), out[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", VARIANTS.values(), ids=VARIANTS)
def test_variant(case):
    cls, config, inputs, output_shape, parameters, reference = case
    layer = randomize(cls.from_config(cls(**config).get_config()), inputs)
    out = to_numpy(layer(inputs))
    assert out.shape == (BATCH, *output_shape)
    assert parameter_count(layer) == parameters
    np.testing.assert_allclose(out, reference(layer, inputs), atol=1e-4, rtol=1e-4)


def test_cross_by_hand():
    layer = CrossLayer(kernel_initializer="ones", bias_initializer="ones")
    x0, x = np.array([[1.0, 2.0]], "float32"), np.array([[3.0, 4.0]], "float32")
    # x0 * (3 + 4 + 1) + x
    assert to_numpy(layer([x0, x])).tolist() == [[11.0, 20.0]]
    low = CrossLayer(rank=2, kernel_initializer="ones")
    # x0 * 2 * (3 + 4) + x
    assert to_numpy(low([x0, x])).tolist() == [[17.0, 32.0]]


def test_cross_layers_raise_the_order_by_one():
    """On the line x = t v, l layers give a polynomial in t of the degree l + 1."""
    x0 = np.linspace(-3, 3, 7, dtype="float32")[:, None] * normal(1, 6)
    x = x0
    for order in (2, 3, 4):
        x = randomize(CrossLayer(), [x0, x])([x0, x])
        scale = np.abs(to_numpy(x)).max()
        assert np.abs(np.diff(to_numpy(x), order + 1, axis=0)).max() < 1e-4 * scale
        assert np.abs(np.diff(to_numpy(x), order, axis=0)).max() > 1e-2 * scale


def test_attention_is_equivariant_to_the_order_of_fields():
    layer = InteractingAttention(6, num_heads=2)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        to_numpy(layer(X[:, order])), to_numpy(layer(X))[:, order], atol=1e-5
    )


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: InteractingAttention(6, dropout=0.5), X),
        (lambda: MaskBlock(6, dropout=0.5), [FLAT, OTHER]),
    ],
)
def test_dropout_only_in_training(layer, inputs):
    layer = layer()
    still = to_numpy(layer(inputs, training=False))
    np.testing.assert_array_equal(still, to_numpy(layer(inputs)))
    assert np.abs(to_numpy(layer(inputs, training=True)) - still).max() > 1e-3


def test_logarithmic_norms_use_the_batch_in_training():
    layer = LogarithmicTransformation(7)
    x = normal(200, N, DIM)
    out = to_numpy(layer(x, training=True))
    # One mean and variance per neuron, over the batch and the coordinates.
    np.testing.assert_allclose(out.mean((0, 2)), np.zeros(7), atol=1e-4)
    np.testing.assert_allclose(out.std((0, 2)), np.ones(7), atol=1e-2)
    logs = np.log(np.maximum(np.abs(x), 1e-5))
    np.testing.assert_allclose(
        to_numpy(layer.log_norm.moving_mean), 0.1 * logs.mean((0, 2)), rtol=1e-3
    )


def test_logarithm_of_zero_is_finite():
    """A missing feature's embedding is the zero vector."""
    layer = LogarithmicTransformation(7, batch_norm=False)
    assert np.isfinite(to_numpy(layer(np.zeros((BATCH, N, DIM), "float32")))).all()


def test_logarithmic_computes_in_float32_under_mixed_precision():
    x = X * 1e-4
    exact = LogarithmicTransformation(7, batch_norm=False)
    exact(x)
    mixed = LogarithmicTransformation(7, batch_norm=False, dtype="mixed_bfloat16")
    mixed(x)
    mixed.set_weights(exact.get_weights())
    # Only the input and the output are rounded to bfloat16, by at most 2**-8 each.
    power = np.abs(to_numpy(exact.kernel)).sum(0).max() + 1
    np.testing.assert_allclose(
        to_numpy(keras.ops.cast(mixed(x), "float32")), to_numpy(exact(x)), rtol=power * 2**-8
    )


def test_cin_by_hand():
    layer = CompressedInteractionNetwork((1, 1), kernel_initializer="ones")
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]], "float32")
    # Coordinates' sums are 4 and 6: the squares sum to 52, the cubes to 280.
    assert to_numpy(layer(x)).tolist() == [[52.0, 280.0]]


def test_mask_block_by_hand():
    layer = MaskBlock(4, layer_norm=False, activation=None, kernel_initializer="ones")
    v, h = np.array([[1.0, 2.0]], "float32"), np.array([[5.0, 7.0]], "float32")
    # mask = (3 + 3) in both places, so each output is 6 * (5 + 7).
    assert to_numpy(layer([v, h])).tolist() == [[72.0] * 4]


def test_feature_selection_starts_near_one():
    """Zero gate weights leave the embeddings as they are."""
    layer = FeatureSelection(kernel_initializer="zeros")
    np.testing.assert_allclose(to_numpy(layer([FLAT, OTHER])), FLAT, rtol=1e-6)


def test_learned_context_is_trained():
    """All of the gate gets a gradient at the start (with a zero context none of it would)."""
    layer = FeatureSelection((8,), context_dim=4)
    model = keras.Sequential([keras.Input((6,)), layer])
    before = layer.get_weights()
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    model.fit(FLAT, FLAT * 2, verbose=0)
    for name, old, new in zip(weights(layer), before, layer.get_weights()):
        assert np.abs(new - old).max() > 0, name


def test_bilinear_by_hand():
    layer = BilinearFusion(2, num_heads=2, kernel_initializer="ones")
    # 1 + 2 + 3 + 4, and per head 1 * 3 + 2 * 4.
    assert to_numpy(layer(np.array([[1.0, 2.0, 3.0, 4.0]], "float32"))).tolist() == [[21.0]]


def test_factorization_machine_keeps_float32_sums():
    """In bfloat16 the two sums would agree to all digits and the difference would be lost."""
    x = np.zeros((1, 100, 1), "float32")
    x[0, 0] = x[0, 1] = 0.125
    x[0, 2] = 16.0
    out = FactorizationMachine(dtype="mixed_bfloat16")(x)
    expected = 0.125**2 + 2 * 0.125 * 16
    np.testing.assert_allclose(to_numpy(keras.ops.cast(out, "float32")), [[expected]], rtol=2**-8)


SCHEMA = Schema(
    [
        Categorical("ad", 5),
        MultiHot("tags", 4, length=3, combiner="sum"),
        Numeric("age"),
        Numeric("vector", 2),
    ]
)
FEATURES = {
    "ad": np.array([0, 4, -1], "int32"),
    "tags": np.array([[1, 3, -1], [2, 2, 2], [-1, -1, -1]], "int32"),
    "age": np.array([1.0, 2.0, 3.0], "float32"),
    "vector": normal(3, 2),
}


@pytest.mark.parametrize("use_bias", [True, False])
def test_first_order(use_bias, tmp_path):
    if use_bias:
        layer = run_layer_test(
            lambda **kwargs: FirstOrder(SCHEMA, optimizer=None, **kwargs),
            FEATURES,
            output_shape=(3, 1),
            parameters=5 + 4 + 3 + 1,
            tmp_path=tmp_path,
        )
    else:
        layer = FirstOrder(SCHEMA, use_bias=False, optimizer=None)
        layer = FirstOrder.from_config(layer.get_config())
    randomize(layer, FEATURES)
    assert parameter_count(layer) == 12 + use_bias
    np.testing.assert_allclose(
        to_numpy(layer(FEATURES)), first_order(layer, FEATURES), atol=1e-5, rtol=1e-5
    )


def test_first_order_of_one_kind():
    numbers = FirstOrder(SCHEMA.select(["age"]), use_bias=False)
    assert tuple(numbers({"age": FEATURES["age"]}).shape) == (3, 1)
    ids = FirstOrder(SCHEMA.select(["ad"]), embeddings_initializer="ones")
    assert to_numpy(ids({"ad": FEATURES["ad"]})).tolist() == [[1.0], [1.0], [0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossLayer(rank=0), "`rank` should be an integer of at least 1.*rank=0"),
        (lambda: CrossLayer()([FLAT, FLAT[:, :2]]), r"\[x_0, x\].*\(3, 6\), \(3, 2\)"),
        (lambda: InteractingAttention(5, num_heads=2), "multiple.*units=5, num_heads=2"),
        (lambda: InteractingAttention(4)(FLAT), r"\(batch, n, dim\).*\(3, 6\)"),
        (lambda: LogarithmicTransformation(3, minimum=0.0), "positive.*minimum=0.0"),
        (lambda: CompressedInteractionNetwork(()), "`units` should hold at least 1"),
        (lambda: MaskBlock(3, reduction_ratio=0), "positive.*reduction_ratio=0"),
        (lambda: MaskBlock(3, dropout=1.0), r"\[0, 1\).*dropout=1.0"),
        (lambda: MaskBlock(3)(FLAT), r"list of two inputs.*\(3, 6\)"),
        (lambda: FeatureSelection()(FLAT), r"list of two inputs.*\(3, 6\)"),
        (
            lambda: FeatureSelection(context_dim=2)([FLAT, FLAT]),
            r"one input \(batch, features\)",
        ),
        (lambda: BilinearFusion(5, num_heads=2), "multiple.*first=5"),
        (lambda: BilinearFusion(6)(FLAT), r"more than 6.*\(3, 6\)"),
        (lambda: BilinearFusion(3, num_heads=3)(FLAT[:, :5]), "2 numbers after the first 3"),
        (lambda: FactorizationMachine()(FLAT), r"\(batch, n, dim\)"),
        (lambda: FirstOrder("ad"), "`schema` should be a Schema.*'ad'"),
    ],
)
def test_wrong_arguments_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()
