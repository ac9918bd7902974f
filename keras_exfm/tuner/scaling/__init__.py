"""The scaling law of one's own data: sizes by FLOPs, a sweep over them, the law, its figures."""

from keras_exfm.tuner.scaling.configuration import Configuration
from keras_exfm.tuner.scaling.figures import plot_compute, plot_data
from keras_exfm.tuner.scaling.page import write_page
from keras_exfm.tuner.scaling.paths import MODELS, configurations, knobs
from keras_exfm.tuner.scaling.scaling_law import Prediction, ScalingLaw
from keras_exfm.tuner.scaling.sweep import Sweep, laws

__all__ = [
    "MODELS",
    "Configuration",
    "Prediction",
    "ScalingLaw",
    "Sweep",
    "configurations",
    "knobs",
    "laws",
    "plot_compute",
    "plot_data",
    "write_page",
]
