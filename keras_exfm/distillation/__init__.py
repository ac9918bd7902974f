"""External distillation: a student trained on labels and on a teacher's logged predictions."""

from keras_exfm.distillation.external_distillation import ExternalDistillation

__all__ = ["ExternalDistillation"]
