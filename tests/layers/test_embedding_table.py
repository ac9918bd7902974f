import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_exfm.layers import EmbeddingTable
from keras_exfm.layers._row_engine import _chunks
from keras_exfm.optimizers import RowwiseAdagrad, SparseAdagrad, SparseAdam, SparseSGD
from tests.testing import run_layer_test, to_numpy

ROWS, DIM, WIDTH = 30, 4, 3
BACKEND = keras.backend.backend()


def batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-1, ROWS, (n, WIDTH)).astype("int32"), rng.normal(size=(n, 1))


def network(optimizer="rowwise_adagrad", *, dtype=None, name="table", **options):
    ids = keras.Input((WIDTH,), dtype="int32")
    table = EmbeddingTable(ROWS, DIM, optimizer=optimizer, dtype=dtype, name=name, **options)
    hidden = keras.layers.Flatten()(table(ids))
    return keras.Model(ids, keras.layers.Dense(1, name="head", dtype=dtype)(hidden)), table


def numpy_lookup(layer, ids):
    table = to_numpy(layer.table)
    out = np.full((*ids.shape, table.shape[1]), np.nan, "float32")
    for place in np.ndindex(ids.shape):
        if ids[place] == -1:
            out[place] = 0
        elif 0 <= ids[place] < len(table):
            out[place] = table[ids[place]]
    return out


class TestLayer:
    @pytest.mark.parametrize("optimizer", [None, SparseAdam(0.01, warmup_steps=3)])
    def test_contract(self, optimizer, tmp_path):
        # On JAX the state of the optimizer is among the trainable variables.
        state = 2 * ROWS * DIM + 2 if optimizer is not None and BACKEND == "jax" else 0
        run_layer_test(
            lambda **k: EmbeddingTable(ROWS, DIM, optimizer=optimizer, **k),
            np.array([[0, -1], [29, 3], [3, 3]], "int32"),
            output_shape=(3, 2, DIM),
            parameters=ROWS * DIM + state,
            reference=numpy_lookup,
            tmp_path=tmp_path,
        )

    @pytest.mark.parametrize("optimizer", [None, "sparse_sgd"])
    @pytest.mark.parametrize("shape", [(7,), (2, 3, 4), ()])
    def test_any_shape_of_ids(self, optimizer, shape):
        table = EmbeddingTable(ROWS, DIM, optimizer=optimizer)
        ids = np.random.default_rng(0).integers(-1, ROWS, shape).astype("int32")
        out = to_numpy(table(keras.ops.convert_to_tensor(ids)))
        np.testing.assert_array_equal(out, numpy_lookup(table, ids))

    @pytest.mark.parametrize("optimizer", [None, "sparse_sgd"])
    def test_bad_ids_give_nan(self, optimizer):
        table = EmbeddingTable(ROWS, DIM, optimizer=optimizer)
        bad = np.array([-2, ROWS, 2**31 - 1, -(2**31)], "int32")
        assert np.isnan(to_numpy(table(bad))).all()

    def test_wrong_arguments(self):
        for rows in (0, -1, 2.0, True):
            with pytest.raises(ValueError, match="`rows` should be an integer"):
                EmbeddingTable(rows, 3)
        with pytest.raises(ValueError, match=r"at most 2\*\*31 - 1"):
            EmbeddingTable(2**31, 3)
        with pytest.raises(ValueError, match="`dim` should be an integer"):
            EmbeddingTable(3, 0)
        with pytest.raises(ValueError, match="RowOptimizer, None, or one of"):
            EmbeddingTable(3, 3, optimizer="adam")
        with pytest.raises(ValueError, match="int32 ids. Received dtype: float32"):
            EmbeddingTable(3, 3)(np.zeros(3, "float32"))

    def test_state_before_build_and_of_a_dense_table(self):
        with pytest.raises(AttributeError, match="built EmbeddingTable"):
            _ = EmbeddingTable(3, 3, optimizer="sparse_sgd").step
        dense = EmbeddingTable(3, 3)
        dense.build()
        with pytest.raises(AttributeError, match="optimizer=None"):
            dense.learning_rate = 0.1


