"""Serving models as ONNX, LiteRT and SavedModel files that are proven against Keras."""

from keras_exfm.export._runtimes import load, metadata
from keras_exfm.export.errors import ExportError
from keras_exfm.export.export_report import ExportReport
from keras_exfm.export.exporting import export_model, litert, onnx, saved_model
from keras_exfm.export.scoring import ScoreReport, score

__all__ = [
    "ExportError",
    "ExportReport",
    "ScoreReport",
    "export_model",
    "litert",
    "load",
    "metadata",
    "onnx",
    "saved_model",
    "score",
]
