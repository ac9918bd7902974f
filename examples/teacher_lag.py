"""What a teacher is worth when its snapshots come late, and what guards a student against it.

    python examples/teacher_lag.py

1. A synthetic ad stream that drifts fast: users and ads come and go within a day.
2. A teacher trains hour by hour. The data augmentation service logs three streams: with snapshots
   published as soon as they can be, and three and nine hours later.
3. On each, two students that lack the features of user and ad: vanilla distillation, whose serving
   head learns from the teacher directly, and ExFM's auxiliary head and student adapter, the adapter
   informed of the teacher's age, behind a gate. A third has no teacher.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras

import keras_exfm as kx
from keras_exfm.streaming import MS_PER_HOUR, partitions, progressive_validation

BATCH = 512
LAGS = (0, 3, 9)
FIRST_COUNTED = 14
LACKING = ("user", "ad", "segment", "category", "history")


def log_with_lags(root, info):
    """Trains one teacher; logs its predictions with snapshots of each age."""
    services = {}
    for lag in LAGS:
        store = kx.das.SnapshotStore(root / f"snapshots-{lag}")
        services[lag] = kx.das.DataAugmentationService(
            root / "data",
            root / f"labelled-{lag}",
            info.schema,
            store,
            label_window_hours=info.label_window_hours,
        )
    teacher = kx.models.DLRM(
        info.schema, dim=16, top_units=(128, 64), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    teacher.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    for hour in partitions.hours(root / "data"):
        for service in services.values():
            service.process_hour(hour)
        kx.streaming.train_hour(teacher, root / "labelled-0", hour, batch_size=BATCH)
        for lag, service in services.items():
            known = hour + 1 + service.label_lag
            service.snapshots.publish(teacher, (known + lag) * MS_PER_HOUR)


def follow(stream, info, **parts):
    """NE of a student that predicts each hour, then trains on it, and the model itself."""
    keras.utils.set_random_seed(1)
    schema = info.schema.select([n for n in info.schema.names if n not in LACKING])
    backbone = kx.models.DLRM(
        schema, dim=8, top_units=(64, 32), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    model = kx.ExternalDistillation.from_model(backbone, **parts)
    model.compile(keras.optimizers.Adam(1e-3))
    gates = []
    result = progressive_validation(
        model,
        stream,
        schema,
        batch_size=BATCH,
        metrics_from=info.first_hour + FIRST_COUNTED,
        label_lag=int(info.label_window_hours),
        on_window=lambda row, logs: gates.append(logs.get("teacher_gate")),
    )
    return result.whole["ne"], gates


def main():
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kx.datasets.prepare(
            "synthetic",
            root / "data",
            options={
                "hours": 28,
                "examples_per_hour": 4000,
                "users": 300,
                "ads": 60,
                "drift_hours": 24.0,
                "ad_lifetime_hours": 24.0,
                "click_rates": (0.2, 0.2, 0.2),
            },
        )
        info = partitions.DatasetInfo.read(root / "data")
        log_with_lags(root, info)
        alone, _ = follow(root / "labelled-0", info)
        print(f"{'student without a teacher':28s} NE {alone:.4f}")
        for lag in LAGS:
            stream = root / f"labelled-{lag}"
            logged = kx.streaming.score_column(
                stream, metrics_from=info.first_hour + FIRST_COUNTED
            ).whole
            vanilla, _ = follow(stream, info, shared_head_weight=1.0)
            guarded, gates = follow(
                stream,
                info,
                auxiliary_head=kx.layers.AuxiliaryHead(output_initializer="zeros", prior=0.2),
                student_adapter=kx.layers.StudentAdapter(
                    residual=True, context={"teacher_age_s": 3600.0}
                ),
                gate=kx.layers.TeacherGate(half_life=8_000),
            )
            print(
                f"snapshots {lag} h late: teacher NE {logged['ne']:.4f}  vanilla {vanilla:.4f}  "
                f"heads, adapter and gate {guarded:.4f}  (gate at the end {gates[-1]:.2f})"
            )
        print(f"{'best possible':28s} NE {logged['bayes_ne']:.4f}")


if __name__ == "__main__":
    main()
