"""The labelled stream: Delta tables, a `tf.data` source and progressive validation.

What needs Keras loads on first use, so that a process that only moves rows, or scores them with
another framework, starts in a fraction of the time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_exfm.streaming import partitions
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError
from keras_exfm.streaming.reader import read
from keras_exfm.streaming.stream import Stream, committed_through, hours, read_hour
from keras_exfm.streaming.writing import skip_hour, write_hour

if TYPE_CHECKING:
    from keras_exfm.streaming.stream_checkpoint import StreamCheckpoint
    from keras_exfm.streaming.tensor_board_windows import TensorBoardWindows
    from keras_exfm.streaming.validation import (
        ValidationResult,
        load_predictions,
        progressive_validation,
        score_column,
        score_predictions,
        train_hour,
    )

_LATER = {
    "StreamCheckpoint": "stream_checkpoint",
    "TensorBoardWindows": "tensor_board_windows",
    "ValidationResult": "validation",
    "load_predictions": "validation",
    "progressive_validation": "validation",
    "score_column": "validation",
    "score_predictions": "validation",
    "train_hour": "validation",
}

__all__ = [
    "MS_PER_HOUR",
    "Stream",
    "StreamCheckpoint",
    "StreamError",
    "TensorBoardWindows",
    "ValidationResult",
    "committed_through",
    "hours",
    "load_predictions",
    "partitions",
    "progressive_validation",
    "read",
    "read_hour",
    "score_column",
    "score_predictions",
    "skip_hour",
    "train_hour",
    "write_hour",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
