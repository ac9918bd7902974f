"""External distillation: a student trained on labels and on a teacher's logged predictions."""

from keras_exfm.distillation.diagnostics import diagnose
from keras_exfm.distillation.embeddings import embeddings_of
from keras_exfm.distillation.external_distillation import ExternalDistillation
from keras_exfm.distillation.teacher_branch import TeacherBranch
from keras_exfm.distillation.teacher_diagnostics import TeacherDiagnostics
from keras_exfm.distillation.warm_start import WarmStart, warm_start

__all__ = [
    "ExternalDistillation",
    "TeacherBranch",
    "TeacherDiagnostics",
    "WarmStart",
    "diagnose",
    "embeddings_of",
    "warm_start",
]
