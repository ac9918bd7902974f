"""Searches over widths and depths under a budget, and the scaling law of one's own data.

On KerasTuner: `pip install keras-exfm[tuner]`.
"""

import importlib.util

if importlib.util.find_spec("keras_tuner") is None:
    raise ImportError(
        "keras_exfm.tuner needs KerasTuner, which is not installed: pip install keras-exfm[tuner]"
    )

from keras_exfm.tuner import objectives, scaling
from keras_exfm.tuner.bayesian_optimization import BayesianOptimization
from keras_exfm.tuner.budget import Budget
from keras_exfm.tuner.cost import Cost
from keras_exfm.tuner.grid_search import GridSearch
from keras_exfm.tuner.hyperband import Hyperband
from keras_exfm.tuner.hypermodels import (
    HYPERMODELS,
    AFNHyperModel,
    AutoIntHyperModel,
    DCNv2HyperModel,
    DeepFMHyperModel,
    DistillationHyperModel,
    DLRMHyperModel,
    FinalMLPHyperModel,
    FMHyperModel,
    LogisticRegressionHyperModel,
    MaskNetHyperModel,
    RankingHyperModel,
    WukongHyperModel,
    XDeepFMHyperModel,
)
from keras_exfm.tuner.random_search import RandomSearch

__all__ = [
    "HYPERMODELS",
    "AFNHyperModel",
    "AutoIntHyperModel",
    "BayesianOptimization",
    "Budget",
    "Cost",
    "DCNv2HyperModel",
    "DLRMHyperModel",
    "DeepFMHyperModel",
    "DistillationHyperModel",
    "FMHyperModel",
    "FinalMLPHyperModel",
    "GridSearch",
    "Hyperband",
    "LogisticRegressionHyperModel",
    "MaskNetHyperModel",
    "RandomSearch",
    "RankingHyperModel",
    "WukongHyperModel",
    "XDeepFMHyperModel",
    "objectives",
    "scaling",
]
