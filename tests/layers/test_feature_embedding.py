import functools
import json

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_exfm.features import Categorical, MultiHot, Numeric, Schema, SchemaError
from keras_exfm.layers import FeatureEmbedding
from keras_exfm.layers._hashing import hash_to_rows, murmur3_mix32
from keras_exfm.optimizers import SparseSGD
from tests.layers import reference
from tests.testing import parameter_count, run_layer_test, to_numpy

# One plain weight: its gradients and counts are those of the formula on both backends.
dense = functools.partial(FeatureEmbedding, optimizer=None)

SCHEMA = Schema(
    [
        Categorical("user", 7, embeddings=2),
        Numeric("age"),
        Categorical("ad", 5, hashed=True),
        MultiHot("history", 5, length=3, table="ad", hashed=True),
        MultiHot("tags", 4, length=2, combiner="sum", embeddings=2),
        Categorical("city", 3),
        Numeric("vector", 3),
    ]
)
# user 2, ad 1, history 1, tags 2, city 1, then the numeric ones
SPARSE_EMBEDDINGS = 7
ROWS = 7 * 2 + 5 + 4 * 2 + 3


def batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(-1, 7, size).astype("int32"),
        "age": rng.normal(size=size).astype("float32"),
        "ad": rng.integers(-(2**31), 2**31, size).astype("int32"),
        "history": np.where(
            rng.random((size, 3)) < 0.4, -1, rng.integers(-(2**31), 2**31, (size, 3))
        ).astype("int32"),
        "tags": rng.integers(-1, 4, (size, 2)).astype("int32"),
        "city": rng.integers(-1, 3, size).astype("int32"),
        "vector": rng.normal(size=(size, 3)).astype("float32"),
    }


def restated(layer, inputs):
    return reference.feature_embedding(
        reference.weights(layer), inputs, layer.schema, layer.numeric_embeddings
    )


def table_of(layer):
    return layer.weights[0]


def ones_to_n(layer):
    """Row r of the table becomes (r, 100 r): golden values can be read off."""
    rows = np.arange(table_of(layer).shape[0], dtype="float32")
    table_of(layer).assign(np.stack([rows, 100 * rows], axis=1))


def test_layer(tmp_path):
    numeric = (4 * 8 + 8) + (8 * 6 + 6) + (6 * 2 * 3 + 2 * 3)
    run_layer_test(
        lambda **kw: dense(SCHEMA, 3, numeric_units=(8, 6), numeric_embeddings=2, **kw),
        batch(),
        output_shape=(4, SPARSE_EMBEDDINGS + 2, 3),
        parameters=ROWS * 3 + numeric,
        tmp_path=tmp_path,
        reference=restated,
    )


def test_sparse_only(tmp_path):
    schema = SCHEMA.select(["user", "tags"])
    run_layer_test(
        lambda **kw: dense(schema, 3, **kw),
        {name: batch()[name] for name in schema.names},
        output_shape=(4, 4, 3),
        parameters=(7 * 2 + 4 * 2) * 3,
        tmp_path=tmp_path,
        reference=restated,
    )


def test_numeric_only(tmp_path):
    schema = SCHEMA.select(["age", "vector"])
    layer = run_layer_test(
        lambda **kw: dense(schema, 3, numeric_units=(), numeric_embeddings=2, **kw),
        {name: batch()[name] for name in schema.names},
        output_shape=(4, 2, 3),
        parameters=4 * 6 + 6,
        tmp_path=tmp_path,
        reference=restated,
    )
    assert layer.num_embeddings == 2


def test_golden_rows():
    schema = Schema(
        [
            Categorical("a", 10, embeddings=2),
            MultiHot("m", 4, length=3, combiner="mean", embeddings=2),
            MultiHot("s", 10, length=2, combiner="sum", table="a", embeddings=2),
        ]
    )
    layer = dense(schema, 2)
    inputs = {
        "a": np.array([3, -1], "int32"),
        "m": np.array([[0, 3, -1], [-1, -1, -1]], "int32"),
        "s": np.array([[9, 9], [-1, 1]], "int32"),
    }
    layer(inputs)
    ones_to_n(layer)
    # "a" starts at row 0, its second embedding at 10; "m" at 20 and 24; "s" shares "a".
    first = [3, 13, (20 + 23) / 2, (24 + 27) / 2, 9 + 9, 19 + 19]
    second = [0, 0, 0, 0, 1, 11]
    out = to_numpy(layer(inputs))
    np.testing.assert_array_equal(out[..., 0], [first, second])
    np.testing.assert_array_equal(out[..., 1], 100 * np.array([first, second]))


