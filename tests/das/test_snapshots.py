"""The snapshot store: what becomes visible when, damage, pins, files that would run code."""

import json
import multiprocessing
import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import SnapshotError, SnapshotStore, _safe_keras, snapshots


def model(value=1.0):
    inputs = keras.Input((2,), name="x")
    out = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))(inputs)
    return keras.Model(inputs, out)


def manifest(snapshot):
    return snapshot.folder.parent / "snapshot.json"


def test_publish_and_latest(tmp_path):
    store = SnapshotStore(tmp_path)
    assert store.latest() is None
    for time in (100, 200, 300):
        store.publish(model(time), time, {"trained_through": time // 100})
    assert [s.published_at for s in store.list()] == [100, 200, 300]
    assert store.latest(before=99) is None
    assert store.latest(before=100).published_at == 100
    assert store.latest(before=299).published_at == 200
    assert store.latest().metadata == {"trained_through": 3}
    x = np.ones((1, 2), np.float32)
    assert store.latest(before=250).load().predict(x, verbose=0).item() == 400.0
    assert store.get(f"{200:016d}") == store.latest(before=250)
    with pytest.raises(SnapshotError, match=rf"{150:016d}.*missing"):
        store.get(f"{150:016d}")


def test_a_model_that_predicts_a_probability_is_refused(tmp_path):
    logit = model()
    squashed = keras.Model(logit.input, keras.layers.Activation("sigmoid", name="p")(logit.output))
    store = SnapshotStore(tmp_path)
    with pytest.raises(SnapshotError, match="logit.*'p', makes it a probability"):
        store.publish(squashed, 100)
    assert store.list() == []
    # Beside a logit, the job says which output is what.
    vectors = keras.layers.Dense(3, activation="sigmoid", name="representation")(logit.input)
    both = keras.Model(logit.input, {"logit": logit.output, "representation": vectors})
    assert store.publish(both, 100).published_at == 100


def test_republishing_replaces_and_going_back_is_refused(tmp_path):
    store = SnapshotStore(tmp_path)
    first = store.publish(model(1.0), 100)
    second = store.publish(model(2.0), 100)
    assert [s.sha256 for s in store.list()] == [second.sha256] != [first.sha256]
    with pytest.raises(SnapshotError, match=r"time order.*published_at=99"):
        store.publish(model(), 99)
    with pytest.raises(SnapshotError, match=r"missing.*pin"):
        first.load()


def test_the_clock_is_put_back(tmp_path, monkeypatch, caplog):
    store = SnapshotStore(tmp_path)
    clock = [5_000_000]
    monkeypatch.setattr(snapshots.time, "time_ns", lambda: clock[0] * 1_000_000)
    assert store.publish(model()).published_at == 5_000_000
    clock[0] = 4_000_000
    # Not 4 000 000: it would score examples that were there before it.
    assert store.publish(model()).published_at == 5_000_001
    assert "put back" in caplog.text
    clock[0] = 6_000_000
    assert store.publish(model()).published_at == 6_000_000


def test_a_model_that_knows_later_labels_is_refused(tmp_path):
    store = SnapshotStore(tmp_path)
    store.publish(model(), 100, trained_until=100)
    with pytest.raises(SnapshotError, match=r"trained_until=201.*leak.*published_at=200"):
        store.publish(model(), 200, trained_until=201)
    assert store.times() == [100]


def test_retire_keeps_what_later_examples_need(tmp_path):
    store = SnapshotStore(tmp_path)
    for time in (100, 200, 300):
        store.publish(model(), time)
    assert store.retire(before=50) == 0
    assert store.retire(before=250) == 1
    assert [s.published_at for s in store.list()] == [200, 300]
    assert store.latest(before=250).published_at == 200


def test_pinned_snapshots_stay(tmp_path):
    store = SnapshotStore(tmp_path)
    first, _, _ = (store.publish(model(time), time) for time in (100, 200, 300))
    assert store.pin(first, "job-1") == first
    store.pin(first.id, "job-2")
    assert store.pins() == {first.id: ["job-1", "job-2"]}
    assert store.retire(before=300) == 1
    assert store.times() == [100, 300]
    store.unpin(first, "job-1")
    assert store.retire(before=300) == 0
    store.unpin(first, "job-2")
    assert store.pins() == {}
    assert store.retire(before=300) == 1
    with pytest.raises(SnapshotError, match=rf"{first.id}.*missing"):
        store.pin(first, "job-1")
    assert store.pins() == {}
    with pytest.raises(SnapshotError, match="holder='../x'"):
        store.pin(first, "../x")
    with pytest.raises(SnapshotError, match="16 digits"):
        store.pin("..", "x")


def test_a_pin_that_comes_while_it_is_retired(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path)
    first, _ = (store.publish(model(time), time) for time in (100, 200))
    remove = store._files.remove

    def meanwhile(name):
        remove(name)
        if name.endswith("snapshot.json"):
            store._files.write(store._pin_file(first.id, "late"), b"")

    monkeypatch.setattr(store._files, "remove", meanwhile)
    assert store.retire(before=200) == 0
    store.get(first.id).verify()


def test_a_copy_outlives_the_store(tmp_path):
    store = SnapshotStore(tmp_path / "store")
    snapshot = store.publish(model(3.0), 100)
    copy = snapshot.copy(tmp_path / "mine")
    snapshot.copy(tmp_path / "mine")
    store.publish(model(), 200)
    store.retire(before=200)
    with pytest.raises(SnapshotError, match=rf"{snapshot.path}: .*retired or deleted while in use"):
        snapshot.load()
    assert copy.load().predict(np.ones((1, 2)), verbose=0).item() == 6.0
    assert [f.name for f in (tmp_path / "mine").iterdir()] == [copy.id]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_named(tmp_path, damage):
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(model(), 100)
    if damage == "flip":
        content = bytearray(snapshot.path.read_bytes())
        content[len(content) // 2] ^= 1
        snapshot.path.write_bytes(content)
    elif damage == "truncate":
        snapshot.path.write_bytes(snapshot.path.read_bytes()[:-10])
    else:
        snapshot.path.unlink()
    other = model(7.0)
    for act in (snapshot.verify, store.latest().load, lambda: snapshot.load_weights(other)):
        with pytest.raises(SnapshotError, match=f"{snapshot.path}: "):
            act()
    with pytest.raises(SnapshotError, match=snapshot.id):
        snapshot.copy(tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("*"))


def test_every_flipped_byte_of_the_manifest_is_seen(tmp_path):
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(model(), 100, {"note": "x"})
    file = manifest(snapshot)
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        content = bytearray(whole)
        content[at] ^= 1
        if json.loads(whole) == _json(bytes(content)):
            continue  # white space
        file.write_bytes(content)
        with pytest.raises(SnapshotError, match=rf"{snapshot.id}/snapshot.json"):
            store.latest()
    for content in (b"", b"{}", b"[]", whole[:-20]):
        file.write_bytes(content)
        with pytest.raises(SnapshotError, match=rf"{snapshot.id}/snapshot.json"):
            store.latest()
    file.write_bytes(whole)
    # Another snapshot's manifest, whole as it is, is none of this one.
    later = store.publish(model(), 200)
    manifest(later).write_bytes(whole)
    with pytest.raises(SnapshotError, match=rf"{later.id}/snapshot.json"):
        store.latest()


def _json(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_killed_publisher_leaves_no_snapshot(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path)
    broken = model()

    def half(path, *args, **kwargs):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(broken, "save", half)
    with pytest.raises(KeyboardInterrupt):
        store.publish(broken, 100)
    assert store.latest() is None
    store.publish(model(), 100)
    assert len(store.list()) == 1


def test_a_full_disk_leaves_no_snapshot(tmp_path, monkeypatch):
    store = SnapshotStore(tmp_path)
    first = store.publish(model(), 100)

    def full(*args):
        raise OSError(28, "No space left on device")

    for where in ("put", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(store._files, where, full)
            with pytest.raises(SnapshotError, match=rf"{tmp_path}: .*No space left"):
                store.publish(model(), 200)
        assert store.list() == [first]
    store.publish(model(), 200)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        ".lock",
        first.id,
        f"{200:016d}",
    ]


def _publish(path, value, barrier):
    barrier.wait(60)
    SnapshotStore(path).publish(model(value), None)


def test_publishers_at_once_take_turns(tmp_path):
    import threading

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=_publish, args=(tmp_path, i, barrier)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shots = SnapshotStore(tmp_path).list()
    assert len({s.published_at for s in shots}) == 4
    assert len({s.sha256 for s in shots}) == 4
    for shot in shots:
        shot.verify()


def test_what_is_noted(tmp_path):
    schema = kx.Schema([kx.Categorical("ad", 10), kx.Numeric("x")])
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(kx.models.LogisticRegression(schema), 5)
    assert store.latest() == snapshot
    assert kx.Schema.from_dict(snapshot.schema) == schema
    assert snapshot.made_with["backend"] == keras.backend.backend()
    assert snapshot.made_with["keras"] == keras.__version__
    assert store.publish(model(), 6).schema is None
    assert store.publish(model(), 7, schema=schema).schema == schema.to_dict()
    assert store.times() == [5, 6, 7]


@pytest.mark.parametrize("time", [-1, 1.5, True, "now"])
def test_bad_times(tmp_path, time):
    with pytest.raises(SnapshotError, match=f"published_at={time!r}"):
        SnapshotStore(tmp_path).publish(model(), time)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["folder", "text", "nothing"])
def test_what_is_no_model(tmp_path, what):
    path = tmp_path / "given"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("hello")
    with pytest.raises(SnapshotError, match=r"`model` should be.*given"):
        SnapshotStore(tmp_path / "store").publish(path, 1)


def test_killed_while_removing(tmp_path, monkeypatch):
    """Whatever is left of a snapshot that goes, no reader takes it for one."""
    store = SnapshotStore(tmp_path)
    for time in (100, 200, 300):
        store.publish(model(), time)

    def half(path, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            store.retire(before=200)
    assert (tmp_path / f"{100:016d}").exists()
    assert [s.published_at for s in store.list()] == [200, 300]
    assert store.retire(before=300) == 1
    assert store.times() == [300]
    assert not (tmp_path / f"{100:016d}").exists()


def test_remains_of_a_killed_publisher_are_cleared(tmp_path):
    import socket

    store = SnapshotStore(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    ended = tmp_path / f".unfinished-{socket.gethostname()}-{process.pid}-x"
    running = tmp_path / f".unfinished-{socket.gethostname()}-{os.getppid()}-x"
    elsewhere = tmp_path / ".unfinished-another.host-1-x"
    for folder in (ended, running, elsewhere):
        folder.mkdir()
        (folder / "model.keras").write_bytes(b"half")
    store.publish(model(), 100)
    assert not ended.exists()
    assert running.exists()
    assert elsewhere.exists()


def test_weights_into_another_network(tmp_path):
    snapshot = SnapshotStore(tmp_path).publish(model(), 100)
    inputs = keras.Input((3,), name="x")
    other = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(SnapshotError, match=f"{snapshot.id}.*cannot load the weights"):
        snapshot.load_weights(other)


# Files that would run code.

ran = []


@keras.saving.register_keras_serializable(package="keras_exfm_tests", name="spy")
def spy(x):
    ran.append(True)
    return x


@keras.saving.register_keras_serializable(package="keras_exfm_tests")
class Spy(keras.layers.Layer):
    def __init__(self, **kwargs):
        ran.append(True)
        super().__init__(**kwargs)

    def call(self, x):
        return x


def with_layer(layer):
    inputs = keras.Input((2,), name="x")
    return keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))


def rewritten(tmp_path, change):
    """A `.keras` file whose description was changed by hand."""
    plain = tmp_path / "plain.keras"
    with_layer(keras.layers.Dense(2, activation="relu", name="victim")).save(plain)
    with zipfile.ZipFile(plain) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    victim = next(x for x in config["config"]["layers"] if x["name"] == "victim")
    change(victim, config, parts)
    parts["config.json"] = json.dumps(config).encode()
    file = tmp_path / "evil.keras"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file


def _activation(value):
    def change(victim, config, parts):
        victim["config"]["activation"] = value

    return change


def _replace(**values):
    def change(victim, config, parts):
        victim.update(values)

    return change


def _function(name, module="builtins", registered="function"):
    return {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": registered,
    }


EVIL = {
    "lambda layer": _replace(module="keras.layers", class_name="Lambda"),
    "lambda": _activation({"class_name": "__lambda__", "config": {"value": "4wAAA"}}),
    "os.system": _replace(module="os", class_name="system", registered_name=None),
    "builtin": _activation(_function("eval")),
    "builtin by module": _activation(_function("system", "os", "system")),
    "keras utility": _activation(_function("get_file", "keras.utils", "get_file")),
    "keras loader": _replace(module="keras.saving", class_name="load_model"),
    "registered function": _activation(_function("keras_exfm_tests>spy")),
    "registered function's name": _activation("keras_exfm_tests>spy"),
    "registered class": _replace(
        module="tests", class_name="Spy", registered_name="keras_exfm_tests>Spy"
    ),
    "unknown class": _replace(registered_name="keras_exfm>Nothing", class_name="Nothing"),
    "saved model": _replace(module="keras.layers", class_name="TFSMLayer"),
    "file reader": _replace(module="keras.layers", class_name="StringLookup"),
    "in what it was compiled with": lambda victim, config, parts: config.update(
        compile_config={"loss": _function("keras_exfm_tests>spy")}
    ),
    "further part": lambda victim, config, parts: parts.update({"assets/x.pkl": b"cos\nsystem"}),
}


@pytest.mark.parametrize("name", list(EVIL))
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, name):
    file = rewritten(tmp_path, EVIL[name])
    ran.clear()
    store = SnapshotStore(tmp_path / "store")
    with pytest.raises(SnapshotError, match=r"model.keras: cannot load the model: (it|a) "):
        store.publish(file, 1)
    assert store.times() == []
    # One that another program has put there is refused when it is loaded.
    with monkeypatch.context() as patch:
        patch.setattr(_safe_keras, "check", lambda *args: None)
        store.publish(file, 1)
    for compile in (False, True):
        with pytest.raises(SnapshotError, match=rf"{store.latest().path}: cannot load the model"):
            store.latest().load(compile=compile)
    assert ran == []


def test_keras_safe_mode_is_on_below_our_own_check(tmp_path, monkeypatch):
    """Should a way around the list be found, pickled functions still do not run."""
    monkeypatch.setattr(_safe_keras, "check", lambda *args: None)
    snapshot = SnapshotStore(tmp_path).publish(with_layer(keras.layers.Lambda(lambda x: x)), 1)
    with pytest.raises(SnapshotError, match=rf"{snapshot.path}: cannot load the model.*lambda"):
        snapshot.load()


def test_trusted_packages_are_the_readers_choice(tmp_path):
    mine = SnapshotStore(tmp_path, trusted_packages=("keras_exfm", "keras_exfm_tests"))
    mine.publish(with_layer(Spy()), 1)
    ran.clear()
    with pytest.raises(SnapshotError, match=r"keras_exfm_tests>Spy.*trusted_packages"):
        SnapshotStore(tmp_path).latest().load()
    assert ran == []
    mine.latest().load()
    assert ran == [True]


def test_models_of_the_zoo_and_of_keras_pass(tmp_path):
    schema = kx.Schema([kx.Categorical("ad", 10), kx.Categorical("n", 10), kx.Numeric("x")])
    store = SnapshotStore(tmp_path)
    for time, cls in enumerate((kx.models.FM, kx.models.DLRM, kx.models.Wukong)):
        made = cls(schema)
        made.compile("adam", "binary_crossentropy", metrics=[kx.metrics.NormalizedEntropy()])
        _safe_keras.check(store.publish(made, time).path, ("keras_exfm",))
    inputs = schema.inputs()
    x = kx.layers.FeatureEmbedding(schema, 4)(inputs)
    x = keras.layers.Flatten()(x)
    for activation in ("relu", "gelu", keras.activations.silu, keras.ops.tanh):
        x = keras.layers.Dense(4, activation=activation)(x)
    student = kx.ExternalDistillation(
        inputs,
        keras.layers.Dense(1)(keras.ops.concatenate([x, x + 1.0], axis=-1)),
        representation=x,
        auxiliary_head=kx.layers.AuxiliaryHead(),
    )
    student.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    store.publish(student, 100).load(compile=True)


# Stores at a URL.


@pytest.fixture
def remote(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    name = f"memory://{tmp_path.name}"
    yield SnapshotStore(name, cache=tmp_path / "cache"), fs, tmp_path
    fs.rm(f"/{tmp_path.name}", recursive=True)


def test_remote_store(remote):
    store, fs, tmp_path = remote
    for time in (100, 200, 300):
        store.publish(model(time), time)
    assert store.times() == [100, 200, 300]
    snapshot = store.latest(before=250)
    assert not snapshot.path.exists()
    assert snapshot.load().predict(np.ones((1, 2)), verbose=0).item() == 400.0
    assert snapshot.path.is_file()
    assert Path(tmp_path / "cache") in snapshot.path.parents
    store.pin(snapshot, "me")
    assert store.retire(before=300) == 1
    assert store.times() == [200, 300]
    assert store.pins() == {snapshot.id: ["me"]}
    # Downloaded once: what is in the cache loads even after the store lost it.
    store.unpin(snapshot, "me")
    held = store.latest()
    assert store.retire(before=300) == 1
    snapshot.load()
    fs.rm(f"/{tmp_path.name}/{held.id}", recursive=True)
    with pytest.raises(SnapshotError, match=rf"memory://.*{held.id}.*missing"):
        held.load()
    assert not held.path.exists()


def test_remote_damage(remote):
    store, fs, tmp_path = remote
    snapshot = store.publish(model(), 100)
    (file,) = fs.glob(f"/{tmp_path.name}/{snapshot.id}/*/model.keras")
    whole = fs.cat_file(file)
    for content in (whole[:-1], whole[:50] + b"!" + whole[51:]):
        fs.pipe_file(file, content)
        with pytest.raises(SnapshotError, match=rf"memory://.*{snapshot.id}.*damaged"):
            snapshot.load()
        assert not snapshot.path.exists()
    fs.pipe_file(file, whole)
    snapshot.load()
    # The cache is checked as well.
    snapshot.path.write_bytes(whole[:-1])
    with pytest.raises(SnapshotError, match=rf"{snapshot.path}.*damaged"):
        snapshot.load()


def test_file_urls_are_folders(tmp_path):
    SnapshotStore(f"file://{tmp_path}/store").publish(model(), 1)
    assert SnapshotStore(tmp_path / "store").times() == [1]
