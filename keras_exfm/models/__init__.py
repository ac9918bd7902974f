"""The zoo: functional models that end in a logit `(batch, 1)`."""

from keras_exfm.models.dlrm import DLRM
from keras_exfm.models.wukong import Wukong

__all__ = ["DLRM", "Wukong"]
