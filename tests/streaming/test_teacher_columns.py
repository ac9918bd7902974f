"""The teacher's vectors, and the columns of further tasks and teachers."""

import keras
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.table import TableAlterer

from keras_exfm import ExternalDistillation
from keras_exfm.distillation import TeacherBranch
from keras_exfm.layers import AuxiliaryHead
from keras_exfm.streaming import (
    Stream,
    StreamError,
    progressive_validation,
    read,
    read_hour,
    train_hour,
    write_hour,
)
from tests.streaming.samples import hour_rows, schema

NAME = "teacher_representation"


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "labelled")


def vectors(rows=10, size=3, seed=0):
    """Vectors whose every fourth row is missing."""
    values = np.random.default_rng(seed).normal(size=(rows, size)).astype("float32")
    values[::4] = np.nan
    return values


def spellings(values):
    lists = [None if np.isnan(row).all() else row.tolist() for row in values]
    size = values.shape[1]
    return {
        "float32 array": values,
        "float16 array": values.astype("float16"),
        "lists": pa.array(lists, pa.list_(pa.float32())),
        "large lists": pa.array(lists, pa.large_list(pa.float64())),
        "fixed float16": pa.array(
            [v and np.array(v, "float16") for v in lists], pa.list_(pa.float16(), size)
        ),
        "sliced": pa.array([[9.0] * size, *lists], pa.list_(pa.float32(), size)).slice(1),
    }


@pytest.mark.parametrize("spelling", list(spellings(vectors())))
def test_vectors_come_back_in_float16_and_in_time_order(path, spelling):
    values = vectors()
    data = hour_rows(7, **{NAME: spellings(values)[spelling]})
    write_hour(path, 7, data, schema())
    got = read_hour(path, 7, columns=(NAME, "example_id"))
    order = np.lexsort((data["example_id"], data["timestamp"]))
    assert got["example_id"].tolist() == data["example_id"][order].tolist()
    assert got[NAME].dtype == np.float32
    np.testing.assert_array_equal(got[NAME], values[order].astype("float16").astype("float32"))


def test_a_vector_costs_two_bytes_a_number(path):
    """As the table shows itself to other tools: bytes, and the size in the column's metadata."""
    write_hour(path, 7, hour_rows(7, **{NAME: vectors()}), schema())
    field = Stream(path).arrow_schema.field(NAME)
    assert pa.types.is_binary(field.type)
    assert field.metadata == {b"keras_exfm.size": b"3"}
    column = DeltaTable(path).to_pyarrow_table(columns=[NAME]).column(NAME)
    assert {len(v) for v in column.to_pylist() if v is not None} == {6}
    assert column.null_count == 3


def test_batches_of_vectors(path):
    values = vectors()
    write_hour(path, 7, hour_rows(7, **{NAME: values}), schema())
    write_hour(path, 8, hour_rows(8, **{NAME: vectors(seed=1)}), schema())
    dataset = read(path, batch_size=8, columns=(NAME,))
    assert dataset.element_spec[1][NAME].shape == (8, 3)
    batches = list(dataset.as_numpy_iterator())
    got = np.concatenate([y[NAME] for _, y, _ in batches])
    weight = np.concatenate([w for *_, w in batches])
    assert got.dtype == np.float32
    assert got.shape == (24, 3)
    assert np.isnan(got[weight == 0]).all()
    whole = np.concatenate([read_hour(path, h, columns=(NAME,))[NAME] for h in (7, 8)])
    np.testing.assert_array_equal(got[:20], whole)
    for vertical in ("feed", "search"):
        part = read_hour(path, 7, columns=(NAME, "vertical"), vertical=vertical)
        assert part[NAME].shape == (len(part["vertical"]), 3)
    assert read_hour(path, 7, columns=(NAME,), vertical="none")[NAME].shape == (0, 3)


