"""What all commands share."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from keras_exfm.memory import keep_freed_memory

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Backend(StrEnum):
    """Keras backends that keras_exfm supports."""

    tensorflow = "tensorflow"
    jax = "jax"


BackendOption = Annotated[
    Backend | None,
    typer.Option(help="Keras backend. Left out: KERAS_BACKEND, else tensorflow."),
]


def use_backend(backend: Backend | None) -> None:
    """Chooses the backend; Keras reads it at its first import, which comes later."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    chosen = backend.value if backend else os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if chosen not in [b.value for b in Backend]:
        raise typer.BadParameter(
            f"KERAS_BACKEND should be 'tensorflow' or 'jax'. Received: {chosen!r}"
        )
    if chosen == "jax" and importlib.util.find_spec("jax") is None:
        raise typer.BadParameter("JAX is not installed: pip install 'keras-exfm[jax]'")
    os.environ["KERAS_BACKEND"] = chosen


def import_keras() -> None:
    """Imports Keras and TensorFlow without the lines that TensorFlow always writes to stderr.

    From then on the process keeps what it frees, where that helps (`keep_memory`).
    """
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            importlib.import_module("keras")
            importlib.import_module("tensorflow")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    keep_memory(os.environ["KERAS_BACKEND"])


def keep_memory(backend: str) -> None:
    """`keep_freed_memory` on JAX and on TensorFlow without oneDNN; with it, there is no gain."""
    if backend == "jax" or not uses_onednn(os.environ):
        keep_freed_memory()


def uses_onednn(environment: Mapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether TensorFlow runs oneDNN's kernels, which have an allocator of their own.

    Where that is not known (other processors than x86), yes.
    """
    asked = environment.get("TF_ENABLE_ONEDNN_OPTS", "").lower()
    if asked in ("0", "false", "1", "true"):
        return asked in ("1", "true")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    # What TensorFlow chooses by itself on Linux (core/util, IsMklEnabled).
    kinds = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
    return "sse2" not in flags or bool(kinds & flags)


def hour_span(text: str | None) -> tuple[int | None, int | None]:
    """First and last hour of an option FIRST:LAST; `None` where it leaves an end open."""
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(first), int(first)
        return int(first) if first else None, int(last) if last else None
    except ValueError:
        raise typer.BadParameter(f"--hours takes FIRST:LAST. Received: {text!r}") from None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors about the user's input or files read as one message, not as a stack trace."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("[yellow]Interrupted.[/] The same command goes on from here.")
        raise typer.Exit(130) from None
    except (ValueError, FileNotFoundError, OSError, ImportError) as error:
        if os.environ.get("KERAS_EXFM_TRACEBACK"):
            raise
        errors.print(f"[bold red]Error[/] {escape(str(error))}")
        errors.print("[dim]KERAS_EXFM_TRACEBACK=1 shows where it was raised.[/]")
        raise typer.Exit(1) from None
