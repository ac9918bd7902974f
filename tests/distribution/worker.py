"""One training program, run on one device, on four, and in two processes.

    python -m tests.distribution.worker four FOLDER
    python -m tests.distribution.worker process FOLDER PROCESS PORT

What came out is left in the folder, for the tests to compare.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_exfm as kx
from keras_exfm.layers._row_engine import _chunks

BATCH = 16
STEPS = 4
# Rows in all, divisible by four: 2 * 30 + 100.
ROWS = 160
DIM = 4


def schema() -> kx.Schema:
    return kx.Schema(
        [
            kx.Categorical("user", 30, embeddings=2),
            kx.Categorical("ad", 100, hashed=True),
            kx.MultiHot("history", 100, length=3, table="ad", hashed=True),
            kx.Numeric("age"),
        ]
    )


def data() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Examples with many equal ids, within a device's share of a batch and across shares."""
    rng = np.random.default_rng(0)
    n = BATCH * STEPS
    user = rng.integers(-1, 30, n)
    user[::2] = 7
    x = {
        "user": user.astype("int32"),
        "ad": rng.integers(0, 9, n).astype("int32"),
        "history": rng.integers(-1, 9, (n, 3)).astype("int32"),
        "age": rng.normal(size=n).astype("float32"),
    }
    return x, rng.normal(size=(n, 1)).astype("float32")


def adagrad() -> kx.optimizers.RowOptimizer:
    return kx.optimizers.RowwiseAdagrad(0.1, clip_row_norm=0.05, warmup_steps=3)


def adam() -> kx.optimizers.RowOptimizer:
    return kx.optimizers.SparseAdam(0.05, weight_decay=0.1)


def make_model(optimizer: kx.optimizers.RowOptimizer) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = schema().inputs()
    initializer = keras.initializers.RandomNormal(stddev=0.1, seed=5)
    embed = kx.layers.FeatureEmbedding(
        schema(),
        DIM,
        numeric_units=(8,),
        embeddings_initializer=initializer,
        optimizer=optimizer,
        name="embedding",
    )
    hidden = keras.layers.Flatten()(embed(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, name="serving")(hidden))
    model.compile(keras.optimizers.Adam(0.01, name="adam"), "mse")
    return model


def table_of(model: keras.Model) -> Any:
    return model.get_layer("embedding").tables[0]


def fit(model: keras.Model, x: Any, y: Any, batch: int = BATCH) -> None:
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)


def values(model: keras.Model) -> dict[str, np.ndarray]:
    variables = [*model.variables, *model.optimizer.variables]
    return {v.path: keras.ops.convert_to_numpy(v) for v in variables}


def layouts() -> dict[str, Callable[[], Any]]:
    distribution = keras.distribution
    devices = distribution.list_devices()

    def split(shape: tuple[int, ...], names: list[str], axis: str | None = None) -> Any:
        mesh = distribution.DeviceMesh(shape, names, devices)
        layout = kx.distribution.row_sharded_layout(mesh, axis)
        return distribution.ModelParallel(layout_map=layout, auto_shard_dataset=False)

    return {
        "copies": lambda: distribution.DataParallel(devices=devices, auto_shard_dataset=False),
        "rows": lambda: split((4,), ["batch"]),
        "batch_and_rows": lambda: split((2, 2), ["batch", "model"]),
        "rows_twice": lambda: split((2, 2), ["batch", "model"], "batch"),
    }


def compiled_step(model: keras.Model, x: Any, y: Any) -> str:
    """The program of one device for Keras' own training step."""
    import jax

    distribution = keras.distribution.distribution()
    state = tuple(
        [v.value for v in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    batch = jax.tree.map(
        lambda a: jax.device_put(a, distribution.get_data_layout(a.shape).backend_layout), (x, y)
    )
    shardings = jax.tree.map(lambda v: v.sharding, state)
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, shardings))
    return step.lower(state, batch).compile().as_text()


