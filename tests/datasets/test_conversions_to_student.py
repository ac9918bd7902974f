"""The whole way of two tasks: events, the service, two teachers, a student of both."""

import keras
import numpy as np
import pyarrow as pa
import pytest

import keras_exfm as kx
from keras_exfm.das import Job, SnapshotStore, Worker
from keras_exfm.distillation import TeacherBranch
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from keras_exfm.metrics import functional
from keras_exfm.streaming import MS_PER_HOUR, partitions

TASKS = ("click", "conversion")
WINDOW = 3
NAMES = ("segment", "advertiser", "price")
BATCH = 128


def job(root, **teachers):
    return Job.parse(
        {
            "name": "scored",
            "source": str(root / "data"),
            "output": str(root / "scored"),
            "tasks": {
                "click": {"window": "2h"},
                "conversion": {"labels": "conversions", "window": f"{WINDOW}h"},
            },
            "verticals": {"fast": {"tasks": ["click"]}, "both": {"tasks": list(TASKS)}},
            **teachers,
        }
    )


def run(service):
    worker = Worker(service)
    try:
        return worker.run(ended=True)
    finally:
        worker.close()


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """The events, what was told of them, and the stream of both tasks with a teacher for each."""
    root = tmp_path_factory.mktemp("shop")
    info = kx.datasets.SyntheticAds(
        hours=4,
        examples_per_hour=300,
        users=50,
        ads=20,
        click_rates=(0.3, 0.3, 0.3),
        conversion_rate=0.4,
        conversion_delay_hours=1.0,
        conversion_window_hours=WINDOW,
    ).write(root / "data")
    models = {}
    for task, slope in zip(TASKS, (0.5, -0.7)):
        models[task] = kx.models.LogisticRegression(info.schema.select(["price"]))
        models[task].set_weights([np.full(w.shape, slope) for w in models[task].weights])
        store = SnapshotStore(root / "snapshots" / task)
        # From the second hour on.
        store.publish(models[task], (info.first_hour + 1) * MS_PER_HOUR)
    click, conversion = (
        {"snapshots": str(root / "snapshots" / task), "workers": 0} for task in TASKS
    )
    service = job(root, teacher=click, teachers={"conversion": conversion})
    return root, info, service, run(service), service.stream("both")


def test_the_service_finds_every_event(joined):
    root, info, service, steps, stream = joined
    assert (service.lag("fast"), service.lag("both")) == (2, WINDOW)
    audits = [step for step in steps if step.kind == "audit"]
    assert {step.name for step in audits} == set(TASKS)
    # No event is late, early, twice, lost or in another hour's folder.
    assert not any(count for step in audits for count in step.counts.values())
    last = info.last_hour + WINDOW
    events = {
        task: partitions.read_labels(root / "data", info.first_hour, last, folder=folder)
        for task, folder in (("click", "labels"), ("conversion", "conversions"))
    }
    counts = dict.fromkeys(TASKS, 0)
    for hour in range(info.first_hour, info.last_hour + 1):
        rows = kx.streaming.read_hour(stream, hour, columns=("label_conversion", "example_id"))
        for task, column in zip(TASKS, ("label", "label_conversion")):
            came = np.isin(rows["example_id"], events[task]["example_id"].to_numpy())
            np.testing.assert_array_equal(rows[column], came.astype(np.float32))
            counts[task] += int(came.sum())
        assert (rows["label_conversion"] <= rows["label"]).all()
    assert counts == {task: table.num_rows for task, table in events.items()}
    assert counts["conversion"] > 80


def test_the_service_of_one_task_reads_clicks(joined):
    root, info, _, _, stream = joined
    service = kx.das.DataAugmentationService(
        root / "data", root / "alone", info.schema, label_window_hours=info.label_window_hours
    )
    assert service.process_hour(info.first_hour).rows == 300
    alone = kx.streaming.read_hour(root / "alone", info.first_hour)
    np.testing.assert_array_equal(
        alone["label"], kx.streaming.read_hour(stream, info.first_hour)["label"]
    )


