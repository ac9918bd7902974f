"""The data augmentation service: teacher snapshots, scoring, the join of labels."""

from keras_exfm.das.scorers import (
    CallableScorer,
    EntryPointScorer,
    KerasScorer,
    OnnxScorer,
    SavedModelScorer,
    Scorer,
    SnapshotScorer,
    TeacherTimeout,
)
from keras_exfm.das.service import DataAugmentationService, HourReport
from keras_exfm.das.snapshots import Snapshot, SnapshotError, SnapshotStore

__all__ = [
    "CallableScorer",
    "DataAugmentationService",
    "EntryPointScorer",
    "HourReport",
    "KerasScorer",
    "OnnxScorer",
    "SavedModelScorer",
    "Scorer",
    "Snapshot",
    "SnapshotError",
    "SnapshotScorer",
    "SnapshotStore",
    "TeacherTimeout",
]