class TestTraining:
    def test_evaluate_predict_and_frozen_layers_change_nothing(self):
        model, table = network()
        model.compile("adam", "mse")
        x, y = batch()
        model.fit(x, y, verbose=0)
        before = [to_numpy(w).copy() for w in table.weights]
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
        assert all(np.array_equal(a, to_numpy(w)) for a, w in zip(before, table.weights))
        table.trainable = False
        model.compile("adam", "mse")
        model.fit(x, y, verbose=0)
        assert all(np.array_equal(a, to_numpy(w)) for a, w in zip(before, table.weights))
        table.trainable = True
        model.compile("adam", "mse")
        model.fit(x, y, verbose=0)
        assert not np.array_equal(before[0], to_numpy(table.weights[0]))
        assert table.step == 2

    def test_rows_without_lookup_keep_value_and_state(self):
        model, table = network(SparseAdam(0.1, weight_decay=0.5))
        model.compile("adam", "mse")
        start = to_numpy(table.table).copy()
        model.fit(np.array([[1, 2, -1], [2, 2, 5]], "int32"), np.ones((2, 1)), verbose=0)
        moved = np.abs(to_numpy(table.table) - start).max(axis=1) > 0
        assert np.flatnonzero(moved).tolist() == [1, 2, 5]
        seen = np.abs(to_numpy(table.slot_velocity)).max(axis=1) > 0
        assert np.flatnonzero(seen).tolist() == [1, 2, 5]

    def test_bad_ids_update_no_row(self):
        ids = keras.Input((2,), dtype="int32")
        table = EmbeddingTable(ROWS, DIM, optimizer=SparseSGD(1.0, weight_decay=0.1))
        model = keras.Model(ids, table(ids)[:, 0])
        model.compile("sgd", "mse")
        start = to_numpy(table.table).copy()
        x = np.array([[3, -2], [4, ROWS], [5, -1], [6, 2**31 - 1], [7, -(2**31)]], "int32")
        model.fit(x, np.ones((5, DIM)), verbose=0)
        moved = np.abs(to_numpy(table.table) - start).max(axis=1) > 0
        assert np.flatnonzero(moved).tolist() == [3, 4, 5, 6, 7]
        assert np.isfinite(to_numpy(table.table)).all()

    def test_the_other_weights_train_as_with_a_frozen_table(self):
        """Clipping by the global norm, weight decay: the table has no part in them."""
        x, y = batch()
        kernels = []
        for trainable in (True, False):
            keras.utils.set_random_seed(3)
            model, table = network()
            table.trainable = trainable
            optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1, global_clipnorm=1e-3)
            model.compile(optimizer, "mse")
            model.fit(x, 100 * y, verbose=0)
            kernels.append(to_numpy(model.get_layer("head").kernel))
        np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-5)

    def test_model_optimizer_keeps_no_state_for_the_table(self):
        model, _ = network()
        model.compile(keras.optimizers.Adam(), "mse")
        model.fit(*batch(), verbose=0)
        # Iterations, learning rate, two moments of kernel and bias.
        assert len(model.optimizer.variables) == 6

    def test_mixed_bfloat16(self):
        model, table = network(dtype="mixed_bfloat16")
        model.compile("adam", "mse")
        start = to_numpy(table.table).copy()
        model.fit(*batch(), verbose=0)
        assert {keras.backend.standardize_dtype(w.dtype) for w in table.weights} <= {
            "float32",
            "int32",
        }
        moved = np.abs(to_numpy(table.table) - start)
        # The first row-wise Adagrad step is lr * g / rms(g): about 0.05 a component.
        assert 0.02 < moved[moved > 0].mean() < 0.1

    def test_learning_rate_that_callbacks_change(self):
        model, table = network(SparseSGD(1.0))
        model.compile(keras.optimizers.SGD(0.0), "mse")
        rates, sizes, last = [1.0, 0.5, 0.0], [], [to_numpy(table.table).copy()]

        def begin(epoch, logs=None):
            table.learning_rate = rates[epoch]

        def end(epoch, logs=None):
            new = to_numpy(table.table).copy()
            sizes.append(np.abs(new - last[0]).max())
            last[0] = new

        callback = keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
        x, y = batch()
        model.fit(x, 100 * y, epochs=3, callbacks=[callback], verbose=0, batch_size=16)
        assert sizes[0] > 1
        assert 0.3 < sizes[1] / sizes[0] < 0.7
        assert sizes[2] == 0
        assert float(to_numpy(table.learning_rate)) == 0

    def test_schedule_cannot_be_assigned(self):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        _, table = network(SparseSGD(schedule))
        assert table.learning_rate is schedule
        with pytest.raises(ValueError, match="LearningRateSchedule, which cannot be assigned"):
            table.learning_rate = 0.1

    def test_table_that_the_loss_does_not_reach(self):
        """On JAX the gradient is then zeros, which must not become the table."""
        ids = keras.Input((WIDTH,), dtype="int32")
        reached = EmbeddingTable(ROWS, DIM, optimizer="rowwise_adagrad")
        cut = EmbeddingTable(ROWS, DIM, optimizer="rowwise_adagrad")
        both = reached(ids) + keras.ops.stop_gradient(cut(ids))
        model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(both)))
        model.compile("adam", "mse")
        x, y = batch()
        before = [to_numpy(w).copy() for w in cut.weights]
        model.fit(x, y, batch_size=4, verbose=0)
        assert all(np.array_equal(a, to_numpy(w)) for a, w in zip(before, cut.weights))
        assert (reached.step, cut.step) == (4, 0)

    def test_two_lookups_in_a_step(self):
        """Joined on TensorFlow, refused on JAX: never something else."""
        first = keras.Input((1,), dtype="int32")
        second = keras.Input((1,), dtype="int32")
        table = EmbeddingTable(ROWS, 1, "zeros", optimizer=SparseSGD(1.0))
        model = keras.Model([first, second], keras.ops.sum(table(first) + table(second), axis=1))
        model.compile("sgd", loss=lambda y, p: keras.ops.sum(p))
        x = [np.array([[3], [4]], "int32"), np.array([[4], [3]], "int32")]
        if BACKEND == "jax":
            with pytest.raises(RuntimeError, match="more than once in one training step"):
                model.fit(x, np.zeros((2, 1)), verbose=0)
            return
        model.fit(x, np.zeros((2, 1)), verbose=0)
        assert to_numpy(table.table)[[2, 3, 4, 5], 0].tolist() == [0, -2, -2, 0]
        assert table.step == 1

    def test_several_models_in_turn(self):
        model, table = network()
        other = keras.Model(model.input, keras.layers.Dense(1)(model.layers[-2].output))
        x, y = batch()
        for m in (model, other, model):
            m.compile("adam", "mse")
            m.fit(x, y, verbose=0)
        assert table.step == 3

    def test_gradient_of_a_call_that_is_no_training_call(self):
        """`training=False` inside a training step is for dropout and the like."""
        ids = keras.Input((2,), dtype="int32")
        table = EmbeddingTable(ROWS, DIM, optimizer=SparseSGD(1.0, weight_decay=0.5))
        model = keras.Model(ids, table(ids, training=False))
        model.compile("sgd", "mse")
        start = to_numpy(table.table).copy()
        model.fit(np.array([[1, -1], [1, 4]], "int32"), np.ones((2, 2, DIM)), verbose=0)
        moved = np.abs(to_numpy(table.table) - start).max(axis=1) > 0
        assert np.flatnonzero(moved).tolist() == [1, 4]
        assert table.step == 1

    def test_steps_per_execution(self):
        model, table = network()
        model.compile("adam", "mse", steps_per_execution=2)
        x, y = batch()
        model.fit(x, y, batch_size=4, verbose=0)
        assert table.step == 4

    def test_last_batch_of_another_size(self):
        model, table = network()
        model.compile("adam", "mse")
        x, y = batch(10)
        model.fit(x, y, batch_size=4, verbose=0)
        assert table.step == 3


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow has tf.unique")
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 8) | st.integers(-(2**31), 2**31 - 1), min_size=12, max_size=12))
def test_equal_ids_find_one_representative(ids):
    from keras_exfm.layers._row_engine._dedup import representatives

    ids = np.array(ids, "int32")
    places = to_numpy(representatives(ids))
    np.testing.assert_array_equal(ids[places], ids)
    np.testing.assert_array_equal(places[places], places)
    assert len(set(places)) == len(set(ids))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2"),
            ({"use_ema": True}, "use_ema=True"),
            ({"loss_scale_factor": 8.0}, "loss_scale_factor=8.0"),
        ],
    )
    @pytest.mark.parametrize("cls", [keras.optimizers.SGD, keras.optimizers.Adam])
    def test_options_of_the_model_optimizer(self, cls, options, message):
        model, table = network()
        model.compile(cls(0.1, **options), "mse")
        start = to_numpy(table.table).copy()
        with pytest.raises(ValueError, match=message):
            model.fit(*batch(), verbose=0)
        if BACKEND == "tensorflow":  # JAX donated the state to the step that failed.
            assert np.array_equal(start, to_numpy(table.table))

    @pytest.mark.parametrize("eager", [True, False])
    def test_loss_scaling_under_float16(self, eager):
        keras.config.set_dtype_policy("mixed_float16")
        model, _ = network()
        model.compile("adam", "mse", run_eagerly=eager)
        with pytest.raises(ValueError, match="LossScaleOptimizer.*mixed_bfloat16"):
            model.fit(*batch(), verbose=0)

    def test_dense_optimizers_options_are_free_with_a_dense_table(self):
        model, _ = network(None)
        model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
        model.fit(*batch(), verbose=0)

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX sums the terms before we see them")
    def test_dense_gradient(self):
        import tensorflow as tf

        model, table = network()
        x, _ = batch()

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x)) + tf.reduce_sum(table.table.value)
        optimizer = keras.optimizers.SGD(0.1)
        gradients = tape.gradient(loss, model.trainable_variables)
        with pytest.raises(RuntimeError, match="dense gradient"):
            optimizer.apply(gradients, model.trainable_variables)


