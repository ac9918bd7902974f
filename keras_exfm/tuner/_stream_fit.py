"""A trial over a stream: progressive validation as training and score at once."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import keras

from keras_exfm.features import Schema
from keras_exfm.streaming import Stream, progressive_validation
from keras_exfm.streaming.stream import as_stream

_NAMES = {
    "ne": "normalized_entropy",
    "logloss": "log_loss",
    "auc": "auc",
    "group_auc": "grouped_auc",
    "calibration": "calibration",
    "bayes_ne": "bayes_normalized_entropy",
}


def fit_stream(
    model: keras.Model,
    stream: str | os.PathLike[str] | Stream,
    schema: Schema,
    *,
    hours: tuple[int | None, int | None] | None = None,
    hours_per_epoch: int | None = None,
    epochs: int | None = None,
    initial_epoch: int = 0,
    predictions_path: str | os.PathLike[str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = None,
    **options: Any,
) -> dict[str, float]:
    """Predicts and trains hour by hour; see `RankingHyperModel.fit`.

    Returns:
        `progressive_<metric>` over all hours that count, and `examples`.
    """
    stream = as_stream(stream, options.pop("version", None))
    chosen = stream.select_hours(hours)
    if hours_per_epoch is None:
        hours_per_epoch = len(chosen) if epochs is None else math.ceil(len(chosen) / epochs)
    if not isinstance(hours_per_epoch, int) or hours_per_epoch < 1:
        raise ValueError(
            "`hours_per_epoch` should be an integer of at least 1. "
            f"Received: hours_per_epoch={hours_per_epoch!r}"
        )
    most = math.ceil(len(chosen) / hours_per_epoch)
    last = most if epochs is None else epochs
    if not 0 <= initial_epoch < last <= most:
        raise ValueError(
            f"The stream has {len(chosen)} hours, {most} epochs of {hours_per_epoch}; each hour is "
            "trained on once, so there are no more. Received: "
            f"epochs={epochs!r}, initial_epoch={initial_epoch!r}"
        )
    span = chosen[: last * hours_per_epoch]
    first = chosen[initial_epoch * hours_per_epoch]
    ends = {
        span[min((e + 1) * hours_per_epoch, len(span)) - 1]: e for e in range(initial_epoch, last)
    }
    hooks = keras.callbacks.CallbackList(list(callbacks), model=model)
    hooks.on_train_begin()
    hooks.on_epoch_begin(initial_epoch)

    def on_window(row: dict[str, Any], logs: dict[str, float]) -> None:
        hour = row["hour"]
        if hour in ends:
            # Not under the objective's name: KerasTuner would keep the weights of the best hour,
            # not those that have seen the whole stream.
            figures = {f"hour_{k}": v for k, v in _figures(row).items()}
            hooks.on_epoch_end(ends[hour], {**logs, **figures})
            if ends[hour] + 1 < last:
                hooks.on_epoch_begin(ends[hour] + 1)
            ends.pop(hour)

    result = progressive_validation(
        model,
        stream,
        schema,
        hours=(span[0], span[-1]),
        start=first if initial_epoch else None,
        predictions_path=predictions_path,
        on_window=on_window,
        **options,
    )
    for epoch in ends.values():
        # The epoch's last hour had no row.
        hooks.on_epoch_end(epoch, {})
    hooks.on_train_end()
    if result.whole is None:
        raise ValueError(
            f"No hour of the trial counts: its hours are {span[0]} to {span[-1]}. "
            f"Received: metrics_from={options.get('metrics_from')!r}"
        )
    found = {f"progressive_{name}": value for name, value in _figures(result.whole).items()}
    return {**found, "examples": float(result.whole["examples"])}


def _figures(row: dict[str, Any]) -> dict[str, float]:
    found = {name: float(row[key]) for key, name in _NAMES.items() if row.get(key) is not None}
    ratio = found["calibration"]
    found["calibration_error"] = abs(math.log(ratio)) if ratio > 0 else float("nan")
    return found
