"""Sublayers that are made in `build` follow their owner's `trainable`."""

from __future__ import annotations

from typing import Any


def hand_down_trainable(layer: Any) -> None:
    """To be called at the end of a `build` that made sublayers.

    Keras hands `trainable = False` down when it is assigned, to the sublayers that exist then. A
    layer that has it from its constructor, as every frozen layer of a file does, would train.
    """
    if not layer.trainable:
        # Up and down: on TensorFlow an assignment of the value that it has already is skipped.
        layer.trainable = True
        layer.trainable = False