def test_numeric_rows_come_last_whatever_the_schema_order():
    layer = dense(Schema([Numeric("x"), Categorical("a", 3)]), 2, numeric_units=())
    inputs = {"x": np.array([2.0], "float32"), "a": np.array([1], "int32")}
    layer(inputs)
    layer.weights[0].assign(np.full((3, 2), 5.0))
    layer.weights[1].assign([[1.0, 10.0]])
    layer.weights[2].assign([0.5, 0.0])
    np.testing.assert_array_equal(to_numpy(layer(inputs)), [[[5, 5], [2.5, 20]]])


@pytest.mark.parametrize("bad", [7, 8, 13, 14, 2**31 - 1, -2, -7, -(2**31)])
def test_id_out_of_range_is_nan_and_only_in_its_own_rows(bad):
    layer = dense(SCHEMA, 3)
    inputs = batch()
    inputs["user"] = np.array([0, bad, 6, -1], "int32")
    out = to_numpy(layer(inputs))
    nan = np.isnan(out).any(-1)
    expected = np.zeros_like(nan)
    expected[1, :2] = True
    np.testing.assert_array_equal(nan, expected)
    assert np.isnan(out[1, :2]).all()
    assert (out[3, :2] == 0).all()


def test_bad_and_missing_ids_where_every_feature_has_one_embedding():
    """No column of ids is read twice then: they take a shorter way to their rows."""
    high = 2**31 - 1
    layer = dense(Schema([Categorical(name, 3) for name in "abc"]), 2)
    ids = np.array([[0, 2, 1], [-1, -1, -1], [3, -2, high], [-(2**31), high - 5, 3]], "int32")
    inputs = {name: ids[:, i] for i, name in enumerate("abc")}
    layer.build(dict.fromkeys("abc", (None,)))
    ones_to_n(layer)
    nan = np.nan
    expected = [[0, 5, 7], [0, 0, 0], [nan, nan, nan], [nan, nan, nan]]
    np.testing.assert_array_equal(to_numpy(layer(inputs))[:, :, 0], expected)


@pytest.mark.parametrize("combiner", ["mean", "sum"])
def test_one_bad_id_in_a_list_makes_the_pooled_vector_nan(combiner):
    layer = dense(Schema([MultiHot("m", 4, length=3, combiner=combiner)]), 2)
    out = to_numpy(layer({"m": np.array([[0, 4, -1], [0, 1, -1]], "int32")}))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def _gradient(layer, inputs):
    """Gradient of the table for a fixed random cotangent, by the backend's own means."""
    layer(inputs)
    cotangent = np.random.default_rng(3).normal(size=layer(inputs).shape).astype("float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs) * cotangent)
        gradient = tape.gradient(loss, table_of(layer).value)
        return np.asarray(tf.convert_to_tensor(gradient)), cotangent
    import jax

    trainable = [v.value for v in layer.trainable_variables]

    def loss(values):
        return (layer.stateless_call(values, [], inputs)[0] * cotangent).sum()

    return np.asarray(jax.grad(loss)(trainable)[0]), cotangent


def test_table_gradient_sums_duplicates_and_leaves_padding_alone():
    schema = Schema([Categorical("a", 4), MultiHot("m", 4, length=3, table="a")])
    layer = dense(schema, 2)
    inputs = {
        "a": np.array([1, 1, -1], "int32"),
        "m": np.array([[1, 2, -1], [-1, -1, -1], [0, 0, 0]], "int32"),
    }
    gradient, g = _gradient(layer, inputs)
    expected = np.zeros((4, 2))
    expected[1] = g[0, 0] + g[1, 0] + g[0, 1] / 2
    expected[2] = g[0, 1] / 2
    expected[0] = g[2, 1]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (gradient[3] == 0).all()


def test_padding_alone_gives_no_gradient():
    layer = dense(Schema([Categorical("a", 4)]), 2)
    gradient, _ = _gradient(layer, {"a": np.full(3, -1, "int32")})
    assert (gradient == 0).all()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(-1, 4), min_size=3, max_size=3), st.sampled_from(["mean", "sum"]))
