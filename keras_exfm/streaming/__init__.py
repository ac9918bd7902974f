"""The labelled stream: Delta tables, a `tf.data` source and progressive validation."""

from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError
from keras_exfm.streaming.reader import read
from keras_exfm.streaming.stream import Stream, hours, read_hour, write_hour

__all__ = ["MS_PER_HOUR", "Stream", "StreamError", "hours", "read", "read_hour", "write_hour"]
