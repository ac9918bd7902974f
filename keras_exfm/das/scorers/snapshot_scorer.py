"""Snapshots of any format as teachers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_exfm.das.scorers._batched import Batch, BatchedScorer
from keras_exfm.das.scorers.keras_scorer import KerasScorer
from keras_exfm.das.scorers.onnx_scorer import OnnxScorer
from keras_exfm.das.scorers.saved_model_scorer import SavedModelScorer
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Schema
from keras_exfm.streaming.columns import StreamError

_KINDS: dict[str, type[BatchedScorer]] = {
    "keras": KerasScorer,
    "onnx": OnnxScorer,
    "saved_model": SavedModelScorer,
}


class SnapshotScorer:
    """Scores with the snapshots of a store, whichever format each of them has.

    Args:
        schema: The stream's features; a model may read some of them only.
        batch_size: Rows per prediction. Defaults to `1024`.
        representation: Name of the layer (Keras) or of the output (ONNX, SavedModel) that
            `score_with_representation` gives. Defaults to `None`: no vectors.
        representation_size: Length of that output; goes with `representation`. Defaults to `None`.
        timeout: As in `KerasScorer`. Defaults to `None`.

    Example:

    >>> import keras_exfm as kx, numpy as np
    >>> schema = kx.Schema([kx.Numeric("x")])
    >>> shot = kx.das.SnapshotStore("teachers").publish(kx.models.LogisticRegression(schema), 0)
    >>> SnapshotScorer(schema).score({"x": np.zeros(2, "float32")}, shot).tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        schema: Schema,
        batch_size: int = 1024,
        representation: str | None = None,
        representation_size: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self.schema = schema
        self.batch_size = batch_size
        self.representation = representation
        self.representation_size = representation_size
        self.timeout = timeout
        # Checks the arguments; the other kinds are made when a snapshot asks for them.
        self._scorers: dict[str, BatchedScorer] = {"keras": self._make("keras")}

    def _make(self, kind: str) -> BatchedScorer:
        cls: Any = _KINDS[kind]
        return cls(
            self.schema,
            self.batch_size,
            self.representation,
            self.representation_size,
            self.timeout,
        )

    def _of(self, snapshot: Snapshot | None) -> BatchedScorer:
        if snapshot is None:
            raise StreamError("A SnapshotScorer scores with a snapshot. Received: None")
        if snapshot.format not in self._scorers:
            self._scorers[snapshot.format] = self._make(snapshot.format)
        return self._scorers[snapshot.format]

    def score(self, features: Batch, snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits of the rows by this snapshot, NaN where they are not finite."""
        return self._of(snapshot).score(features, snapshot)

    def score_with_representation(
        self, features: Batch, snapshot: Snapshot | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and float16 `(rows, representation_size)` vectors."""
        return self._of(snapshot).score_with_representation(features, snapshot)
