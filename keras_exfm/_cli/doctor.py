"""`keras-exfm doctor`: versions, backend, devices, and traps that cost others hours."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.markup import escape
from rich.table import Table

from keras_exfm import __version__
from keras_exfm._cli.shared import Backend, BackendOption, console, uses_onednn

Status = Literal["ok", "note", "wrong"]
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}
_ON = ("1", "true", "yes")
_PROBE = """
import json
import keras, numpy as np
product = keras.ops.matmul(np.ones((8, 8), "float32"), np.ones((8, 8), "float32"))
assert float(keras.ops.convert_to_numpy(product).sum()) == 512.0, product
import keras_exfm.layers
print(json.dumps(keras.distribution.list_devices()))
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    status: Status = "ok"
    advice: str = ""


def doctor(backend: BackendOption = None) -> None:
    """Check the installation: versions, backend, devices, known traps.

    Exits with code 1 when something is wrong; notes are no fault.
    """
    environment = dict(os.environ)
    if backend is not None:
        environment["KERAS_BACKEND"] = backend.value
    versions, requirements = installed(), declared()
    chosen, findings = check_backend(environment, versions)
    findings = [
        *check_machine(),
        *check_requirements(versions, requirements),
        *findings,
        *check_traps(environment, versions, chosen),
    ]
    if chosen is not None:
        findings.append(probe(chosen, environment))
    table = Table(title=f"keras-exfm {__version__}")
    for column in ("", "what", "found", "advice"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        texts = (escape(text) for text in (finding.name, finding.found, finding.advice))
        table.add_row(_MARKS[finding.status], *texts)
    console.print(table)
    wrong = sum(finding.status == "wrong" for finding in findings)
    if wrong:
        console.print(f"[bold red]{wrong} wrong[/]: see the advice above.")
        raise typer.Exit(1)
    console.print("[green]Nothing is wrong.[/]")


def installed() -> dict[str, str]:
    """Version of every distribution, by its normalized name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            # Where the path has two of a name, Python imports the first.
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def declared() -> list[str]:
    """The requirements of this package, extras included; none if it is not installed as one."""
    try:
        return importlib.metadata.requires("keras-exfm") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def check_machine() -> list[Finding]:
    """Python and the machine."""
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    return [
        Finding("Python", version, "wrong" if old else "ok", "3.11 or newer" if old else ""),
        Finding("machine", f"{platform.platform()}, {os.cpu_count()} cores"),
    ]


def check_requirements(versions: Mapping[str, str], requirements: Sequence[str]) -> list[Finding]:
    """What the package needs, and its extras."""
    if not requirements:
        return [
            Finding("keras-exfm", __version__, "note", "not installed by pip: nothing to compare")
        ]
    found: list[Finding] = []
    extras: dict[str, list[Requirement]] = {}
    for text in requirements:
        requirement = Requirement(text)
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        name = named[1] if named else ""
        if requirement.marker is None or requirement.marker.evaluate({"extra": name}):
            extras.setdefault(name, []).append(requirement)
    for requirement in extras.pop("", []):
        name = canonicalize_name(requirement.name)
        version = versions.get(name)
        # Either is fine; which one is declared depends on the machine.
        if version is None and name in ("tensorflow-cpu", "tensorflow"):
            version = versions.get("tensorflow") or versions.get("tensorflow-cpu")
        found.append(_versioned(requirement, version))
    for extra, needed in extras.items():
        # For work on the package itself.
        if extra in ("dev", "docs"):
            continue
        states = [_versioned(r, versions.get(canonicalize_name(r.name))) for r in needed]
        there = [s for r, s in zip(needed, states) if canonicalize_name(r.name) in versions]
        old = [s for s in there if s.status == "wrong"]
        install = f"pip install 'keras-exfm[{extra}]'"
        text = ", ".join(f"{s.name} {s.found}" for s in there) or "not installed"
        if old:
            found.append(Finding(f"extra {extra}", text, "wrong", f"{old[0].advice}: {install}"))
        elif len(there) == len(states):
            found.append(Finding(f"extra {extra}", text))
        else:
            found.append(Finding(f"extra {extra}", text, "note", install))
    return found


def check_backend(
    environment: Mapping[str, str], versions: Mapping[str, str]
) -> tuple[str | None, list[Finding]]:
    """The Keras backend; `None` if it cannot be used."""
    chosen, source = environment.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not chosen:
        home = environment.get("KERAS_HOME") or "~/.keras"
        file = Path(home).expanduser() / "keras.json"
        chosen, source = "tensorflow", "KERAS_BACKEND is not set: Keras' default"
        try:
            chosen = str(json.loads(file.read_text())["backend"])
            source = f"KERAS_BACKEND is not set: {file}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
    text = f"{chosen} ({source})"
    known = [b.value for b in Backend]
    if chosen not in known:
        advice = f"set KERAS_BACKEND to {' or '.join(known)}; others are not supported"
        return None, [Finding("Keras backend", text, "wrong", advice)]
    if chosen == "jax" and "jax" not in versions:
        advice = "pip install 'keras-exfm[jax]'"
        return None, [Finding("Keras backend", text, "wrong", advice)]
    return chosen, [Finding("Keras backend", text)]


def check_traps(
    environment: Mapping[str, str], versions: Mapping[str, str], backend: str | None
) -> list[Finding]:
    """What is known to go wrong later, and not where the cause is."""
    found: list[Finding] = []
    both = [n for n in ("tensorflow", "tensorflow-cpu") if n in versions]
    if len(both) == 2:
        found.append(
            Finding(
                "TensorFlow",
                ", ".join(f"{n} {versions[n]}" for n in both),
                "wrong",
                "both packages write the same files: uninstall both, then install one",
            )
        )
    tensorflow = versions.get("tensorflow") or versions.get("tensorflow-cpu")
    if environment.get("TF_USE_LEGACY_KERAS", "").lower() in _ON:
        found.append(
            Finding(
                "TF_USE_LEGACY_KERAS",
                environment["TF_USE_LEGACY_KERAS"],
                "wrong",
                "unset it: tf.keras is then Keras 2, whose layers do not mix with these (a "
                "teacher in Keras 2 is a process of its own: examples/tfrs_teacher.py)",
            )
        )
    legacy = versions.get("tf-keras")
    if legacy and tensorflow and _minor(legacy) != _minor(tensorflow):
        found.append(
            Finding(
                "tf_keras",
                f"{legacy} beside TensorFlow {tensorflow}",
                "wrong",
                "each tf_keras fits one minor version of TensorFlow: install that one, or none",
            )
        )
    if "keras-tuner" in versions and "tensorboard" not in versions:
        found.append(
            Finding(
                "tensorboard",
                "not installed, KerasTuner is",
                "wrong" if backend == "tensorflow" else "note",
                "KerasTuner imports it on TensorFlow: pip install 'keras-exfm[tuner]'",
            )
        )
    rs = versions.get("keras-rs")
    if rs:
        old = _minor(rs) < (0, 4)
        advice = "examples/keras_rs_retrieval_then_rank.py is tested with 0.4" if old else ""
        found.append(Finding("keras-rs", rs, "note" if old else "ok", advice))
    without_onednn = backend == "tensorflow" and not uses_onednn(environment)
    if (backend == "jax" or without_onednn) and platform.libc_ver()[0] == "glibc":
        kept = "MALLOC_MMAP_MAX_" in environment or "glibc.malloc" in environment.get(
            "GLIBC_TUNABLES", ""
        )
        advice = (
            "TensorFlow runs without oneDNN here: set TF_ENABLE_ONEDNN_OPTS=1, or, to train on a "
            "CPU, call kx.keep_freed_memory() at a script's start: up to twice as fast"
            if without_onednn
            else "on a CPU, kx.keep_freed_memory() at a script's start makes steps of large models "
            "a quarter to a third shorter"
        )
        found.append(
            Finding("malloc", "set in the environment")
            if kept
            else Finding("malloc", "glibc's default", "note", advice)
        )
    return found


def probe(backend: str, environment: Mapping[str, str], timeout_s: float = 180.0) -> Finding:
    """Multiplies two matrices in a process of its own: a broken library may take it down."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **environment, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        advice = "importing Keras and one product should take seconds"
        return Finding("devices", f"no answer within {timeout_s:.0f} s", "wrong", advice)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {done.returncode}"
        return Finding(
            "devices", last, "wrong", f"KERAS_BACKEND={backend} python -c 'import keras'"
        )
    devices = json.loads(done.stdout.splitlines()[-1])
    return Finding("devices", f"{', '.join(devices)} (a product was computed)")


def _versioned(requirement: Requirement, version: str | None) -> Finding:
    if version is None:
        return Finding(requirement.name, "missing", "wrong", f"pip install '{_plain(requirement)}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, version, "wrong", f"needs {_plain(requirement)}")
    return Finding(requirement.name, version)


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
