import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_exfm.layers import DynamicIds
from tests.layers.dynamic_reference import DynamicReference
from tests.testing import to_numpy


class Compiled:
    """A layer whose training call is compiled as the backend's training step is."""

    def __init__(self, layer, shape, **options):
        self.layer = layer
        if not layer.built:
            layer.build(shape)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            signature = [tf.TensorSpec(shape, "int32")]
            self._train = tf.function(
                lambda ids: layer(ids, training=True), input_signature=signature, **options
            )
        else:
            import jax

            self._step = jax.jit(lambda state, ids: layer.stateless_call([], state, ids, True))
            self._train = self._jax_train

    def _jax_train(self, ids):
        variables = self.layer.non_trainable_variables
        outputs, state = self._step([v.value for v in variables], np.asarray(ids))
        for variable, value in zip(variables, state):
            variable.assign(value)
        return outputs

    def train(self, ids):
        rows, fresh = self._train(ids)
        return to_numpy(rows), to_numpy(fresh)

    def lookup(self, ids):
        rows, fresh = self.layer(ids, training=False)
        assert not to_numpy(fresh).any()
        return to_numpy(rows)


def stream(seed, batches, shape, spread=40):
    """Ids of all kinds: frequent and rare, negative and large, with padding."""
    draw = np.random.default_rng(seed)
    for number in range(batches):
        ids = draw.zipf(1.3, shape) % spread + 5 * number
        ids = np.where(draw.random(shape) < 0.3, -2 - ids * 7919 * 10**4, ids)
        ids = np.where(draw.random(shape) < 0.1, draw.integers(-(2**31), 2**31, shape), ids)
        ids = np.where(draw.random(shape) < 0.1, -1, ids)
        yield ((ids + 2**31) % 2**32 - 2**31).astype("int32")


SETTINGS = {
    "ample": {"capacity": 512, "admit_after": 2},
    "at once": {"capacity": 24, "admit_after": 1},
    "third time": {"capacity": 20, "admit_after": 3, "candidates": 30, "ways": 4},
    "last way missing in some sets": {"capacity": 11, "admit_after": 2, "candidates": 7, "ways": 4},
    "fewer than the ways": {"capacity": 3, "admit_after": 2, "candidates": 64},
    "one row": {"capacity": 1, "admit_after": 2, "candidates": 1, "ways": 1},
    "direct mapped": {"capacity": 17, "admit_after": 2, "candidates": 13, "ways": 1},
}


