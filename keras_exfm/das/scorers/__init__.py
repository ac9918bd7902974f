"""Teachers: whatever maps a batch of features to logits, one kind a file."""

from keras_exfm.das.scorers.callable_scorer import CallableScorer
from keras_exfm.das.scorers.checks import TeacherTimeout, checked_logits
from keras_exfm.das.scorers.entry_point_scorer import EntryPointScorer
from keras_exfm.das.scorers.keras_scorer import KerasScorer
from keras_exfm.das.scorers.onnx_scorer import OnnxScorer
from keras_exfm.das.scorers.saved_model_scorer import SavedModelScorer
from keras_exfm.das.scorers.scorer import Scorer
from keras_exfm.das.scorers.snapshot_scorer import SnapshotScorer

__all__ = [
    "CallableScorer",
    "EntryPointScorer",
    "KerasScorer",
    "OnnxScorer",
    "SavedModelScorer",
    "Scorer",
    "SnapshotScorer",
    "TeacherTimeout",
    "checked_logits",
]
