import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.distillation import warm_start
from keras_exfm.layers import AuxiliaryHead
from tests.testing import to_numpy


def schema(ads=40, embeddings=1, **ad):
    return kx.Schema(
        [
            kx.Categorical("user", 60),
            kx.Categorical("ad", ads, embeddings=embeddings, **ad),
            kx.Numeric("age"),
        ]
    )


def dlrm(dim, own=None, units=(8,), seed=0):
    keras.utils.set_random_seed(seed)
    return kx.models.DLRM(own or schema(), dim=dim, top_units=units)


def tables(model):
    return model.get_layer("feature-embedding")


def filled(model, rank=None, seed=5):
    """Tables with a spectrum, as training leaves them; of exact rank if asked for."""
    rng = np.random.default_rng(seed)
    layer = tables(model)
    for name in layer.schema.tables():
        rows, dim = layer.read_table(name).shape
        values = rng.normal(size=(rows, dim)) * 0.7 ** np.arange(dim)
        if rank:
            values = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, dim))
        layer.write_table(name, values.astype("float32"))
    return model


def batch(rows=6):
    rng = np.random.default_rng(1)
    return {
        "user": rng.integers(0, 60, rows).astype("int32"),
        "ad": rng.integers(0, 40, rows).astype("int32"),
        "age": rng.normal(size=rows).astype("float32"),
    }


def test_an_earlier_student_is_copied_whole():
    old = filled(dlrm(4))
    new = kx.ExternalDistillation.from_model(dlrm(4, seed=9), auxiliary_head=AuxiliaryHead())
    done = warm_start(new, old)
    assert done.tables == {"user": 1.0, "ad": 1.0}
    assert not done.skipped
    assert {"representation", "serving", "feature-embedding"} <= set(done.layers)
    np.testing.assert_array_equal(to_numpy(new(batch())), to_numpy(old(batch())))


def test_projection_is_the_best_of_its_rank():
    """Against NumPy's own singular value decomposition."""
    large, small = filled(dlrm(8)), dlrm(3)
    head = to_numpy(small.get_layer("serving").kernel).copy()
    done = warm_start(small, large)
    for name in ("user", "ad"):
        values = tables(large).read_table(name).astype("float64")
        u, s, _ = np.linalg.svd(values, full_matrices=False)
        best = (u[:, :3] * s[:3]) @ (u[:, :3] * s[:3]).T
        got = tables(small).read_table(name).astype("float64")
        np.testing.assert_allclose(got @ got.T, best, atol=1e-4)
        assert done.tables[name] == pytest.approx((s[:3] ** 2).sum() / (s**2).sum(), rel=1e-4)
    # A projected table has its own coordinates: nothing else is taken over.
    assert done.layers == []
    np.testing.assert_array_equal(to_numpy(small.get_layer("serving").kernel), head)
    again = dlrm(3, seed=7)
    warm_start(again, large)
    np.testing.assert_array_equal(tables(again).read_table("ad"), tables(small).read_table("ad"))


def test_a_table_of_low_rank_loses_nothing():
    large, small = filled(dlrm(8), rank=2), dlrm(3)
    done = warm_start(small, large)
    values, got = (tables(m).read_table("user").astype("float64") for m in (large, small))
    np.testing.assert_allclose(got @ got.T, values @ values.T, rtol=1e-3, atol=1e-3)
    assert done.tables["user"] == pytest.approx(1.0, abs=1e-5)
    assert done.layers == []


def test_a_shorter_vector_fills_the_first_coordinates():
    short, long = filled(dlrm(3)), dlrm(5)
    before = tables(long).read_table("user")
    done = warm_start(long, short)
    after = tables(long).read_table("user")
    np.testing.assert_array_equal(after[:, :3], tables(short).read_table("user"))
    np.testing.assert_array_equal(after[:, 3:], before[:, 3:])
    assert done.tables["user"] == 1.0
    assert done.layers == []


def test_several_vectors_of_an_id_are_one_row():
    """Two vectors of 4 in the teacher, one of 4 in the student."""
    large, small = filled(dlrm(4, schema(embeddings=2))), dlrm(4)
    warm_start(small, large)
    pair = tables(large).read_table("ad").reshape(2, 40, 4)
    rows = np.concatenate([pair[0], pair[1]], axis=1).astype("float64")
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    got = tables(small).read_table("ad").astype("float64")
    np.testing.assert_allclose(got @ got.T, (u[:, :4] * s[:4] ** 2) @ u[:, :4].T, atol=1e-4)
    np.testing.assert_array_equal(
        tables(small).read_table("user"), tables(large).read_table("user")
    )


def test_tables_that_mean_other_rows_are_left():
    source, student = filled(dlrm(4, schema(ads=50))), dlrm(4)
    before = tables(student).read_table("ad")
    done = warm_start(student, source)
    assert done.skipped == {"ad": "vocabulary_size is 40, the source's 50"}
    np.testing.assert_array_equal(tables(student).read_table("ad"), before)
    assert list(done.tables) == ["user"]
    hashed = dlrm(4, schema(hashed=True))
    assert "hashed" in warm_start(hashed, filled(dlrm(4))).skipped["ad"]


def test_layers_on_demand():
    large, small = filled(dlrm(8, units=(16, 8))), dlrm(3, units=(16, 8))
    done = warm_start(small, large, layers=True)
    assert "representation" in done.layers
    assert any("weights of" in why for why in done.skipped.values())
    assert warm_start(dlrm(8, units=(16, 8)), large, layers=False).layers == []


def test_dynamic_rows_keep_their_ids():
    own = schema(admit_after=2)
    old, new = dlrm(4, own), dlrm(4, own, seed=3)
    old.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    x = {**batch(), "ad": np.full(6, 12345, "int32")}
    old.fit(x, np.ones(6, "float32"), verbose=0)
    old.fit(x, np.ones(6, "float32"), verbose=0)
    assert tables(old).dynamic_counters()["ad"]["occupancy"] == 1
    warm_start(new, old)
    np.testing.assert_allclose(to_numpy(new(x)), to_numpy(old(x)), atol=1e-7)
    assert tables(new).dynamic_counters()["ad"]["occupancy"] == 1


def test_nothing_in_common():
    inputs = keras.Input((3,))
    other = keras.Model(inputs, keras.layers.Dense(1, name="other")(inputs))
    with pytest.raises(ValueError, match="Nothing of the source fits"):
        warm_start(dlrm(4), other)


def test_first_order_weights_are_matched_to_their_own():
    """DeepFM has two feature embeddings with the same tables."""
    keras.utils.set_random_seed(0)
    old, new = (kx.models.DeepFM(schema(), dim=4, dnn_units=(8,)) for _ in range(2))
    filled(old)
    first = old.get_layer("first-order").embedding
    first.write_table("ad", np.arange(40.0)[:, None])
    done = warm_start(new, old)
    assert done.skipped == {}
    np.testing.assert_array_equal(new.get_layer("first-order").embedding.read_table("ad"),
                                  first.read_table("ad"))  # fmt: skip
    np.testing.assert_array_equal(to_numpy(new(batch())), to_numpy(old(batch())))
