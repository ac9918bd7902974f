"""How much memory a checkpoint takes beside a large table.

`python -m tests.streaming.large_table ROWS FOLDER` trains on a few batches with a checkpoint after
each second one, restores the last in a second `fit`, and prints bytes as JSON: the size of table
and row state, and what writing and reading added at most to what was resident.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx

DIM = 32


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


class Before(keras.callbacks.Callback):
    """Stands before the checkpoint among the callbacks, and `After` behind it."""

    def on_train_begin(self, logs=None):
        for variable in self.model.variables:  # JAX may still be at work on them.
            if len(variable.shape):
                keras.ops.convert_to_numpy(variable[:1])
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        self.resident = resident("VmRSS")

    def on_train_batch_end(self, batch, logs=None):
        self.on_train_begin()


class After(keras.callbacks.Callback):
    def __init__(self, before):
        super().__init__()
        self.before = before
        self.read = self.written = 0

    def on_train_begin(self, logs=None):
        self.read = resident("VmHWM") - self.before.resident

    def on_train_batch_end(self, batch, logs=None):
        self.written = max(self.written, resident("VmHWM") - self.before.resident)


def fit(rows, folder, epochs):
    schema = kx.Schema([kx.Categorical("user", rows)])
    if not (folder / "stream").exists():
        columns = {
            "example_id": np.arange(40),
            "timestamp": np.arange(40),
            "vertical": ["feed"] * 40,
            "user": np.arange(40) * (rows // 40),
            "label": np.arange(40) % 2,
        }
        kx.streaming.write_hour(folder / "stream", 0, columns, schema)
    inputs = schema.inputs()
    x = kx.layers.FeatureEmbedding(schema, DIM, optimizer="rowwise_adagrad")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    checkpoint = kx.streaming.StreamCheckpoint(folder / "checkpoints", every=2, keep=1)
    data = kx.streaming.read(folder / "stream", schema, 8, checkpoint=checkpoint)
    data = data.map(lambda x, y, w: (x, y["label"], w))
    before = Before()
    after = After(before)
    model.fit(data, epochs=epochs, callbacks=[before, checkpoint, after], verbose=0)
    return after


if __name__ == "__main__":
    rows, folder = int(sys.argv[1]), Path(sys.argv[2])
    written = fit(rows, folder, 1).written
    keras.utils.clear_session()
    read = fit(rows, folder, 2).read
    print(json.dumps({"table": rows * (DIM + 1) * 4, "written": written, "read": read}))
