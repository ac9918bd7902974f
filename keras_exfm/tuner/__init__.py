"""Searches over widths and depths under a budget, and the scaling law of one's own data.

On KerasTuner: `pip install keras-exfm[tuner]`.
"""

import importlib.util

if importlib.util.find_spec("keras_tuner") is None:
    raise ImportError(
        "keras_exfm.tuner needs KerasTuner, which is not installed: pip install keras-exfm[tuner]"
    )

from keras_exfm.tuner import objectives
from keras_exfm.tuner.budget import Budget
from keras_exfm.tuner.cost import Cost

__all__ = ["Budget", "Cost", "objectives"]
