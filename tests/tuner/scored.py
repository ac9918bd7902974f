"""Searches whose trials are scored by a formula, so that many take no time."""

import math

from keras_exfm.tuner import DLRMHyperModel
from tests.tuner import streams

SPACE = {"dim": [2, 4, 8], "top_units": [4, 8, 16, 32, 64], "top_depth": (1, 3)}
FIXED = {"concat_embeddings": True, "dropout": 0.0, "learning_rate": 0.001}


class Scored(DLRMHyperModel):
    """Best at a width of 16 and a rate of 0.1; a trial trains nothing."""

    def __init__(self, space=None, fixed=None):
        super().__init__(streams.schema(), fixed={**FIXED, **(fixed or {})}, space=space or SPACE)
        self.ran = []

    def score(self, hp):
        self.ran.append(dict(hp.values))
        return {"progressive_normalized_entropy": score(hp.values)}


def scoring(tuner):
    """The tuner, whose trials build and train nothing."""

    class Scoring(tuner):
        def run_trial(self, trial, *args, **kwargs):
            return self.hypermodel.score(trial.hyperparameters)

    return Scoring


def score(values):
    width = math.log2(values["top_units"] / 16) ** 2
    rate = math.log10(values.get("table_learning_rate", 0.1) / 0.1) ** 2
    return 0.5 + 0.1 * width + 0.1 * rate
