"""What the benchmarks share: machine and versions, and workers in processes of their own."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import platform
import subprocess
from pathlib import Path


def keras_versions(*more: str) -> dict[str, str]:
    """Versions of what a measurement with Keras runs on, and of `more` distributions."""
    found = {"python": platform.python_version()}
    for name in ("keras", "tensorflow-cpu", "tensorflow", "jax", "numpy", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def machine() -> dict[str, str | int | None]:
    """Processor and number of cores."""
    return {"cpu": cpu_model(), "cores": os.cpu_count()}


def run_worker(
    command: list[str],
    framework: str,
    settings: dict[str, str] | None = None,
    may_fail: bool = False,
) -> dict | None:
    """The JSON of the last line that a process prints.

    Args:
        command: The command.
        framework: `"jax"`, `"tensorflow"` or `"torch"`.
        settings: Further environment variables.
        may_fail: Whether a failure is told and gives `None`, not the end.
    """
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        **(settings or {}),
    }
    if framework != "torch":
        environment["KERAS_BACKEND"] = framework
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        message = f"{' '.join(command)} failed:\n{run.stderr[-3000:]}"
        if not may_fail:
            raise SystemExit(message)
        print(message, flush=True)
        return None
    return json.loads(run.stdout.splitlines()[-1])
