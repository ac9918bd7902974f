"""What the metrics share: a lifetime value, a window of the last updates, merging."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops


class WindowedMetric(keras.metrics.Metric):
    """A metric whose state is a summary of fixed shape that merges with others of its kind.

    A subclass says how a batch becomes a summary and what a summary is worth. `update_state` folds
    the batch's summary into the lifetime state and, if there is a `window`, puts it into a ring
    buffer in place of the oldest one.
    """

    def __init__(self, name: str, dtype: Any, window: int | None) -> None:
        super().__init__(name=name, dtype=dtype)
        if window is not None and (
            isinstance(window, bool) or not isinstance(window, int) or window < 1
        ):
            raise ValueError(
                f"`window` should be an integer of at least 1 or None. Received: window={window!r}"
            )
        self.window = window

    def _add_state(self, state: tuple[int, ...], summary: tuple[int, ...]) -> None:
        """Makes the variables; the last thing that a subclass's constructor does."""
        self._state = self.add_variable(state, "zeros", dtype=self.dtype, name="state")
        if self.window is not None:
            self._ring = self.add_variable(
                (self.window, *summary), "zeros", dtype=self.dtype, name="ring"
            )
            self._updates = self.add_variable((), "zeros", dtype="int32", name="updates")

    def _rows(self, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        """A batch as a tensor that `_absorb` and `_summarize` take."""
        raise NotImplementedError

    def _summarize(self, rows: Any) -> Any:
        """A batch's summary."""
        raise NotImplementedError

    def _absorb(self, state: Any, rows: Any, summary: Any) -> Any:
        """The lifetime state after a batch."""
        raise NotImplementedError

    def _merge(self, state: Any, other: Any) -> Any:
        """The lifetime state of two parts of a stream."""
        raise NotImplementedError

    def _merge_summaries(self, summary: Any, other: Any) -> Any:
        raise NotImplementedError

    def _value(self, state: Any) -> Any:
        """The figure of a lifetime state."""
        raise NotImplementedError

    def _window_value(self, ring: Any) -> Any:
        """The figure of all summaries of a ring; slots that were never filled are zero."""
        raise NotImplementedError

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Labels, `(batch,)` or `(batch, 1)`.
            y_pred: Predictions of the same size.
            sample_weight: Weights of the same size; rows of weight 0 do not count, whatever they
                hold. Defaults to one each.
        """
        rows = self._rows(y_true, y_pred, sample_weight)
        summary = None
        if self.window is not None:
            summary = self._summarize(rows)
            slot = ops.mod(self._updates.value, self.window)
            start = [slot] + [ops.zeros((), "int32")] * len(summary.shape)
            ring = ops.slice_update(self._ring.value, start, ops.expand_dims(summary, 0))
            self._ring.assign(ring)
            self._updates.assign(self._updates.value + 1)
        self._state.assign(self._absorb(self._state.value, rows, summary))

    def result(self) -> Any:
        """The value over all updates since the last reset; NaN where it is not defined."""
        return self._value(self._state.value)

    def window_result(self) -> Any:
        """The value over the last `window` updates.

        Not part of the training logs, which show the lifetime value: call it when it is needed.
        Inside `fit` on JAX, Keras writes metrics back at the end of an epoch; a callback that
        looks earlier calls `self.model.jax_state_sync()` first.

        Raises:
            ValueError: If the metric has no window.
        """
        if self.window is None:
            raise ValueError(f"{type(self).__name__} has no window. Received: window=None")
        return self._window_value(self._ring.value)

    def merge_state(self, metrics: Iterable[WindowedMetric]) -> None:
        """Adds what other metrics of the same configuration have seen, such as other workers'.

        Lifetime values become those of all parts together. So do window values: the merged window
        holds each part's last `window` updates, the newest with the newest.

        Raises:
            ValueError: If a metric is configured differently.
        """
        for other in metrics:
            mine, theirs = ({**m.get_config(), "name": ""} for m in (self, other))
            if type(other) is not type(self) or mine != theirs:
                raise ValueError(
                    "`metrics` should have the configuration of this one. "
                    f"Received: {theirs} and {mine}"
                )
            self._state.assign(self._merge(self._state.value, other._state.value))
            if self.window is not None:
                newest = [int(m._updates.value) - 1 for m in (self, other)]
                rings = [m._ring.value for m in (self, other)]
                merged = list(rings[0])
                for age in range(self.window):
                    a, b = ((n - age) % self.window for n in newest)
                    merged[a] = self._merge_summaries(rings[0][a], rings[1][b])
                self._ring.assign(ops.stack(merged))

    def get_config(self) -> dict[str, Any]:
        """Arguments of the metric."""
        return {**super().get_config(), "window": self.window}


def columns(metric: keras.metrics.Metric, *values: Any) -> list[Any]:
    """Flat tensors of the metric's dtype, of one size."""
    flat = [ops.reshape(ops.cast(ops.convert_to_tensor(v), metric.dtype), (-1,)) for v in values]
    sizes = {f.shape[0] for f in flat if f.shape[0] is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"{type(metric).__name__}: labels, predictions and weights should have one value a "
            f"row. Received shapes: {[tuple(ops.convert_to_tensor(v).shape) for v in values]}"
        )
    return flat


def used_rows(metric: keras.metrics.Metric, y: Any, z: Any, sample_weight: Any) -> list[Any]:
    """Labels, predictions and weights, all 0 in rows that do not count: `0 * NaN` is NaN."""
    if sample_weight is None:
        y, z = columns(metric, y, z)
        return [y, z, ops.ones_like(z)]
    y, z, w = columns(metric, y, z, sample_weight)
    used = w > 0
    return [ops.where(used, x, ops.zeros_like(x)) for x in (y, z, w)]


def changes(x: Any) -> Any:
    """Whether an entry of a sorted vector differs from the one before; `True` in the first."""
    return ops.pad(ops.not_equal(x[1:], x[:-1]), [[1, 0]], constant_values=True)


def weight_below(new_block: Any, weight: Any) -> Any:
    """Weight in the blocks before each row's own, plus half of its own block's.

    Blocks are runs of equal scores, so this counts ties half. Made of sums, not of
    `ops.searchsorted`, which TensorFlow's XLA compiles to a quadratic loop.
    """
    block = ops.cumsum(ops.cast(new_block, "int32"))
    sums = ops.segment_sum(weight, block, num_segments=ops.shape(weight)[0] + 1)
    return ops.take(ops.cumsum(sums) - sums / 2, block)
