"""The zoo: functional models that end in a logit `(batch, 1)`."""

from keras_exfm.models.afn import AFN
from keras_exfm.models.autoint import AutoInt
from keras_exfm.models.dcnv2 import DCNv2
from keras_exfm.models.deepfm import DeepFM
from keras_exfm.models.dlrm import DLRM
from keras_exfm.models.finalmlp import FinalMLP
from keras_exfm.models.flops import (
    Flops,
    LayerFlops,
    flops,
    non_embedding_parameters,
    shapes_only,
)
from keras_exfm.models.fm import FM
from keras_exfm.models.logistic_regression import LogisticRegression
from keras_exfm.models.masknet import MaskNet
from keras_exfm.models.presets import PRESETS, Preset
from keras_exfm.models.wukong import Wukong
from keras_exfm.models.xdeepfm import XDeepFM

__all__ = [
    "AFN",
    "DLRM",
    "FM",
    "PRESETS",
    "AutoInt",
    "DCNv2",
    "DeepFM",
    "FinalMLP",
    "Flops",
    "LayerFlops",
    "LogisticRegression",
    "MaskNet",
    "Preset",
    "Wukong",
    "XDeepFM",
    "flops",
    "non_embedding_parameters",
    "shapes_only",
]
