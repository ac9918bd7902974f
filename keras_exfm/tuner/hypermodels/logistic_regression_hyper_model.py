"""Search space of LogisticRegression."""

from __future__ import annotations

from keras_exfm.models import LogisticRegression
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    RankingHyperModel,
)


class LogisticRegressionHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.LogisticRegression`.

    `learning_rate`, `table_learning_rate`.

    Nothing but the rates is searched.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50)])
    >>> space = LogisticRegressionHyperModel(schema)
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = LogisticRegression
    defaults = {}
