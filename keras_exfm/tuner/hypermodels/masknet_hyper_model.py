"""Search space of MaskNet."""

from __future__ import annotations

from keras_exfm.models import MaskNet
from keras_exfm.tuner._space import Choices, Range
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class MaskNetHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.MaskNet`.

    `dim`, `structure`, `block_units`, `block_depth`, `reduction_ratio`, `dnn_units`,
    `dnn_depth`, `dropout`, `learning_rate`, `table_learning_rate`.

    `block_depth` is the number of blocks.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = MaskNetHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = MaskNet
    defaults = {
        "dim": DIM,
        "structure": Choices(("parallel", "serial")),
        "block_units": Choices((16, 32, 64, 128, 256), 64),
        "block_depth": Range(1, 6, 3),
        "reduction_ratio": Choices((0.05, 0.1, 0.25, 0.5, 1.0, 2.0), 1.0),
        "dnn_units": WIDTHS,
        "dnn_depth": DEPTHS,
        "dropout": DROPOUT,
    }
