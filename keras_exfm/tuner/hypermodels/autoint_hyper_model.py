"""Search space of AutoInt."""

from __future__ import annotations

from keras_exfm.models import AutoInt
from keras_exfm.tuner._space import Choices, Range
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class AutoIntHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.AutoInt`.

    `dim`, `num_layers`, `attention_units`, `num_heads`, `dnn_units`, `dnn_depth`, `dropout`,
    `learning_rate`, `table_learning_rate`.

    `num_heads` must divide `attention_units`: with a `space` of your own choose them so.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = AutoIntHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = AutoInt
    defaults = {
        "dim": DIM,
        "num_layers": Range(1, 4, 3),
        "attention_units": Choices((16, 32, 64, 128, 256), 64),
        "num_heads": Choices((1, 2, 4, 8), 2),
        "dnn_units": WIDTHS,
        "dnn_depth": DEPTHS,
        "dropout": DROPOUT,
    }
