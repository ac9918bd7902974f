"""Metrics of click prediction: stateful ones for Keras and plain NumPy functions."""

from keras_exfm.metrics import functional
from keras_exfm.metrics.auc import AUC
from keras_exfm.metrics.calibration import Calibration
from keras_exfm.metrics.calibration_error import CalibrationError
from keras_exfm.metrics.grouped_auc import GroupedAUC
from keras_exfm.metrics.log_loss import LogLoss
from keras_exfm.metrics.normalized_entropy import NormalizedEntropy

__all__ = [
    "AUC",
    "Calibration",
    "CalibrationError",
    "GroupedAUC",
    "LogLoss",
    "NormalizedEntropy",
    "functional",
]
