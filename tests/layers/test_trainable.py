"""`trainable = False` from the constructor, as a frozen layer of a file has it."""

import keras
import numpy as np
import pytest

from keras_exfm import layers
from keras_exfm.features import Categorical, Numeric, Schema

SCHEMA = Schema([Categorical("user", 5), Categorical("ad", 6, dim=2), Numeric("age")])
FEATURES = {"user": (None,), "ad": (None,), "age": (None,)}
MATRIX = (None, 6, 4)
# Layers that make sublayers or row variables in `build`, with the shape to build them for.
CASES = {
    "AuxiliaryHead": ({}, (None, 8)),
    "BilinearFusion": ({"first": 8, "num_heads": 2}, (None, 16)),
    "CrossLayer": ({}, [(None, 8), (None, 8)]),
    "EmbeddingTable": ({"rows": 5, "dim": 2, "optimizer": "sparse_adam"}, (None,)),
    "FactorizationMachineBlock": ({"n_out": 3, "rank": 2, "form": "attentive"}, MATRIX),
    "FeatureEmbedding": ({"schema": SCHEMA, "dim": 4}, FEATURES),
    "FeatureSelection": ({}, [(None, 3), (None, 8)]),
    "FieldwiseLayerNormalization": ({}, MATRIX),
    "FirstOrder": ({"schema": SCHEMA}, FEATURES),
    "InteractingAttention": ({"units": 4}, MATRIX),
    "LogarithmicTransformation": ({"neurons": 3}, MATRIX),
    "MaskBlock": ({"units": 4}, [(None, 8), (None, 8)]),
    "StudentAdapter": ({}, (None, 1)),
    "WukongLayer": ({"n_fmb": 3, "n_lcb": 2, "rank": 2}, MATRIX),
}


@pytest.mark.parametrize("name", CASES)
def test_sublayers_follow_and_thaw(name):
    arguments, shape = CASES[name]
    cls = getattr(layers, name)
    usual = cls(**arguments)
    usual.build(shape)
    frozen = cls(**arguments, trainable=False)
    frozen.build(shape)
    assert usual.trainable_variables
    # A model looks at the variables, not at the layers between.
    assert not [v.path for v in frozen.variables if v.trainable]
    frozen.trainable = True
    assert [v.name for v in frozen.trainable_variables] == [
        v.name for v in usual.trainable_variables
    ]


def test_a_frozen_embedding_from_a_file_stays_until_it_is_thawed(tmp_path):
    schema = Schema([Categorical("article", 8, admit_after=1), Categorical("user", 5)])
    inputs = schema.inputs()
    embedding = layers.FeatureEmbedding(schema, 4, name="embedding")
    flat = keras.layers.Flatten()(embedding(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(flat))
    embedding.trainable = False
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    embedding = model.get_layer("embedding")
    x = {name: np.arange(4, dtype="int32") for name in schema.names}
    before = {name: embedding.read_table(name) for name in schema.names}

    for trainable in (False, True):
        embedding.trainable = trainable
        model.compile("sgd", "mse")
        model.fit(x, np.ones(4, "float32"), verbose=0)
        same = [np.array_equal(before[n], embedding.read_table(n)) for n in schema.names]
        assert same == [not trainable] * 2
        assert embedding.dynamic_counters()["article"]["admissions"] == 4 * trainable
