"""Arrays as batches: the same rows as the arrays themselves, and nothing that tunes itself."""

import keras
import numpy as np
import pytest

from keras_exfm.datasets import in_memory
from tests.testing import to_numpy

COUNT = 11


def arrays():
    rng = np.random.default_rng(0)
    features = {"ad": np.arange(COUNT, dtype="int32"), "x": rng.normal(size=(COUNT, 3)).astype("f")}
    return features, (np.arange(COUNT) % 2).astype("float32"), np.arange(COUNT).astype("float32")


def passes(data, count):
    return [
        tuple(np.concatenate(parts) for parts in zip(*((f["ad"], y, w) for f, y, w in one)))
        for one in ([keras.tree.map_structure(to_numpy, b) for b in data] for _ in range(count))
    ]


@pytest.mark.backend_free
def test_rows_keep_their_order_and_the_last_batch_has_what_is_left():
    features, label, weight = arrays()
    batches = list(in_memory(features, label, weight, batch_size=4))
    assert [len(y) for _, y, _ in batches] == [4, 4, 3]
    for name, column in features.items():
        found = np.concatenate([x[name].numpy() for x, _, _ in batches])
        assert found.dtype == column.dtype
        np.testing.assert_array_equal(found, column)
    np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y, _ in batches]), label)
    np.testing.assert_array_equal(np.concatenate([w.numpy() for _, _, w in batches]), weight)


@pytest.mark.backend_free
def test_what_is_not_given_is_not_there():
    features, label, _ = arrays()
    assert set(next(iter(in_memory(features)))) == {"ad", "x"}
    assert len(next(iter(in_memory(features, label)))) == 2
    assert next(iter(in_memory(features["x"], batch_size=5))).shape == (5, 3)


@pytest.mark.backend_free
@pytest.mark.parametrize("shuffle", [False, True])
def test_it_knows_its_length_and_tunes_nothing(shuffle):
    data = in_memory(*arrays(), batch_size=4, shuffle=shuffle)
    assert int(data.cardinality()) == len(list(data)) == 3
    assert data.options().autotune.enabled is False


@pytest.mark.backend_free
def test_shuffled_passes_have_every_row_once_and_each_another_order():
    first, second = passes(in_memory(*arrays(), batch_size=4, shuffle=True, seed=1), 2)
    again, _ = passes(in_memory(*arrays(), batch_size=4, shuffle=True, seed=1), 2)
    other, _ = passes(in_memory(*arrays(), batch_size=4, shuffle=True, seed=2), 2)
    for ad, label, weight in (first, second, other):
        assert sorted(ad) == list(range(COUNT))
        np.testing.assert_array_equal(label, ad % 2)
        np.testing.assert_array_equal(weight, ad)
    orders = [tuple(found[0]) for found in (first, second, other)]
    assert len({*orders, tuple(range(COUNT))}) == 4
    assert tuple(again[0]) == orders[0]


@pytest.mark.backend_free
def test_no_python_makes_the_order():
    """A generator in the pipeline costs TensorFlow's training steps 30,000 page faults each."""
    graph = in_memory(*arrays(), shuffle=True)._as_serialized_graph().numpy()
    assert b"Shuffle" in graph
    assert b"PyFunc" not in graph


@pytest.mark.backend_free
def test_passes_that_run_at_once_have_orders_of_their_own():
    data = in_memory(*arrays(), batch_size=4, shuffle=True, seed=1)
    first, second = iter(data), iter(data)
    found = [[], []]
    for batches in zip(first, second):
        for ads, (features, _, _) in zip(found, batches):
            ads += features["ad"].numpy().tolist()
    assert [sorted(ads) for ads in found] == [list(range(COUNT))] * 2
    assert found[0] != found[1]


@pytest.mark.backend_free
def test_orders_in_a_graph_and_under_a_strategy():
    import tensorflow as tf

    def ads():
        data = in_memory(*arrays(), batch_size=COUNT, shuffle=True, seed=1)
        return next(iter(data))[0]["ad"]

    @tf.function
    def in_graph():
        data = in_memory(*arrays(), batch_size=4, shuffle=True, seed=1)
        return data.reduce(0, lambda total, batch: total + tf.reduce_sum(batch[0]["ad"]))

    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        np.testing.assert_array_equal(ads(), ads())
    assert int(in_graph()) == sum(range(COUNT))


