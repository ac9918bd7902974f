"""The labelled stream: Delta tables, a `tf.data` source and progressive validation."""

from keras_exfm.streaming import partitions
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError
from keras_exfm.streaming.reader import read
from keras_exfm.streaming.stream import (
    Stream,
    committed_through,
    hours,
    read_hour,
    skip_hour,
    write_hour,
)
from keras_exfm.streaming.stream_checkpoint import StreamCheckpoint
from keras_exfm.streaming.validation import (
    ValidationResult,
    load_predictions,
    progressive_validation,
    score_column,
    score_predictions,
    train_hour,
)

__all__ = [
    "MS_PER_HOUR",
    "Stream",
    "StreamCheckpoint",
    "StreamError",
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
