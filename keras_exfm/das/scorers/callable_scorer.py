"""A Python function as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_exfm.das.scorers.checks import checked_logits, checked_vectors
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.streaming.columns import StreamError


class CallableScorer:
    """Scores with a function of the encoded features, such as a model of another framework.

    Args:
        function: Takes feature name -> array, gives one logit a row; with `representation_size`,
            a pair of logits and vectors `(rows, representation_size)`.
        representation_size: Length of the vectors. Defaults to `None`: the function gives none.

    Example:

    >>> import numpy as np
    >>> CallableScorer(lambda f: 2 * f["x"]).score({"x": np.ones(2, "float32")}, None).tolist()
    [2.0, 2.0]
    """

    def __init__(
        self,
        function: Callable[[dict[str, np.ndarray]], Any],
        representation_size: int | None = None,
    ) -> None:
        self.function = function
        self.representation_size = representation_size

    def score(self, features: dict[str, np.ndarray], snapshot: Snapshot | None) -> np.ndarray:
        """Float32 logits of the rows."""
        if self.representation_size is not None:
            return self.score_with_representation(features, snapshot)[0]
        return np.asarray(self.function(features))

    def score_with_representation(
        self, features: dict[str, np.ndarray], snapshot: Snapshot | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, and float16 `(rows, representation_size)` vectors."""
        if self.representation_size is None:
            raise StreamError("This teacher gives no vectors: pass `representation_size`.")
        found = self.function(features)
        said = getattr(self.function, "__name__", type(self.function).__name__)
        if not isinstance(found, tuple) or len(found) != 2:
            raise StreamError(
                f"Teacher {said}: expected a pair of logits and vectors. Received: "
                f"{type(found).__name__}"
            )
        rows = len(next(iter(features.values())))
        logits, _ = checked_logits(found[0], rows, said)
        return logits, checked_vectors(found[1], rows, self.representation_size, said)