@pytest.mark.parametrize("arguments", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_restatement_one_id_at_a_time(arguments):
    compiled = Compiled(DynamicIds(**arguments), (48,))
    reference = DynamicReference(**arguments)
    for ids in stream(3, 40, (48,)):
        np.testing.assert_array_equal(compiled.lookup(ids), reference.lookup(ids))
        rows, fresh = compiled.train(ids)
        expected_rows, expected_fresh = reference.train(ids)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(fresh, expected_fresh)
        assert rows.max() <= arguments["capacity"]
    assert compiled.layer.counters() == reference.expected_counters()
    assert int(compiled.layer.step.value) == 40
    counters = compiled.layer.counters()
    if arguments["capacity"] < 100:
        assert counters["evictions"] > 3
        assert counters["forgotten"] > 3 or arguments["admit_after"] == 1


def test_a_crowded_batch_goes_to_distinct_rows_in_the_order_of_first_lookups():
    """Far more newcomers than ways, all in one batch, in one set and in several."""
    for ways in (8, 2):
        compiled = Compiled(DynamicIds(8, admit_after=1, ways=ways), (400,))
        reference = DynamicReference(8, admit_after=1, ways=ways)
        for number in range(3):
            ids = np.random.default_rng(number).permutation(400).astype("int32") // 2
            rows, fresh = compiled.train(ids)
            expected_rows, expected_fresh = reference.train(ids)
            np.testing.assert_array_equal(rows, expected_rows)
            np.testing.assert_array_equal(fresh, expected_fresh)
        assert compiled.layer.counters()["occupancy"] == 8


def by_hand(layer):
    compiled = Compiled(layer, (4,))

    def train(*ids):
        rows, fresh = compiled.train(np.array([*ids, -1, -1, -1, -1][:4], "int32"))
        return rows[: len(ids)].tolist(), fresh[: len(ids)].tolist()

    return train


def test_evicts_the_least_recently_used_by_hand():
    layer = DynamicIds(2, admit_after=1, ways=2)  # one set, rows 1 and 2
    train = by_hand(layer)

    assert train(10, 20, 10) == ([1, 2, 1], [True, True, True])
    assert train(10, -1) == ([1, -1], [False, False])
    assert train(30, 30) == ([2, 2], [True, True])  # 20 was idle longer
    assert train(20, 10) == ([2, 1], [True, False])  # 10 is in use, so 30 goes
    assert train(40, 10, 20) == ([0, 1, 2], [False, False, False])  # nothing to take
    assert layer.counters() == {
        "occupancy": 2,
        "capacity": 2,
        "admissions": 4,
        "evictions": 2,
        "forgotten": 0,
        "lookups": 11,
        "default_lookups": 1,
        "candidates": 0,
        "default_share": 1 / 11,
    }


def test_admission_by_hand():
    layer = DynamicIds(8, admit_after=3, candidates=2, ways=8)
    train = by_hand(layer)

    assert train(10, 10, 20) == ([0, 0, 0], [False, False, False])
    assert train(20) == ([0], [False])
    assert train(30) == ([0], [False])  # 10, seen twice, is forgotten: idle longest
    assert train(10) == ([0], [False])  # and starts anew, in the place of 20
    assert train(30, 20, 30) == ([1, 0, 1], [True, False, True])
    assert train(20, 20) == ([2, 2], [True, True])
    assert layer.counters()["forgotten"] == 2
    assert layer.counters()["candidates"] == 1


_SHARED: dict = {}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-4, 25) | st.integers(-(2**31), 2**31 - 1), min_size=16, max_size=16),
        min_size=1,
        max_size=12,
    )
)
def test_invariants(batches):
    if not _SHARED:
        compiled = Compiled(DynamicIds(10, admit_after=2, candidates=9, ways=3), (16,))
        _SHARED.update(compiled=compiled, start=[to_numpy(v) for v in compiled.layer.weights])
    compiled, layer = _SHARED["compiled"], _SHARED["compiled"].layer
    for variable, value in zip(layer.weights, _SHARED["start"]):
        variable.assign(value)
    row_of: dict[int, int] = {}
    for batch in batches:
        ids = np.array(batch, "int32")
        before = compiled.lookup(ids)
        rows, fresh = compiled.train(ids)
        np.testing.assert_array_equal(rows, compiled.lookup(ids))
        np.testing.assert_array_equal(rows == -1, ids == -1)
        # Fresh are all lookups of the ids that had no row and have one now.
        np.testing.assert_array_equal(fresh, (before == 0) & (rows > 0))
        owned = rows > 0
        assert (
            len(set(zip(ids[owned], rows[owned]))) == len(set(rows[owned])) == len(set(ids[owned]))
        )
        # Who was in the batch with a row keeps it.
        np.testing.assert_array_equal(rows[before > 0], before[before > 0])
        taken = set(rows[fresh].tolist())
        row_of = {i: r for i, r in row_of.items() if r not in taken}
        row_of.update(zip(ids[owned].tolist(), rows[owned].tolist()))
        cache = to_numpy(layer.row_cache.value)
        keys = cache[..., 0][cache[..., 0] != -1].tolist()
        assert sorted(keys) == sorted(row_of)
        counters = layer.counters()
        assert counters["occupancy"] == len(row_of)
        waiting = to_numpy(layer.candidate_cache.value)
        keys = waiting[..., 0][waiting[..., 0] != -1].tolist()
        assert counters["candidates"] == len(keys) == len(set(keys))
        assert not set(keys) & set(row_of)
        assert waiting[..., 2].max() <= 2  # no more than what counts, so it cannot overflow
        # The spare sets hold what they held.
        np.testing.assert_array_equal(cache[-1], _SHARED["start"][0][-1])
        np.testing.assert_array_equal(waiting[-1], _SHARED["start"][1][-1])


