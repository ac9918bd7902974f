"""The names of `das.scorers` under the module's earlier name."""

from keras_exfm.das.scorers import CallableScorer, KerasScorer, Scorer, checked_logits

__all__ = ["CallableScorer", "KerasScorer", "Scorer", "checked_logits"]
