"""Search space of FinalMLP."""

from __future__ import annotations

from typing import Any

from keras_exfm.models import FinalMLP
from keras_exfm.tuner._space import Asker, Choices
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)


class FinalMLPHyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.FinalMLP`.

    `dim`, `mlp1_units`, `mlp1_depth`, `mlp2_units`, `mlp2_depth`, `num_heads`,
    `feature_selection`, `fs_units`, `mlp1_dropout`, `mlp2_dropout`, `learning_rate`,
    `table_learning_rate`.

    `fs_units` is searched where there are gates. `num_heads` must divide the widths of both
    streams: with a `space` of your own choose them so.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = FinalMLPHyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = FinalMLP
    defaults = {
        "dim": DIM,
        "mlp1_units": WIDTHS,
        "mlp1_depth": DEPTHS,
        "mlp2_units": WIDTHS,
        "mlp2_depth": DEPTHS,
        "num_heads": Choices((1, 2, 4, 8, 16), 1),
        "feature_selection": Choices((False, True), True),
        "fs_units": Choices((32, 64, 128, 256, 512), 64),
        "mlp1_dropout": DROPOUT,
        "mlp2_dropout": DROPOUT,
    }

    def _options(self, ask: Asker) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self._own_names():
            if name == "fs_units":
                value = self._argument(ask, name, "feature_selection", [True])
                found |= {} if value is None else {name: value}
            else:
                found[name] = self._argument(ask, name)
        return found