def test_pooling_does_not_depend_on_order(ids, combiner):
    layer = dense(Schema([MultiHot("m", 5, length=3, combiner=combiner)]), 2)
    lists = np.array([ids, ids[::-1], sorted(ids)], "int32")
    layer({"m": lists})
    ones_to_n(layer)
    out = to_numpy(layer({"m": lists}))[:, 0, 0]
    present = [i for i in ids if i >= 0]
    divisor = len(present) if combiner == "mean" and present else 1
    np.testing.assert_allclose(out, sum(present) / divisor, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size):
    layer = dense(SCHEMA, 3)
    assert tuple(layer(batch(size)).shape) == (size, SPARSE_EMBEDDINGS + 1, 3)


def test_examples_do_not_see_each_other():
    layer = dense(SCHEMA, 3)
    inputs = batch(5)
    whole = to_numpy(layer(inputs))
    one = to_numpy(layer({name: column[2:3] for name, column in inputs.items()}))
    np.testing.assert_allclose(whole[2:3], one, rtol=1e-5)


def test_other_columns_are_left_aside():
    schema = SCHEMA.select(["user"])
    layer = dense(schema, 3)
    assert tuple(layer(batch()).shape) == (4, 2, 3)


class TestHash:
    def test_published_values(self):
        """fmix32 of MurmurHash3: 0 is a fixed point, 1 and 0xffffffff are widely printed."""
        ids = np.array([0, 1, -1], "int32")
        assert to_numpy(murmur3_mix32(ids)).tolist() == [0, 0x514E28B7, 0x81F16F39]

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
        st.integers(1, 2**31 - 1),
    )
    def test_equals_python_integers(self, ids, size):
        rows = to_numpy(hash_to_rows(np.array(ids, "int32"), np.array([size], "int32")))
        assert rows.dtype == np.int32
        assert rows.tolist() == [reference.hash_row(i, size) for i in ids]

    def test_spreads_consecutive_ids(self):
        rows = to_numpy(hash_to_rows(np.arange(100_000, dtype="int32"), np.array([1000], "int32")))
        counts = np.bincount(rows, minlength=1000)
        chi2 = ((counts - 100) ** 2 / 100).sum()
        assert abs(chi2 - 999) < 5 * np.sqrt(2 * 999)


class TestErrors:
    def test_unknown_optimizer(self):
        with pytest.raises(ValueError, match="RowOptimizer, None, or one of.*'adagrad'"):
            dense(SCHEMA, 3, optimizer="adagrad")

    def test_missing_feature(self):
        inputs = batch()
        del inputs["city"]
        with pytest.raises(ValueError, match=r"misses the features \['city'\]"):
            dense(SCHEMA, 3)(inputs)

    def test_no_dict(self):
        with pytest.raises(ValueError, match="expects a dict"):
            dense(SCHEMA, 3)(batch()["tags"])

    @pytest.mark.parametrize(
        ("name", "column"),
        [
            ("user", np.zeros((4, 1), "int32")),
            ("tags", np.zeros((4, 3), "int32")),
            ("tags", np.zeros(4, "int32")),
            ("vector", np.zeros((4, 2), "float32")),
        ],
    )
    def test_wrong_shape(self, name, column):
        with pytest.raises(ValueError, match=f"Feature '{name}' should have the shape"):
            dense(SCHEMA, 3)({**batch(), name: column})

    def test_float_ids(self):
        with pytest.raises(ValueError, match="'user': ids should be int32.*float32"):
            dense(SCHEMA, 3)({**batch(), "user": np.zeros(4, "float32")})

    def test_too_many_rows(self):
        schema = Schema([Categorical("a", 2**30), Categorical("b", 2**30)])
        with pytest.raises(ValueError, match="2147483648 rows"):
            dense(schema, 3)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dim": 0}, "`dim` should be an integer of at least 1. Received: dim=0"),
            ({"dim": 2.5}, "dim=2.5"),
            ({"numeric_units": 64}, "`numeric_units` should be a list"),
            ({"numeric_units": (8, -1)}, r"numeric_units\[1\]=-1"),
            ({"numeric_embeddings": 0}, "numeric_embeddings=0"),
            ({"schema": ["user"]}, "`schema` should be a Schema"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            dense(**{"schema": SCHEMA, "dim": 3, **arguments})

    def test_schema_dict_is_checked(self):
        with pytest.raises(SchemaError, match="kind"):
            dense({"features": [{"kind": "word", "name": "a"}]}, 3)

    def test_misspelt_argument(self):
        with pytest.raises((TypeError, ValueError), match="numeric_unit"):
            dense(SCHEMA, 3, numeric_unit=(3,))


def test_config_holds_the_schema_as_plain_data():
    config = json.loads(json.dumps(FeatureEmbedding(SCHEMA, 3).get_config()))
    assert FeatureEmbedding.from_config(config).schema == SCHEMA


def test_mixed_precision_keeps_table_and_pooling_in_float32():
    schema = Schema([MultiHot("m", 2, length=2)])
    layer = dense(schema, 1, dtype="mixed_bfloat16")
    inputs = {"m": np.array([[0, 1]], "int32")}
    layer(inputs)
    # In bfloat16 both rows would round to the same number and their difference would vanish.
    table_of(layer).assign([[1.001], [-1.0]])
    np.testing.assert_allclose(to_numpy(layer(inputs)).astype("float32").ravel(), 0.0005, rtol=1e-2)
    assert parameter_count(layer) == 2


def _trained(optimizer, model_optimizer):
    keras.utils.set_random_seed(5)
    layer = dense(
        SCHEMA,
        3,
        embeddings_initializer=keras.initializers.RandomUniform(seed=1),
        optimizer=optimizer,
    )
    inputs = SCHEMA.inputs()
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs))))
    model.compile(model_optimizer, "mse")
    model.fit(batch(32), np.linspace(-1, 1, 32), batch_size=8, shuffle=False, verbose=0)
    return layer


