"""Search space of DLRM."""

from __future__ import annotations

from keras_exfm.models import DLRM
from keras_exfm.tuner._space import Choices
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class DLRMHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.DLRM`.

    `dim`, `top_units`, `top_depth`, `concat_embeddings`, `dropout`, `learning_rate`,
    `table_learning_rate`.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = DLRMHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = DLRM
    defaults = {
        "dim": DIM,
        "top_units": WIDTHS,
        "top_depth": DEPTHS,
        "concat_embeddings": Choices((False, True), True),
        "dropout": DROPOUT,
    }
