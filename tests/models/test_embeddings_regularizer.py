"""The penalty on the embedding tables, from the table itself to every model of the zoo."""

import keras
import numpy as np
import pytest

from keras_exfm.features import Categorical, Schema
from keras_exfm.layers import EmbeddingTable, FeatureEmbedding, FirstOrder
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
)
from tests.testing import to_numpy

SCHEMA = Schema([Categorical("a", 6), Categorical("b", 3)])
L2 = keras.regularizers.L2
# Model, arguments, number of tables: one for each embedding, linear term and gate.
MODELS = [
    (LogisticRegression, {}, 1),
    (FM, {"dim": 2}, 2),
    (DeepFM, {"dim": 2, "dnn_units": (3,)}, 2),
    (DLRM, {"dim": 2, "top_units": (3,)}, 1),
    (DCNv2, {"dim": 2, "num_cross_layers": 1, "parallel_units": (3,)}, 1),
    (AutoInt, {"dim": 2, "num_layers": 1, "dnn_units": (3,), "first_order": True}, 2),
    (AFN, {"dim": 2, "neurons": 2, "afn_units": (3,), "dnn_units": (3,)}, 2),
    (FinalMLP, {"dim": 2, "mlp1_units": (3,), "mlp2_units": (3,), "fs1_context": ("a",)}, 2),
    (MaskNet, {"dim": 2, "block_units": (3,), "dnn_units": (3,)}, 1),
    (XDeepFM, {"dim": 2, "cin_units": (2,), "dnn_units": (3,)}, 2),
    (Wukong, {"dim": 2, "num_layers": 1, "n_fmb": 2, "n_lcb": 2, "rank": 2, "mlp_units": (3,)}, 1),
]


@pytest.mark.parametrize(("cls", "arguments", "count"), MODELS, ids=[m[0].__name__ for m in MODELS])
def test_models_penalize_all_their_tables(cls, arguments, count):
    model = cls(SCHEMA, optimizer=None, embeddings_regularizer=L2(0.25), **arguments)
    tables = [v for v in model.trainable_variables if v.path.endswith("/table")]
    assert len(tables) == count
    for table in tables:
        table.assign(np.full(table.shape, 2.0))
    expected = sum(0.25 * 4.0 * int(np.prod(table.shape)) for table in tables)
    np.testing.assert_allclose(sum(float(loss) for loss in model.losses), expected, rtol=1e-6)
    clone = cls.from_config(model.get_config())
    assert clone.get_config() == model.get_config()
    assert len(clone.losses) == count


def test_a_step_shrinks_every_row():
    """With SGD, `w <- w - lr 2 l w` wherever no data gradient comes: id 5 is in no batch."""
    inputs = SCHEMA.inputs()
    layer = FeatureEmbedding(SCHEMA, 2, optimizer=None, embeddings_regularizer=L2(0.5))
    model = keras.Model(inputs, keras.ops.sum(layer(inputs), axis=(1, 2)))
    before = layer.read_table("a")
    batch = {"a": np.array([0, 1], "int32"), "b": np.array([0, 1], "int32")}
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(batch, np.array([3.0, 3.0]), verbose=0)
    after = layer.read_table("a")
    np.testing.assert_allclose(after[5], 0.9 * before[5], rtol=1e-5)
    assert (after[:2] > 0.9 * before[:2] + 0.1).all()


def test_frozen_tables_are_left_out():
    layer = FeatureEmbedding(
        SCHEMA,
        2,
        optimizer=None,
        frozen=["a"],
        embeddings_initializer="ones",
        embeddings_regularizer=L2(0.5),
    )
    layer.build({"a": (None,), "b": (None,)})
    assert [float(loss) for loss in layer.losses] == [0.5 * 3 * 2]
    table = EmbeddingTable(4, 2, frozen=True, regularizer=L2(0.5))
    table.build()
    assert to_numpy(table.table).shape == (4, 2)
    assert not table.losses


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureEmbedding(SCHEMA, 2, embeddings_regularizer="l2"),
        lambda: FirstOrder(SCHEMA, embeddings_regularizer="l2"),
        lambda: Wukong(SCHEMA, embeddings_regularizer="l2"),
        lambda: EmbeddingTable(4, 2, optimizer="sparse_adam", regularizer="l2"),
    ],
)
def test_a_row_optimizer_has_weight_decay_instead(make):
    with pytest.raises(
        ValueError, match=r"regularizer` is a term .*`weight_decay`.*Received: .*L2"
    ):
        make()
