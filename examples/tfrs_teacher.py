"""A TensorFlow Recommenders model as the outside teacher of a Keras 3 student.

    pip install "keras-exfm[parity]"
    python examples/tfrs_teacher.py

1. A synthetic ad stream; the first hours are joined with their labels and given to another process.
2. That process runs Keras 2 (`TF_USE_LEGACY_KERAS=1`) and knows nothing of keras_exfm: a
   `tfrs.Model` for ranking, embeddings and a cross network, is trained and exported as SavedModel.
3. The SavedModel is published to the snapshot store. The data augmentation service scores the hours
   that follow with it and logs the logits.
4. A student that lacks the features of user and ad follows the log, and one without a teacher
   beside it.

The two Keras versions never meet in one process: what passes between them is a file. Any other
framework that exports a SavedModel or ONNX takes the same way.

Without tensorflow-recommenders and tf_keras the script says so and ends with exit code 2.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH = 512
TEACHER_HOURS, HOURS = 12, 26
LACKING = ("user", "ad", "segment", "category")
NEEDED = ("tensorflow_recommenders", "tf_keras")


def teacher_process(data, folder):
    """In a process of its own: trains a tfrs ranking model on `data`, exports it to `folder`."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    class Ranking(tfrs.Model):
        """Embeddings of all ids, a cross network, a tower, one logit."""

        def __init__(self, sizes, numbers):
            super().__init__()
            self.numbers = sorted(numbers)
            self.embeddings = {
                name: tf.keras.layers.Embedding(size, 16) for name, size in sorted(sizes.items())
            }
            self.cross = [tfrs.layers.dcn.Cross() for _ in range(2)]
            self.tower = tf.keras.Sequential(
                [tf.keras.layers.Dense(64, "relu"), tf.keras.layers.Dense(1)]
            )
            self.task = tfrs.tasks.Ranking(tf.keras.losses.BinaryCrossentropy(from_logits=True))

        def call(self, features):
            parts = [table(features[name]) for name, table in self.embeddings.items()]
            parts += [features[name][:, None] for name in self.numbers]
            x0 = x = tf.concat(parts, axis=1)
            for cross in self.cross:
                x = cross(x0, x)
            return self.tower(x)

        def compute_loss(self, inputs, training=False):
            features, label = inputs
            return self.task(labels=label[:, None], predictions=self(features))

    tf.keras.utils.set_random_seed(1)
    with np.load(data) as file:
        columns = dict(file)
    label = columns.pop("label")
    sizes = {n.removeprefix("size_"): int(columns.pop(n)) for n in [*columns] if "size_" in n}
    numbers = [name for name in columns if name not in sizes]
    model = Ranking(sizes, numbers)
    model.compile(tf.keras.optimizers.Adam(3e-3))
    rows = tf.data.Dataset.from_tensor_slices((columns, label)).batch(BATCH, drop_remainder=True)
    loss = model.fit(rows, epochs=1, verbose=0).history["loss"][-1]

    # The signature takes the stream's features by name and gives one logit.
    signature = tf.function(lambda **features: {"logit": model(features)}).get_concrete_function(
        **{n: tf.TensorSpec([None], v.dtype, name=n) for n, v in columns.items()}
    )
    tf.saved_model.save(model, folder, signatures={"serving_default": signature})
    print(f"teacher: tfrs {tfrs.__version__}, {tf.keras.__name__}, last loss {loss:.4f}")


def train_teacher(labelled, schema, hours, root):
    """Hands the labelled hours to the teacher's process; the SavedModel's folder."""
    import numpy as np

    import keras_exfm as kx

    parts = [kx.streaming.read_hour(labelled, hour, schema) for hour in hours]
    columns = {n: np.concatenate([part[n] for part in parts]) for n in [*schema.names, "label"]}
    sizes = {f"size_{f.name}": f.vocabulary_size for f in schema.sparse}
    np.savez(root / "teacher.npz", **columns, **sizes)
    command = [sys.executable, __file__, "--teacher", root / "teacher.npz", root / "teacher"]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"The teacher's process failed:\n{run.stderr[-3000:]}")
    print(run.stdout.splitlines()[-1])
    return root / "teacher"


def follow(labelled, schema, info, metrics_from, **parts):
    """NE of a student that predicts each hour, then trains on it."""
    import keras

    import keras_exfm as kx

    keras.utils.set_random_seed(1)
    own = schema.select([name for name in schema.names if name not in LACKING])
    backbone = kx.models.DLRM(
        own, dim=8, top_units=(64, 32), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    model = kx.ExternalDistillation.from_model(backbone, **parts)
    model.compile(keras.optimizers.Adam(1e-3))
    return kx.streaming.progressive_validation(
        model,
        labelled,
        own,
        batch_size=BATCH,
        metrics_from=metrics_from,
        label_lag=int(info.label_window_hours),
    ).whole["ne"]


def main():
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"This example needs {' and '.join(missing)}, which are not installed. Install them, "
            'best in an environment of their own: pip install "keras-exfm[parity]"',
        )
        raise SystemExit(2)

    import keras_exfm as kx
    from keras_exfm.streaming import MS_PER_HOUR, partitions

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options = {"hours": HOURS, "examples_per_hour": 4000, "users": 300, "ads": 100}
        kx.datasets.prepare("synthetic", root / "data", options=options)
        info = partitions.DatasetInfo.read(root / "data")
        window = info.label_window_hours
        unscored = kx.das.DataAugmentationService(
            root / "data", root / "unscored", info.schema, label_window_hours=window
        )
        hours = partitions.hours(root / "data")
        for hour in hours[:TEACHER_HOURS]:
            unscored.process_hour(hour)
        # What the teacher reads: single ids and numbers.
        schema = info.schema.select([n for n in info.schema.names if n != "history"])
        saved = train_teacher(root / "unscored", schema, hours[:TEACHER_HOURS], root)

        store = kx.das.SnapshotStore(root / "snapshots")
        known = hours[TEACHER_HOURS - 1] + 1 + unscored.label_lag
        store.publish(saved, known * MS_PER_HOUR, schema=schema)
        service = kx.das.DataAugmentationService(
            root / "data", root / "labelled", info.schema, store, label_window_hours=window
        )
        for hour in hours:
            service.process_hour(hour)
        logged = kx.streaming.score_column(root / "labelled", metrics_from=known).whole
        print(f"{'tfrs teacher, as logged':24s} NE {logged['ne']:.4f}")
        for name, parts in (
            ("student alone", {}),
            (
                "student with the teacher",
                {
                    "auxiliary_head": kx.layers.AuxiliaryHead(
                        output_initializer="zeros", prior=0.1
                    ),
                    "student_adapter": kx.layers.StudentAdapter(residual=True),
                    "gate": kx.layers.TeacherGate(),
                },
            ),
        ):
            ne = follow(root / "labelled", schema, info, known, **parts)
            print(f"{name:24s} NE {ne:.4f}")
        print(f"{'best possible':24s} NE {logged['bayes_ne']:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--teacher"]:
        teacher_process(*sys.argv[2:4])
    else:
        main()