def test_an_hour_without_any_vector(path):
    nothing = pa.nulls(10, pa.list_(pa.float32(), 3))
    write_hour(path, 7, hour_rows(7, **{NAME: nothing}), schema())
    write_hour(path, 8, hour_rows(8, **{NAME: np.full((10, 3), np.nan)}), schema())
    write_hour(path, 9, hour_rows(9, **{NAME: vectors()}), schema())
    for hour, known in ((7, 0), (8, 0), (9, 7)):
        got = read_hour(path, hour, columns=(NAME,))[NAME]
        assert np.isfinite(got).all(axis=1).sum() == known


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(10), "expected lists of numbers. Received type double"),
        (pa.array([[1.0], [1.0, 2.0]] * 5), r"vectors of one length.*\[1, 2\]"),
        (pa.nulls(10, pa.list_(pa.float32())), r"every row is null.*\[\]"),
        (np.full((10, 2), 7e4), r"up to 65504.*\[70000.0, 70000.0\] in row 0"),
        (np.array([[1.0, 2.0]] * 9 + [[np.nan, 1.0]]), r"\[nan, 1.0\] in row 9 \(1 bad rows"),
        (pa.array([["a"]] * 10), "expected numbers. Received type string"),
    ],
)
def test_vectors_that_are_refused(path, values, message):
    with pytest.raises(StreamError, match=f"'{NAME}'.*{message}"):
        write_hour(path, 7, hour_rows(7, **{NAME: values}), schema())


def test_every_hour_has_vectors_of_one_size(path):
    write_hour(path, 7, hour_rows(7, **{NAME: vectors()}), schema())
    with pytest.raises(StreamError, match="vectors of 2 numbers; in the table they have 3"):
        write_hour(path, 8, hour_rows(8, **{NAME: vectors(size=2)}), schema())
    with pytest.raises(StreamError, match=f"'{NAME}' is missing"):
        write_hour(path, 8, hour_rows(8), schema())


def test_columns_of_further_tasks_and_teachers(path):
    label = np.array([0, 1, np.nan, 0, 1, 1, 0, np.nan, 0, 1])
    logit = np.linspace(-3, 3, 10)
    logit[4] = np.nan
    named = {
        "label_conversion": label,
        "teacher_logit_small": logit,
        "teacher_age_s_small": np.arange(10.0),
        "teacher_snapshot_small": ["one", None] * 5,
        f"{NAME}_small": vectors(),
    }
    data = hour_rows(7, **named)
    write_hour(path, 7, data, schema())
    order = np.lexsort((data["example_id"], data["timestamp"]))
    got = read_hour(path, 7, columns=tuple(named))
    for name in list(named)[:3]:
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], named[name][order].astype("float32"))
    assert got[f"{NAME}_small"].shape == (10, 3)
    assert sorted(got["teacher_snapshot_small"]) == [""] * 5 + ["one"] * 5
    (_, y, _), *_ = read(path, batch_size=12, columns=tuple(named)).as_numpy_iterator()
    assert y["label_conversion"].shape == (12,)
    assert np.isnan(y["label_conversion"][10:]).all()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("label_conversion", np.full(10, 0.5), "expected 0 or 1"),
        ("teacher_logit_b", np.full(10, np.inf), "expected finite logits"),
        ("teacher_age_s_b", np.full(10, -1.0), "expected ages"),
        ("teacher_snapshot_b", np.zeros(10), "expected strings"),
        ("label_", np.zeros(10), r"Unknown columns \['label_'\]"),
    ],
)
def test_named_columns_that_are_refused(path, name, values, message):
    with pytest.raises(StreamError, match=message):
        write_hour(path, 7, hour_rows(7, **{name: values}), schema())


def test_teachers_that_come_and_go(path):
    """Columns are added where they are asked for; null before, and null when a teacher is gone."""
    said = {"teacher_logit_b": np.arange(10.0), f"{NAME}_b": vectors(), NAME: vectors()}
    write_hour(path, 7, hour_rows(7), schema())
    before = Stream(path)
    with pytest.raises(StreamError, match=r"'teacher_logit_b' is float; in the table it is miss"):
        write_hour(path, 8, hour_rows(8, **said), schema())
    assert write_hour(path, 8, hour_rows(8, **said), schema(), other_teachers=True)
    with pytest.raises(StreamError, match=r"'teacher_logit_b' is missing"):
        write_hour(path, 9, hour_rows(9), schema())
    assert write_hour(path, 9, hour_rows(9), schema(), other_teachers=True)
    for refused, message in (
        ({f"{NAME}_b": vectors(size=2)}, "vectors of 2 numbers; in the table they have 3"),
        ({"label_pay": np.ones(10)}, "'label_pay' is float"),
    ):
        rows = hour_rows(10, **refused)
        with pytest.raises(StreamError, match=message):
            write_hour(path, 10, rows, schema(), other_teachers=True)
    for hour, known in ((7, 0), (8, 10), (9, 0)):
        got = read_hour(path, hour, columns=tuple(said))
        assert np.isfinite(got["teacher_logit_b"]).sum() == known
        assert got[f"{NAME}_b"].shape == (10, 3)
        for name in (f"{NAME}_b", NAME):
            assert np.isfinite(got[name]).all(axis=1).sum() == (7 if known else 0)
    whole = np.concatenate([y["teacher_logit_b"] for _, y, _ in read(
        path, batch_size=10, columns=("teacher_logit_b",)
    ).as_numpy_iterator()])  # fmt: skip
    assert np.isfinite(whole).tolist() == [False] * 10 + [True] * 10 + [False] * 10
    only = pa.concat_tables(Stream(path).tables(7, ["teacher_logit_b"]))
    assert only.column(0).null_count == len(only) == 10
    # A reader of an older version does not see them.
    assert "teacher_logit_b" not in before.columns
    assert len(read_hour(before, 7)["label"]) == 10
    # The engine's own compaction reads such files too.
    DeltaTable(path).optimize.compact()
    assert np.isfinite(read_hour(path, 8, columns=tuple(said))["teacher_logit_b"]).all()