def halved() -> np.ndarray:
    """A table of bfloat16 numbers after some steps."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((3,), dtype="int32")
    initializer = keras.initializers.RandomNormal(stddev=0.1, seed=5)
    table = kx.layers.EmbeddingTable(ROWS, DIM, initializer, adam(), storage_dtype="bfloat16")
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(table(ids))))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x, y = data()
    fit(model, (x["history"] + 10 * x["ad"][:, None]).astype("int32"), y)
    return table.read_rows()


def refusals() -> list[str]:
    """Messages for rows that do not divide, and for a table split by columns."""
    mesh = keras.distribution.DeviceMesh((4,), ["batch"], keras.distribution.list_devices())
    by_columns = keras.distribution.LayoutMap(mesh)
    by_columns[".*/table"] = (None, "batch")
    messages = []
    for rows, layout in ((ROWS + 2, kx.distribution.row_sharded_layout(mesh)), (ROWS, by_columns)):
        keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout))
        try:
            kx.layers.EmbeddingTable(rows, DIM, optimizer=adam(), name="wide").build()
        except ValueError as error:
            messages.append(str(error))
    return messages


def four(folder: Path) -> None:
    x, y = data()
    # Eager lookups: of a number of ids that divides over the devices, of one that does not, and
    # of ids that are no row.
    probes = [np.array([-1, 0, 41, ROWS - 1, 7, 7, 80, 120], "int32")]
    probes.append(np.array([[3, -1], [ROWS, -(2**31)], [2**31 - 1, ROWS - 1]], "int32"))
    made: dict[str, Callable[[], Any]] = {"one": lambda: None, **layouts()}
    for name, make in made.items():
        keras.distribution.set_distribution(make())
        for optimizer in (adagrad, adam):
            if (optimizer is adam) != (name in ("one", "rows", "copies")) and name != "one":
                continue
            key = f"{name}_{optimizer.__name__}"
            model = make_model(optimizer())
            np.savez(folder / f"{key}_start.npz", **values(model))
            fit(model, x, y)
            table = table_of(model)
            looked_up = {f"probe{i}": np.asarray(table(ids)) for i, ids in enumerate(probes)}
            np.savez(folder / f"{key}.npz", **looked_up, **values(model))
            if optimizer is adam:
                model.save(folder / f"{key}.keras")
                model.save_weights(folder / f"{key}.weights.h5")
            if key == "one_adam":
                fit(model, x, y)
                np.savez(folder / "one_adam_longer.npz", **values(model))
            if key == "rows_adam":
                predicted = model.predict(x, batch_size=BATCH, verbose=0)
                np.save(folder / "rows_adam_predicted.npy", predicted)
    (folder / "refusals.txt").write_text("\n".join(refusals()))
    halves = {}
    for name in ("one", "rows"):
        keras.distribution.set_distribution(made[name]())
        halves[name] = halved()
    np.savez(folder / "halves.npz", **halves)
    # Training goes on from the file of one device, with the table in other places.
    keras.distribution.set_distribution(layouts()["rows"]())
    model = make_model(adam())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "one_adam.weights.h5")
    shards = {
        v.path: [list(s.data.shape) for s in v.value.addressable_shards]
        for v in (table_of(model).table, table_of(model).slot_momentum)
    }
    (folder / "shards.json").write_text(json.dumps(shards))
    batch = {name: column[:BATCH] for name, column in x.items()}
    (folder / "step.txt").write_text(compiled_step(model, batch, y[:BATCH]))
    fit(model, x, y)
    np.savez(folder / "rows_adam_resumed.npz", **values(model))


def process(folder: Path, number: int, port: int) -> None:
    keras.distribution.initialize(f"127.0.0.1:{port}", 2, number)
    share = BATCH // 2

    def mine(whole: np.ndarray) -> np.ndarray:
        parts = whole.reshape(STEPS, 2, share, *whole.shape[1:])
        return parts[:, number].reshape(STEPS * share, *whole.shape[1:])

    x, y = data()
    x, y = {name: mine(column) for name, column in x.items()}, mine(y)
    for name in ("copies", "rows"):
        keras.distribution.set_distribution(layouts()[name]())
        model = make_model(adam())
        fit(model, x, y, share)
        # A table that spans processes is written by all of them together.
        path = folder / f"{name}_of_process{number}.weights.h5"
        model.save_weights(path)
    again = make_model(adam())
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path)
    table, other = table_of(model), table_of(again)
    for a, b in ((table.table, other.table), (table.slot_velocity, other.slot_velocity)):
        for one, two in zip(a.value.addressable_shards, b.value.addressable_shards):
            assert one.data.shape == (ROWS // 4, DIM)
            np.testing.assert_array_equal(np.asarray(one.data), np.asarray(two.data))
    fit(again, x, y, share)
    again.save_weights(folder / f"resumed_of_process{number}.weights.h5")


def main() -> None:
    # Tables are drawn, saved and loaded in many pieces, as very large ones are.
    _chunks.ELEMENTS = 48 * DIM
    mode, folder, *rest = sys.argv[1:]
    assert keras.backend.backend() == "jax"
    assert re.search(r"device_count=\d", os.environ["XLA_FLAGS"])
    if mode == "four":
        four(Path(folder))
    else:
        process(Path(folder), *map(int, rest))


if __name__ == "__main__":
    main()
