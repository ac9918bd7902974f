"""Which files an ONNX model reads beside itself: only those that are named beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path


def external_files(path: Path) -> set[str]:
    """Locations of the model's external data, as it states them.

    Raises:
        ImportError: If `onnx` is not installed.
        ValueError: If the file is no ONNX model.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("ONNX snapshots need the package onnx: pip install 'keras-exfm[onnx]'")
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"not an ONNX model: {error}") from error
    return {
        entry.value
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def check(path: Path, present: Collection[str]) -> None:
    """Refuses a model that reads another file than those present beside it.

    Raises:
        ValueError: Names the file that the model reads.
    """
    strange = sorted(external_files(path) - set(present))
    if strange:
        raise ValueError(
            f"it reads {strange}, which is no part of the snapshot. Its parts: {sorted(present)}"
        )