def test_two_writers_that_add_one_teacher(path, monkeypatch):
    write_hour(path, 7, hour_rows(7), schema())
    real, late = TableAlterer.add_columns, []

    def after_another(table, fields, *args):
        if not late:
            late.append(fields)
            real(DeltaTable(path).alter, fields)
        real(table, fields, *args)

    monkeypatch.setattr(TableAlterer, "add_columns", after_another)
    said = {"teacher_logit_b": np.arange(10.0)}
    assert write_hour(path, 8, hour_rows(8, **said), schema(), other_teachers=True)
    assert late
    assert Stream(path).columns.count("teacher_logit_b") == 1


class Recording(keras.Model):
    """Notes what it is trained on."""

    target_columns = ("label", "teacher_logit", NAME, "label_absent")

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.seen = []

    def call(self, x):
        return self.dense(x["age"][:, None])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.append({name: tuple(value.shape) for name, value in y.items()})
        known = keras.ops.isfinite(y[NAME])
        vectors = keras.ops.where(known, y[NAME], keras.ops.zeros_like(y[NAME]))
        return keras.ops.sum(vectors) + 0.0 * keras.ops.sum(y_pred)


def test_a_model_gets_the_target_columns_that_it_names(path):
    write_hour(path, 7, hour_rows(7, **{NAME: vectors()}), schema())
    total = np.nansum(read_hour(path, 7, columns=(NAME,))[NAME])
    model = Recording()
    model.compile("sgd", run_eagerly=True)
    logs = train_hour(model, path, 7, batch_size=16)
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    progressive_validation(model, path, batch_size=16)
    for seen in model.seen:
        assert seen == {"label": (16,), "teacher_logit": (16,), NAME: (16, 3)}
    assert len(model.seen) == 2


def test_teachers_whose_names_differ_by_case_alone_are_refused(path):
    write_hour(path, 7, hour_rows(7, teacher_logit_late=np.zeros(10)), schema())
    rows = hour_rows(8, teacher_logit_Late=np.zeros(10))
    with pytest.raises(StreamError, match="'teacher_logit_Late'.*beside 'teacher_logit_late'"):
        write_hour(path, 8, rows, schema(), other_teachers=True)


def test_a_student_of_named_teachers_fits_on_the_stream(path):
    """It takes no `teacher_logit`, which `read` hands out unless it is told not to."""
    logit = np.linspace(-3, 3, 10)
    write_hour(path, 7, hour_rows(7, teacher_logit_large=logit), schema())
    inputs = schema().inputs()
    h = keras.layers.Dense(2)(inputs["vector"])
    student = ExternalDistillation(
        inputs,
        keras.layers.Dense(1)(h),
        representation=h,
        teachers=[TeacherBranch("large", auxiliary_head=AuxiliaryHead((2,)))],
    )
    student.compile("adam")
    columns = [name for name in student.target_columns if name != "label"]
    rows = read(path, batch_size=4, columns=columns, teacher_logit=False)
    (_, y, _), *_ = rows.as_numpy_iterator()
    assert sorted(y) == ["label", *columns]
    logs = student.fit(rows, verbose=0).history
    assert logs["teacher_coverage_large"][0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="teacher_logit"):
        student.fit(read(path, batch_size=4, columns=columns), verbose=0)
