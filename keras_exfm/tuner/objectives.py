"""What searches look for: `keras_tuner.Objective`s whose direction is known.

KerasTuner infers the direction of Keras' own metrics only. Names are `val_<metric>` for
`validation_data` of `fit`, as the metrics of `keras_exfm.metrics` give them, and
`progressive_<metric>` for progressive validation over a stream.
"""

from __future__ import annotations

from typing import Literal

import keras_tuner

On = Literal["validation", "progressive"]

_PREFIXES = {"validation": "val_", "progressive": "progressive_"}


def normalized_entropy(on: On = "validation") -> keras_tuner.Objective:
    """Lowest `keras_exfm.metrics.NormalizedEntropy`.

    Args:
        on: `"validation"` data, or `"progressive"` validation over a stream. Defaults to
            `"validation"`.

    Example:

    >>> objective = normalized_entropy("progressive")
    >>> objective.name, objective.direction
    ('progressive_normalized_entropy', 'min')
    """
    return _objective("normalized_entropy", "min", on)


def log_loss(on: On = "validation") -> keras_tuner.Objective:
    """Lowest `keras_exfm.metrics.LogLoss`; arguments as `normalized_entropy`."""
    return _objective("log_loss", "min", on)


def auc(on: On = "validation") -> keras_tuner.Objective:
    """Highest `keras_exfm.metrics.AUC`; arguments as `normalized_entropy`."""
    return _objective("auc", "max", on)


def grouped_auc(on: On = "validation") -> keras_tuner.Objective:
    """Highest `keras_exfm.metrics.GroupedAUC`; arguments as `normalized_entropy`.

    The stream needs a `group` column.
    """
    return _objective("grouped_auc", "max", on)


def calibration_error(on: On = "validation") -> keras_tuner.Objective:
    """Lowest `keras_exfm.metrics.CalibrationError`; arguments as `normalized_entropy`.

    The calibration itself is best at 1, so it has no direction.
    """
    return _objective("calibration_error", "min", on)


def _objective(metric: str, direction: str, on: str) -> keras_tuner.Objective:
    if on not in _PREFIXES:
        raise ValueError(f"`on` should be one of {list(_PREFIXES)}. Received: on={on!r}")
    return keras_tuner.Objective(f"{_PREFIXES[on]}{metric}", direction)
