"""Parquet to Parquet by ONNX Runtime, and the commands."""

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import keras_exfm as kx
from keras_exfm import export
from keras_exfm.cli import app
from keras_exfm.export import ExportError
from keras_exfm.features import SchemaError

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

SCHEMA = kx.Schema(
    [
        kx.Categorical("user", 40),
        kx.Categorical("name", 40, hashed=True),
        kx.MultiHot("tags", 15, length=3),
        kx.Numeric("x"),
    ]
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A trained model, its `.keras` file and its ONNX file."""
    keras.utils.set_random_seed(5)
    folder = tmp_path_factory.mktemp("served")
    model = kx.models.LogisticRegression(SCHEMA)
    rng = np.random.default_rng(2)
    layer = next(x for x in model.layers if isinstance(x, kx.layers.FirstOrder)).embedding
    for name in SCHEMA.tables():
        layer.write_table(name, rng.normal(size=layer.read_table(name).shape))
    model.save(folder / "student.keras")
    export.onnx(model, folder / "student.onnx")
    return model, folder


def table(count, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "example_id": np.arange(count) + 1000 * seed,
            "user": pa.array(rng.integers(0, 40, count), mask=rng.random(count) < 0.1),
            "name": [f"n{i}" for i in rng.integers(0, 99, count)],
            "tags": [rng.integers(0, 15, k).tolist() for k in rng.integers(0, 4, count)],
            "x": rng.normal(size=count).astype(np.float32),
            "note": ["a"] * count,
        }
    )


def wanted(model, rows):
    from keras_exfm.streaming.columns import raw_feature

    raw = {f.name: raw_feature(rows.column(f.name), f) for f in SCHEMA}
    return model.predict(SCHEMA.encode(raw), verbose=0)[:, 0]


def test_scores_are_the_models(served, tmp_path):
    model, folder = served
    rows = table(1000)
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=300)
    seen = []
    report = export.score(
        folder / "student.onnx",
        tmp_path / "rows.parquet",
        tmp_path / "out" / "scores.parquet",
        batch_size=128,
        progress=seen.append,
    )
    assert report.rows == 1000 == seen[-1]
    assert len(seen) >= 8
    found = pq.read_table(report.path)
    assert found.column_names == ["example_id", "note", "logit"]
    np.testing.assert_array_equal(found["example_id"], rows["example_id"])
    np.testing.assert_allclose(found["logit"], wanted(model, rows), atol=1e-5)
    assert "1000 rows" in str(report)


def test_folders_of_files(served, tmp_path):
    model, folder = served
    parts = [table(50, seed) for seed in (1, 2)]
    for hour, part in enumerate(parts):
        place = tmp_path / "in" / f"hour={hour}"
        place.mkdir(parents=True)
        pq.write_table(part, place / "part-0.parquet")
    out = tmp_path / "scores.parquet"
    export.score(folder / "student.onnx", tmp_path / "in", out, columns=["hour", "example_id"])
    found = pq.read_table(out)
    assert found.column_names == ["hour", "example_id", "logit"]
    for hour, part in enumerate(parts):
        own = found.filter(pa.compute.equal(found["hour"], hour))
        np.testing.assert_allclose(own["logit"], wanted(model, part), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": pa.array([40] * 5)}, r"rows from 0 on: .*'user'.*0\.\.39.*40"),
        ({"x": pa.array([1, 2, np.nan, 4, 5.0])}, r"'x'.*finite.*row 2"),
        ({"tags": pa.array([[1, 2, 3, 4]] * 5)}, r"'tags'.*at most 3"),
        ({"user": None}, r"missing columns \['user'\]"),
        ({"logit": pa.array([1.0] * 5)}, r"outputs of the model.*\['logit'\]"),
    ],
)
def test_bad_rows_leave_no_file(served, tmp_path, change, message):
    rows = table(5)
    for name, column in change.items():
        rows = rows.drop_columns([name]) if name in rows.column_names else rows
        rows = rows if column is None else rows.append_column(name, column)
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises((ExportError, SchemaError), match=message):
        export.score(
            served[1] / "student.onnx", tmp_path / "rows.parquet", tmp_path / "scores.parquet"
        )
    assert [f.name for f in tmp_path.iterdir()] == ["rows.parquet"]


def test_bad_arguments(served, tmp_path):
    model = served[1] / "student.onnx"
    pq.write_table(table(5), tmp_path / "rows.parquet")
    pq.write_table(table(5).slice(0, 0), tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    out = tmp_path / "out.parquet"
    with pytest.raises(ExportError, match="batch_size"):
        export.score(model, tmp_path / "rows.parquet", out, batch_size=0)
    with pytest.raises(ExportError, match=r"\['nope'\]"):
        export.score(model, tmp_path / "rows.parquet", out, columns=["nope"])
    with pytest.raises(ExportError, match="no rows"):
        export.score(model, tmp_path / "none.parquet", out)
    with pytest.raises(ExportError, match="bad.parquet"):
        export.score(model, tmp_path / "bad.parquet", out)
    with pytest.raises(ExportError, match="absent"):
        export.score(model, tmp_path / "absent.parquet", out)


def test_models_of_others_need_a_schema(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["score"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(file, tmp_path / "m.onnx")
    pq.write_table(table(5), tmp_path / "rows.parquet")
    arguments = (tmp_path / "m.onnx", tmp_path / "rows.parquet", tmp_path / "out.parquet")
    with pytest.raises(ExportError, match="exported by others"):
        export.score(*arguments)
    export.score(*arguments, schema=SCHEMA)
    np.testing.assert_array_equal(pq.read_table(arguments[2])["score"], -table(5)["x"].to_numpy())


# The commands.


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())

    def call(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call


def test_export_and_score_commands(served, tmp_path, run):
    model, folder = served
    done = run("export", folder / "student.keras", tmp_path, "--note", "snapshot=17")
    assert done.exit_code == 0, done.output
    assert "largest difference from the model over 256 rows" in done.output
    assert export.metadata(tmp_path / "student.onnx")["notes"] == {"snapshot": 17}
    pq.write_table(table(20), tmp_path / "rows.parquet")
    done = run(
        "score", tmp_path / "student.onnx", tmp_path / "rows.parquet", tmp_path / "s.parquet",
        "--column", "example_id",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = pq.read_table(tmp_path / "s.parquet")
    assert found.column_names == ["example_id", "logit"]
    np.testing.assert_allclose(found["logit"], wanted(model, table(20)), atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a process for each on JAX")
def test_export_command_measures_the_entropy(served, tmp_path, run):
    _, folder = served
    rows = {
        **{n: c for n, c in zip(table(60).column_names, table(60).columns) if n != "note"},
        "timestamp": np.arange(60),
        "vertical": ["feed"] * 60,
        "label": np.arange(60) % 2 * 1.0,
    }
    kx.streaming.write_hour(tmp_path / "labelled", 0, rows, SCHEMA)
    done = run(
        "export", folder / "student.keras", tmp_path / "m.tflite", "--format", "litert",
        "--tables", "int8", "--data", tmp_path / "labelled", "--hours", "0:0", "--probability",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "NE " in done.output
    assert "tables in int8" in done.output
    assert export.metadata(tmp_path / "m.tflite")["output"] == "probability"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.onnx", "--format", "litert"], "give a folder"),
        (["out.onnx", "--note", "x"], "KEY=VALUE"),
        (["out.onnx", "--opset", "99"], "opset=99"),
        (["out.onnx", "--hours", "x", "--data", "x"], "FIRST:LAST"),
    ],
)
def test_bad_commands(served, tmp_path, run, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("export", served[1] / "student.keras", *arguments)
    assert done.exit_code != 0
    assert message in done.output + str(done.stderr)
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_no_onnx_file_is_named(served, tmp_path):
    _, folder = served
    pq.write_table(table(3), tmp_path / "rows.parquet")
    for name, message in (("student.keras", "a file of another kind"), ("no.onnx", "no such file")):
        with pytest.raises(ExportError, match=rf"{name}: expected an .onnx file.*{message}"):
            export.score(folder / name, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()
