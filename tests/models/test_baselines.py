"""The baselines of the zoo. Each is restated in NumPy, by the structure of its docstring."""

import inspect
import itertools
import json

import keras
import numpy as np
import pytest

from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
from keras_exfm.layers import FeatureEmbedding, FirstOrder
from keras_exfm.models import (
    AFN,
    FM,
    AutoInt,
    DCNv2,
    DeepFM,
    FinalMLP,
    LogisticRegression,
    MaskNet,
    XDeepFM,
    non_embedding_parameters,
)
from keras_exfm.optimizers import RowwiseAdagrad
from tests.layers import baseline_reference as layers
from tests.layers import reference
from tests.testing import to_numpy

# Names that Keras gives to layers, inputs and operations of its own.
SCHEMA = Schema(
    [
        Categorical("dense", 5, embeddings=2),
        MultiHot("flatten", 4, length=3),
        Numeric("concatenate"),
        Categorical("add", 4, table="flatten"),
        Numeric("dropout", 2),
    ]
)
SMALL = {"dim": 3, "numeric_units": (3,), "optimizer": None}
N = 5
FLAT = N * 3


def batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "dense": rng.integers(-1, 5, size).astype("int32"),
        "flatten": rng.integers(-1, 4, (size, 3)).astype("int32"),
        "concatenate": rng.normal(size=size).astype("float32"),
        "add": rng.integers(-1, 4, size).astype("int32"),
        "dropout": rng.normal(size=(size, 2)).astype("float32"),
    }