def test_fit_sees_another_order_each_epoch():
    class Seen(keras.layers.Layer):
        """Keeps a number that depends on the order of its inputs."""

        def build(self, shape):
            self.state = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x, training=False):
            if training:
                self.state.assign(self.state * 1.5 + keras.ops.sum(x))
            return x

    inputs = keras.Input((1,))
    layer = Seen()
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    values = np.arange(8, dtype="float32")[:, None]
    data = in_memory(values, values, batch_size=1, shuffle=True, seed=1)
    seen = []
    for _ in range(3):
        layer.state.assign(0.0)
        model.fit(data, shuffle=False, verbose=0)
        seen.append(float(layer.state))
    assert len(set(seen)) == 3


@pytest.mark.backend_free
def test_a_seed_decides_alone():
    orders = []
    for other in (1, 2):
        keras.utils.set_random_seed(other)
        orders += [tuple(ad) for ad, _, _ in passes(in_memory(*arrays(), shuffle=True, seed=3), 2)]
    assert orders[:2] == orders[2:]


@pytest.mark.backend_free
def test_without_a_seed_keras_seed_decides():
    orders = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        ((ad, _, _),) = passes(in_memory(*arrays(), shuffle=True), 1)
        orders.append(tuple(ad))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_inputs_without_names(kind):
    a, b = np.arange(4.0, dtype="float32")[:, None], np.ones((4, 2), "float32")
    inputs = [keras.Input((1,)), keras.Input((2,))]
    model = keras.Model(inputs, keras.layers.Concatenate()(inputs))
    found = model.predict(in_memory(kind([a, b]), batch_size=3), verbose=0)
    np.testing.assert_array_equal(found, np.concatenate([a, b], axis=1))
    batches = list(in_memory(kind([a, b]), a, batch_size=3))
    assert [(len(x), len(x[1]), len(y)) for x, y in batches] == [(2, 3, 3), (2, 1, 1)]


def test_fit_and_predict_find_what_they_find_in_the_arrays():
    features, label, weight = arrays()

    def trained(data, **given):
        keras.utils.set_random_seed(1)
        x, ad = keras.Input((3,), name="x"), keras.Input((), name="ad", dtype="int32")
        both = keras.layers.Concatenate()([x, keras.layers.Embedding(COUNT, 2)(ad)])
        model = keras.Model({"ad": ad, "x": x}, keras.layers.Dense(1)(both))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        history = model.fit(*data, **given, epochs=3, shuffle=False, verbose=0)
        return model, history.history["loss"]

    model, losses = trained((features, label), sample_weight=weight, batch_size=4)
    same, same_losses = trained((in_memory(features, label, weight, batch_size=4),))
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    for mine, theirs in zip(same.get_weights(), model.get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    found = same.predict(in_memory(features, batch_size=4), verbose=0)
    np.testing.assert_allclose(found, model.predict(features, batch_size=4, verbose=0), atol=1e-6)
    assert len(found) == COUNT


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8.0}, "should be an int.*batch_size=8.0"),
        ({"seed": 1.5}, "64-bit int.*seed=1.5"),
        ({"seed": True}, "64-bit int"),
        ({"seed": 2**63}, "64-bit int"),
        ({"seed": -(2**63) - 1}, "64-bit int"),
        ({"features": {"a": [1, 2]}}, r"features\['a'\]\[0\].*Received: 1; make arrays of lists"),
        ({"batch_size": True}, "should be an int.*True"),
        ({"features": None, "label": np.ones(2)}, "`features` should be arrays.*None"),
        ({"weight": np.ones(2)}, "`weight` needs a `label`"),
        ({"label": np.ones(3)}, r"features\['a'\] 2, label 3"),
        ({"features": {"a": np.ones(0)}}, "at least one row.*none"),
        ({"features": {"a": np.float32(1.0)}}, r"features\['a'\] should have rows"),
        ({"features": {}}, "at least one array"),
    ],
)
def test_wrong_arrays_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        in_memory(**{"features": {"a": np.ones(2)}, **given})
