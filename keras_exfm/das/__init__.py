"""The data augmentation service: teacher snapshots, scoring, the join of labels."""

from keras_exfm.das.backfill import Backfilled, backfill, rescore
from keras_exfm.das.follower import Follower
from keras_exfm.das.job import Job, JobError
from keras_exfm.das.kafka_sink import KafkaSink
from keras_exfm.das.kafka_source import KafkaProgress, KafkaSource
from keras_exfm.das.maintenance import compact, vacuum
from keras_exfm.das.metrics import Metrics
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
from keras_exfm.das.served import read_served
from keras_exfm.das.service import DataAugmentationService, HourReport
from keras_exfm.das.snapshots import Snapshot, SnapshotError, SnapshotStore
from keras_exfm.das.status import status
from keras_exfm.das.verification import Verification, verify
from keras_exfm.das.worker import Step, Worker

__all__ = [
    "Backfilled",
    "CallableScorer",
    "DataAugmentationService",
    "EntryPointScorer",
    "Follower",
    "HourReport",
    "Job",
    "JobError",
    "KafkaProgress",
    "KafkaSink",
    "KafkaSource",
    "KerasScorer",
    "Metrics",
    "OnnxScorer",
    "SavedModelScorer",
    "Scorer",
    "Snapshot",
    "SnapshotError",
    "SnapshotScorer",
    "SnapshotStore",
    "Step",
    "TeacherTimeout",
    "Verification",
    "Worker",
    "backfill",
    "compact",
    "read_served",
    "rescore",
    "status",
    "vacuum",
    "verify",
]
