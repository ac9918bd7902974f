"""`diagnose` as a callback of `fit`."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.distillation.diagnostics import diagnose


class TeacherDiagnostics(keras.callbacks.Callback):
    """Judges the teachers of an `ExternalDistillation` on a fixed sample while it trains.

    The figures are those of `diagnose`. They go to `records` and, at the end of an epoch, into its
    logs under `sample_` and their name. Under `progressive_validation`, where no callbacks run,
    call `diagnose` in `on_window`.

    Args:
        x: Features of the sample.
        y: Labels and teachers' columns of the sample, as in training; `teacher_age_s` may be added.
        sample_weight: Weights of the sample. Defaults to `None`.
        every: Number of batches between two measurements. Defaults to `None`: at the end of each
            epoch only.

    Attributes:
        records: A dict for each measurement: `epoch`, `batch` (trained since the start of `fit`)
            and the figures.

    Raises:
        ValueError: If `every` is no positive integer.

    Example:

    >>> import keras, numpy as np
    >>> from keras_exfm.distillation import ExternalDistillation
    >>> from keras_exfm.layers import AuxiliaryHead
    >>> inputs = keras.Input((4,))
    >>> h = keras.layers.Dense(8, activation="relu")(inputs)
    >>> student = ExternalDistillation(
    ...     inputs, keras.layers.Dense(1)(h), representation=h, auxiliary_head=AuxiliaryHead())
    >>> student.compile("sgd")
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> y = {"label": (x[:, 0] > 0).astype("float32"), "teacher_logit": 3 * x[:, 0]}
    >>> watch = TeacherDiagnostics(x, y, every=2)
    >>> history = student.fit(x, y, batch_size=16, callbacks=[watch], verbose=0).history
    >>> [record["batch"] for record in watch.records], "sample_gradient_ratio" in history
    ([2, 4], True)
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any = None, every: int | None = None) -> None:
        super().__init__()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
            raise ValueError(
                f"`every` should be a positive integer or None. Received: every={every!r}"
            )
        if every is not None and every < 1:
            raise ValueError(f"`every` should be at least 1. Received: every={every}")
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self.every = every
        self.records: list[dict[str, Any]] = []
        self._epoch = 0
        self._batch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Counts batches from here."""
        self._epoch = self._batch = 0
        self.records = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measures every `every` batches."""
        self._batch += 1
        if self.every is not None and self._batch % self.every == 0:
            self._measure()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measures, and puts the figures into the logs."""
        last = self.records[-1]["batch"] if self.records else None
        figures = self.records[-1] if last == self._batch else self._measure()
        if logs is not None:
            for name, value in figures.items():
                if name not in ("epoch", "batch"):
                    logs[f"sample_{name}"] = value

    def _measure(self) -> dict[str, Any]:
        if keras.backend.backend() == "jax":
            # Within an epoch the state lives in the compiled loop.
            self.model.jax_state_sync()
        figures = diagnose(self.model, self.x, self.y, self.sample_weight)
        record = {"epoch": self._epoch, "batch": self._batch, **figures}
        self.records.append(record)
        return record
