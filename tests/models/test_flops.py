"""FLOPs by hand, against the published columns, and against XLA's own count."""

import dataclasses

import keras
import pytest

from keras_exfm import models
from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
from keras_exfm.layers import FactorizationMachine
from keras_exfm.models import (
    AFN,
    DLRM,
    FM,
    AutoInt,
    DCNv2,
    DeepFM,
    FinalMLP,
    LogisticRegression,
    MaskNet,
    Wukong,
    XDeepFM,
    flops,
    non_embedding_parameters,
    shapes_only,
)


def categorical(count):
    return [Categorical(f"f{i}", 10) for i in range(count)]


build = shapes_only


def test_dlrm_by_hand():
    """Criteo: 13 numbers, 26 ids, dim 128, bottom 512-256, top 512-512.

    Table 3 of the Wukong paper prints 4.62 MFLOP for it, and counts matrix products alone.
    """
    model = build(
        DLRM,
        Schema([Numeric("x", 13), *categorical(26)]),
        dim=128,
        numeric_units=(512, 256),
        top_units=(512, 512),
        concat_embeddings=False,
    )
    bottom = 13 * 512 + 512 * 256 + 256 * 128
    top = (27 * 26 // 2 + 128) * 512 + 512 * 512 + 512
    dots = 27 * 27 * 128
    elements = (2 * (512 + 256) + 128) + (4 * 512 + 1)
    count = flops(model)
    assert count.inference == 2 * (bottom + top + dots) + elements
    # The gradient of the 13 numbers is not computed.
    assert count.training == 3 * count.inference - 2 * 13 * 512
    products = 6 * (bottom + top + dots) - 2 * 13 * 512
    assert round(products / 1e6, 2) == 4.62
    assert count.training / products < 1.005
    layer = count.layers["dot-interaction"]
    assert dataclasses.astuple(layer) == ("DotInteraction", 2 * dots, 6 * dots)
    assert sum(layer.training for layer in count.layers.values()) == count.training


@pytest.mark.parametrize(
    ("schema", "config", "published"),
    [
        # Frappe, the cross network alone at dim 128; MovieLens, BARS's network at dim 10.
        (10, {"dim": 128, "num_cross_layers": 4, "parallel_units": ()}, 39.35),
        (3, {"dim": 10, "num_cross_layers": 5, "batch_norm": True}, 2.02),
    ],
)
def test_dcnv2_of_table_3(schema, config, published):
    """The structures that the parameter counts give, see test_baselines.py, in MFLOP."""
    model = build(DCNv2, Schema(categorical(schema)), **config)
    assert flops(model).training / 1e6 == pytest.approx(published, rel=0.02)


def test_wukong_layer_by_hand():
    model = build(
        Wukong,
        Schema(categorical(10)),
        dim=4,
        num_layers=1,
        n_fmb=3,
        n_lcb=2,
        rank=6,
        mlp_units=(7,),
        head_units=(8,),
    )
    products = (
        2 * 10 * 4 * 6  # X (Xᵀ Y)
        + (10 * 6 * 7 + 7 * 3 * 4)  # the FMB's MLP
        + 10 * 2 * 4  # LCB
        + 10 * 5 * 4  # residual
    )
    elements = 8 * 10 * 6 + (2 * 7 + 3 * 4) + (1 + 8) * 5 * 4
    layer = flops(model).layers["wukong-layer-0"]
    assert dataclasses.astuple(layer) == (
        "WukongLayer",
        2 * products + elements,
        3 * (2 * products + elements),
    )


def test_pooling_and_first_order_by_hand():
    """No matrix product stands here but the two numbers' weights."""
    schema = Schema(
        [
            Categorical("ad", 9, embeddings=2),
            MultiHot("tags", 9, length=5),
            MultiHot("words", 9, length=3, combiner="sum"),
            Numeric("x", 2),
        ]
    )
    # 4 additions and a division, 2 additions, 4 weights to sum, 2 numbers, the bias.
    model = build(LogisticRegression, schema)
    assert flops(model).inference == (4 + 1) + 2 + 4 + 2 * 2 + 1
    # Forward and the weight's gradient, no input's.
    assert flops(model).training == 3 * ((4 + 1) + 2 + 4 + 1) + 2 * (2 * 2)

    embedding = flops(build(FM, schema, dim=6)).layers["feature-embedding"]
    assert embedding.inference == ((4 + 1) + 2) * 6 + 2 * (2 * 6) + 6


def test_frozen_layers_need_no_weight_gradient():
    model = build(DeepFM, Schema(categorical(3)), dim=4, dnn_units=(5,))
    before = flops(model)
    model.get_layer("representation").trainable = False
    after = flops(model)
    assert before.inference == after.inference
    assert before.training - after.training == 2 * 3 * 4 * 5
    # Nothing before the layer is trained: no gradient of its input either.
    model.get_layer("feature-embedding").trainable = False
    assert after.training - flops(model).training >= 2 * 3 * 4 * 5


def test_a_part_of_a_model_and_a_layer_in_two_places():
    schema = Schema(categorical(3))
    model = build(DeepFM, schema, dim=4, dnn_units=(6, 5))
    part = keras.Model(model.inputs, model.get_layer("representation").output)
    assert set(flops(part).layers) < set(flops(model).layers)
    assert "serving" not in flops(part).layers

    x = keras.Input((4,), name="x")
    dense = keras.layers.Dense(4, name="twice")
    twice = keras.Model(x, dense(dense(x)))
    assert flops(twice).layers["twice"].inference == 2 * (2 * 16 + 4)
    assert flops(twice).training == 2 * 3 * (2 * 16 + 4) - 2 * 16


def test_unknown_layers_are_named():
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, keras.layers.GRU(2, name="memory")(x))
    with pytest.raises(TypeError, match="'memory' of the type GRU.*'CrossLayer'"):
        flops(model)
    with pytest.raises(ValueError, match="functional"):
        flops(keras.Sequential())


