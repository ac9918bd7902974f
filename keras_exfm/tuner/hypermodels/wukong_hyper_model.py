"""Search space of Wukong."""

from __future__ import annotations

from typing import Any

from keras_exfm.models import Wukong
from keras_exfm.tuner._space import Asker, Choices, Range
from keras_exfm.tuner.hypermodels.ranking_hyper_model import DIM, DROPOUT, RankingHyperModel


class WukongHyperModel(RankingHyperModel):
    """Widths and depths of `keras_exfm.models.Wukong`.

    `dim`, `num_layers`, `n_fmb`, `n_lcb`, `rank`, `mlp_units`, `mlp_depth`, `head_units`,
    `head_depth`, `form`, `attention_compression`, `attention_units`, `dropout`, `head_dropout`,
    `learning_rate`, `table_learning_rate`, and two of the search's own:

    * `tied`: whether `n_lcb` equals `n_fmb`, as in all models of the paper's table 5; else it is
      searched by itself.
    * `shape`: `"uniform"`, all layers alike, or `"pyramid"`: `n_fmb` and `n_lcb` fall by equal
      factors to a quarter in the last layer.

    Arguments as `RankingHyperModel`.

    Example:

    >>> import keras_tuner
    >>> from keras_exfm import Categorical, Schema
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50)])
    >>> space = WukongHyperModel(schema, fixed={"form": "static", "dim": 8}, space={"rank": [2, 4]})
    >>> hp = keras_tuner.HyperParameters()
    >>> model = space.build(hp)
    >>> model.name, hp.get("rank"), "dim" in hp
    ('wukong', 2, False)

    References:
        - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), section 3.8 and
          appendix A.
    """

    network_class = Wukong
    defaults = {
        "dim": DIM,
        "num_layers": Range(1, 8, 3),
        "n_fmb": Choices((4, 8, 16, 32, 64), 16),
        "tied": Choices((False, True), True),
        "n_lcb": Choices((4, 8, 16, 32, 64), 16),
        "shape": Choices(("uniform", "pyramid")),
        "rank": Choices((4, 8, 16, 24, 32, 48), 24),
        "mlp_units": Choices((32, 64, 128, 256, 512, 1024), 256),
        "mlp_depth": Range(1, 3, 2),
        "head_units": Choices((64, 128, 256, 512), 256),
        "head_depth": Range(1, 2, 1),
        "form": Choices(("static", "attentive")),
        "attention_compression": Choices((4, 8, 16), 8),
        "attention_units": Choices((32, 64, 128), 64),
        "dropout": DROPOUT,
        "head_dropout": DROPOUT,
    }

    def _options(self, ask: Asker) -> dict[str, Any]:
        num_layers = ask("num_layers")
        n_fmb = ask("n_fmb")
        n_lcb = self.fixed.get("n_lcb")
        if n_lcb is None:
            ask("tied")
            n_lcb = ask("n_lcb", "tied", [False]) or n_fmb
        if ask("shape") == "pyramid":
            n_fmb, n_lcb = (_pyramid(count, num_layers) for count in (n_fmb, n_lcb))
        form = ask("form")
        found = {"num_layers": num_layers, "n_fmb": n_fmb, "n_lcb": n_lcb, "form": form}
        found["rank"] = None if form == "dot" else ask("rank")
        for name in self._own_names():
            if name in ("attention_compression", "attention_units"):
                value = self._argument(ask, name, "form", ["attentive"])
                if value is not None:
                    found[name] = value
            elif name not in found:
                found[name] = self._argument(ask, name)
        return found


def _pyramid(count: Any, num_layers: int) -> Any:
    """Per layer: from `count` to a quarter of it by equal factors."""
    if not isinstance(count, int) or num_layers == 1:
        return count
    return [max(1, round(count / 4 ** (i / (num_layers - 1)))) for i in range(num_layers)]
