"""A Keras model as a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_exfm.das.scorers._batched import Batch, BatchedScorer
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Schema
from keras_exfm.streaming.columns import StreamError

if TYPE_CHECKING:
    import keras


class KerasScorer(BatchedScorer):
    """Scores with the snapshots of a Keras model.

    A snapshot of the same architecture as the last one only brings new weights into the model
    that is already compiled, so a rotation costs a file read and no compilation.

    Args:
        schema: The stream's features; the model may read some of them only.
        batch_size: Rows per prediction; tails are filled up, so that one shape is compiled.
            Defaults to `1024`.
        representation: Name of the layer whose output `score_with_representation` gives.
            Defaults to `None`: no vectors.
        representation_size: Length of that output; goes with `representation`. Defaults to `None`.
        timeout: Seconds that loading a snapshot, or scoring a batch, may take; the first batch
            includes its compilation. Defaults to `None`: any time.

    Raises:
        StreamError: While scoring, for a model that does not fit the stream or gives no logit.
        TeacherTimeout: While scoring, past `timeout`. The thread that hangs is left behind: end
            the process soon.

    Example:

    >>> import keras_exfm as kx, numpy as np
    >>> schema = kx.Schema([kx.Numeric("x")])
    >>> shot = kx.das.SnapshotStore("keras-teacher").publish(
    ...     kx.models.LogisticRegression(schema), 0)
    >>> KerasScorer(schema).score({"x": np.zeros(3, "float32")}, shot).tolist()
    [0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        schema: Schema,
        batch_size: int = 1024,
        representation: str | None = None,
        representation_size: int | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(schema, batch_size, representation, representation_size, timeout)
        self._forget()

    def _forget(self) -> None:
        self._model: keras.Model | None = None
        self._both: keras.Model | None = None
        self._architecture = ""
        self._loaded = ""

    def _prepare(self, snapshot: Snapshot) -> list[str]:
        if self._model is None or self._loaded != snapshot.sha256:
            architecture = snapshot.architecture()
            # Weights that were read in half are no snapshot's.
            self._loaded = ""
            if self._model is None or architecture != self._architecture:
                self._model = None
                model = snapshot.load()
                self._both = self._with_vectors(model, snapshot)
                self._model, self._architecture = model, architecture
            else:
                snapshot.load_weights(self._model)
            self._loaded = snapshot.sha256
        return [tensor.name for tensor in self._model.inputs]

    def _with_vectors(self, model: keras.Model, snapshot: Snapshot) -> keras.Model | None:
        import keras

        if self.representation is None:
            return None
        names = [layer.name for layer in model.layers]
        if self.representation not in names:
            raise StreamError(
                f"{snapshot.path}: the teacher has no layer {self.representation!r}. "
                f"It has: {names}"
            )
        return keras.Model(model.input, [model.output, model.get_layer(self.representation).output])

    def _predict(self, batch: Batch) -> tuple[Any, Any]:
        if self._both is None:
            assert self._model is not None
            return self._model.predict_on_batch(batch), None
        logits, vectors = self._both.predict_on_batch(batch)
        return logits, vectors
