"""Search space of XDeepFM."""

from __future__ import annotations

from keras_exfm.models import XDeepFM
from keras_exfm.tuner._space import Choices, Range
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class XDeepFMHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.XDeepFM`.

    `dim`, `cin_units`, `cin_depth`, `dnn_units`, `dnn_depth`, `dropout`, `learning_rate`,
    `table_learning_rate`.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = XDeepFMHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = XDeepFM
    defaults = {
        "dim": DIM,
        "cin_units": Choices((8, 16, 32, 64, 128), 16),
        "cin_depth": Range(1, 4, 3),
        "dnn_units": WIDTHS,
        "dnn_depth": DEPTHS,
        "dropout": DROPOUT,
    }
