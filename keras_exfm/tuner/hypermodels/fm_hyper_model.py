"""Search space of FM."""

from __future__ import annotations

from keras_exfm.models import FM
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DIM,
    RankingHyperModel,
)


class FMHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.FM`.

    `dim`, `learning_rate`, `table_learning_rate`.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = FMHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = FM
    defaults = {"dim": DIM}