class TestFiles:
    def test_export_with_an_open_batch_size(self, tmp_path):
        import tensorflow as tf

        model, _ = network()
        model.compile("adam", "mse")
        x, y = batch(8)
        model.fit(x, y, verbose=0)
        model.export(tmp_path / "saved", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "saved")
        for size in (1, 8):
            expected = model.predict(x[:size], verbose=0)
            np.testing.assert_allclose(to_numpy(loaded.serve(x[:size])), expected, atol=1e-6)

    def test_pieces_of_a_large_table(self, tmp_path, monkeypatch):
        """A small table in pieces of eight numbers: drawn, saved and loaded piece by piece."""
        monkeypatch.setattr(_chunks, "ELEMENTS", 8)
        model, table = network(SparseAdam(0.1))
        values = to_numpy(table.table)
        # Uniform in -0.05 .. 0.05, no piece like another.
        assert np.abs(values).max() <= 0.05
        assert np.unique(values).size == ROWS * DIM
        model.compile("adam", "mse")
        model.fit(*batch(), verbose=0)
        model.save_weights(tmp_path / "m.weights.h5")
        other, other_table = network(SparseAdam(0.1))
        other.load_weights(tmp_path / "m.weights.h5")
        for name in ("table", "slot_momentum", "slot_velocity"):
            a, b = to_numpy(getattr(table, name)), to_numpy(getattr(other_table, name))
            np.testing.assert_array_equal(a, b)

    def test_file_of_another_optimizer(self, tmp_path):
        model, _ = network("rowwise_adagrad")
        model.save_weights(tmp_path / "a.weights.h5")
        other, _ = network("sparse_adam")
        with pytest.raises(ValueError, match="another row optimizer"):
            other.load_weights(tmp_path / "a.weights.h5")

    def test_step_beyond_float32(self, tmp_path):
        model, table = network(SparseSGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))
        table._engine.set_step(2**24 + 1)
        model.compile("adam", "mse")
        model.fit(*batch(), verbose=0, batch_size=8)
        assert table.step == 2**24 + 3
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert loaded.get_layer("table").step == 2**24 + 3

    @pytest.mark.parametrize("optimizer", [RowwiseAdagrad(0.1), SparseAdam(0.05, warmup_steps=5)])
    def test_training_goes_on_from_the_file(self, optimizer, tmp_path):
        model, table = network(optimizer)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        x, y = batch(24)
        model.fit(x[:12], y[:12], batch_size=4, shuffle=False, verbose=0)
        table.learning_rate = 0.07
        model.save(tmp_path / "m.keras")
        model.fit(x[12:], y[12:], batch_size=4, shuffle=False, verbose=0)
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        loaded.fit(x[12:], y[12:], batch_size=4, shuffle=False, verbose=0)
        for a, b in zip(model.weights, loaded.weights):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))

    def test_training_goes_on_in_the_other_backend(self, tmp_path):
        other = {"jax": "tensorflow", "tensorflow": "jax"}[BACKEND]
        x, y = batch(24)
        np.savez(tmp_path / "data.npz", x=x[12:], y=y[12:])
        results = {}
        for name, optimizer, storage in (
            ("rowwise", RowwiseAdagrad(0.1), "float32"),
            ("adam", SparseAdam(0.05, warmup_steps=5), "float32"),
            ("bits", SparseAdagrad(0.05), "bfloat16"),
        ):
            model, table = network(optimizer, storage_dtype=storage)
            model.compile(keras.optimizers.Adam(0.01), "mse")
            model.fit(x[:12], y[:12], batch_size=4, shuffle=False, verbose=0)
            model.save(tmp_path / f"{name}.keras")
            model.save_weights(tmp_path / f"{name}.weights.h5")
            model.fit(x[12:], y[12:], batch_size=4, shuffle=False, verbose=0)
            results[name] = (table.read_rows(), model.predict(x, verbose=0))
        script = """
import sys, keras, numpy as np, keras_exfm
folder = sys.argv[1]
data = np.load(folder + "/data.npz")
for name in ("rowwise", "adam", "bits"):
    for weights in (False, True):
        model = keras.saving.load_model(f"{folder}/{name}.keras")
        if weights:
            table = model.get_layer("table")
            table.write_rows(table.read_rows() * 0)
            model.load_weights(f"{folder}/{name}.weights.h5")
        model.fit(data["x"], data["y"], batch_size=4, shuffle=False, verbose=0)
        table = model.get_layer("table")
        assert table.step == 6, table.step
        np.save(f"{folder}/{name}-{weights}.npy", table.read_rows())
"""
        environment = {**os.environ, "KERAS_BACKEND": other}
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        for name, (table, _) in results.items():
            for weights in (False, True):
                there = np.load(tmp_path / f"{name}-{weights}.npy")
                # The last bit of float32 may turn one rounding to bfloat16.
                tolerance = {"rtol": 2**-7, "atol": 1e-5} if name == "bits" else {"atol": 1e-5}
                np.testing.assert_allclose(there, table, **tolerance)
                assert name != "bits" or (there != table).mean() < 0.02


