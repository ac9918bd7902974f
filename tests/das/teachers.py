"""Entry points that the tests name as teachers."""

import os
import time
from pathlib import Path

import numpy as np


def linear(features):
    return np.float32(0.5) * features["x"] + features["ad"].astype(np.float32)


def sigmoid(features):
    return 1 / (1 + np.exp(-linear(features)))


def counting(path):
    """As `linear`; notes the features of each row that it is asked for."""

    def score(features):
        with open(path, "a") as file:
            file.writelines(f"{value!r}\n" for value in features["x"].tolist())
        return linear(features)

    return score


def telling_policy(path):
    """As `linear`; notes Keras' dtype policy where it is made and where it is asked."""
    import keras

    def tell(what):
        with open(path, "a") as file:
            file.write(f"{what} {keras.config.dtype_policy().name}\n")

    def score(features):
        tell("asked")
        return linear(features)

    tell("made")
    return score


def with_vectors(features):
    x = features["x"]
    return linear(features), np.stack([x, -x, np.full_like(x, 0.5)], axis=1)


def nan_where_negative(features):
    return np.where(features["x"] > 0, linear(features), np.float32("nan"))


def nan_between(low, high):
    """As `linear`; NaN where `low < x <= high`."""

    def score(features):
        x = features["x"]
        return np.where((low < x) & (x <= high), np.float32("nan"), linear(features))

    return score


def half_with_vectors(features):
    logits, vectors = with_vectors(features)
    return np.where(features["x"] > 0, logits, np.float32("nan")), vectors


def wide(features):
    return np.zeros((len(features["x"]), 2), np.float32)


def ill(features):
    raise RuntimeError("the teacher fell ill")


def once(path, what):
    """The first call of all processes does `what`, all others are `linear`."""

    def score(features):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return linear(features)
        if what == "hang":
            time.sleep(600)
        if what == "die":
            os.kill(os.getpid(), 9)
        raise RuntimeError("the teacher fell ill")

    return score


def always_dies(features):
    os.kill(os.getpid(), 9)


def slow(path):
    """As `linear`, but takes its time; `path` says how long, in seconds."""

    def score(features):
        time.sleep(float(Path(path).read_text()))
        return linear(features)

    return score
