"""What the tables of a stream and the inputs of models agree on."""

from __future__ import annotations

PADDING = -1
"""The id that means "nothing here": a missing categorical value, or the tail of a multi-hot list.

Its embedding is the zero vector and it receives no gradient.
"""

RESERVED_COLUMNS = (
    "example_id",
    "timestamp",
    "hour",
    "vertical",
    "group",
    "label",
    "weight",
    "true_probability",
    "teacher_logit",
    "teacher_snapshot",
    "teacher_age_s",
    "teacher_representation",
)
"""Columns of the stream tables that are not features; no feature may take these names."""