def test_non_embedding_parameters():
    schema = Schema([Categorical("a", 1000, embeddings=2), Categorical("b", 50), Numeric("x")])
    model = build(AutoInt, schema, dim=4, dnn_units=(5,), first_order=True, optimizer=None)
    tables = (2 * 1000 + 50) * (4 + 1)
    assert non_embedding_parameters(model) == model.count_params() - tables
    # AFN has two tables, and moving statistics that nothing trains.
    model = build(AFN, schema, dim=4, neurons=6, afn_units=(5,), dnn_units=(5,), optimizer=None)
    moving = 2 * (4 + 6 + 5 + 5)
    assert non_embedding_parameters(model) == model.count_params() - 2 * 2050 * 4 - moving


SCHEMA = Schema([*categorical(20), MultiHot("h", 10, length=5), Numeric("x", 13)])
WUKONG = {
    "dim": 32,
    "num_layers": 2,
    "n_fmb": 8,
    "n_lcb": 8,
    "rank": 12,
    "mlp_units": (256,),
}
XLA = {
    "wukong-static": (Wukong, WUKONG),
    "wukong-attentive": (Wukong, {**WUKONG, "form": "attentive"}),
    "wukong-dot": (Wukong, {**WUKONG, "num_layers": 1, "form": "dot"}),
    "dlrm": (DLRM, {"dim": 32, "top_units": (256, 128)}),
    "dcnv2": (DCNv2, {"dim": 32, "parallel_units": (256, 128), "stacked_units": (64,)}),
    "dcnv2-low-rank": (
        DCNv2,
        {"dim": 32, "rank": 64, "parallel_units": (256, 128), "batch_norm": True},
    ),
    "autoint": (
        AutoInt,
        {
            "dim": 32,
            "attention_units": 64,
            "dnn_units": (256,),
            "layer_norm": True,
            "first_order": True,
        },
    ),
    "afn": (AFN, {"dim": 32, "neurons": 100, "afn_units": (256,), "dnn_units": (256,)}),
    "finalmlp": (
        FinalMLP,
        {
            "dim": 32,
            "mlp1_units": (256, 128),
            "mlp2_units": (128,),
            "num_heads": 4,
            "fs1_context": ("f0", "f1"),
        },
    ),
    "masknet-parallel": (MaskNet, {"dim": 32, "dnn_units": (256,)}),
    "masknet-serial": (MaskNet, {"dim": 32, "structure": "serial", "dnn_units": ()}),
    "xdeepfm": (XDeepFM, {"dim": 32, "cin_units": (64, 64), "dnn_units": (256,)}),
    "deepfm": (DeepFM, {"dim": 32, "dnn_units": (256, 128)}),
}
BATCH = 64


def lowered(model, training, shapes_of_inputs=None):
    import jax

    shapes_of_inputs = shapes_of_inputs or {f.name: (f.shape, f.dtype) for f in SCHEMA}

    def shapes(variables):
        return [jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for v in variables]

    def forward(trainable, fixed, inputs):
        return model.stateless_call(trainable, fixed, inputs, training=training)[0]

    inputs = {
        name: jax.ShapeDtypeStruct((BATCH, *shape), dtype)
        for name, (shape, dtype) in shapes_of_inputs.items()
    }
    step = jax.grad(lambda *args: forward(*args).sum()) if training else forward
    return jax.jit(step).lower(
        shapes(model.trainable_variables), shapes(model.non_trainable_variables), inputs
    )


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA's count is had through JAX")
@pytest.mark.parametrize("case", XLA)
def test_xla_counts_the_same(case):
    cls, config = XLA[case]
    model = build(cls, SCHEMA, **config)
    count = flops(model)
    for training, expected in ((False, count.inference), (True, count.training)):
        step = lowered(model, training)
        assert step.cost_analysis()["flops"] / BATCH == pytest.approx(expected, rel=0.05)
        # What XLA makes of it, fusions and all; for two, since compiling takes seconds.
        if case in ("wukong-attentive", "xdeepfm"):
            compiled = step.compile().cost_analysis()
            assert compiled["flops"] / BATCH == pytest.approx(expected, rel=0.05)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA's count is had through JAX")
def test_xla_counts_the_same_for_models_of_sums():
    """In LogisticRegression and FM, reading the rows is most of XLA's count: it has a mask an id.

    So here the one has no ids, and the other is its layer alone.
    """
    model = build(LogisticRegression, Schema([Numeric("x", 4000)]))
    found = lowered(model, False, {"x": ((4000,), "float32")}).cost_analysis()["flops"] / BATCH
    assert found == pytest.approx(flops(model).inference, rel=0.05)

    embeddings = keras.Input((20, 64), name="x")
    layer = FactorizationMachine(name="fm")
    model = keras.Model({"x": embeddings}, layer(embeddings))
    found = lowered(model, False, {"x": ((20, 64), "float32")}).cost_analysis()["flops"] / BATCH
    assert found == pytest.approx(flops(model).inference, rel=0.05)


def test_every_layer_of_the_zoo_has_a_rule():
    for name in models.__all__:
        cls = getattr(models, name)
        if isinstance(cls, type) and issubclass(cls, keras.Model):
            assert flops(build(cls, SCHEMA)).inference > 0, name
