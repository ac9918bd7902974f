"""Search space of DCNv2."""

from __future__ import annotations

from typing import Any

from keras_exfm.models import DCNv2
from keras_exfm.tuner._space import Asker, Choices, Range
from keras_exfm.tuner.hypermodels.ranking_hyper_model import (
    DEPTHS,
    DIM,
    DROPOUT,
    WIDTHS,
    RankingHyperModel,
)

_UNITS = {"parallel": "parallel_units", "stacked": "stacked_units"}


class DCNv2HyperModel(RankingHyperModel):
    """Hyper-parameters of `keras_exfm.models.DCNv2`.

    `dim`, `num_cross_layers`, `rank`, `parallel_units`, `parallel_depth`, `stacked_units`,
    `stacked_depth`, `dropout`, `learning_rate`, `table_learning_rate`, and two of the search's own:

    * `low_rank`: whether the cross layers have a `rank`; else they are full matrices.
    * `structure`: `"parallel"`, an MLP beside the cross layers; `"stacked"`, behind them;
      `"cross"`, none.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> space = DCNv2HyperModel(Schema([Categorical("user", 100), Categorical("ad", 50)]))
    >>> space.build(keras_tuner.HyperParameters()).output_shape
    (None, 1)
    """

    network_class = DCNv2
    defaults = {
        "dim": DIM,
        "num_cross_layers": Range(1, 4, 3),
        "low_rank": Choices((False, True), False),
        "rank": Choices((16, 32, 64, 128, 256), 64),
        "structure": Choices(("parallel", "stacked", "cross")),
        "parallel_units": WIDTHS,
        "parallel_depth": DEPTHS,
        "stacked_units": WIDTHS,
        "stacked_depth": DEPTHS,
        "dropout": DROPOUT,
    }

    def _options(self, ask: Asker) -> dict[str, Any]:
        if "rank" not in self.fixed:
            ask("low_rank")
        ask("structure")
        found: dict[str, Any] = {}
        for name in self._own_names():
            if name == "rank" and name not in self.fixed:
                found[name] = self._argument(ask, name, "low_rank", [True])
            elif name in _UNITS.values():
                structure = name.removesuffix("_units")
                found[name] = self._argument(ask, name, "structure", [structure]) or ()
            else:
                found[name] = self._argument(ask, name)
        return found
