"""A SavedModel as a teacher."""

from __future__ import annotations

from typing import Any

from keras_exfm.das.scorers._batched import Batch, BatchedScorer
from keras_exfm.das.scorers.checks import logit_output
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Schema
from keras_exfm.streaming.columns import StreamError


class SavedModelScorer(BatchedScorer):
    """Scores with SavedModel snapshots, by TensorFlow, whatever Keras runs on.

    The signature's inputs have the names of the stream's features, and take what `Schema.encode`
    gives; its output is a logit, the first one by name if it has several.

    Args:
        schema: The stream's features; the model may read some of them only.
        batch_size: Rows per prediction. Defaults to `1024`.
        representation: Name of the output that `score_with_representation` gives. Defaults to
            `None`: no vectors.
        representation_size: Length of that output; goes with `representation`. Defaults to `None`.
        timeout: As in `KerasScorer`. Defaults to `None`.
        signature: Name of the signature. Defaults to `"serving_default"`.

    Example:

    >>> import keras_exfm as kx
    >>> SavedModelScorer(kx.Schema([kx.Numeric("x")])).signature
    'serving_default'
    """

    def __init__(
        self,
        schema: Schema,
        batch_size: int = 1024,
        representation: str | None = None,
        representation_size: int | None = None,
        timeout: float | None = None,
        signature: str = "serving_default",
    ) -> None:
        super().__init__(schema, batch_size, representation, representation_size, timeout)
        self.signature = signature
        self._forget()

    def _forget(self) -> None:
        self._model: Any = None
        self._function: Any = None
        self._loaded = ""
        self._inputs: list[str] = []
        self._output = ""

    def _prepare(self, snapshot: Snapshot) -> list[str]:
        import tensorflow as tf

        if self._model is None or self._loaded != snapshot.sha256:
            snapshot.verify_program()
            self._loaded = ""
            try:
                model = tf.saved_model.load(str(snapshot.path))
            except Exception as error:
                raise StreamError(f"{snapshot.path}: cannot load the model: {error}") from error
            if self.signature not in model.signatures:
                raise StreamError(
                    f"{snapshot.path}: the teacher has no signature {self.signature!r}. "
                    f"It has: {sorted(model.signatures)}"
                )
            function = model.signatures[self.signature]
            names = sorted(function.structured_outputs)
            self._output = logit_output(names, self.representation, snapshot)
            self._model, self._function = model, function
            self._inputs = list(function.structured_input_signature[1])
            self._loaded = snapshot.sha256
        return self._inputs

    def _predict(self, batch: Batch) -> tuple[Any, Any]:
        import tensorflow as tf

        found = self._function(**{name: tf.constant(batch[name]) for name in self._inputs})
        vectors = found[self.representation].numpy() if self.representation else None
        return found[self._output].numpy(), vectors
