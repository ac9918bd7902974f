"""Data sets as raw partitions: a synthetic ad stream with known truth, and the Globo.com clicks."""

from keras_exfm.datasets._registry import DATASETS, prepare
from keras_exfm.datasets._writing import Progress
from keras_exfm.datasets.synthetic import SyntheticAds

__all__ = ["DATASETS", "Progress", "SyntheticAds", "prepare"]
