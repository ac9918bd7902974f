"""An ONNX model as a teacher."""

from __future__ import annotations

import importlib.util
from typing import Any

from keras_exfm.das.scorers._batched import Batch, BatchedScorer
from keras_exfm.das.scorers.checks import logit_output
from keras_exfm.das.snapshots import Snapshot
from keras_exfm.features import Schema
from keras_exfm.streaming.columns import StreamError


class OnnxScorer(BatchedScorer):
    """Scores with ONNX snapshots, from any framework, by ONNX Runtime.

    The model's inputs have the names of the stream's features, and take what `Schema.encode`
    gives; its output is a logit, the first one if it has several.

    Args:
        schema: The stream's features; the model may read some of them only.
        batch_size: Rows per prediction. Defaults to `1024`.
        representation: Name of the output that `score_with_representation` gives. Defaults to
            `None`: no vectors.
        representation_size: Length of that output; goes with `representation`. Defaults to `None`.
        timeout: As in `KerasScorer`. Defaults to `None`.
        threads: Threads of ONNX Runtime within an operation. Defaults to `None`: its own choice.

    Raises:
        ImportError: If ONNX Runtime is not installed (`pip install keras-exfm[onnx]`).

    Example:

    >>> import keras_exfm as kx
    >>> OnnxScorer(kx.Schema([kx.Numeric("x")]), threads=1).threads
    1
    """

    def __init__(
        self,
        schema: Schema,
        batch_size: int = 1024,
        representation: str | None = None,
        representation_size: int | None = None,
        timeout: float | None = None,
        threads: int | None = None,
    ) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ImportError("ONNX teachers need ONNX Runtime: pip install 'keras-exfm[onnx]'")
        super().__init__(schema, batch_size, representation, representation_size, timeout)
        self.threads = threads
        self._forget()

    def _forget(self) -> None:
        self._session: Any = None
        self._loaded = ""
        self._outputs: list[str] = []

    def _prepare(self, snapshot: Snapshot) -> list[str]:
        import onnxruntime

        if self._session is None or self._loaded != snapshot.sha256:
            snapshot.verify_program()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            if self.threads is not None:
                options.intra_op_num_threads = self.threads
            self._loaded = ""
            try:
                session = onnxruntime.InferenceSession(
                    str(snapshot.path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise StreamError(f"{snapshot.path}: cannot load the model: {error}") from error
            names = [output.name for output in session.get_outputs()]
            logit = logit_output(names, self.representation, snapshot)
            self._outputs = [logit, *([self.representation] if self.representation else [])]
            self._session, self._loaded = session, snapshot.sha256
        return [put.name for put in self._session.get_inputs()]

    def _predict(self, batch: Batch) -> tuple[Any, Any]:
        found = self._session.run(self._outputs, batch)
        return found[0], found[1] if self.representation else None
