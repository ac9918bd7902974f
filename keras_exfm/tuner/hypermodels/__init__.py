"""Search spaces: one for each model of the zoo, and one for distillation."""

from keras_exfm.tuner.hypermodels.afn_hyper_model import AFNHyperModel
from keras_exfm.tuner.hypermodels.autoint_hyper_model import AutoIntHyperModel
from keras_exfm.tuner.hypermodels.dcnv2_hyper_model import DCNv2HyperModel
from keras_exfm.tuner.hypermodels.deepfm_hyper_model import DeepFMHyperModel
from keras_exfm.tuner.hypermodels.distillation_hyper_model import DistillationHyperModel
from keras_exfm.tuner.hypermodels.dlrm_hyper_model import DLRMHyperModel
from keras_exfm.tuner.hypermodels.finalmlp_hyper_model import FinalMLPHyperModel
from keras_exfm.tuner.hypermodels.fm_hyper_model import FMHyperModel
from keras_exfm.tuner.hypermodels.logistic_regression_hyper_model import (
    LogisticRegressionHyperModel,
)
from keras_exfm.tuner.hypermodels.masknet_hyper_model import MaskNetHyperModel
from keras_exfm.tuner.hypermodels.ranking_hyper_model import RankingHyperModel
from keras_exfm.tuner.hypermodels.wukong_hyper_model import WukongHyperModel
from keras_exfm.tuner.hypermodels.xdeepfm_hyper_model import XDeepFMHyperModel

HYPERMODELS: dict[str, type[RankingHyperModel]] = {
    cls.network_class.__name__: cls
    for cls in (
        AFNHyperModel,
        AutoIntHyperModel,
        DCNv2HyperModel,
        DLRMHyperModel,
        DeepFMHyperModel,
        FMHyperModel,
        FinalMLPHyperModel,
        LogisticRegressionHyperModel,
        MaskNetHyperModel,
        WukongHyperModel,
        XDeepFMHyperModel,
    )
}
"""Name of a model's class -> its search space."""

__all__ = [
    "HYPERMODELS",
    "AFNHyperModel",
    "AutoIntHyperModel",
    "DCNv2HyperModel",
    "DLRMHyperModel",
    "DeepFMHyperModel",
    "DistillationHyperModel",
    "FMHyperModel",
    "FinalMLPHyperModel",
    "LogisticRegressionHyperModel",
    "MaskNetHyperModel",
    "RankingHyperModel",
    "WukongHyperModel",
    "XDeepFMHyperModel",
]
