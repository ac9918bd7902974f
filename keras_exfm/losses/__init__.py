"""Losses on logits for distillation from logged teacher predictions."""

from keras_exfm.losses.soft_targets import clipped_targets, known_teacher, soft_targets
from keras_exfm.losses.teacher_crossentropy import TeacherCrossentropy

__all__ = ["TeacherCrossentropy", "clipped_targets", "known_teacher", "soft_targets"]
