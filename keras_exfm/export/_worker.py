"""Conversion, which TensorFlow does; in a process of its own where Keras runs on another backend.

`python -m keras_exfm.export._worker JOB` reads `JOB/job.json`, `JOB/model.keras` and
`JOB/batch.npz` and leaves `JOB/done.json` and `JOB/reference.npz`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.export.errors import ExportError

if TYPE_CHECKING:
    import keras

_FAILED = 3


def convert(
    model: keras.Model, job: dict[str, Any], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Writes the files of a job; what they should give for a batch."""
    from keras_exfm.export import _litert, _onnx, _saved_model
    from keras_exfm.export._graph import ServingGraph

    graph = ServingGraph(model, job["inputs"], job["tables"], job["output"], job["representation"])
    reference = graph.reference(batch)
    # The SavedModel first: its weights stay variables.
    for target in sorted(job["targets"], key=lambda t: t["format"] != "saved_model"):
        path, metadata = Path(target["path"]), target["metadata"]
        if target["format"] == "saved_model":
            _saved_model.write(graph, path, metadata)
        elif target["format"] == "onnx":
            _onnx.write(graph, path, metadata, job["opset"], job["external_data"])
        else:
            _litert.write(graph, path, metadata)
    return reference


def convert_elsewhere(
    model: keras.Model, job: dict[str, Any], batch: dict[str, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """`convert` in a process whose Keras runs on TensorFlow, on a copy of the model."""
    model.save(folder / "model.keras")
    (folder / "job.json").write_text(json.dumps(job))
    _save(folder / "batch.npz", batch)
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "keras_exfm.export._worker", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == _FAILED:
        raise ExportError(json.loads((folder / "failed.json").read_text())["message"])
    if run.returncode:
        raise ExportError(
            "The conversion, on TensorFlow in a process of its own, ended with code "
            f"{run.returncode}:\n{run.stderr[-2000:]}"
        )
    with np.load(folder / "reference.npz") as found:
        return dict(found)


def _save(file: Path, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)


def main(folder: Path) -> int:
    """Does the job that lies in a folder."""
    job = json.loads((folder / "job.json").read_text())
    for name in job["imports"]:
        importlib.import_module(name)
    import keras

    with np.load(folder / "batch.npz") as found:
        batch = dict(found)
    try:
        model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
        reference = convert(model, job, batch)
    except (ExportError, ImportError, ValueError, TypeError) as error:
        if not isinstance(error, ExportError):
            traceback.print_exc()
        message = str(error) if isinstance(error, ExportError) else repr(error)
        (folder / "failed.json").write_text(json.dumps({"message": message}))
        return _FAILED
    _save(folder / "reference.npz", reference)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