def test_row_sparse_training_is_dense_training():
    """Shared tables, pooling, hashing, padding: with SGD both give the same weights."""
    dense = _trained(None, keras.optimizers.SGD(0.5))
    sparse = _trained(SparseSGD(0.5), keras.optimizers.SGD(0.5))
    assert sparse.tables[0].step == 4
    np.testing.assert_allclose(
        to_numpy(sparse.tables[0].table), to_numpy(dense.tables[0].table), atol=1e-6
    )
    for a, b in zip(sparse.numeric_mlp.weights, dense.numeric_mlp.weights):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_row_optimizer_travels_in_the_config():
    config = json.loads(
        json.dumps(FeatureEmbedding(SCHEMA, 3, optimizer=SparseSGD(0.5)).get_config())
    )
    assert FeatureEmbedding.from_config(config).optimizer.learning_rate == 0.5


SMALL = Schema(
    [
        Categorical("city", 3, dim=2, embeddings=2),
        Categorical("user", 7, embeddings=2),
        MultiHot("tags", 4, length=2, dim=3),
        Categorical("ad", 5, hashed=True),
        Numeric("age"),
        Categorical("maker", 6, hashed=True),
    ]
)


def small_batch(size=4):
    rng = np.random.default_rng(1)
    return {
        "city": rng.integers(-1, 3, size).astype("int32"),
        "user": rng.integers(-1, 7, size).astype("int32"),
        "tags": rng.integers(-1, 4, (size, 2)).astype("int32"),
        "ad": rng.integers(-(2**31), 2**31, size).astype("int32"),
        "age": rng.normal(size=size).astype("float32"),
        "maker": rng.integers(0, 99, size).astype("int32"),
    }


def test_what_is_wrong_passes_the_mlps_as_nan():
    """Compiled: TensorFlow's fused ReLU would make 0 of it."""
    inputs = SMALL.inputs()
    model = keras.Model(inputs, dense(SMALL, 5, small_units=(8,))(inputs))
    data = small_batch()
    data["city"][1], data["age"][2] = 3, np.nan
    nan = np.isnan(model.predict(data, verbose=0)).all(-1)
    good = np.isnan(model.predict(small_batch(), verbose=0))
    assert not good.any()
    # The small vectors' group has two rows before the last, which is of the numbers.
    assert nan.any(0).tolist() == [False] * (nan.shape[1] - 3) + [True] * 3
    assert [row.tolist() for row in np.argwhere(nan[:, -3:])] == [[1, 0], [1, 1], [2, 2]]


