"""Options of an export, and what is refused."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm import export
from keras_exfm.export import ExportError, _runtimes, exporting
from keras_exfm.export._tables import STORAGES, StoredTable, stored_tables
from keras_exfm.metrics import functional
from tests.export.models import SCHEMA, rows, trained
from tests.export.test_formats import FORMATS, compare, targets, tensorflow_only

PLAIN = kx.Schema([kx.Categorical("user", 40), kx.Numeric("age")])


@pytest.fixture
def small():
    return trained(kx.models.LogisticRegression, PLAIN)


def plain_rows(count, seed=0):
    batch = rows(count, seed)
    return {name: batch[name] for name in PLAIN.names}


@tensorflow_only
def test_probability(tmp_path, small):
    for report in export.export_model(small, targets(tmp_path), output="probability"):
        assert report.outputs == ("probability",)
        batch = plain_rows(20)
        got = export.load(report.path)(batch)["probability"]
        wanted = 1 / (1 + np.exp(-small.predict_on_batch(batch).astype(np.float64)))
        np.testing.assert_allclose(got, wanted, atol=1e-6)


@tensorflow_only
@pytest.mark.parametrize("tables", STORAGES[1:])
def test_smaller_tables(tmp_path, tables):
    schema = SCHEMA.select(["user", "ad", "seen"])
    model = trained(kx.models.FM, schema, dim=16)
    formats = FORMATS if tables == "int8" else ("onnx", "saved_model")
    reports = export.export_model(model, targets(tmp_path, formats), tables=tables)
    whole = export.export_model(model, targets(tmp_path / "whole", formats))
    batch = rows(200, 3, schema)
    for report, plain in zip(reports, whole):
        # The format is exact; the tables are not, and the report says by how much.
        assert report.graph_difference < 1e-4
        assert 1e-5 < report.max_difference < (0.005 if tables == "float16" else 0.2)
        assert plain.max_difference < report.max_difference
        got = export.load(report.path)(batch)["logit"]
        wanted = model.predict_on_batch(batch)
        assert 0 < np.abs(got - wanted).max() < (0.005 if tables == "float16" else 0.2)
        assert export.metadata(report.path)["tables"] == tables


def test_stored_numbers():
    layer = kx.layers.EmbeddingTable(5, 4)
    layer.build()
    values = np.array(
        [[1, -2, 0.5, 0], [0, 0, 0, 0], [1e-8, 0, 0, -1e-8], [300, 1, 2, 3], [-1, -1, -1, -1]],
        np.float32,
    )
    layer.write_rows(values)
    found = {}
    for storage in STORAGES:
        table = StoredTable(layer, storage, "t")
        found[storage] = {part.name: part.array() for part in table.parts}
        assert [part.array().shape for part in table.parts] == [p.shape for p in table.parts]
    # Behind the rows that the layer has: what an id out of range reads, and the missing one.
    extra = np.array([[np.nan] * 4, [0] * 4], np.float32)
    stored = np.concatenate([values, extra])
    np.testing.assert_array_equal(found["float32"]["t"], stored)
    np.testing.assert_array_equal(found["float16"]["t"], stored.astype(np.float16))
    assert found["float16"]["t"].dtype == np.float16
    whole, scale = found["int8"]["t"], found["int8"]["t_scale"]
    np.testing.assert_array_equal((whole * scale)[5:], extra)
    whole, scale = whole[:5], scale[:5]
    assert whole.dtype == np.int8
    np.testing.assert_array_equal(whole[1], 0)
    np.testing.assert_array_equal(whole[:, :1] * 0, 0)
    assert whole[0].tolist() == [64, -127, 32, 0]
    assert np.all(np.abs(whole * scale - values) <= scale / 2 + 1e-12)
    layer.write_rows(np.full((1, 4), 1e5))
    with pytest.raises(ExportError, match=r"holds 1e\+05, which float16 cannot"):
        StoredTable(layer, "float16", "t").parts[0].array()


def test_tables_are_found_at_any_depth():
    model = kx.models.DeepFM(SCHEMA, dim=4)
    found = stored_tables(model, "float32")
    assert sum(t.layer.rows * t.layer.dim for t in found) == sum(
        int(np.prod(v.shape)) for v in model.variables if v.path.endswith("/table")
    )
    assert len(found) >= 2


@tensorflow_only
@pytest.mark.parametrize("tables", ["float32", "int8"])
def test_a_table_on_its_own_checks_its_ids(tmp_path, tables):
    """Without a `FeatureEmbedding` before it that has done so."""
    layer = kx.layers.EmbeddingTable(6, 4)
    ids = keras.Input((2,), dtype="int32", name="ids")
    x = keras.layers.Reshape((8,))(layer(ids))
    model = keras.Model({"ids": ids}, keras.layers.Dense(1)(x))
    low, high = -(2**31), 2**31 - 1
    bad = np.array([[0, -2], [6, 0], [7, 1], [low, 0], [0, high], [-3, -1]], np.int32)
    good = np.array([[0, 5], [-1, 5], [-1, -1], [4, 2]], np.int32)
    batch = {"ids": np.concatenate([good, bad])}
    for report in export.export_model(model, targets(tmp_path), check=batch, tables=tables):
        got = export.load(report.path)(batch)["logit"]
        assert np.isnan(got[:, 0]).tolist() == [False] * 4 + [True] * 6
        np.testing.assert_allclose(
            got, model.predict_on_batch(batch), atol=1e-6 if tables == "float32" else 1e-3
        )


@tensorflow_only
def test_external_data(tmp_path):
    onnx = pytest.importorskip("onnx")
    schema = SCHEMA.select(["user", "ad", "age"])
    model = trained(kx.models.FM, schema)
    inside = export.onnx(model, tmp_path / "in.onnx")
    report = export.onnx(model, tmp_path / "out.onnx", external_data=True)
    data = tmp_path / "out.onnx.data"
    assert data.is_file()
    assert not (tmp_path / "in.onnx.data").exists()
    file = onnx.load(report.path, load_external_data=False)
    tensors = {t.name: t for t in file.graph.initializer if t.external_data}
    entries = {e.key: e.value for e in next(iter(tensors.values())).external_data}
    assert entries["location"] == "out.onnx.data"
    assert int(entries["offset"]) % 4096 == 0
    assert report.bytes == report.path.stat().st_size + data.stat().st_size
    batch = rows(50, schema=schema)
    np.testing.assert_array_equal(
        export.load(report.path)(batch)["logit"], export.load(inside.path)(batch)["logit"]
    )
    # It may be moved, with its data.
    (tmp_path / "moved").mkdir()
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    compare(model, tmp_path / "moved" / "out.onnx", batch)


@tensorflow_only
def test_tables_beyond_a_file_are_external_by_themselves(tmp_path, small, monkeypatch):
    from keras_exfm.export import _litert, _onnx

    monkeypatch.setattr(_onnx, "_LARGEST", 100)
    monkeypatch.setattr(_litert, "_LARGEST", 100)
    export.onnx(small, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").is_file()
    compare(small, tmp_path / "big.onnx", plain_rows(5))
    with pytest.raises(ExportError, match="more than an ONNX file can hold"):
        export.onnx(small, tmp_path / "no.onnx", external_data=False)
    with pytest.raises(ExportError, match="more than a LiteRT file can hold"):
        export.litert(small, tmp_path / "no.tflite")
    assert {f.name for f in tmp_path.iterdir()} == {"big.onnx", "big.onnx.data"}


@tensorflow_only
def test_students_lose_their_heads(tmp_path):
    student = kx.ExternalDistillation.from_model(
        trained(kx.models.LogisticRegression, PLAIN),
        representation=None,
        shared_head_weight=0.5,
    )
    report = export.onnx(student, tmp_path / "s.onnx")
    assert report.inputs == PLAIN.names
    batch = plain_rows(9)
    np.testing.assert_allclose(
        export.load(report.path)(batch)["logit"], student.predict(batch, verbose=0), atol=1e-5
    )
    assert kx.Schema.from_dict(export.metadata(report.path)["schema"]) == PLAIN


@tensorflow_only
def test_a_functional_model_of_ones_own(tmp_path):
    inputs = {
        "later": keras.Input((2,), name="later"),
        "before": keras.Input((), dtype="int32", name="before"),
    }
    x = keras.layers.Embedding(9, 3)(inputs["before"])
    logit = keras.layers.Dense(1)(keras.layers.Concatenate()([x, inputs["later"]]))
    model = keras.Model([inputs["later"], inputs["before"]], logit)
    with pytest.raises(ExportError, match="pass `check`"):
        export.onnx(model, tmp_path / "m.onnx")
    batch = {
        "later": np.random.default_rng(0).normal(size=(6, 2)),
        "before": np.array([0, 8, 3, 3, 1, 2]),
    }
    for report in export.export_model(model, targets(tmp_path), check=batch):
        assert set(report.inputs) == {"later", "before"}
        assert report.rows == 6
        assert report.metadata["schema"] is None
    with pytest.raises(ExportError, match=r"`check` misses the inputs \['before'\]"):
        export.onnx(model, tmp_path / "m.onnx", check={"later": batch["later"]})


@tensorflow_only
def test_entropy_cost_on_data(tmp_path):
    # A row of one number is exact in int8, a row of eight is not.
    model = trained(kx.models.FM, PLAIN, dim=8)
    label = np.random.default_rng(0).integers(0, 2, 300).astype(np.float32)
    weight = np.where(np.arange(300) % 5, 1, 0).astype(np.float32)
    batch = plain_rows(300)
    data = [
        (
            {n: c[i : i + 100] for n, c in batch.items()},
            {"label": label[i : i + 100]},
            weight[i : i + 100],
        )
        for i in (0, 100, 200)
    ]
    report = export.onnx(model, tmp_path / "m.onnx", tables="int8", data=data)
    logit = model.predict_on_batch(batch)[:, 0]
    served = export.load(report.path)(batch)["logit"][:, 0]
    wanted = [functional.normalized_entropy(label, z, weight) for z in (logit, served)]
    found = report.normalized_entropy
    assert found["model"] == pytest.approx(wanted[0], rel=1e-6)
    assert found["export"] == pytest.approx(wanted[1], rel=1e-6)
    assert found["cost_percent"] == pytest.approx(100 * (wanted[1] / wanted[0] - 1), abs=1e-6)
    assert found["cost_percent"] != 0
    assert "NE" in str(report)
    with pytest.raises(ExportError, match="at least one batch"):
        export.onnx(model, tmp_path / "m.onnx", data=[])


@tensorflow_only
@pytest.mark.parametrize("fault", ["value", "nan", "shape", "small batch"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_differs_is_not_kept(tmp_path, small, monkeypatch, fault, format):
    load = _runtimes.load
    before = export.export_model(small, targets(tmp_path, [format]))[0]
    held = before.path.read_bytes() if before.path.is_file() else None

    class Off:
        def __init__(self, path):
            self.inner = load(path)
            self.inputs, self.outputs = self.inner.inputs, self.inner.outputs

        def __call__(self, batch):
            found = {k: np.array(v) for k, v in self.inner(batch).items()}
            if fault == "value":
                found["logit"][-1] += 0.01
            elif fault == "nan":
                found["logit"][0] = np.nan
            elif fault == "shape":
                found["logit"] = found["logit"][:, 0]
            elif len(found["logit"]) == 1:
                found["logit"] += 1
            return found

    monkeypatch.setattr(_runtimes, "load", Off)
    with pytest.raises(ExportError, match=rf"{before.path}: 'logit' (differs|should have)"):
        export.export_model(small, targets(tmp_path, [format]))
    # What stood there before stays, and nothing else is left.
    assert [f.name for f in tmp_path.iterdir()] == [before.path.name]
    if held is not None:
        assert before.path.read_bytes() == held


@tensorflow_only
def test_an_export_replaces_an_earlier_one(tmp_path, small):
    for format in FORMATS:
        export.export_model(small, targets(tmp_path, [format]))
    small.set_weights([w + 1 if w.dtype.kind == "f" else w for w in small.get_weights()])
    for report in export.export_model(small, targets(tmp_path)):
        compare(small, report.path, plain_rows(9))
    assert len(list(tmp_path.iterdir())) == 3


def two_outputs():
    x = keras.Input((2,), name="x")
    return keras.Model(x, keras.layers.Dense(2)(x))


def named_logit():
    x = keras.Input((2,), name="logit")
    return keras.Model(x, keras.layers.Dense(1)(x))


def probability():
    x = keras.Input((2,), name="x")
    return keras.Model(x, keras.layers.Dense(1, activation="sigmoid", name="p")(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (probability, {}, "should end in a logit.*'p', makes it a probability"),
        (probability, {"output": "probability"}, "should end in a logit"),
        (lambda: keras.layers.Dense(1), {}, "functional keras.Model"),
        (two_outputs, {}, r"one output, a logit.*\(None, 2\)"),
        (named_logit, {}, "may not have the outputs' names"),
        (None, {"output": "odds"}, r"`output` should be one of"),
        (None, {"tables": "int4"}, r"`tables` should be one of"),
        (None, {"opset": 12}, "opset=12"),
        (None, {"opset": 19}, "opset=19"),
        (None, {"representation": "nope"}, "should name a layer"),
    ],
)
def test_refused(tmp_path, small, model, options, message):
    with pytest.raises(ExportError, match=message):
        export.onnx(model() if model else small, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_refused_formats(tmp_path, small):
    with pytest.raises(ExportError, match=r"\['tensorrt'\]"):
        export.export_model(small, {"tensorrt": tmp_path / "x"})
    with pytest.raises(ExportError, match="LiteRT looks nothing up in tables of float16"):
        export.litert(small, tmp_path / "x.tflite", tables="float16")
    for function, name, message in (
        (export.onnx, "x.tflite", r"'onnx' should end in .onnx. Received: '.tflite'"),
        (export.litert, "x.onnx", r"'litert' should end in .tflite or .litert"),
        (export.onnx, "x", "should end in .onnx. Received: ''"),
    ):
        with pytest.raises(ExportError, match=message):
            function(small, tmp_path / name)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ExportError, match="a SavedModel is a folder"):
        export.saved_model(small, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    hashed = kx.models.LogisticRegression(kx.Schema([kx.Categorical("ad", 9, hashed=True)]))
    with pytest.raises(ExportError, match=r"\['ad'\] need opset 18.*opset=17"):
        export.onnx(hashed, tmp_path / "x.onnx", opset=17)
    low = kx.models.FM(PLAIN, dim=4, dtype="mixed_bfloat16")
    with pytest.raises(ExportError, match=r"compute in float32, and these layers in bfloat16"):
        export.onnx(low, tmp_path / "x.onnx")


def test_missing_packages_name_the_extra(tmp_path, small, monkeypatch):
    monkeypatch.setattr(_runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras-exfm\[onnx\]"):
        export.onnx(small, tmp_path / "m.onnx")
    with pytest.raises(ImportError, match=r"keras-exfm\[litert\]"):
        export.litert(small, tmp_path / "m.tflite")


def test_files_of_others(tmp_path):
    for name, message in (("none.onnx", "no such file"), ("x.bin", "expected .onnx")):
        if name == "x.bin":
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ExportError, match=message):
            export.load(tmp_path / name)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"bad.onnx: ONNX Runtime cannot load"):
        export.load(tmp_path / "bad.onnx")


def test_types_of_onnx_files():
    for name, dtype in (("float", "float32"), ("double", "float64"), ("int32", "int32")):
        assert _runtimes._onnx_dtype(f"tensor({name})") == np.dtype(dtype)
    # A model of others: its runtime says what it expects.
    strings = _runtimes.Input(_runtimes._onnx_dtype("tensor(string)"), ())
    found = _runtimes.checked(Path("x.onnx"), {"name": ["a", "b"]}, {"name": strings})
    assert found["name"].tolist() == ["a", "b"]


@tensorflow_only
def test_an_earlier_opset_without_hashing(tmp_path, small):
    onnx = pytest.importorskip("onnx")
    report = export.onnx(small, tmp_path / "m.onnx", opset=15)
    assert {d.domain: d.version for d in onnx.load(report.path).opset_import}[""] == 15
    assert report.metadata["opset"] == 15


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="in a process of its own on JAX alone")
def test_errors_of_the_other_process(tmp_path, small):
    job = {"imports": ["keras_exfm_no_such_module"], "targets": []}
    with pytest.raises(ExportError, match="keras_exfm_no_such_module"):
        exporting._worker.convert_elsewhere(small, job, plain_rows(2), tmp_path)
    assert json.loads((tmp_path / "job.json").read_text()) == job
