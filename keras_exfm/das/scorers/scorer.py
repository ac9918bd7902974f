"""What the service asks of a teacher."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from keras_exfm.das.snapshots import Snapshot


class Scorer(Protocol):
    """Gives the logits of rows; `snapshot` is `None` for a teacher without snapshots.

    Attributes:
        representation_size: Length of the vector that the teacher gives beside a logit, or `None`
            if it gives none.
    """

    representation_size: int | None

    def score(self, features: dict[str, np.ndarray], snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits, one a row, NaN where there is none."""
        ...

    def score_with_representation(
        self, features: dict[str, np.ndarray], snapshot: Snapshot | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and float16 `(rows, representation_size)` vectors.

        Raises:
            StreamError: If the teacher gives no vectors.
        """
        ...
