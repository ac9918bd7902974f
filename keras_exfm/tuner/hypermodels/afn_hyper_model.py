"""Search space of AFN."""

from __future__ import annotations

from keras_exfm.models import AFN
from keras_exfm.tuner._space import Choices
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class AFNHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.AFN`.

    `dim`, `neurons`, `afn_units`, `afn_depth`, `dnn_units`, `dnn_depth`, `afn_dropout`,
    `dnn_dropout`, `learning_rate`, `table_learning_rate`.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = AFNHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = AFN
    defaults = {
        "dim": DIM,
        "neurons": Choices((32, 64, 128, 256, 512, 1024), 128),
        "afn_units": WIDTHS,
        "afn_depth": DEPTHS,
        "dnn_units": WIDTHS,
        "dnn_depth": DEPTHS,
        "afn_dropout": DROPOUT,
        "dnn_dropout": DROPOUT,
    }
