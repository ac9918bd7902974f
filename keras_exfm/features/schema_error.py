"""The error of descriptions and data that do not fit each other."""

from __future__ import annotations


class SchemaError(ValueError):
    """A feature description, or data that does not fit it."""
