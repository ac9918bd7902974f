"""Training on a stream that goes on after a crash where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_exfm.streaming._progress import Position, Progress
from keras_exfm.streaming.columns import StreamError
from keras_exfm.streaming.stream import Stream

_WEIGHTS = "model.weights.h5"
_STATE = "state.npz"
_NOTE = "checkpoint.json"
_NAME = re.compile(r"step-(\d{12})")
_UNFINISHED = re.compile(r"\.step-\d{12}\.unfinished")


class _EndOfPass:
    """Set as `model.stop_training` to end an epoch, where `True` ends the whole `fit`."""


class StreamCheckpoint(keras.callbacks.Callback):
    """Saves a `fit` on a labelled stream, and lets the same program go on with it after a crash.

    What is saved: the model's weights with all embedding tables, the state of their row
    optimizers and of the model's optimizer, the seeds of dropout and of other random layers, the
    metrics (on TensorFlow, those of an epoch that was interrupted count the batches after the
    restart alone), and the place in the stream **after the last batch trained on**, not after the
    last one read ahead. A program that is killed at any moment and started again (`kill -9`, a
    machine that is taken away) ends with the weights of one that was never interrupted:

    1. `read(..., checkpoint=checkpoint)` begins with the batch after the newest checkpoint, at the
       table version of the first start, though the stream may have grown. Hours and row groups
       before it are not read.
    2. `fit(..., callbacks=[checkpoint])` restores the state and goes on in the epoch where it was.
       A `fit` that had ended returns at once.

    A checkpoint is a folder `step-<batches trained on>`, written under another name, flushed to
    the disk and then renamed, so that what has its name is whole; one whose files have another
    size is passed over with a warning. Memory: tables with a row optimizer are written and read in
    pieces of 16 MiB.

    Between `read` and `fit` only what keeps batches one for one and in order is allowed: `map`,
    `prefetch`. For several passes use `epochs` of `read` or of `fit`, not `repeat`;
    `steps_per_epoch` is refused. Not saved: the state of other callbacks (early stopping, logs of
    past epochs), and seeds drawn without a `keras.random.SeedGenerator`. Weights before the first
    checkpoint are those that your program makes: call `keras.utils.set_random_seed` first.

    Args:
        path: Local folder for the checkpoints of this one run. Remove it to start over.
        every: Save after so many batches; the end of an epoch is always saved. Defaults to `1000`.
        keep: How many checkpoints are kept, the newest ones. Defaults to `2`.

    Raises:
        ValueError: For an argument out of its range.
        StreamError: If the folder holds checkpoints of another model, optimizer, backend or
            stream, or of this stream read in another way, or checkpoints none of which is whole;
            if `fit` does not go through the stream batch by batch; if a checkpoint cannot be
            written (the ones before it stay).

    Example:

    >>> import keras, keras_exfm as kx
    >>> schema = kx.Schema([kx.Numeric("x")])
    >>> rows = {"example_id": range(8), "timestamp": range(8), "vertical": ["feed"] * 8,
    ...         "x": [-1.0, 1.0] * 4, "label": [0.0, 1.0] * 4}
    >>> kx.streaming.write_hour("labelled", 0, rows, schema)
    True
    >>> def program():
    ...     keras.utils.set_random_seed(1)
    ...     inputs = schema.inputs()
    ...     x = keras.layers.Dropout(0.5)(inputs["x"][:, None])
    ...     model = keras.Model(inputs, keras.layers.Dense(1)(x))
    ...     model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    ...     checkpoint = kx.streaming.StreamCheckpoint("checkpoints", every=2)
    ...     data = kx.streaming.read("labelled", schema, 2, checkpoint=checkpoint)
    ...     data = data.map(lambda x, y, w: (x, y["label"], w))
    ...     model.fit(data, callbacks=[checkpoint], verbose=0)
    ...     return checkpoint, model
    >>> checkpoint, model = program()
    >>> checkpoint.steps
    [2, 4]
    >>> _, again = program()   # ended before: nothing is trained, the weights are the same
    >>> bool((model.get_weights()[0] == again.get_weights()[0]).all())
    True
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1000, keep: int = 2) -> None:
        super().__init__()
        for name, value in (("every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` should be an integer of at least 1. Received: {name}={value!r}"
                )
        if "://" in os.fspath(path):
            raise ValueError(f"`path` should be a local folder. Received: path={path!r}")
        self.path = Path(path)
        self.every = every
        self.keep = keep
        self._note: dict[str, Any] | None = None
        self._progress: Progress | None = None
        # The epoch that runs, batches of it and of the whole `fit` trained on.
        self._epoch = 0
        self._batches = 0
        self._total = 0
        self._saved = 0
        self._resuming = False
        self._counters: list[tuple[Any, np.ndarray]] = []
        self._end_of_pass = _EndOfPass()

    @property
    def steps(self) -> list[int]:
        """Batches trained on at each checkpoint in the folder, oldest first."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def pin(
        self, path: str | os.PathLike[str] | Stream, stream: Stream, version: int | None
    ) -> Stream:
        """The stream at the version that the newest checkpoint was reading; called by `read`.

        Args:
            path: What `read` got.
            stream: The stream that it opened.
            version: The version that `read` was asked for.
        """
        self._note = self._newest()
        if self._note is None:
            return stream
        held = self._note["stream"]
        if held["table"] != stream.table_id:
            self._refuse_stream({**held, "table": stream.table_id})
        if held["version"] in (None, stream.version):
            return stream  # One that follows has no version of its own.
        if isinstance(path, Stream) or version is not None:
            self._refuse_stream({**held, "version": stream.version})
        return Stream(path, held["version"])  # type: ignore[arg-type]

    def attach(self, stream: dict[str, Any]) -> Progress:
        """The record that a dataset keeps for this checkpoint; called by `read`.

        Args:
            stream: What tells the stream and the way it is read from any other.
        """
        stream = json.loads(json.dumps(stream))
        start = Position()
        if self._note is not None:
            if self._note["stream"] != stream:
                self._refuse_stream(stream)
            start = Position(**self._note["position"])
        self._progress = Progress(stream, start)
        return self._progress

    # Keras' hooks. Reading `self.model` on JAX puts the state back into the variables, which costs
    # something: never in a step that saves nothing.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the newest checkpoint."""
        progress = self._check_fit()
        note = self._newest()
        if (note or {}).get("step") != (self._note or {}).get("step"):
            raise StreamError(
                f"{self.path}: the newest checkpoint is of step {(note or {}).get('step')}, but "
                f"the dataset begins after step {(self._note or {}).get('step')}. Call `read` "
                "again before each `fit`, and give each run a folder of its own."
            )
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if _UNFINISHED.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._resuming = note is not None
        self._epoch = self._total = 0
        if note is not None:
            self._restore(note)
            self._epoch, self._total = note["epoch"], note["step"]
        self._saved = self._total
        self._batches = progress.start.batches
        _set_initial_epoch(self.model, self._epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the metrics, which Keras has just reset."""
        if not self._resuming:
            self._epoch = epoch
            return
        if epoch != self._epoch:
            raise StreamError(
                f"{self.path}: `fit` should go on with epoch {self._epoch}. Received: epoch "
                f"{epoch}. Pass `initial_epoch={self._epoch}`, or leave `initial_epoch` out."
            )
        # Keras builds the metrics before the first batch on JAX, and with it on TensorFlow.
        note = self._note
        if self._batches and note and note["metrics"] == _kinds(self.model.metrics_variables):
            self._restore_metrics(note)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves every so many batches."""
        progress = self._progress
        assert progress is not None
        # With several steps an execution, Keras names the last one as if all had had data.
        trained = progress.start.batches + batch + 1
        if progress.length is not None and not progress.follows:
            trained = min(trained, progress.length)
        self._total += trained - self._batches
        self._batches = trained
        if progress.follows and keras.backend.backend() == "tensorflow":
            # When the dataset has ended, TensorFlow still counts a step and draws a mask for the
            # batch that it then finds missing.
            variables = [*self.model.variables, *self.model.optimizer.variables]
            counters = [v for v in variables if not len(v.shape)] + _random_state(self.model)
            self._counters = [(variable, _numpy(variable)) for variable in counters]
        if trained == progress.length and not progress.follows:
            # `on_epoch_end` saves. A dataset that states no length is stopped here: if it ran out,
            # Keras would take this pass for the length of all the others.
            if progress.stated is None:
                self.model.stop_training = self._end_of_pass
        elif self._total // self.every > self._saved // self.every:
            self._save(with_metrics=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves, and lets the next epoch begin with the first batch of the stream."""
        progress = self._progress
        assert progress is not None
        model = self.model
        if model.stop_training is self._end_of_pass:
            model.stop_training = False
        if progress.follows:
            for variable, value in self._counters:
                variable.assign(value)
            # The stream may grow yet: the same program goes on from here.
            if self._total > self._saved:
                self._save(with_metrics=True)
            return
        if self._batches != progress.length:
            if model.stop_training:
                self._save(with_metrics=True)
                return
            if model.steps_per_execution == 1 or progress.length is None:
                raise StreamError(
                    f"`fit` ended an epoch after {self._batches} batches; the stream has "
                    f"{progress.length or 'more'}. {_ONE_FOR_ONE}"
                )
            # TensorFlow has trained on the last few, without a word to callbacks.
            self._total += progress.length - self._batches
        self._epoch = epoch + 1
        self._batches = 0
        self._resuming = False
        progress.start = Position()
        self._save(with_metrics=False)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the model back as Keras had it."""
        _set_initial_epoch(self.model, 0)

    def _check_fit(self) -> Progress:
        assert self.params is not None
        if self._progress is None:
            raise StreamError(
                "A StreamCheckpoint needs to know the stream: pass it to "
                "`keras_exfm.streaming.read(..., checkpoint=...)` too."
            )
        steps = self.params.get("steps")
        if steps != self._progress.stated:
            raise StreamError(
                f"`fit` would go through {steps or 'an unknown number of'} batches an epoch; the "
                f"dataset has {self._progress.stated or 'an unknown number'}. {_ONE_FOR_ONE}"
            )
        if self._progress.follows and (
            self.params.get("epochs", 1) > 1 or self.model.steps_per_execution > 1
        ):
            raise StreamError(
                "With `follow=True` a StreamCheckpoint supports one epoch of `fit`, and "
                "`steps_per_execution` of 1. Received: "
                f"epochs={self.params.get('epochs')}, "
                f"steps_per_execution={self.model.steps_per_execution}"
            )
        if self.model.steps_per_execution > 1 and self.params.get("epochs", 1) > 1:
            raise StreamError(
                "With `steps_per_execution` above 1 a StreamCheckpoint supports one epoch of "
                f"`fit`. Received: epochs={self.params['epochs']}. Use `epochs` of `read` instead."
            )
        return self._progress

    # Writing

    def _save(self, with_metrics: bool) -> None:
        progress = self._progress
        assert progress is not None
        place = progress.after(self._batches) if self._batches else Position()
        if place is None:
            raise StreamError(
                f"`fit` has trained on {self._batches} batches, which the stream has not handed "
                f"out. {_ONE_FOR_ONE}"
            )
        final = self.path / f"step-{self._total:012d}"
        unfinished = self.path / f".{final.name}.unfinished"
        model = self.model
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            model.save_weights(unfinished / _WEIGHTS)
            arrays: dict[str, Any] = {
                f"random.{i}": _numpy(v) for i, v in enumerate(_random_state(model))
            }
            if with_metrics:
                arrays |= {f"metric.{i}": _numpy(v) for i, v in enumerate(model.metrics_variables)}
            np.savez(unfinished / _STATE, **arrays)
            note = {
                "format": 1,
                "backend": keras.backend.backend(),
                "step": self._total,
                "epoch": self._epoch,
                "position": dataclasses.asdict(place),
                "stream": progress.stream,
                "model": _describe(model),
                "metrics": _kinds(model.metrics_variables),
                "sizes": {n: (unfinished / n).stat().st_size for n in (_WEIGHTS, _STATE)},
            }
            (unfinished / _NOTE).write_text(json.dumps(note))
            for name in (_WEIGHTS, _STATE, _NOTE):
                _flush(unfinished / name)
            _flush(unfinished)
            # Should it exist, it is one that was not whole.
            shutil.rmtree(final, ignore_errors=True)
            os.rename(unfinished, final)
            _flush(self.path)
        except (OSError, RuntimeError) as error:  # HDF5 has either for a full disk.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StreamError(
                f"{final}: the checkpoint cannot be written: {error}. "
                f"The folder holds the checkpoints of the steps {self.steps}."
            ) from error
        self._saved = self._total
        for step in self.steps[: -self.keep]:
            # Renamed first: no half-removed checkpoint has a checkpoint's name.
            old = self.path / f"step-{step:012d}"
            with contextlib.suppress(OSError):
                os.rename(old, self.path / f".{old.name}.unfinished")
            shutil.rmtree(self.path / f".{old.name}.unfinished", ignore_errors=True)

    # Reading

    def _newest(self) -> dict[str, Any] | None:
        steps = self.steps
        for step in reversed(steps):
            folder = self.path / f"step-{step:012d}"
            try:
                note = json.loads((folder / _NOTE).read_text())
                sizes = {name: (folder / name).stat().st_size for name in note["sizes"]}
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = str(error)
            else:
                if sizes == note["sizes"]:
                    return note
                reason = f"sizes {sizes}, expected {note['sizes']}"
            warnings.warn(f"{folder}: passed over, it is not whole: {reason}", stacklevel=3)
        if steps:
            raise StreamError(
                f"{self.path}: none of the checkpoints of the steps {steps} is whole. Remove the "
                "folder to start over."
            )
        return None

    def _restore(self, note: dict[str, Any]) -> None:
        folder = self.path / f"step-{note['step']:012d}"
        model = self.model
        here = {"backend": keras.backend.backend(), **_describe(model)}
        there = {"backend": note["backend"], **note["model"]}
        for key, expected in there.items():
            if here[key] != expected:
                raise StreamError(
                    f"{folder}: the checkpoint is of another model or backend: "
                    f"{_difference(key, here[key], expected)}"
                )
        try:
            model.load_weights(folder / _WEIGHTS)
            with np.load(folder / _STATE) as arrays:
                for i, variable in enumerate(_random_state(model)):
                    variable.assign(arrays[f"random.{i}"])
        except (OSError, KeyError) as error:
            raise StreamError(f"{folder}: the checkpoint cannot be read: {error}") from error

    def _restore_metrics(self, note: dict[str, Any]) -> None:
        folder = self.path / f"step-{note['step']:012d}"
        with np.load(folder / _STATE) as arrays:
            for i, variable in enumerate(self.model.metrics_variables):
                variable.assign(arrays[f"metric.{i}"])

    def _refuse_stream(self, received: dict[str, Any]) -> None:
        assert self._note is not None
        held = self._note["stream"]
        differ = "; ".join(
            f"{key}: received {received.get(key)!r}, expected {value!r}"
            for key, value in held.items()
            if received.get(key) != value
        )
        raise StreamError(
            f"{self.path}: the checkpoints are of another stream, or of this one read in another "
            f"way: {differ}"
        )


_ONE_FOR_ONE = (
    "A StreamCheckpoint counts the batches of `read`: between `read` and `fit` only `map` and "
    "`prefetch` keep them, and `steps_per_epoch` cannot be used."
)


def _random_state(model: keras.Model) -> list[Any]:
    """The variables that are no weights: the seeds."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def _describe(model: keras.Model) -> dict[str, Any]:
    """What a checkpoint and a model must have in common, as JSON has it."""
    return {
        "weights": [
            # Keras numbers names that the process has used before.
            [re.sub(r"_\d+(?=/|$)", "", variable.path), *kind]
            for variable, kind in zip(model.weights, _kinds(model.weights))
        ],
        "optimizer": [type(model.optimizer).__name__, *_kinds(model.optimizer.variables)],
        "random state": _kinds(_random_state(model)),
    }


def _kinds(variables: list[Any]) -> list[Any]:
    return [[list(v.shape), keras.backend.standardize_dtype(v.dtype)] for v in variables]


def _difference(what: str, received: Any, expected: Any) -> str:
    if isinstance(received, str) or isinstance(expected, str):
        return f"{what}: received {received!r}, expected {expected!r}"
    if len(received) != len(expected):
        return f"{what}: received {len(received)} variables, expected {len(expected)}"
    place = next(i for i, pair in enumerate(zip(received, expected)) if pair[0] != pair[1])
    return f"{what}, number {place}: received {received[place]!r}, expected {expected[place]!r}"


def _set_initial_epoch(model: keras.Model, epoch: int) -> None:
    """Has `fit` begin with this epoch, as Keras' own callback for backups does.

    Keras has no public name for it; its `BackupAndRestore`, given a backup without weights,
    sets the epoch and nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "training_metadata.json").write_text(json.dumps({"epoch": epoch, "batch": 0}))
        backup = keras.callbacks.BackupAndRestore(folder)
        backup.set_model(model)
        backup.on_train_begin()


def _numpy(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _flush(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