def make_model(**arguments):
    ids = keras.Input((4,), dtype="int32")
    rows, fresh = DynamicIds(**arguments, name="dynamic")(ids)
    vectors = keras.layers.Embedding(arguments["capacity"] + 2, 3)(rows + 1)
    vectors = ops.concatenate([vectors, ops.cast(fresh, "float32")[..., None]], axis=-1)
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(vectors)))


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
def test_fit(mode, backend):
    arguments = {"capacity": 20, "admit_after": 2, "candidates": 30, "ways": 4}
    model = make_model(**arguments)
    options = {"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}}
    if backend == "jax" and mode == "eager":
        options["eager"]["jit_compile"] = False
    model.compile("sgd", "mse", **options.get(mode, {"jit_compile": True}))
    # On JAX a step without compilation traces its loops anew: a second each.
    count = 2 if (backend, mode) == ("jax", "eager") else 6
    x = np.concatenate(list(stream(5, count, (8, 4))))
    y = np.ones((len(x), 1), "float32")
    # The last batch is smaller.
    model.fit(x, y, batch_size=9, shuffle=False, verbose=0, validation_data=(x, y))
    reference = DynamicReference(**arguments)
    for start in range(0, len(x), 9):
        reference.train(x[start : start + 9])
    layer = model.get_layer("dynamic")
    assert layer.counters() == reference.expected_counters()
    before = [to_numpy(v) for v in layer.weights]
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    for value, variable in zip(before, layer.weights):
        np.testing.assert_array_equal(value, to_numpy(variable))
    np.testing.assert_array_equal(to_numpy(layer(x)[0]), reference.lookup(x))


def test_any_batch_size_in_one_graph(backend):
    if backend != "tensorflow":
        pytest.skip("JAX compiles for each size")
    arguments = {"capacity": 40, "admit_after": 2, "ways": 4}
    compiled = Compiled(DynamicIds(**arguments), (None, 3))
    reference = DynamicReference(**arguments)
    for size in (5, 1, 30, 0, 7):
        ids = next(stream(size, 1, (size, 3)))
        rows, fresh = compiled.train(ids)
        expected_rows, expected_fresh = reference.train(ids)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(fresh, expected_fresh)


def test_serving_needs_gathers_and_comparisons_only(backend):
    layer = DynamicIds(1000)
    layer.build((None,))
    if backend == "tensorflow":
        import tensorflow as tf

        graph = tf.function(lambda ids: layer(ids, training=False))
        concrete = graph.get_concrete_function(tf.TensorSpec((None,), "int32"))
        used = {operation.type for operation in concrete.graph.get_operations()}
        assert "ResourceGather" in used
        unwanted = ("While", "Scatter", "Assign", "Segment", "ReadVariable")
    else:
        import jax

        def serve(ids):
            return layer(ids, training=False)

        equations = jax.make_jaxpr(serve)(np.zeros(4, "int32")).jaxpr.eqns
        used = {str(equation) for equation in equations}
        assert any("gather" in text for text in used)
        unwanted = ("while", "scatter")
    assert not [name for name in used if any(word in name for word in unwanted)]


def test_counters_are_exact_beyond_int32():
    layer = DynamicIds(4, admit_after=1)
    layer.build((3,))
    full = 2**30 - 1
    layer.counts.assign(np.array([[0, 3], [0, 1], [0, 0], [5, full - 1], [4, full]], "int32"))
    layer(np.array([7, 7, -1], "int32"), training=True)
    counters = layer.counters()
    assert counters["lookups"] == 6 * 2**30
    assert counters["default_lookups"] == 4 * 2**30 + full
    assert counters["admissions"] == 4
    layer(np.array([7, 7, 7], "int32"), training=True)
    assert layer.counters()["lookups"] == 6 * 2**30 + 3


_OTHER = """
import sys, keras, numpy as np, keras_exfm
model = keras.saving.load_model(sys.argv[1])
ids = np.load(sys.argv[2])
layer = model.get_layer("dynamic")
outputs = [layer(batch, training=True) for batch in ids]
rows, fresh = zip(*outputs)
np.savez(sys.argv[3], rows=list(map(np.array, rows)), fresh=list(map(np.array, fresh)))
"""


def test_a_saved_model_goes_on_on_the_other_backend(tmp_path, backend):
    arguments = {"capacity": 20, "admit_after": 2, "candidates": 30, "ways": 4}
    model = make_model(**arguments)
    layer, reference = model.get_layer("dynamic"), DynamicReference(**arguments)
    batches = list(stream(9, 5, (6, 4)))
    train = Compiled(layer, (6, 4)).train
    for ids in batches[:3]:
        train(ids)
        reference.train(ids)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "ids.npy", np.stack(batches[3:]))
    other = {"tensorflow": "jax", "jax": "tensorflow"}[backend]
    files = [str(tmp_path / name) for name in ("model.keras", "ids.npy", "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER, *files],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = np.load(files[2])
    restored = keras.saving.load_model(tmp_path / "model.keras").get_layer("dynamic")
    assert restored.counters() == reference.expected_counters()
    train = Compiled(restored, (6, 4)).train
    for number, ids in enumerate(batches[3:]):
        here = train(ids)
        for name, value, expected in zip(("rows", "fresh"), here, reference.train(ids)):
            np.testing.assert_array_equal(value, expected)
            np.testing.assert_array_equal(there[name][number], expected)
    assert restored.counters() == reference.expected_counters()


def test_config_and_symbolic_call():
    layer = DynamicIds(100, admit_after=3, candidates=50, ways=4, name="ids")
    clone = DynamicIds.from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    rows, fresh = clone(keras.Input((5,), dtype="int32"))
    assert rows.shape == fresh.shape == (None, 5)
    assert (rows.dtype, fresh.dtype) == ("int32", "bool")
    assert not clone.trainable_variables
    assert {keras.backend.standardize_dtype(v.dtype) for v in clone.weights} == {"int32"}
    # 8 bytes a row and 12 a candidate, here with 13 ways of room each, and a spare set.
    assert to_numpy(clone.row_cache).nbytes == 8 * (100 + 4)
    assert to_numpy(clone.candidate_cache).nbytes == 12 * (13 * 4 + 4)
    assert not hasattr(DynamicIds(5, admit_after=1), "candidate_cache")


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "7"])
@pytest.mark.parametrize("name", ["capacity", "admit_after", "candidates", "ways"])
def test_bad_arguments(name, bad):
    with pytest.raises(ValueError, match=f"{name}.*at least 1.*Received"):
        DynamicIds(**{"capacity": 5, name: bad})


def test_bad_ids_and_early_counters():
    with pytest.raises(ValueError, match="capacity.*at most"):
        DynamicIds(2**31 - 1)
    layer = DynamicIds(5)
    with pytest.raises(AttributeError, match="built"):
        layer.counters()
    with pytest.raises(ValueError, match="int32 ids. Received dtype: float32"):
        layer(np.ones(3, "float32"))
