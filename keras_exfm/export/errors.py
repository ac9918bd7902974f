"""What can go wrong with an export."""

from __future__ import annotations


class ExportError(ValueError):
    """A model that cannot be exported, or a file that does not compute what the model does."""
