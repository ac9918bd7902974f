"""What a teacher said, before the labels are known."""

import shutil

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.das import JobError, Worker, read_served
from keras_exfm.distillation import TeacherBranch
from keras_exfm.layers import AuxiliaryHead
from keras_exfm.models import DLRM
from keras_exfm.streaming import MS_PER_HOUR
from tests.das import made

HOURS = range(5, 8)
VECTORS = {
    "entry_point": "tests.das.teachers:half_with_vectors",
    "workers": 0,
    "representation": "unused",
    "representation_size": 3,
}


def scored(root, **changes):
    shown, _ = made.source(root / "data", HOURS)
    # Now is the last hour of impressions: later events have not come yet.
    for folder in root.glob("data/*/hour=*"):
        if int(folder.name.removeprefix("hour=")) > max(HOURS):
            shutil.rmtree(folder)
    job = made.job(root, **changes)
    worker = Worker(job)
    steps = worker.run()
    worker.close()
    return job, shown, steps


def test_rows_come_with_the_teacher_and_without_labels(tmp_path):
    job, shown, steps = scored(tmp_path)
    # Of the vertical whose task takes hours, nothing of these hours is emitted yet.
    emitted = {s.hour for s in steps if (s.kind, s.name) == ("emit", "shop")}
    known = [s.hour for s in steps if s.kind == "score"]
    assert set(known) - emitted
    batches = list(read_served(job, "shop", batch_size=16))
    assert [hour for hour, *_ in batches] == sorted(hour for hour, *_ in batches)
    assert {hour for hour, *_ in batches} == set(known)
    expected = sorted(
        (r for r in shown if r["x"] > 0 and r["timestamp"] // MS_PER_HOUR in known),
        key=lambda r: (r["timestamp"], r["example_id"]),
    )
    real = [weight > 0 for *_, weight in batches]
    x = np.concatenate([b[1]["x"][keep] for b, keep in zip(batches, real)])
    logits = np.concatenate([b[2]["teacher_logit"][keep] for b, keep in zip(batches, real)])
    labels = np.concatenate([b[2]["label"][keep] for b, keep in zip(batches, real)])
    np.testing.assert_array_equal(x, np.array([r["x"] for r in expected], np.float32))
    np.testing.assert_allclose(logits, [made.teacher(r) for r in expected], rtol=1e-6)
    assert np.isnan(labels).all()
    assert {len(b[3]) for b in batches} == {16}
    first = [hour for hour, *_ in read_served(job, "shop", hours=(known[1], known[1]))]
    assert first == [known[1]]


def test_a_student_trains_on_them(tmp_path):
    job, _, _ = scored(tmp_path, teacher=VECTORS)
    student = kx.ExternalDistillation.from_model(
        DLRM(made.SCHEMA, dim=4, top_units=(4,)),
        auxiliary_head=AuxiliaryHead(),
        representation_head=kx.layers.RepresentationHead(3),
    )
    student.compile(keras.optimizers.SGD(0.1))
    seen = []
    for _, x, y, weight in read_served(job, "all", batch_size=16):
        targets = {name: y[name] for name in student.target_columns}
        logs = student.train_on_batch(x, targets, weight, return_dict=True)
        assert logs["label_loss"] == 0
        assert np.isfinite(logs["auxiliary_loss"])
        assert np.isfinite(logs["representation_loss"])
        real = weight > 0
        known = np.isfinite(y["teacher_logit"][real])
        assert (known == (x["x"][real] > 0)).all()
        assert np.isfinite(y["teacher_representation"][real][known]).all()
        seen.append(known)
    assert 0 < np.concatenate(seen).mean() < 1


def test_several_teachers(tmp_path):
    made.source(tmp_path / "data", HOURS)
    job = made.job(tmp_path, teachers={"half": VECTORS})
    worker = Worker(job)
    for step in worker.steps(ended=True):
        # The other one has scored an hour more.
        if (step.kind, step.name, step.hour) == ("score", "", 6):
            break
    worker.close()
    assert worker.predictions[""].through() == 6
    inputs = made.SCHEMA.inputs()
    h = keras.layers.Dense(2)(keras.layers.Reshape((1,))(inputs["x"]))
    student = kx.ExternalDistillation(
        inputs,
        keras.layers.Dense(1)(h),
        representation=h,
        teachers=[
            TeacherBranch(None, auxiliary_head=AuxiliaryHead()),
            TeacherBranch(
                "half",
                auxiliary_head=AuxiliaryHead(),
                representation_head=kx.layers.RepresentationHead(3),
            ),
        ],
    )
    student.compile(keras.optimizers.SGD(0.1))
    hours = set()
    for hour, x, y, weight in read_served(job, "all", batch_size=40):
        hours.add(hour)
        assert np.isnan(y["label"]).all()
        np.testing.assert_array_equal(np.isfinite(y["teacher_logit_half"]), x["x"] > 0)
        assert np.isfinite(y["teacher_logit"]).all()
        assert y["teacher_representation_half"].shape == (40, 3)
        assert "teacher_representation" not in y
        targets = {name: y[name] for name in student.target_columns}
        logs = student.train_on_batch(x, targets, weight, return_dict=True)
        assert logs["auxiliary_loss_half"] > 0
    assert hours == {5}


def test_what_is_refused(tmp_path):
    job, _, _ = scored(tmp_path)
    with pytest.raises(JobError, match="no vertical 'nowhere'"):
        read_served(job, "nowhere")
    with pytest.raises(JobError, match="batch_size=0"):
        read_served(job, "feed", batch_size=0)
    with pytest.raises(JobError, match="without a teacher"):
        read_served(made.job(tmp_path, teacher=None), "feed")
