import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import SnapshotError, SnapshotStore


def model(value=1.0):
    inputs = keras.Input((2,), name="x")
    out = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))(inputs)
    return keras.Model(inputs, out)


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


def test_republishing_replaces_and_going_back_is_refused(tmp_path):
    store = SnapshotStore(tmp_path)
    store.publish(model(1.0), 100)
    store.publish(model(2.0), 100)
    assert len(store.list()) == 1
    with pytest.raises(SnapshotError, match=r"time order.*published_at=99"):
        store.publish(model(), 99)


def test_retire_keeps_what_later_examples_need(tmp_path):
    store = SnapshotStore(tmp_path)
    for time in (100, 200, 300):
        store.publish(model(), time)
    assert store.retire(before=50) == 0
    assert store.retire(before=250) == 1
    assert [s.published_at for s in store.list()] == [200, 300]
    assert store.latest(before=250).published_at == 200


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_damage_is_named(tmp_path, damage):
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(model(), 100)
    if damage == "flip":
        content = bytearray(snapshot.path.read_bytes())
        content[len(content) // 2] ^= 1
        snapshot.path.write_bytes(content)
    elif damage == "truncate":
        snapshot.path.write_bytes(snapshot.path.read_bytes()[:-10])
    elif damage == "delete":
        snapshot.path.unlink()
    else:
        (snapshot.path.parent / "snapshot.json").write_text("{")
    with pytest.raises(SnapshotError, match=snapshot.id):
        store.latest().load()


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


def test_what_is_noted(tmp_path):
    schema = kx.Schema([kx.Categorical("ad", 10), kx.Numeric("x")])
    store = SnapshotStore(tmp_path)
    snapshot = store.publish(kx.models.LogisticRegression(schema), 5)
    assert store.latest() == snapshot
    assert kx.Schema.from_dict(snapshot.schema) == schema
    assert snapshot.made_with["backend"] == keras.backend.backend()
    assert snapshot.made_with["keras"] == keras.__version__
    assert store.publish(model(), 6).schema is None
    assert store.times() == [5, 6]


def test_code_in_a_file_is_not_run(tmp_path):
    inputs = keras.Input((2,), name="x")
    outputs = keras.layers.Lambda(lambda x: x[:, :1])(inputs)
    snapshot = SnapshotStore(tmp_path).publish(keras.Model(inputs, outputs), 100)
    with pytest.raises(SnapshotError, match=rf"{snapshot.id}.*cannot load the model"):
        snapshot.load()


@pytest.mark.parametrize("time", [-1, 1.5, True, None])
def test_bad_times(tmp_path, time):
    with pytest.raises(SnapshotError, match=f"published_at={time}"):
        SnapshotStore(tmp_path).publish(model(), time)
    assert not list(tmp_path.iterdir())


def test_killed_while_removing(tmp_path, monkeypatch):
    """Whatever is left of a snapshot that goes, no reader takes it for one."""
    store = SnapshotStore(tmp_path)
    for time in (100, 200, 300):
        store.publish(model(), time)

    def half(path, **kwargs):
        if path.exists():
            (path / "snapshot.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            store.retire(before=200)
    assert [s.published_at for s in store.list()] == [200, 300]
    assert store.retire(before=300) == 1
    assert store.times() == [300]


def test_remains_of_a_killed_publisher_are_cleared(tmp_path):
    store = SnapshotStore(tmp_path)
    remains = tmp_path / f".{100:016d}.4194305"
    remains.mkdir()
    (remains / "model.keras").write_bytes(b"half")
    store.publish(model(), 100)
    assert [f.name for f in tmp_path.iterdir()] == [f"{100:016d}"]


def test_weights_into_another_network(tmp_path):
    snapshot = SnapshotStore(tmp_path).publish(model(), 100)
    inputs = keras.Input((3,), name="x")
    other = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(SnapshotError, match=f"{snapshot.id}.*cannot load the weights"):
        snapshot.load_weights(other)
