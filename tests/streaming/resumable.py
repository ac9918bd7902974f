"""A small program that trains on a stream and may be killed at any moment.

`python -m tests.streaming.resumable FOLDER` trains on `FOLDER/stream` with checkpoints in
`FOLDER/checkpoints`, and leaves the weights in `FOLDER/weights.npz`. After each batch it prints a
line and waits for one, until its input ends.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx
from tests.streaming.samples import hour_rows, schema

SCHEMA = schema().select(["user", "topics", "age"])
EPOCHS = 2
HOURS = {1: 90, 2: 50, 4: 100}
BATCH = 8


def write(path, hours=HOURS):
    for hour, rows in hours.items():
        kx.streaming.write_hour(path, hour, hour_rows(hour, rows), schema())


def make_model(units=6, optimizer=None, **options):
    keras.utils.set_random_seed(3)
    inputs = SCHEMA.inputs()
    x = kx.layers.FeatureEmbedding(
        SCHEMA, dim=4, numeric_units=(4,), optimizer="rowwise_adagrad", name="features"
    )(inputs)
    x = keras.layers.Dense(units, activation="tanh")(keras.layers.Flatten()(x))
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.BinaryCrossentropy(from_logits=True),
        weighted_metrics=[kx.metrics.NormalizedEntropy()],
        **options,
    )
    return model


def only_label(x, y, w):
    return x, y["label"], w


def fit(folder, callbacks=(), fit_epochs=EPOCHS, every=4, model=None, **options):
    model = model or make_model()
    checkpoint = kx.streaming.StreamCheckpoint(folder / "checkpoints", every=every)
    dataset = kx.streaming.read(
        folder / "stream", SCHEMA, BATCH, checkpoint=checkpoint, **options
    ).map(only_label)
    history = model.fit(
        dataset,
        epochs=fit_epochs,
        callbacks=[checkpoint, *callbacks],
        verbose=0,
    )
    return model, history


def state(model):
    """Everything that training changes."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v) for v in variables]


class Ask(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("trained on a batch", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained, _ = fit(folder, [Ask()])
    arrays = {str(i): array for i, array in enumerate(state(trained))}
    np.savez(folder / "weights.npz", **arrays)
