import inspect
import itertools
import json

import keras
import numpy as np
import pytest

from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
from keras_exfm.models import DLRM, Wukong
from keras_exfm.optimizers import RowwiseAdagrad
from tests.models import reference
from tests.testing import to_numpy

# Names that Keras gives to layers, inputs and operations of its own.
SCHEMA = Schema(
    [
        Categorical("dense", 5, embeddings=2),
        MultiHot("flatten", 4, length=3),
        Numeric("concatenate"),
        Categorical("matmul", 4, table="flatten"),
        Numeric("input_layer", 2),
    ]
)
SMALL_WUKONG = {
    "dim": 3,
    "num_layers": 2,
    "n_fmb": [3, 2],
    "n_lcb": [2, 1],
    "rank": 2,
    "mlp_units": [[4], [3]],
    "head_units": (5, 4),
    "attention_compression": 2,
    "attention_units": (3,),
    "numeric_units": (3,),
    "optimizer": None,
}
SMALL_DLRM = {
    "dim": 3,
    "top_units": (5, 4),
    "numeric_units": (3,),
    "numeric_embeddings": 2,
    "optimizer": None,
}


def batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "dense": rng.integers(-1, 5, size).astype("int32"),
        "flatten": rng.integers(-1, 4, (size, 3)).astype("int32"),
        "concatenate": rng.normal(size=size).astype("float32"),
        "matmul": rng.integers(-1, 4, size).astype("int32"),
        "input_layer": rng.normal(size=(size, 2)).astype("float32"),
    }


def scrambled(model):
    """Weights of a size that exercises every term, the same on every backend."""
    rng = np.random.default_rng(7)
    for v in sorted(model.trainable_variables, key=lambda v: v.path):
        ones = v.path.endswith("gamma")
        v.assign(ones + rng.normal(scale=0.4, size=v.shape))
    return model


def make_wukong(form="static", **kw):
    return Wukong(SCHEMA, **{**SMALL_WUKONG, "form": form, **kw})


def make_dlrm(concat_embeddings=True, **kw):
    return DLRM(SCHEMA, concat_embeddings=concat_embeddings, **{**SMALL_DLRM, **kw})


def forward_wukong(form="static"):
    return lambda w, x: reference.wukong(w, x, SCHEMA, 2, (3, 2), form)


def forward_dlrm(concat_embeddings=True):
    return lambda w, x: reference.dlrm(w, x, SCHEMA, concat_embeddings, 2)


CASES = {
    "wukong-static": (make_wukong, forward_wukong()),
    "wukong-attentive": (
        lambda **kw: make_wukong("attentive", **kw),
        forward_wukong("attentive"),
    ),
    "wukong-dot": (lambda **kw: make_wukong("dot", **kw), forward_wukong("dot")),
    "dlrm-all": (make_dlrm, forward_dlrm()),
    "dlrm-numeric": (lambda **kw: make_dlrm(False, **kw), forward_dlrm(False)),
}


def inner(*widths):
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def wukong_parameters():
    """Static form, by hand for SMALL_WUKONG: n = 5, then 5 (identity residual), then 3."""
    embedding = (5 * 2 + 4) * 3 + inner(3, 3, 3)
    first = 5 * 2 + 2 * 10 + inner(10, 4, 9) + 5 * 2 + 2 * 3
    second = 5 * 2 + 2 * 10 + inner(10, 3, 6) + 5 * 1 + 2 * 3 + 5 * 3
    return embedding + first + second + inner(9, 5, 4, 1)


def dlrm_parameters(beside):
    """n = 6 embeddings (two of them numeric), 15 pairs."""
    return (5 * 2 + 4) * 3 + inner(3, 3, 6) + inner(beside * 3 + 15, 5, 4, 1)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("wukong-static", wukong_parameters()),
        ("dlrm-all", dlrm_parameters(6)),
        ("dlrm-numeric", dlrm_parameters(2)),
    ],
)
def test_parameter_count(case, expected):
    assert CASES[case][0]().count_params() == expected


