"""One foundation model teaches a student in each vertical; a gate guards them against it.

    python examples/one_teacher_many_students.py

1. A synthetic ad stream in three verticals. A teacher (Wukong, all features, all traffic) trains
   hour by hour; the data augmentation service scores each example once, for whichever student
   reads it later.
2. Three small students, one a vertical, without the ids of user and ad. Each reads its own vertical
   of the same log, and has an auxiliary head, a student adapter, and a gate that shuts the teacher
   out should it predict worse than the student itself.
3. `diagnose` says what each student has of the teacher: how good it is on this vertical, and how
   strongly it acts.
4. One student trains on with a teacher that knows nothing (its logged logits are shuffled), and its
   gate shuts.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx
from keras_exfm.streaming import MS_PER_HOUR, partitions, progressive_validation, read_hour

BATCH = 512
FIRST_COUNTED = 10


def train_teacher(data, labelled, snapshots, info):
    """Logs each hour with the newest snapshot that is older than it, then trains on it."""
    store = kx.das.SnapshotStore(snapshots)
    service = kx.das.DataAugmentationService(
        data,
        labelled,
        info.schema,
        store,
        label_window_hours=info.label_window_hours,
    )
    teacher = kx.models.Wukong(
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
    teacher.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    for hour in partitions.hours(data):
        service.process_hour(hour)
        kx.streaming.train_hour(teacher, labelled, hour, batch_size=BATCH)
        store.publish(teacher, (hour + 1 + service.label_lag) * MS_PER_HOUR)
        store.retire(before=hour * MS_PER_HOUR)


def student(schema, taught=True):
    own = schema.select([name for name in schema.names if name not in ("user", "ad", "history")])
    backbone = kx.models.DLRM(
        own, dim=8, top_units=(64, 32), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    parts = {}
    if taught:
        parts = {
            "auxiliary_head": kx.layers.AuxiliaryHead(output_initializer="zeros", prior=0.1),
            "student_adapter": kx.layers.StudentAdapter(residual=True),
            "gate": kx.layers.TeacherGate(half_life=5_000),
        }
    model = kx.ExternalDistillation.from_model(backbone, **parts)
    model.compile(keras.optimizers.Adam(1e-3))
    return model, own


def follow(labelled, vertical, schema, info, taught=True):
    """Predicts each hour of one vertical, then trains on it."""
    keras.utils.set_random_seed(1)
    model, own = student(schema, taught)
    result = progressive_validation(
        model,
        labelled,
        own,
        batch_size=BATCH,
        vertical=vertical,
        metrics_from=info.first_hour + FIRST_COUNTED,
        label_lag=int(info.label_window_hours),
    )
    return model, result.whole["ne"]


def spoil(model, stream, vertical, hours):
    """Trains on with logits that say nothing; what the gate makes of them, hour by hour."""
    rng = np.random.default_rng(1)
    factors = []
    for hour in hours:
        rows = read_hour(stream, hour, vertical=vertical)
        rng.shuffle(rows["teacher_logit"])
        for start in range(0, len(rows["label"]) - BATCH + 1, BATCH):
            part = {name: column[start : start + BATCH] for name, column in rows.items()}
            x = {name: part[name] for name in model.student.input}
            y = {name: part[name] for name in model.target_columns}
            logs = model.train_on_batch(x, y, part["weight"], return_dict=True)
        factors.append(float(logs["teacher_gate"]))
    return factors


def main():
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kx.datasets.prepare(
            "synthetic",
            root / "data",
            options={"hours": 24, "examples_per_hour": 5000, "users": 300, "ads": 100},
        )
        info = partitions.DatasetInfo.read(root / "data")
        train_teacher(root / "data", root / "labelled", root / "snapshots", info)
        stream = kx.streaming.Stream(root / "labelled")
        last = stream.hours[-1]
        for vertical in info.verticals:
            logged = kx.streaming.score_column(
                stream, vertical=vertical, metrics_from=info.first_hour + FIRST_COUNTED
            )
            _, alone = follow(stream, vertical, info.schema, info, taught=False)
            model, taught = follow(stream, vertical, info.schema, info)
            print(
                f"{vertical:7s} teacher NE {logged.whole['ne']:.4f}  student alone {alone:.4f}  "
                f"taught {taught:.4f}  best possible {logged.whole['bayes_ne']:.4f}"
            )
            rows = read_hour(stream, last, vertical=vertical, columns=["teacher_age_s"])
            y = {n: rows[n] for n in (*model.target_columns, "teacher_age_s")}
            figures = kx.distillation.diagnose(model, rows, y)
            print(
                "        last hour: coverage {teacher_coverage:.0%}, age {teacher_age_s:.0f} s, "
                "teacher's calibration {teacher_calibration:.2f}, adapter's "
                "{adapter_calibration:.2f}, gate {teacher_gate:.2f}, gradient ratio "
                "{gradient_ratio:.2f}".format(**figures)
            )
            if vertical == info.verticals[0]:
                factors = spoil(model, stream, vertical, stream.hours[-8:])
                shown = " ".join(f"{factor:.2f}" for factor in factors)
                print(f"        then with shuffled logits, the gate hour by hour: {shown}")
        served = model.serving_model()
        print(f"served: {served.count_params():,} parameters a student, without the teacher")


if __name__ == "__main__":
    main()