class Restatement:
    """Reads a model's layers by name."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs

    def layer(self, name):
        return self.model.get_layer(name)

    def embed(self, name="feature-embedding", names=None):
        schema = SCHEMA.select(names) if names else SCHEMA
        w = layers.weights(self.layer(name))
        return reference.feature_embedding(w, self.inputs, schema)

    def dense(self, name, x):
        w = layers.weights(self.layer(name))
        return x @ w["kernel"] + w["bias"]

    def dnn(self, name, x, count, last=None):
        for i in range(count):
            x = self.dense(last if last and i == count - 1 else f"{name}-{i}", x)
            if f"{name}-norm-{i}" in [layer.name for layer in self.model.layers]:
                w = layers.weights(self.layer(f"{name}-norm-{i}"))
                x = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-5)
                x = x * w["gamma"] + w["beta"]
            x = layers.relu(x)
        return x

    def first_order(self, name="first-order"):
        return layers.first_order(self.layer(name), self.inputs)


def flatten(x):
    return x.reshape(len(x), -1)


def concatenate(*parts):
    return np.concatenate(parts, axis=1)


def cross_network(r, count, last=None):
    x0 = x = flatten(r.embed())
    for i in range(count):
        name = last if last and i == count - 1 else f"cross-layer-{i}"
        x = layers.cross(r.layer(name), [x0, x])
    return x0, x


def dcnv2_parallel(r):
    x0, x = cross_network(r, 2)
    return r.dense("serving", concatenate(x, r.dnn("parallel", x0, 2)))


def dcnv2_stacked(r):
    _, x = cross_network(r, 1)
    return r.dense("serving", r.dnn("stacked", x, 2, last="representation"))


def dcnv2_both(r):
    x0, x = cross_network(r, 1)
    return r.dense("serving", concatenate(r.dnn("stacked", x, 1), r.dnn("parallel", x0, 1)))


def dcnv2_cross_only(r):
    return r.dense("serving", cross_network(r, 2, last="representation")[1])


def autoint(r):
    x = r.embed()
    deep = r.dnn("dnn", flatten(x), 2)
    for i in range(2):
        x = layers.attention(r.layer(f"attention-{i}"), x)
    return r.dense("representation-logit", concatenate(flatten(x), deep)) + r.first_order()


def autoint_plain(r):
    return r.dense("serving", flatten(layers.attention(r.layer("attention-0"), r.embed())))


def afn(r):
    x = layers.powers(r.layer("logarithmic-transformation"), r.embed())
    deep = r.dnn("dnn", flatten(r.embed("dnn-feature-embedding")), 2)
    return r.dense("serving", concatenate(r.dnn("afn", flatten(x), 1), deep))


def afn_plain(r):
    x = layers.powers(r.layer("logarithmic-transformation"), r.embed())
    return r.dense("serving", r.dnn("afn", flatten(x), 2, last="representation"))


def finalmlp(r, context1=None, context2=None):
    flat = flatten(r.embed())
    streams = []
    for s, context in ((1, context1), (2, context2)):
        inputs = flat
        if context:
            inputs = [flat, flatten(r.embed(f"context-embedding-{s}", context))]
        x = layers.feature_selection(r.layer(f"feature-selection-{s}"), inputs)
        streams.append(r.dnn(f"mlp{s}", x, 3 - s))
    return layers.bilinear(r.layer("serving"), concatenate(*streams))


def finalmlp_ungated(r):
    flat = flatten(r.embed())
    streams = concatenate(r.dnn("mlp1", flat, 1), r.dnn("mlp2", flat, 1))
    return layers.bilinear(r.layer("serving"), streams)


def masknet_parallel(r):
    x = r.embed()
    u = flatten(layers.fieldwise(r.layer("embedding-norm"), x))
    blocks = [layers.mask_block(r.layer(f"mask-block-{i}"), [flatten(x), u]) for i in range(2)]
    return r.dense("serving", r.dnn("dnn", concatenate(*blocks), 1, last="representation"))


def masknet_serial(r):
    v = flatten(r.embed())
    h = layers.mask_block(r.layer("mask-block-0"), [v, v])
    return r.dense("serving", layers.mask_block(r.layer("representation"), [v, h]))


def xdeepfm(r):
    x = r.embed()
    h = concatenate(layers.cin(r.layer("cin-pooled"), x), r.dnn("dnn", flatten(x), 2))
    return r.dense("representation-logit", h) + r.first_order()


def xdeepfm_cin_only(r):
    h = layers.cin(r.layer("representation"), r.embed())
    return r.dense("representation-logit", h) + r.first_order()


def deepfm(r):
    x = r.embed()
    h = r.dnn("dnn", flatten(x), 2, last="representation")
    return r.dense("representation-logit", h) + layers.pairs(None, x) + r.first_order()


def fm(r):
    return layers.pairs(None, r.embed()) + r.first_order()


def inner(*widths):
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


ROWS = 5 * 2 + 4
EMBEDDING = ROWS * 3 + inner(3, 3, 3)
LINEAR = ROWS + 3
FINALMLP = {"mlp1_units": (5, 4), "mlp2_units": (6,), "num_heads": 2, "fs_units": (4,)}
# Model, arguments, restatement, number of trainable weights, width of the representation.
CASES = {
    "dcnv2-parallel": (
        DCNv2,
        dict(SMALL, num_cross_layers=2, rank=2, parallel_units=(5, 4)),
        dcnv2_parallel,
        EMBEDDING + 2 * FLAT * (2 * 2 + 1) + inner(FLAT, 5, 4) + FLAT + 4 + 1,
        FLAT + 4,
    ),
    "autoint": (
        AutoInt,
        dict(
            SMALL,
            num_layers=2,
            attention_units=4,
            layer_norm=True,
            dnn_units=(5, 4),
            first_order=True,
        ),
        autoint,
        EMBEDDING + (4 * 3 * 4 + 3 * 4 * 4 + 2 * 8) + inner(FLAT, 5, 4) + (N * 4 + 4 + 1) + LINEAR,
        N * 4 + 4,
    ),
    "afn": (
        AFN,
        dict(SMALL, neurons=4, afn_units=(5,), dnn_units=(5, 4)),
        afn,
        2 * EMBEDDING
        + (N * 4 + 2 * N + 2 * 4)
        + (inner(4 * 3, 5) + 2 * 5)
        + (inner(FLAT, 5, 4) + 2 * 9)
        + (5 + 4 + 1),
        5 + 4,
    ),
    "finalmlp": (
        FinalMLP,
        dict(SMALL, **FINALMLP, fs1_context=("dense",)),
        lambda r: finalmlp(r, ["dense"]),
        EMBEDDING
        + (5 * 2 * 3 + inner(2 * 3, 4, FLAT))
        + (3 + inner(3, 4, FLAT))
        + (inner(FLAT, 5, 4) + inner(FLAT, 6))
        + (1 + 4 + 6 + 4 * 6 // 2),
        4 + 6,
    ),
    "masknet-parallel": (
        MaskNet,
        dict(SMALL, block_units=(5, 4), reduction_ratio=0.5, dnn_units=(4,)),
        masknet_parallel,
        EMBEDDING
        + 2 * FLAT
        + 2 * inner(FLAT, FLAT // 2, FLAT)
        + (FLAT * (5 + 4) + 2 * (5 + 4))
        + inner(5 + 4, 4, 1),
        4,
    ),
    "xdeepfm": (
        XDeepFM,
        dict(SMALL, cin_units=(3, 2), dnn_units=(5, 4)),
        xdeepfm,
        EMBEDDING
        + (inner(N * N, 3) + inner(N * 3, 2))
        + inner(FLAT, 5, 4)
        + (3 + 2 + 4 + 1)
        + LINEAR,
        3 + 2 + 4,
    ),
    "deepfm": (
        DeepFM,
        dict(SMALL, dnn_units=(5, 4)),
        deepfm,
        EMBEDDING + inner(FLAT, 5, 4, 1) + LINEAR,
        4,
    ),
    "fm": (FM, {"dim": 3, "optimizer": None}, fm, ROWS * 3 + inner(3, 3) + LINEAR + 1, None),
    "logistic-regression": (
        LogisticRegression,
        {"optimizer": None},
        lambda r: r.first_order("serving"),
        LINEAR + 1,
        None,
    ),
}
# Structures that differ in the wiring alone; restated and counted, no more.
VARIANTS = {
    "dcnv2-stacked": (
        DCNv2,
        dict(SMALL, num_cross_layers=1, stacked_units=(5, 4), parallel_units=()),
        dcnv2_stacked,
        EMBEDDING + FLAT * (FLAT + 1) + inner(FLAT, 5, 4, 1),
        4,
    ),
    "masknet-serial": (
        MaskNet,
        dict(SMALL, structure="serial", block_units=(5, 4), dnn_units=(), embedding_norm=False),
        masknet_serial,
        EMBEDDING
        + (inner(FLAT, FLAT, FLAT) + FLAT * 5 + 2 * 5)
        + (inner(FLAT, 5, 5) + 5 * 4 + 2 * 4)
        + (4 + 1),
        4,
    ),
    "dcnv2-both": (
        DCNv2,
        dict(SMALL, num_cross_layers=1, stacked_units=(5,), parallel_units=(4,), batch_norm=True),
        dcnv2_both,
        EMBEDDING + FLAT * (FLAT + 1) + inner(FLAT, 5) + inner(FLAT, 4) + 2 * 9 + 5 + 4 + 1,
        5 + 4,
    ),
    "dcnv2-cross-only": (
        DCNv2,
        dict(SMALL, num_cross_layers=2, parallel_units=()),
        dcnv2_cross_only,
        EMBEDDING + 2 * FLAT * (FLAT + 1) + FLAT + 1,
        FLAT,
    ),
    "autoint-plain": (
        AutoInt,
        dict(SMALL, num_layers=1, attention_units=3, num_heads=1, dnn_units=(), scale=True),
        autoint_plain,
        EMBEDDING + 3 * 3 * 3 + N * 3 + 1,
        N * 3,
    ),
    "afn-plain": (
        AFN,
        dict(SMALL, neurons=4, afn_units=(5, 4), dnn_units=(), batch_norm=False),
        afn_plain,
        EMBEDDING + N * 4 + inner(12, 5, 4, 1),
        4,
    ),
    "finalmlp-numeric-context": (
        FinalMLP,
        dict(SMALL, **FINALMLP, fs1_context=("dropout",), fs2_context=["flatten", "add"]),
        lambda r: finalmlp(r, ["dropout"], ["flatten", "add"]),
        EMBEDDING
        + (inner(2, 3, 3) + inner(3, 4, FLAT))
        + (4 * 3 + inner(2 * 3, 4, FLAT))
        + (inner(FLAT, 5, 4) + inner(FLAT, 6))
        + (1 + 4 + 6 + 4 * 6 // 2),
        4 + 6,
    ),
    "finalmlp-ungated": (
        FinalMLP,
        dict(SMALL, mlp1_units=(4,), mlp2_units=(4,), feature_selection=False),
        finalmlp_ungated,
        EMBEDDING + 2 * inner(FLAT, 4) + (1 + 8 + 16),
        8,
    ),
    "xdeepfm-cin-only": (
        XDeepFM,
        dict(SMALL, cin_units=(3,), dnn_units=()),
        xdeepfm_cin_only,
        EMBEDDING + inner(N * N, 3) + 3 + 1 + LINEAR,
        3,
    ),
}


def make(case, **kwargs):
    cls, config = {**CASES, **VARIANTS}[case][:2]
    return cls(SCHEMA, **{**config, **kwargs})


@pytest.fixture(autouse=True)
def _initial_values(monkeypatch):
    layers.initialize_with_numpy(monkeypatch)


def abstract():
    """Models made within have shapes but no values."""
    return keras.StatelessScope(initialize_variables=False)


def scrambled(case, **kwargs):
    """A model with weights of a size that exercises every term, the same on every backend."""
    model = make(case, **kwargs)
    rng = np.random.default_rng(7)
    for v in sorted(model.weights, key=lambda v: v.path):
        ones = v.path.endswith(("gamma", "moving_variance"))
        spread = rng.uniform(-0.3, 0.3, size=v.shape) if ones else rng.normal(size=v.shape) * 0.4
        v.assign((ones + spread).astype("float32"))
    return model


def parameter_count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize("case", [*CASES, *VARIANTS])
def test_restatement(case):
    """One id is out of range: its row alone is NaN, here and in the restatement."""
    model = scrambled(case)
    inputs = batch()
    inputs["dense"][2] = 5
    expected = {**CASES, **VARIANTS}[case][2](Restatement(model, inputs))
    assert np.isnan(expected[:, 0]).tolist() == [False, False, True, False, False, False]
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", [*CASES, *VARIANTS])
def test_parameter_count_and_names(case):
    _, _, _, parameters, width = {**CASES, **VARIANTS}[case]
    with abstract():
        model = make(case)
    assert parameter_count(model) == parameters
    assert model.output is model.get_layer("serving").output
    assert tuple(model.output.shape) == (None, 1)
    if width is None:
        assert "representation" not in [layer.name for layer in model.layers]
    else:
        assert tuple(model.get_layer("representation").output.shape) == (None, width)


@pytest.mark.parametrize("case", CASES)
def test_training_and_round_trip(case, tmp_path):
    """One step in which every weight moves; then the same model from its file."""
    model = scrambled(case)
    before = {v.path: to_numpy(v) for v in model.trainable_variables}
    model.compile(keras.optimizers.SGD(0.5), keras.losses.BinaryCrossentropy(from_logits=True))
    label = (np.arange(64) % 3 == 0).astype("float32")
    model.fit(batch(64), label, batch_size=64, verbose=0)
    for v in model.trainable_variables:
        # A shift that is the same for all rows is subtracted again by the next BatchNorm.
        if case == "afn" and v.path.endswith("bias") and v.path.startswith(("afn-", "dnn-")):
            continue
        if v.path.endswith("exp_norm/beta"):
            continue
        assert not np.array_equal(to_numpy(v), before[v.path]), v.path

    model.save(tmp_path / "m.keras")
    reloaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(reloaded) is type(model)
    assert reloaded.get_config() == model.get_config()
    assert [v.path for v in reloaded.weights] == [v.path for v in model.weights]
    for old, new in zip(model.weights, reloaded.weights):
        assert np.isfinite(to_numpy(new)).all()
        np.testing.assert_array_equal(to_numpy(new), to_numpy(old), new.path)


@pytest.mark.parametrize("case", [*CASES, *VARIANTS])
def test_config_is_json_and_complete(case):
    with abstract():
        model = make(case, name="m", dtype="mixed_bfloat16")
        model.trainable = False
        config = json.loads(json.dumps(model.get_config()))
        clone = type(model).from_config(config)
    assert json.loads(json.dumps(clone.get_config())) == config
    assert not clone.trainable
    assert set(config) == set(inspect.signature(type(model).__init__).parameters) - {"self"}
    given = {**CASES, **VARIANTS}[case][1]
    assert {name: config[name] for name in given} == json.loads(json.dumps(given))


@pytest.mark.parametrize("case", CASES)
def test_mixed_precision_and_batch_of_one(case):
    """Within a few bfloat16 roundings of float64."""
    model = scrambled(case, dtype="mixed_bfloat16")
    assert model.output.dtype == "float32"
    assert {v.dtype for v in model.weights} == {"float32"}
    if "representation" in [layer.name for layer in model.layers]:
        assert model.get_layer("representation").output.dtype == "bfloat16"
    forward = CASES[case][2]
    scale = np.abs(forward(Restatement(model, batch()))).max()
    one = batch(1)
    np.testing.assert_allclose(
        model.predict(one, verbose=0), forward(Restatement(model, one)), atol=0.05 * scale
    )


@pytest.mark.parametrize(
    ("cls", "config", "expected"),
    [
        (DCNv2, {"parallel_units": (8, 8), "dropout": 0.5}, ["dropout-0", "dropout-1"]),
        (
            AutoInt,
            {"dnn_units": (8,), "attention_units": 4, "num_layers": 1, "dropout": 0.5},
            ["attention_dropout", "dropout-0"],
        ),
        (AFN, {"afn_units": (8,), "dnn_units": (), "afn_dropout": 0.5}, ["representation"]),
        (AFN, {"afn_units": (8,), "dnn_units": (8,), "dnn_dropout": 0.5}, ["dnn-dropout-0"]),
        (FinalMLP, {"mlp1_units": (8,), "mlp1_dropout": 0.5}, ["mlp1-dropout-0"]),
        (FinalMLP, {"mlp2_units": (8,), "mlp2_dropout": 0.5}, ["mlp2-dropout-0"]),
        (MaskNet, {"block_units": (8,), "dnn_units": (), "dropout": 0.5}, ["dropout"]),
        (XDeepFM, {"dnn_units": (8,), "dropout": 0.5}, ["dnn-dropout-0"]),
        (DeepFM, {"dnn_units": (8,), "dropout": 0.5}, ["representation"]),
    ],
)
def test_dropout_is_where_it_was_asked_for(cls, config, expected):
    with abstract():
        model = cls(SCHEMA, **config)
    found = [layer for layer in model._flatten_layers() if hasattr(layer, "rate")]
    assert {layer.rate for layer in found} == {0.5}
    names = sorted(layer.name for layer in found)
    assert len(names) == len(expected)
    assert all(name.endswith(end) for name, end in zip(names, sorted(expected)))


def test_representation_is_the_last_of_norm_relu_and_dropout():
    with abstract():
        model = DeepFM(SCHEMA, dnn_units=(5, 4), dropout=0.5, batch_norm=True)
    names = [layer.name for layer in model.layers]
    assert [name for name in names if name.startswith("dnn-")] == [
        "dnn-0",
        "dnn-norm-0",
        "dnn-relu-0",
        "dnn-dropout-0",
        "dnn-1",
        "dnn-norm-1",
        "dnn-relu-1",
    ]
    assert isinstance(model.get_layer("representation"), keras.layers.Dropout)


@pytest.mark.parametrize("case", CASES)
def test_row_optimizer_reaches_every_table(case):
    with abstract():
        model = make(case, optimizer=RowwiseAdagrad(0.25))
        clone = type(model).from_config(model.get_config())
        plain = make(case)
    for m in (model, clone):
        tables = [x for x in m.layers if isinstance(x, (FeatureEmbedding, FirstOrder))]
        given = [layer.get_config()["optimizer"] for layer in tables]
        assert given, case
        assert {g["config"]["learning_rate"] for g in given} == {0.25}
        assert non_embedding_parameters(m) == non_embedding_parameters(plain)


@pytest.mark.parametrize("cls", [AFN, AutoInt, DCNv2, DeepFM, FM, FinalMLP, MaskNet, XDeepFM])
@pytest.mark.parametrize("names", [["dense"], ["concatenate", "dropout"]])
def test_sparse_only_and_numeric_only(cls, names):
    with abstract():
        model = cls(SCHEMA.select(names), dim=4)
    assert tuple(model.output.shape) == (None, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DCNv2(SCHEMA, num_cross_layers=0), "num_cross_layers=0"),
        (lambda: DCNv2(SCHEMA, rank=0), "rank=0"),
        (lambda: AutoInt(SCHEMA, attention_units=5), "multiple of `num_heads`"),
        (lambda: AFN(SCHEMA, afn_units=()), "`afn_units` should hold at least 1"),
        (lambda: AFN(SCHEMA, dnn_dropout=1), r"`dnn_dropout`.*\[0, 1\)"),
        (lambda: FinalMLP(SCHEMA, fs1_context=("who",)), r"Unknown features \['who'\]"),
        (lambda: FinalMLP(SCHEMA, mlp1_units=(5,), num_heads=2), "first=5, num_heads=2"),
        (lambda: MaskNet(SCHEMA, structure="series"), "`structure`.*'series'"),
        (lambda: XDeepFM(SCHEMA, cin_units=()), "`units` should hold at least 1"),
        (lambda: DeepFM(SCHEMA, dnn_units=()), "`dnn_units` should hold at least 1"),
        (lambda: FM("schema"), "`schema` should be a Schema"),
        (lambda: LogisticRegression(Schema([Numeric("serving")])), r"\['serving'\].*Rename"),
    ],
)
def test_errors_say_what_was_received(make, message):
    with pytest.raises(ValueError, match=message), abstract():
        make()


@pytest.mark.parametrize("case", CASES)
def test_misspelt_argument(case):
    with pytest.raises(TypeError, match="dimension"):
        make(case, dimension=3)


# --- Published counts -------------------------------------------------------------------------
# The tables of the runs are not built: their rows are counted, all else is a real model on tiny
# vocabularies. Where the row counts come from: DCNv2 on Frappe has 128 numbers a row and xDeepFM
# 11, and both published counts leave 5,399 rows; likewise 90,242 on MovieLens.


def count(cls, rows, **config):
    """Weights of a model whose tables have `rows` rows in all."""
    fields, numbers = config.pop("fields"), config["dim"] + (cls is XDeepFM)
    with abstract():
        model = cls(
            Schema([Categorical(f"f{i}", 1) for i in range(fields)]), optimizer=None, **config
        )
    return parameter_count(model) + (rows - fields) * numbers


def test_counts_of_table_3_dcnv2():
    """Table 3 of the Wukong paper. What each entry is, is worked out from the count itself."""
    # TaobaoAds: BARS's network (4 cross layers, DNN [512, 256, 128]) at dim 128.
    taobao = count(
        DCNv2,
        1_273_567,
        fields=21,
        dim=128,
        num_cross_layers=4,
        parallel_units=(512, 256, 128),
    )
    assert taobao == 193_472_513
    # MovieLens: BARS's network (5 cross layers, [400] * 3, BatchNorm) at its dim, 10.
    movielens = count(
        DCNv2,
        90_242,
        fields=3,
        dim=10,
        num_cross_layers=5,
        parallel_units=(400,) * 3,
        batch_norm=True,
    )
    assert movielens == 1_243_101
    # Frappe: the cross network alone, at dim 128.
    frappe = count(DCNv2, 5_399, fields=10, dim=128, num_cross_layers=4, parallel_units=())
    assert frappe == 7_251_073


def test_counts_of_table_3_xdeepfm():
    """The CIN and the linear term alone, at dim 10: Frappe and MovieLens."""
    config = {"dim": 10, "cin_units": (16, 16, 16), "dnn_units": ()}
    assert count(XDeepFM, 5_399, fields=10, **config) == 66_206
    assert count(XDeepFM, 90_242, fields=3, **config) == 994_439
