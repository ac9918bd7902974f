"""Search space of DeepFM."""

from __future__ import annotations

from keras_exfm.models import DeepFM
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class DeepFMHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.DeepFM`.

    `dim`, `dnn_units`, `dnn_depth`, `dropout`, `learning_rate`, `table_learning_rate`.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = DeepFMHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = DeepFM
    defaults = {"dim": DIM, "dnn_units": WIDTHS, "dnn_depth": DEPTHS, "dropout": DROPOUT}