class TestStorage:
    """Tables in bfloat16."""

    @pytest.mark.parametrize("dim", [4, 3])
    def test_values_are_bfloat16_and_files_are_shared(self, dim, tmp_path):
        ids = keras.Input((2,), dtype="int32")
        table = EmbeddingTable(
            ROWS, dim, optimizer=SparseAdagrad(0.1), storage_dtype="bfloat16", name="table"
        )
        model = keras.Model(ids, table(ids))
        model.compile("sgd", "mse")
        x = np.array([[1, 2], [2, -1], [5, 5]], "int32")
        model.fit(x, np.ones((3, 2, dim)), verbose=0)
        rows = table.read_rows()
        assert rows.shape == (ROWS, dim)
        assert (rows.view("uint32") & 0xFFFF == 0).all()
        np.testing.assert_array_equal(
            model.predict(x[:1], verbose=0)[0], rows[[1, 2]].astype("float32")
        )
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(again.get_layer("table").read_rows(), rows)
        # A float32 table reads the file, and the other way round.
        wide = EmbeddingTable(ROWS, dim, optimizer=SparseAdagrad(0.1), name="table")
        wide_model = keras.Model(ids, wide(ids))
        model.save_weights(tmp_path / "m.weights.h5")
        wide_model.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(wide.read_rows(), rows)
        wide_model.save_weights(tmp_path / "w.weights.h5")
        again.load_weights(tmp_path / "w.weights.h5")
        np.testing.assert_array_equal(again.get_layer("table").read_rows(), rows)

    def test_small_updates_are_not_lost(self):
        """One part in 4096 of a number is far below bfloat16's spacing of one in 128."""
        ids = keras.Input((1,), dtype="int32")
        table = EmbeddingTable(
            256, 32, "ones", optimizer=SparseSGD(1.0), storage_dtype="bfloat16", name="table"
        )
        outputs = keras.layers.Lambda(lambda v: v, output_shape=(1, 32))(table(ids))
        model = keras.Model(ids, outputs)
        # The mean over 32 numbers of 256 rows: a gradient of 1 / 4096 a number at a scale of 2.
        model.compile("sgd", lambda y, v: keras.ops.mean(keras.ops.sum(v, -1)) * 256 / 4096)
        x = np.arange(256, dtype="int32")[:, None]
        model.fit(
            np.tile(x, (64, 1)),
            np.zeros((64 * 256, 1, 32)),
            batch_size=256,
            shuffle=False,
            verbose=0,
        )
        rows = table.read_rows()
        # 64 steps of 1 / 4096; the deviation of a number is about 64 ** 0.5 * (1/128) * 0.2
        expected = 1 - 64 / 4096
        assert abs(rows.mean() - expected) < 4 * 8 / 128 * 0.25 / np.sqrt(rows.size)
        assert 0.002 < rows.std() < 0.05

    def test_frozen(self):
        ids = keras.Input((2,), dtype="int32")
        table = EmbeddingTable(ROWS, 4, frozen=True, storage_dtype="bfloat16")
        model = keras.Model(ids, table(ids))
        values = np.arange(8, dtype="float32").reshape(2, 4)
        table.write_rows(values, start=3)
        np.testing.assert_array_equal(table.read_rows(3, 5), values)
        np.testing.assert_array_equal(
            model.predict(np.array([[3, 4]], "int32"), verbose=0)[0], values
        )
        assert not table.trainable_variables

    def test_dense_table_is_refused(self):
        with pytest.raises(ValueError, match="row optimizer"):
            EmbeddingTable(ROWS, 4, storage_dtype="bfloat16")


class TestRows:
    def test_outside_and_bad_values_write_nothing(self):
        table = EmbeddingTable(ROWS, DIM, optimizer="rowwise_adagrad")
        with pytest.raises(ValueError, match="not built"):
            table.read_rows()
        table.build()
        before = table.read_rows()
        for values, start in [
            (np.zeros((2, DIM)), ROWS - 1),
            (np.zeros((2, DIM)), -1),
            (np.zeros((2, DIM + 1)), 0),
            (np.full((2, DIM), np.inf), 0),
        ]:
            with pytest.raises(ValueError, match="Received"):
                table.write_rows(values, start)
        np.testing.assert_array_equal(table.read_rows(), before)

    def test_file_of_another_size(self, tmp_path):
        small, large = EmbeddingTable(5, DIM), EmbeddingTable(6, DIM)
        ids = keras.Input((2,), dtype="int32")
        keras.Model(ids, small(ids)).save_weights(tmp_path / "s.weights.h5")
        model = keras.Model(ids, large(ids))
        with pytest.raises(ValueError, match="shape"):
            model.load_weights(tmp_path / "s.weights.h5")