@pytest.mark.parametrize("make", [make_wukong, make_dlrm])
def test_dropout_of_the_head_is_off_outside_training(make):
    rate, units = "dropout", "top_units"
    if make is make_wukong:
        rate, units = "head_dropout", "head_units"
    model, plain = scrambled(make(**{rate: 0.5, units: (16,)})), make(**{units: (16,)})
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        model.predict(batch(), verbose=0), plain.predict(batch(), verbose=0)
    )
    # In training some coordinates of the representation are 0 and the others are doubled.
    hidden = keras.Model(model.inputs, model.get_layer("representation").output)
    on, off = to_numpy(hidden(batch(), training=True)), to_numpy(hidden(batch(), training=False))
    kept = np.isclose(on, 2 * off, rtol=1e-5)
    assert (kept | (on == 0)).all()
    assert 0 < (kept & (off != 0)).sum() < (off != 0).sum()
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()


def test_dlrm_with_batch_norm():
    model = make_dlrm(batch_norm=True)
    assert model.count_params() == dlrm_parameters(6) + 4 * (5 + 4)
    moving = [v.path for v in model.non_trainable_variables]
    assert [path.split("/")[0] for path in moving] == ["top-norm-0"] * 2 + ["top-norm-1"] * 2


def test_wukong_with_batch_norm_in_the_head():
    plain = make_wukong(head_units=(5, 4))
    model = make_wukong(head_units=(5, 4), head_batch_norm=True)
    assert model.count_params() == plain.count_params() + 4 * (5 + 4)
    moving = [v.path for v in model.non_trainable_variables if "moving" in v.path]
    assert [path.split("/")[0] for path in moving] == ["head-norm-0"] * 2 + ["head-norm-1"] * 2
    assert type(model).from_config(model.get_config()).head_batch_norm is True


@pytest.mark.parametrize("case", CASES)
class TestEveryForm:
    def test_restatement(self, case):
        make, forward = CASES[case]
        model = scrambled(make())
        expected = forward(reference.weights(model), batch())
        np.testing.assert_allclose(
            model.predict(batch(), verbose=0), expected, atol=5e-5, rtol=1e-4
        )

    def test_config_is_json_and_complete(self, case):
        model = CASES[case][0](name="m", dtype="mixed_bfloat16")
        model.trainable = False
        config = json.loads(json.dumps(model.get_config()))
        clone = type(model).from_config(config)
        assert json.loads(json.dumps(clone.get_config())) == config
        assert not clone.trainable
        arguments = set(inspect.signature(type(model).__init__).parameters) - {"self"}
        assert set(config) == arguments