class TestSmallAndFrozen:
    def test_layer(self, tmp_path):
        """Small features in a group, a frozen table between trained ones."""
        width = 2 * 2 + 3
        small = (width * 8 + 8) + (8 * 2 * 5 + 2 * 5)
        numeric = (1 * 64 + 64) + (64 * 5 + 5)
        layer = run_layer_test(
            lambda **kw: dense(
                SMALL,
                5,
                small_units=(8,),
                frozen=["ad"],
                embeddings_initializer={
                    "user": "ones",
                    "ad": keras.initializers.RandomNormal(seed=1),
                    "maker": keras.initializers.RandomNormal(seed=2),
                    "tags": keras.initializers.RandomNormal(seed=3),
                },
                **kw,
            ),
            small_batch(),
            # user 2, ad 1, maker 1; ceil(7 / 5) = 2 of the group; 1 numeric
            output_shape=(4, 7, 5),
            parameters=3 * 2 * 2 + 4 * 3 + (7 * 2 + 6) * 5 + small + numeric,
            tmp_path=tmp_path,
            reference=lambda layer, inputs: reference.feature_embedding(
                reference.weights(layer), inputs, SMALL, small_embeddings=2, frozen=["ad"]
            ),
        )
        assert layer.num_embeddings == 7

    def test_initializers_reach_their_rows(self):
        layer = dense(
            SMALL.select(["user", "ad", "maker"]),
            2,
            embeddings_initializer={"ad": "ones", "maker": keras.initializers.Constant(3.0)},
        )
        layer.build({"user": (None,), "ad": (None,), "maker": (None,)})
        assert (layer.read_table("ad") == 1).all()
        assert (layer.read_table("maker") == 3).all()
        assert 0 < np.abs(layer.read_table("user")).mean() < 0.05

    @pytest.mark.parametrize("optimizer", ["sparse_adam", None])
    def test_frozen_rows_stay_whatever_is_trainable(self, optimizer):
        layer = dense(SMALL, 4, frozen=["ad"], optimizer=optimizer)
        inputs = SMALL.inputs()
        model = keras.Model(inputs, keras.layers.Flatten()(layer(inputs)))
        model.trainable = False
        model.trainable = True
        ad, user = layer.read_table("ad"), layer.read_table("user")
        model.compile("sgd", "mse")
        model.fit(small_batch(), np.ones(model.output_shape[1:])[None].repeat(4, 0), verbose=0)
        np.testing.assert_array_equal(layer.read_table("ad"), ad)
        assert (layer.read_table("user") != user).any()

    def test_warm_start(self):
        """Values move over, also to another storage; the state of these rows starts again."""
        source = dense(SMALL, 4)
        target = dense(SMALL, 4, optimizer="sparse_adagrad", storage_dtype="bfloat16")
        inputs = SMALL.inputs()
        source(inputs)
        model = keras.Model(inputs, keras.layers.Flatten()(target(inputs)))
        model.compile("sgd", "mse")
        model.fit(small_batch(), np.ones(model.output_shape[1:])[None].repeat(4, 0), verbose=0)
        before = {name: target.read_table(name) for name in SMALL.tables()}
        stack = target.tables[[t.dim for t in target.tables].index(4)]
        changed = np.abs(to_numpy(stack.slot_accumulator) - 0.1).sum(1) > 1e-6
        assert changed[:14].any()
        assert changed[14:].any()
        target.write_table("user", source.read_table("user"))
        np.testing.assert_allclose(
            target.read_table("user"), source.read_table("user"), rtol=2**-8, atol=0
        )
        for name in set(before) - {"user"}:
            np.testing.assert_array_equal(target.read_table(name), before[name])
        after = np.abs(to_numpy(stack.slot_accumulator) - 0.1).sum(1) > 1e-6
        assert not after[:14].any()
        np.testing.assert_array_equal(after[14:], changed[14:])

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.zeros((3, 4)), "shape"),
            (np.full((5, 4), np.nan), "finite"),
        ],
    )
    def test_bad_values_write_nothing(self, values, message):
        layer = dense(SMALL, 4)
        layer.build({f.name: (None, *f.shape) for f in SMALL})
        before = layer.read_table("ad")
        with pytest.raises(ValueError, match=message):
            layer.write_table("ad", values)
        np.testing.assert_array_equal(layer.read_table("ad"), before)

    @pytest.mark.parametrize(
        "options",
        [
            {"frozen": ["nobody"]},
            {"embeddings_initializer": {"nobody": "ones"}},
            {"storage_dtype": "float16"},
            {"small_embeddings": 0},
        ],
    )
    def test_bad_options(self, options):
        with pytest.raises(ValueError, match="Received"):
            dense(SMALL, 4, **options)

    def test_sharers_of_a_table_agree_on_dim(self):
        with pytest.raises(SchemaError, match="dim"):
            Schema([Categorical("a", 3, dim=2), Categorical("b", 3, table="a")])
