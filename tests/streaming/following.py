"""A program that trains on a stream while it grows, and may be killed at any moment.

`python -m tests.streaming.following FOLDER` trains on `FOLDER/stream` with checkpoints in
`FOLDER/checkpoints` until it has seen the last hour, and leaves its state in `FOLDER/weights.npz`.
After each batch it prints a line.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx
from tests.streaming.resumable import BATCH, HOURS, SCHEMA, make_model, only_label, state

LAST = max(HOURS)


class Told(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("trained on a batch", flush=True)


def fit(folder, callbacks=(), every=3, hours=(None, LAST), **options):
    model = make_model()
    checkpoint = kx.streaming.StreamCheckpoint(folder / "checkpoints", every=every)
    dataset = kx.streaming.read(
        folder / "stream",
        SCHEMA,
        BATCH,
        checkpoint=checkpoint,
        follow=True,
        poll_s=0.05,
        hours=hours,
        **options,
    ).map(only_label)
    model.fit(dataset, callbacks=[checkpoint, *callbacks], verbose=0)
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained = fit(folder, [Told()])
    np.savez(folder / "weights.npz", **{str(i): a for i, a in enumerate(state(trained))})