@pytest.mark.parametrize("case", ["wukong-static", "dlrm-numeric"])
class TestBothModels:
    def test_names(self, case):
        model = CASES[case][0]()
        assert tuple(model.output.shape) == (None, 1)
        assert model.output is model.get_layer("serving").output
        hidden = model.get_layer("representation")
        assert tuple(hidden.output.shape) == (None, 4)
        assert hidden.output is model.get_layer("serving").input
        # The representation is an activation, not a linear layer.
        value = keras.Model(model.inputs, hidden.output).predict(batch(64), verbose=0)
        assert value.min() == 0

    def test_round_trip_after_training(self, case, tmp_path):
        model = CASES[case][0]()
        model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(batch(), np.ones(6), verbose=0)
        model.save(tmp_path / "m.keras")
        reloaded = keras.saving.load_model(tmp_path / "m.keras")
        assert type(reloaded) is type(model)
        assert reloaded.get_config() == model.get_config()
        assert [layer.name for layer in reloaded.layers] == [layer.name for layer in model.layers]
        expected = model.predict(batch(), verbose=0)
        np.testing.assert_array_equal(reloaded.predict(batch(), verbose=0), expected)

    def test_mixed_precision(self, case):
        model = CASES[case][0](dtype="mixed_bfloat16")
        assert model.get_layer("representation").output.dtype == "bfloat16"
        assert model.output.dtype == "float32"
        assert {keras.backend.standardize_dtype(v.dtype) for v in model.weights} == {"float32"}
        model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        history = model.fit(batch(), np.ones(6), verbose=0)
        assert np.isfinite(history.history["loss"][0])

    def test_gradient_reaches_every_weight(self, case):
        model = scrambled(CASES[case][0]())
        before = reference.weights(model)
        model.compile(keras.optimizers.SGD(0.5), keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(batch(64), np.ones(64), batch_size=64, verbose=0)
        after = reference.weights(model)
        for path, old in before.items():
            assert not np.array_equal(after[path], old), path


@pytest.mark.parametrize("case", ["wukong-attentive", "dlrm-all"])
def test_training_follows_float64_gradient_descent(case):
    """Every backend against one NumPy trajectory, and so against each other. The ids hold
    duplicates and padding."""
    make, forward = CASES[case]
    model = scrambled(make())
    label = np.array([0, 1, 1, 0, 1, 0], "float32")
    expected = reference.descend(
        lambda w: forward(w, batch()), reference.weights(model), label, steps=4, learning_rate=1.0
    )
    start = reference.weights(model)
    model.compile(keras.optimizers.SGD(1.0), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(batch(), label, batch_size=6, epochs=4, shuffle=False, verbose=0)
    moved = max(np.abs(expected[path] - start[path]).max() for path in start)
    assert moved > 0.05
    for path, value in reference.weights(model).items():
        np.testing.assert_allclose(value, expected[path], atol=2e-4, err_msg=path)


@pytest.mark.parametrize("make", [make_wukong, make_dlrm])
def test_row_optimizer_of_the_table_survives_saving(make, tmp_path):
    model = make(optimizer=RowwiseAdagrad(0.25))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    before = reference.all_weights(model)["feature-embedding/embeddings/table"]
    model.fit(batch(), np.ones(6), verbose=0)
    assert not np.array_equal(
        reference.all_weights(model)["feature-embedding/embeddings/table"], before
    )
    model.save(tmp_path / "m.keras")
    reloaded = keras.saving.load_model(tmp_path / "m.keras")
    assert reloaded.get_config() == model.get_config()
    optimizer = reloaded.get_layer("feature-embedding").optimizer
    assert isinstance(optimizer, RowwiseAdagrad)
    assert optimizer.learning_rate == 0.25
    for (path, a), b in zip(
        reference.all_weights(model).items(), reference.all_weights(reloaded).values()
    ):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_one_setting_stands_for_every_layer():
    one = make_wukong(n_fmb=3, n_lcb=2, rank=2, mlp_units=(4,))
    listed = make_wukong(n_fmb=(3, 3), n_lcb=[2, 2], rank=[2, 2], mlp_units=[(4,), [4]])
    shapes = [[(v.path, tuple(v.shape)) for v in m.weights] for m in (one, listed)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("units", "per_layer"), [((), [(), ()]), ([[], [4]], [(), (4,)])])
def test_layers_without_hidden_units(units, per_layer):
    model = make_wukong(mlp_units=units)
    assert [model.get_layer(f"wukong-layer-{i}").mlp_units for i in (0, 1)] == per_layer


@pytest.mark.parametrize(
    ("names", "concat_embeddings", "expected"),
    [
        (["dense", "flatten"], True, 14 * 3 + inner(3 * 3 + 3, 5, 4, 1)),
        (["dense", "flatten"], False, 14 * 3 + inner(3, 5, 4, 1)),
        (["concatenate", "input_layer"], True, inner(3, 3, 6) + inner(2 * 3 + 1, 5, 4, 1)),
        (["concatenate", "input_layer"], False, inner(3, 3, 6) + inner(2 * 3 + 1, 5, 4, 1)),
    ],
)
def test_dlrm_of_sparse_or_numeric_features_alone(names, concat_embeddings, expected):
    model = DLRM(SCHEMA.select(names), concat_embeddings=concat_embeddings, **SMALL_DLRM)
    assert model.count_params() == expected


@pytest.mark.parametrize("names", [["dense", "flatten"], ["concatenate", "input_layer"]])
def test_wukong_of_sparse_or_numeric_features_alone(names):
    model = Wukong(SCHEMA.select(names), **SMALL_WUKONG)
    assert tuple(model.output.shape) == (None, 1)
    assert [tensor.name for tensor in model.inputs] == names


@pytest.mark.parametrize("case", ["wukong-static", "dlrm-all"])
def test_batch_of_one(case):
    model = CASES[case][0]()
    one = {name: column[:1] for name, column in batch().items()}
    np.testing.assert_allclose(
        model.predict(one, verbose=0), model.predict(batch(), verbose=0)[:1], atol=1e-5
    )


@pytest.mark.parametrize("case", ["wukong-static", "dlrm-all"])
def test_a_number_that_is_none_is_nan_in_its_own_row(case):
    """Compiled: TensorFlow's fused ReLU would make 0 of it."""
    inputs = {name: np.array(column) for name, column in batch().items()}
    inputs["concatenate"][2] = np.nan
    logit = CASES[case][0]().predict(inputs, verbose=0)[:, 0]
    assert np.isnan(logit).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("case", ["wukong-static", "dlrm-all"])
def test_bad_id_is_nan_in_its_own_row_and_in_the_loss(case):
    inputs = batch()
    inputs["dense"][2] = 5
    model = CASES[case][0]()
    logit = model.predict(inputs, verbose=0)[:, 0]
    assert np.isnan(logit).tolist() == [False, False, True, False, False, False]
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    assert np.isnan(model.evaluate(inputs, np.ones(6), verbose=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wukong(SCHEMA, n_fmb=[4, 4]), r"`n_fmb`.*num_layers=3.*n_fmb=\[4, 4\]"),
        (lambda: Wukong(SCHEMA, mlp_units=[[4], [4]]), "`mlp_units`.*num_layers=3"),
        (lambda: Wukong(SCHEMA, mlp_units=8), "`mlp_units` should be a list"),
        (lambda: Wukong(SCHEMA, num_layers=0), "num_layers=0"),
        (lambda: Wukong(SCHEMA, head_units=()), r"`head_units`.*at least 1"),
        (lambda: Wukong(SCHEMA, form="fm"), "`form`.*'fm'"),
        (lambda: Wukong(SCHEMA, rank=None), "`rank` should be given"),
        (lambda: Wukong(SCHEMA, optimizer="sgd"), "RowOptimizer, None, or one of"),
        (lambda: Wukong("schema"), "`schema` should be a Schema"),
        (lambda: DLRM(Schema([Numeric("serving"), Numeric("x")])), r"\['serving'\].*Rename"),
        (lambda: DLRM(Schema([Categorical("a", 3)])), "at least two embeddings"),
        (lambda: DLRM(SCHEMA, top_units=[8, 0]), r"top_units\[1\]=0"),
    ],
)
def test_errors_say_what_was_received(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", [Wukong, DLRM])
def test_misspelt_argument(cls):
    with pytest.raises((TypeError, ValueError), match="dimension"):
        cls(SCHEMA, dimension=3)


def test_wukong_learns_an_interaction_that_main_effects_cannot():
    """label = (a is even) xor (b is even): chance for any model without interactions."""
    rng = np.random.default_rng(0)
    schema = Schema([Categorical("a", 8), Categorical("b", 8)])
    inputs = {name: rng.integers(0, 8, 4096).astype("int32") for name in "ab"}
    label = ((inputs["a"] + inputs["b"]) % 2).astype("float32")
    model = Wukong(
        schema, dim=8, num_layers=1, n_fmb=4, n_lcb=4, rank=4, mlp_units=(16,), head_units=(16,)
    )
    model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(inputs, label, batch_size=128, epochs=3, verbose=0)
    assert model.evaluate(inputs, label, batch_size=4096, verbose=0) < 0.2
