"""Distil a teacher's logged predictions into a small student, on a stream, step by step.

    python examples/stream_distillation.py

1. A synthetic ad stream is written: impressions, and label events that come late.
2. A teacher trains hour by hour. Before it sees an hour's labels, the data augmentation service
   logs its prediction for each example, joins the labels and commits the hour.
3. Three students read the log: without a teacher, vanilla distillation, ExFM (auxiliary head and
   student adapter). Each predicts an hour, then trains on it.
4. The best student's serving model is saved: the student's graph alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras

import keras_exfm as kx
from keras_exfm.streaming import MS_PER_HOUR, partitions

VERTICAL, BATCH = "feed", 512


def adam_and_logloss(model):
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def train_teacher(data, labelled, snapshots, info):
    """Logs each hour with the newest snapshot that is older than it, then trains on it."""
    store = kx.das.SnapshotStore(snapshots)
    service = kx.das.DataAugmentationService(
        data, labelled, info.schema, store, label_window_hours=info.label_window_hours
    )
    teacher = adam_and_logloss(
        kx.models.Wukong(
            info.schema,
            dim=16,
            num_layers=2,
            n_fmb=8,
            n_lcb=8,
            rank=8,
            mlp_units=(64,),
            head_units=(64,),
            optimizer=kx.optimizers.RowwiseAdagrad(0.05),
        )
    )
    for hour in partitions.hours(data):
        report = service.process_hour(hour)
        kx.streaming.train_hour(teacher, labelled, hour, batch_size=BATCH)
        # All labels of this hour are known once its window has closed.
        store.publish(teacher, (hour + 1 + service.label_lag) * MS_PER_HOUR)
        store.retire(before=hour * MS_PER_HOUR)
    print(f"last hour: {report.rows} rows, coverage {report.coverage:.0%}")


def student(schema, **parts):
    backbone = kx.models.DLRM(
        schema, dim=8, top_units=(64, 32), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    model = kx.ExternalDistillation.from_model(backbone, **parts)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    return model


def main():
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kx.datasets.prepare(
            "synthetic",
            root / "data",
            options={"hours": 30, "examples_per_hour": 5000, "users": 300, "ads": 100},
        )
        info = partitions.DatasetInfo.read(root / "data")
        train_teacher(root / "data", root / "labelled", root / "snapshots", info)

        counted = info.first_hour + 8
        logged = kx.streaming.score_column(
            root / "labelled", vertical=VERTICAL, metrics_from=counted
        )
        print(f"{'teacher (logged)':18s} NE {logged.whole['ne']:.4f}")
        students = {
            "no teacher": student(info.schema),
            "vanilla": student(info.schema, shared_head_weight=1.0),
            "ExFM": student(
                info.schema,
                auxiliary_head=kx.layers.AuxiliaryHead(units=(16,)),
                student_adapter=kx.layers.StudentAdapter(units=(8,)),
            ),
        }
        results = {}
        for name, model in students.items():
            results[name] = kx.streaming.progressive_validation(
                model,
                root / "labelled",
                batch_size=BATCH,
                vertical=VERTICAL,
                metrics_from=counted,
                label_lag=int(info.label_window_hours),
            ).whole
            print(f"{name:18s} NE {results[name]['ne']:.4f}")
        print(f"{'best possible':18s} NE {logged.whole['bayes_ne']:.4f}")

        best = min(results, key=lambda name: results[name]["ne"])
        serving = students[best].serving_model()
        serving.save(root / "serving.keras")
        print(
            f"served: {best}, {serving.count_params():,} parameters, {len(serving.layers)} layers"
        )


if __name__ == "__main__":
    main()
