"""Whole runs: configuration, teacher, students, results."""

from keras_exfm.pipeline.config import ConfigError, RunConfig, load, parse, presets
from keras_exfm.pipeline.run import Run

__all__ = ["ConfigError", "Run", "RunConfig", "load", "parse", "presets"]
