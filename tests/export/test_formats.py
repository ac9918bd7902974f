"""Every format against the Keras model: names, shapes, features, tables, metadata."""

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm import export
from tests.export.models import SCHEMA, rows, trained, zoo

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

FORMATS = ("onnx", "litert", "saved_model")
NAMES = {"onnx": "model.onnx", "litert": "model.tflite", "saved_model": "model"}

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow converts on either backend; a process for each of these would take minutes",
)


def targets(folder, formats=FORMATS):
    return {format: folder / NAMES[format] for format in formats}


ON_JAX = keras.backend.backend() == "jax"
# From JAX each conversion starts a process: one model there, all of them among the slow tests.
SECOND = pytest.param("DLRM", marks=pytest.mark.slow if ON_JAX else ())


@pytest.fixture(scope="module", params=["Wukong", SECOND])
def exported(request, tmp_path_factory):
    """A model, its files in all formats and their reports, by one conversion."""
    keras.utils.set_random_seed(3)
    model = trained(getattr(kx.models, request.param))
    folder = tmp_path_factory.mktemp(request.param)
    reports = export.export_model(
        model,
        targets(folder),
        representation="representation",
        metadata={"snapshot": "0001", "metrics": {"ne": 0.8}},
    )
    return model, {report.format: report for report in reports}


def compare(model, path, batch, atol=2e-5):
    got = export.load(path)(batch)["logit"]
    wanted = model.predict_on_batch(batch)
    np.testing.assert_allclose(got, wanted, atol=atol, rtol=1e-5)
    return got


@pytest.mark.parametrize("format", FORMATS)
def test_file_computes_what_the_model_does(exported, format):
    model, reports = exported
    report = reports[format]
    assert report.rows == 256
    assert report.max_difference < 1e-4
    assert report.graph_difference < 1e-4
    assert (report.inputs, report.outputs) == (SCHEMA.names, ("logit", "representation"))
    # Rows that the export has not seen, in batches of every size.
    for count in (1, 2, 33, 500):
        got = compare(model, report.path, rows(count, seed=count))
        assert got.shape == (count, 1)
        assert got.dtype == np.float32
        assert count == 1 or got.std() > 1e-3


