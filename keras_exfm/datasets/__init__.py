"""Data sets: a synthetic ad stream with known truth, the Globo.com clicks, public click tables."""

from keras_exfm.datasets import globo
from keras_exfm.datasets._formats import FORMATS
from keras_exfm.datasets._in_memory import in_memory
from keras_exfm.datasets._registry import DATASETS, prepare
from keras_exfm.datasets._writing import Progress
from keras_exfm.datasets.checksum import Checksum
from keras_exfm.datasets.public_table import PublicTable
from keras_exfm.datasets.synthetic import SyntheticAds

__all__ = [
    "DATASETS",
    "FORMATS",
    "Checksum",
    "Progress",
    "PublicTable",
    "SyntheticAds",
    "globo",
    "in_memory",
    "prepare",
]
