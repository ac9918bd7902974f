"""The data augmentation service: teacher snapshots, scoring, the join of labels."""

from keras_exfm.das.service import DataAugmentationService, HourReport
from keras_exfm.das.snapshots import Snapshot, SnapshotError, SnapshotStore
from keras_exfm.das.teacher import CallableScorer, KerasScorer, Scorer

__all__ = [
    "CallableScorer",
    "DataAugmentationService",
    "HourReport",
    "KerasScorer",
    "Scorer",
    "Snapshot",
    "SnapshotError",
    "SnapshotStore",
]