def student(schema):
    keras.utils.set_random_seed(0)
    backbone = kx.models.DLRM(schema.select(NAMES), dim=4, top_units=(8,), numeric_units=(4,))
    h = backbone.get_layer("representation").output
    model = kx.ExternalDistillation(
        backbone.input,
        {task: keras.layers.Dense(1, name=f"{task}_logit")(h) for task in TASKS},
        representation=h,
        teachers=[
            TeacherBranch(
                None, "click", auxiliary_head=AuxiliaryHead(), student_adapter=StudentAdapter()
            ),
            TeacherBranch("conversion", "conversion", auxiliary_head=AuxiliaryHead()),
        ],
    )
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def test_a_student_of_both_tasks_hears_both_teachers(joined, tmp_path):
    root, info, _, _, path = joined
    rows = kx.streaming.read_hour(path, info.last_hour, columns=("teacher_logit_conversion",))
    np.testing.assert_allclose(rows["teacher_logit"], 0.5 * rows["price"] + 0.5, rtol=1e-5)
    np.testing.assert_allclose(
        rows["teacher_logit_conversion"], -0.7 * rows["price"] - 0.7, rtol=1e-5
    )

    model = student(info.schema)
    assert set(model.target_columns) == {
        "label_click",
        "label_conversion",
        "label",
        "teacher_logit",
        "teacher_logit_conversion",
    }
    logs = {}
    result = kx.streaming.progressive_validation(
        model,
        path,
        info.schema.select(NAMES),
        batch_size=BATCH,
        task="conversion",
        label_lag=WINDOW,
        teacher_batch_size=BATCH,
        predictions_path=tmp_path / "predictions",
        on_window=lambda row, seen: logs.update(seen),
    )
    hours = range(info.first_hour, info.last_hour + 1)
    label = np.concatenate(
        [
            kx.streaming.read_hour(path, hour, columns=("label_conversion",))["label_conversion"]
            for hour in hours
        ]
    )
    found = kx.streaming.load_predictions(tmp_path / "predictions")
    logit = np.concatenate([found[hour]["logit"] for hour in hours])
    assert result.whole["examples"] == 1200
    assert result.whole["clicks"] == label.sum() > 80
    truth = np.concatenate([found[hour]["true_probability"] for hour in hours])
    impressions = pa.concat_tables(partitions.read_impressions(root / "data", h) for h in hours)
    np.testing.assert_array_equal(truth, impressions["true_probability_conversion"].to_numpy())
    bayes = functional.bayes_normalized_entropy(label, truth)
    assert result.whole["bayes_ne"] == pytest.approx(bayes)
    assert result.whole["ne"] == pytest.approx(functional.normalized_entropy(label, logit))
    # Labels reach back to the first hour alone, of which no teacher spoke.
    assert {"auxiliary_loss", "auxiliary_loss_conversion", "adapter_loss"} <= set(logs)
    assert logs["teacher_coverage"] == logs["teacher_coverage_conversion"] == 0

    batches = kx.streaming.read(
        path,
        info.schema.select(NAMES),
        BATCH,
        hours=(info.first_hour + 1, None),
        columns=("label_conversion", "teacher_logit_conversion"),
    )
    before = [np.array(v) for v in model.trainable_variables]
    history = model.fit(batches, epochs=3, verbose=0).history
    assert history["teacher_coverage"][-1] == pytest.approx(1)
    assert history["teacher_coverage_conversion"][-1] == pytest.approx(1)
    assert history["auxiliary_loss_conversion"][-1] < history["auxiliary_loss_conversion"][0]
    assert all((np.array(v) != b).any() for v, b in zip(model.trainable_variables, before))
    assert set(model.serving_model().output) == set(TASKS)
