"""Twenty steps of `fit` against the NumPy restatement and against dense Keras optimizers."""

import keras
import numpy as np
import pytest

from keras_exfm import optimizers
from keras_exfm.layers import EmbeddingTable
from tests.optimizers import restatement
from tests.testing import to_numpy

ROWS, DIM, WIDTH, BATCH, STEPS = 23, 3, 5, 8, 20

PLAIN = {
    "RowwiseAdagrad": {"learning_rate": 0.3},
    "SparseSGD": {"learning_rate": 2.0},
    "SparseAdagrad": {"learning_rate": 0.3},
    "SparseAdam": {"learning_rate": 0.05},
}
EXTRAS = {"weight_decay": 0.03, "clip_row_norm": 0.02, "warmup_steps": 6}
OWN = {
    "RowwiseAdagrad": {"initial_accumulator_value": 0.001, "epsilon": 0.01},
    "SparseSGD": {},
    "SparseAdagrad": {"initial_accumulator_value": 0.002, "epsilon": 0.003},
    "SparseAdam": {"beta_1": 0.7, "beta_2": 0.9, "epsilon": 0.01},
}


def data(seed=0):
    """Ids with many duplicates within and across lists, and missing ones."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, ROWS, (STEPS * BATCH, WIDTH))
    popular = rng.random(ids.shape) < 0.4
    ids = np.where(popular, 4, ids).astype("int32")
    return ids, rng.normal(size=(*ids.shape, DIM)).astype("float32")


def fit(table, ids, targets, optimizer=None, batch_size=BATCH, **compile_options):
    inputs = keras.Input(ids.shape[1:], dtype="int32")
    model = keras.Model(inputs, table(inputs))
    model.compile(optimizer or keras.optimizers.Adam(0.1), "mse", **compile_options)
    start = to_numpy(table.table).copy()
    model.fit(ids, targets, batch_size=batch_size, shuffle=False, verbose=0)
    return start


def numpy_fit(kind, start, ids, targets, config):
    table = start.astype("float64")
    state = restatement.new_state(kind, ROWS, DIM, config)
    for step in range(STEPS):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        flat = ids[batch].reshape(-1)
        vectors = np.where(flat[:, None] == -1, 0.0, table[flat])
        error = vectors - targets[batch].reshape(-1, DIM)
        restatement.train_step(kind, table, state, flat, 2 * error / error.size, config, step)
    return table, state


def check(kind, table, start, ids, targets, config):
    expected, state = numpy_fit(kind, start, ids, targets, config)
    assert np.abs(expected - start).max() > 0.05
    np.testing.assert_allclose(to_numpy(table.table), expected, atol=2e-6, rtol=2e-5)
    for name, value in state.items():
        actual = to_numpy(getattr(table, f"slot_{name}"))
        np.testing.assert_allclose(actual, value, atol=1e-7, rtol=2e-5)
    assert table.step == STEPS


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_defaults(kind):
    ids, targets = data()
    table = EmbeddingTable(ROWS, DIM, optimizer=getattr(optimizers, kind)(**PLAIN[kind]))
    start = fit(table, ids, targets)
    check(kind, table, start, ids, targets, PLAIN[kind])


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_decay_clip_schedule_warm_up(kind):
    ids, targets = data(1)
    base = 3 * PLAIN[kind]["learning_rate"]
    schedule = keras.optimizers.schedules.ExponentialDecay(base, 10, 0.5)
    options = {**EXTRAS, **OWN[kind]}
    optimizer = getattr(optimizers, kind)(learning_rate=schedule, **options)
    table = EmbeddingTable(ROWS, DIM, initializer="glorot_normal", optimizer=optimizer)
    start = fit(table, ids, targets)
    config = {**options, "learning_rate": lambda step: base * 0.5 ** (step / 10)}
    # The clip binds for the popular rows and leaves others alone.
    check(kind, table, start, ids, targets, config)


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_compiled_and_eager(options):
    ids, targets = data(2)
    table = EmbeddingTable(ROWS, DIM, optimizer=optimizers.RowwiseAdagrad(0.3))
    start = fit(table, ids, targets, **options)
    check("RowwiseAdagrad", table, start, ids, targets, {"learning_rate": 0.3})


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow updates at once")
@pytest.mark.parametrize("batch_size", [BATCH, 7])
def test_large_tables(batch_size, monkeypatch):
    """Of large tables: rows are read ahead, and updated in eight parts of the batch, the last of
    which may overlap the one before."""
    from keras_exfm.layers._row_engine import _jax

    ids, targets = data(6)
    results = []
    for smallest, cache in ((4096, 2**25), (8, 0)):
        monkeypatch.setattr(_jax, "_PARTED", smallest)
        monkeypatch.setattr(_jax, "_CACHE", cache)
        initializer = keras.initializers.RandomUniform(seed=7)
        optimizer = optimizers.SparseAdam(0.05, weight_decay=0.1)
        table = EmbeddingTable(ROWS, DIM, initializer, optimizer=optimizer)
        fit(table, ids[:56], targets[:56], batch_size=batch_size)
        results.append([to_numpy(w) for w in table.weights])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, atol=1e-6)


def trained(row_optimizer, model_optimizer, ids, targets):
    initializer = keras.initializers.RandomUniform(seed=7)
    table = EmbeddingTable(ROWS, DIM, initializer, optimizer=row_optimizer)
    fit(table, ids, targets, model_optimizer)
    return to_numpy(table.table)


def test_sgd_is_dense_sgd():
    ids, targets = data(3)
    sparse = trained(optimizers.SparseSGD(2.0), None, ids, targets)
    dense = trained(None, keras.optimizers.SGD(2.0), ids, targets)
    np.testing.assert_allclose(sparse, dense, atol=1e-6)


def distinct_ids(count):
    """In each batch the same `count` rows at most once, and missing ids: where Keras' own sparse
    optimizers on TensorFlow, which square before they sum, are right too."""
    rng = np.random.default_rng(0)
    ids = np.full((STEPS, BATCH * WIDTH), -1, "int32")
    for batch in ids:
        batch[:count] = rng.permutation(ROWS)[:count]
    return ids.reshape(-1, WIDTH)


def test_adagrad_is_dense_adagrad():
    ids, targets = distinct_ids(17), data()[1]
    sparse = trained(optimizers.SparseAdagrad(0.3), None, ids, targets)
    dense = trained(None, keras.optimizers.Adagrad(0.3), ids, targets)
    np.testing.assert_allclose(sparse, dense, atol=1e-6)


def test_adam_is_dense_adam_if_every_step_sees_every_row():
    ids, targets = distinct_ids(ROWS), data()[1]
    sparse = trained(optimizers.SparseAdam(0.05), None, ids, targets)
    dense = trained(None, keras.optimizers.Adam(0.05), ids, targets)
    np.testing.assert_allclose(sparse, dense, atol=2e-5)


def test_duplicates_are_summed_before_the_square():
    """Row 1 looked up three times with gradient 1 each: (1 + 1 + 1) ** 2, not 1 + 1 + 1."""
    table = EmbeddingTable(2, 1, "zeros", optimizer=optimizers.SparseAdagrad(0.1))
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, keras.ops.sum(table(inputs), axis=1))
    model.compile("sgd", loss=lambda y, p: keras.ops.sum(p))
    model.fit(np.array([[1, 1, 1]], "int32"), np.zeros((1, 1)), verbose=0)
    assert to_numpy(table.slot_accumulator)[1, 0] == pytest.approx(0.1 + 9)
    assert to_numpy(table.table)[1, 0] == pytest.approx(-0.1 * 3 / np.sqrt(9.1), rel=1e-5)
    assert to_numpy(table.table)[0, 0] == 0
