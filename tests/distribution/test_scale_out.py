"""Tables on four devices of one process, and on two processes: as on one device."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.distribution import worker

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution needs JAX"
)


def _start(devices: int, *arguments: object) -> subprocess.Popen:
    # Little optimization: these programs are compiled for a few small steps.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distribution.worker", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(*processes: subprocess.Popen) -> None:
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(autouse=True)
def _pieces(monkeypatch):
    """Files in as many pieces as the worker writes."""
    monkeypatch.setattr(worker._chunks, "ELEMENTS", 48 * worker.DIM)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    _finish(_start(4, "four", folder))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _finish(*[_start(2, "process", folder, number, port) for number in range(2)])
    return folder


def _compare(folder, name, reference, atol=2e-6, rtol=2e-5):
    found, wanted = np.load(folder / f"{name}.npz"), np.load(folder / f"{reference}.npz")
    assert set(found) == set(wanted)
    assert {"embedding/embeddings/table", "serving/kernel"} <= set(found)
    for key in wanted:
        np.testing.assert_allclose(found[key], wanted[key], atol=atol, rtol=rtol, err_msg=key)


CASES = ["copies_adam", "rows_adam", "batch_and_rows_adagrad", "rows_twice_adagrad"]


@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_one_device(four, case):
    """Weights, tables, slots, step counters and lookups of ids that are no row as well."""
    _compare(four, case, f"one_{case.split('_')[-1]}")


@pytest.mark.parametrize("case", CASES)
def test_a_table_starts_with_the_same_numbers(four, case):
    _compare(four, f"{case}_start", f"one_{case.split('_')[-1]}_start", atol=0, rtol=0)


def test_training_moves_every_row_looked_up(four):
    """The comparisons above are of something."""
    start, end = np.load(four / "one_adam_start.npz"), np.load(four / "one_adam.npz")
    table = "embedding/embeddings/table"
    moved = np.any(start[table] != end[table], axis=1)
    assert 15 < moved.sum() < worker.ROWS - 15
    assert moved[: worker.ROWS // 2].any()
    assert moved[worker.ROWS // 2 :].any()
    assert end["embedding/embeddings/step"].tolist() == [0.0, worker.STEPS]
    assert np.isnan(end["probe1"][1]).all()
    assert not end["probe1"][0, 1].any()


def test_each_device_holds_its_rows_only(four):
    shards = json.loads((four / "shards.json").read_text())
    assert set(shards) == {"embedding/embeddings/table", "embedding/embeddings/momentum"}
    for shapes in shards.values():
        assert shapes == [[worker.ROWS // 4, worker.DIM]] * 4


def test_no_step_moves_a_table(four):
    """What crosses the network in a step: ids, vectors, gradients, and the dense part."""
    text = (four / "step.txt").read_text()
    local = rf"f32\[{worker.ROWS // 4},{worker.DIM}\]"
    assert re.search(local, text)
    assert not re.search(rf"\w\[{worker.ROWS}[,\]]", text)
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", text)
    assert {kind for _, kind in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    numbers = sum(
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for shapes, _ in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    )
    ids = worker.BATCH * (2 + 1 + 3)
    dense = 8 * (1 + 1) + worker.DIM * (8 + 1) + (4 + 1) * worker.DIM + 1
    # Ids once; gradients once; of the vectors each device receives a fourth. The rest is scalars.
    assert numbers <= ids + ids * worker.DIM * (1 + 1 / 4) + dense + 20
    # The table and its state are updated in place, each an alias of an input.
    assert len(re.findall(r"(?:may|must)-alias", text)) >= 3
    assert not re.search(rf"= {local}\S* copy\(", text)


@pytest.mark.parametrize("layout", ["copies", "rows"])
def test_files_are_those_of_one_device(four, layout):
    loaded = keras.saving.load_model(four / f"{layout}_adam.keras")
    _is(loaded, four / f"{layout}_adam.npz")
    model = worker.make_model(worker.adam())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(four / f"{layout}_adam.weights.h5")
    _is(model, four / f"{layout}_adam.npz")


def _is(model, path, atol=0.0, rtol=0.0):
    wanted = np.load(path)
    for key, value in worker.values(model).items():
        np.testing.assert_allclose(value, wanted[key], atol=atol, rtol=rtol, err_msg=key)


def test_what_cannot_be_split_is_refused(four):
    rows, columns = (four / "refusals.txt").read_text().splitlines()
    assert "multiple of 4. Received: rows=162. The nearest sizes that fit are 160 and 164" in rows
    assert "(axis, None). Received: (None, 'batch')" in columns


def test_bfloat16_rows_are_rounded_as_on_one_device(four):
    halves = np.load(four / "halves.npz")
    np.testing.assert_allclose(halves["rows"], halves["one"], rtol=2**-7)
    # A sum in another order may, rarely, round the other way.
    assert np.mean(halves["rows"] == halves["one"]) > 0.99


def test_training_goes_on_from_the_file_of_one_device(four):
    _compare(four, "rows_adam_resumed", "one_adam_longer")


def test_predict(four):
    model = keras.saving.load_model(four / "rows_adam.keras")
    x, _ = worker.data()
    np.testing.assert_allclose(
        model.predict(x, batch_size=worker.BATCH, verbose=0),
        np.load(four / "rows_adam_predicted.npy"),
        atol=1e-6,
    )


@pytest.mark.parametrize("layout", ["copies", "rows"])
def test_two_processes_train_as_one_device(four, two, layout):
    for number in range(2):
        model = worker.make_model(worker.adam())
        model.optimizer.build(model.trainable_variables)
        model.load_weights(two / f"{layout}_of_process{number}.weights.h5")
        _is(model, four / "one_adam.npz", atol=2e-6, rtol=2e-5)


def test_two_processes_go_on_from_their_file(four, two):
    model = worker.make_model(worker.adam())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(two / "resumed_of_process1.weights.h5")
    _is(model, four / "one_adam_longer.npz", atol=2e-6, rtol=2e-5)