@pytest.mark.parametrize("format", FORMATS)
def test_names_and_representation(exported, format):
    model, reports = exported
    runtime = export.load(reports[format].path)
    assert set(runtime.inputs) == set(SCHEMA.names)
    assert set(runtime.outputs) == {"logit", "representation"}
    batch = rows(9)
    inner = keras.Model(model.input, model.get_layer("representation").output)
    np.testing.assert_allclose(
        runtime(batch)["representation"], inner.predict_on_batch(batch), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("format", FORMATS)
def test_ids_out_of_range_give_nan_as_in_keras(exported, format):
    model, reports = exported
    batch = rows(6)
    batch["user"][1], batch["tags"][4, 0] = 40, -7
    got = export.load(reports[format].path)(batch)["logit"]
    wanted = model.predict_on_batch(batch)
    assert np.flatnonzero(np.isnan(wanted)).tolist() == [1, 4]
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_that_do_not_fit_are_named(exported, format):
    _, reports = exported
    path = reports[format].path
    serve, batch = export.load(path), rows(4)
    few = {name: column for name, column in batch.items() if name != "user"}
    wide = {**batch, "user": batch["user"].astype(np.int64)}
    flat = {**batch, "history": batch["history"][:, 0]}
    narrow = {**batch, "history": batch["history"][:, :2]}
    short = {**batch, "age": batch["age"][:3]}
    for wrong, message in (
        (few, r"misses the inputs \['user'\]. It has: \['ad',"),
        (wide, r"input 'user': expected int32 of shape \('batch',\). Received int64"),
        (flat, r"input 'history': expected float32 of shape \('batch', 3\). .*\(4,\)"),
        (narrow, r"input 'history': .*\(4, 2\)"),
        (short, r"one value a row. Received rows: .*'age': 3"),
        (list(batch.values()), "expected a dict of the inputs .* Received: list"),
    ):
        with pytest.raises(export.ExportError, match=f"{path.name}: .*{message}"):
            serve(wrong)
    np.testing.assert_array_equal(
        serve({**batch, "note": np.array(["a"] * 4)})["logit"], serve(batch)["logit"]
    )


@pytest.mark.parametrize("format", FORMATS)
def test_padding_and_unseen_ids(exported, format):
    model, reports = exported
    empty = {
        "user": np.full(3, -1, np.int32),
        "ad": np.array([-1, -(2**31), 2**31 - 1], np.int32),
        "seen": np.full((3, 4), -1, np.int32),
        "tags": np.full((3, 3), -1, np.int32),
        "page": np.array([-1, 12345, -(2**31)], np.int32),
        "age": np.zeros(3, np.float32),
        "history": np.zeros((3, 3), np.float32),
    }
    compare(model, reports[format].path, empty)


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_travels_inside(exported, format):
    model, reports = exported
    report = reports[format]
    found = export.metadata(report.path)
    assert found == report.metadata
    assert kx.Schema.from_dict(found["schema"]) == SCHEMA
    assert found["notes"] == {"snapshot": "0001", "metrics": {"ne": 0.8}}
    assert found["backend"] == keras.backend.backend()
    assert (found["model"], found["format"]) == (type(model).__name__, format)


def test_onnx_is_as_stated(exported):
    onnx = pytest.importorskip("onnx")
    _, reports = exported
    file = onnx.load(reports["onnx"].path)
    assert {d.domain: d.version for d in file.opset_import}[""] == 18
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*file.graph.input, *file.graph.output)
    }
    assert shapes["ad"] == ["batch"]
    assert shapes["seen"] == ["batch", 4]
    assert shapes["logit"] == ["batch", 1]
    assert [value.name for value in file.graph.input] == list(SCHEMA.names)
    assert [value.name for value in file.graph.output] == ["logit", "representation"]


def test_model_is_as_it_was(exported):
    """An export leaves nothing behind in the model."""
    model, _ = exported
    batch = rows(8)
    before = model.predict_on_batch(batch)
    label = np.ones(8, np.float32)
    tables = [model.get_layer("feature-embedding").read_table(name) for name in ("user", "ad")]
    model.fit(batch, label, verbose=0)
    after = [model.get_layer("feature-embedding").read_table(name) for name in ("user", "ad")]
    assert all((a != b).any() for a, b in zip(tables, after))
    assert (model.predict_on_batch(batch) != before).any()


def test_served_teachers_score(exported, tmp_path):
    """An export is a snapshot that the data augmentation service takes."""
    _, reports = exported
    store = kx.das.SnapshotStore(tmp_path)
    batch = rows(11)
    for time, format in enumerate(("onnx", "saved_model")):
        shot = store.publish(reports[format].path, time, schema=SCHEMA)
        scorer = kx.das.SnapshotScorer(
            SCHEMA,
            4,
            representation="representation",
            representation_size=export.load(reports[format].path)(batch)["representation"].shape[1],
        )
        logits, vectors = scorer.score_with_representation(batch, shot)
        wanted = export.load(reports[format].path)(batch)
        np.testing.assert_allclose(logits, wanted["logit"][:, 0], atol=1e-5)
        np.testing.assert_allclose(vectors, wanted["representation"], atol=2e-3)


@tensorflow_only
@pytest.mark.parametrize("cls", zoo(), ids=lambda c: c.__name__)
@pytest.mark.slow
def test_whole_zoo(tmp_path, cls):
    model = trained(cls)
    for report in export.export_model(model, targets(tmp_path)):
        compare(model, report.path, rows(40, seed=5))


@pytest.mark.skipif(not ON_JAX, reason="goes through a process on JAX alone")
@pytest.mark.parametrize("cls", zoo(), ids=lambda c: c.__name__)
@pytest.mark.slow
def test_whole_zoo_from_jax(tmp_path, cls):
    model = trained(cls)
    for report in export.export_model(model, targets(tmp_path)):
        compare(model, report.path, rows(40, seed=5))
