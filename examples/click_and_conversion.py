"""Two tasks whose labels come at different times: clicks in minutes, conversions in hours.

    python examples/click_and_conversion.py

1. A synthetic ad stream with a second task: some clicks are followed by a conversion, hours later.
   A service joins both tasks' events. It writes a stream of clicks as soon as their window has
   closed, and one with both labels when the conversions' window has.
2. One foundation model with a head for each task trains on the second stream, hour by hour, on all
   traffic, and publishes each task's part of it.
3. A service with a teacher for each task scores every example by both and puts what they said
   beside both labels.
4. Small students of one vertical have both tasks: without teachers, and with one for each task
   (auxiliary head and student adapter), from which they learn before the labels are known. Each
   predicts an hour, then trains on it when its last window has closed. Both tasks' true
   probabilities are known, and so is the best possible NE.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx
from keras_exfm.das import Job, SnapshotStore, Worker
from keras_exfm.distillation import TeacherBranch
from keras_exfm.layers import AuxiliaryHead, StudentAdapter
from keras_exfm.streaming import MS_PER_HOUR, progressive_validation

BATCH = 512
CLICK_WINDOW, CONVERSION_WINDOW = 2, 6
# About how many of the impressions are positive: where the heads start.
RATES = {"click": 0.1, "conversion": 0.03}
FIRST_COUNTED = 12


def job(root, name, verticals, **teachers):
    """A service over the one source, with the teachers that it has."""
    return Job.parse(
        {
            "name": name,
            "source": str(root / "data"),
            "output": str(root / name),
            "tasks": {
                "click": {"labels": "labels", "window": f"{CLICK_WINDOW}h"},
                "conversion": {"labels": "conversions", "window": f"{CONVERSION_WINDOW}h"},
            },
            "verticals": {vertical: {"tasks": some} for vertical, some in verticals.items()},
            "teachers": teachers,
        }
    )


def run(service):
    worker = Worker(service)
    try:
        worker.run(ended=True)
    finally:
        worker.close()


def with_two_heads(backbone, **parts):
    """A model of both tasks on what a model of the zoo has before its own logit."""
    h = backbone.get_layer("representation").output
    logits = {}
    for task, rate in RATES.items():
        start = keras.initializers.Constant(np.log(rate / (1 - rate)))
        logits[task] = keras.layers.Dense(1, bias_initializer=start, name=f"{task}_logit")(h)
    model = kx.ExternalDistillation(backbone.input, logits, representation=h, **parts)
    model.compile(keras.optimizers.Adam(1e-3))
    return model


def train_teacher(root, service, schema):
    """Trains the foundation model on the stream of both labels; a snapshot store for each task."""
    stores = {task: SnapshotStore(root / "snapshots" / task) for task in RATES}
    teacher = with_two_heads(
        kx.models.Wukong(
            schema,
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
    both, lag = service.stream("both"), service.lag("both")
    served = teacher.serving_model()
    heads = {task: keras.Model(served.input, served.output[task]) for task in stores}
    hours = kx.streaming.hours(both)
    # Later hours would make snapshots that come too late for this stream.
    for hour in (h for h in hours if h + 1 + lag <= hours[-1]):
        kx.streaming.train_hour(teacher, both, hour, batch_size=BATCH)
        # Nothing may be scored by a model that has seen its label: an hour's conversions are known
        # when their window has closed.
        known = (hour + 1 + lag) * MS_PER_HOUR
        for task, store in stores.items():
            store.publish(heads[task], known, schema=schema, trained_until=known)


def student(schema, taught):
    teachers = None
    if taught:
        teachers = [
            # A branch reads the columns of the teacher whose name it has.
            TeacherBranch(
                task,
                task,
                auxiliary_head=AuxiliaryHead(output_initializer="zeros", prior=RATES[task]),
                student_adapter=StudentAdapter(residual=True),
            )
            for task in RATES
        ]
    own = schema.select([name for name in schema.names if name not in ("user", "history")])
    backbone = kx.models.DLRM(
        own, dim=8, top_units=(64, 32), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    return with_two_heads(backbone, teachers=teachers), own


def main():
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        info = kx.datasets.SyntheticAds(
            hours=20,
            examples_per_hour=8000,
            users=300,
            ads=100,
            conversion_rate=0.3,
            conversion_delay_hours=2,
            conversion_window_hours=CONVERSION_WINDOW,
        ).write(root / "data")
        labels = job(root, "labels", {"clicks": ["click"], "both": ["click", "conversion"]})
        run(labels)
        print(
            f"complete after an hour's end: clicks {labels.lag('clicks')} h, "
            f"with conversions {labels.lag('both')} h"
        )
        train_teacher(root, labels, info.schema)

        teachers = {
            task: {"snapshots": str(root / "snapshots" / task), "workers": 0} for task in RATES
        }
        scored = job(root, "scored", {"both": ["click", "conversion"]}, **teachers)
        run(scored)
        stream = scored.stream("both")

        counted = info.first_hour + FIRST_COUNTED
        found = {}
        for task in RATES:
            for taught in (False, True):
                keras.utils.set_random_seed(1)
                model, own = student(info.schema, taught)
                found[task, taught] = progressive_validation(
                    model,
                    stream,
                    own,
                    task=task,
                    batch_size=BATCH,
                    vertical="feed",
                    metrics_from=counted,
                    label_lag=labels.lag("both"),
                    teacher_batch_size=BATCH if taught else None,
                ).whole
        for task in RATES:
            best = found[task, True]["bayes_ne"]
            print(
                f"{task:10s} student alone NE {found[task, False]['ne']:.4f}  "
                f"taught {found[task, True]['ne']:.4f}  best possible {best:.4f}"
            )

        # The same student in plain `fit`, over a batch of hours whose labels are all known.
        batches = kx.streaming.read(
            stream,
            own,
            BATCH,
            vertical="feed",
            hours=(counted, None),
            columns=("label_conversion", "teacher_logit_click", "teacher_logit_conversion"),
            teacher_logit=False,
        )
        logs = model.fit(batches, verbose=0).history
        print("fit:", ", ".join(f"{n} {logs[n][0]:.3f}" for n in sorted(logs) if "adapter_l" in n))
        served = model.serving_model()
        print(f"served: {sorted(served.output)}, {served.count_params():,} parameters")


if __name__ == "__main__":
    main()
