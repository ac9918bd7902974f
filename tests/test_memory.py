import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend_free

SCRIPT = """
import resource, sys
import numpy as np
import keras_exfm as kx
if sys.argv[1] == "keep":
    assert kx.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23, "float32")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_blocks_are_used_again():
    """A block of 32 MiB that comes from the kernel anew costs a fault for every page of it (or for
    every huge page)."""

    def run(argument):
        command = [sys.executable, "-c", SCRIPT, argument]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert run("keep") <= 3
    assert run("default") > 8


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_commands_keep_freed_memory(backend, monkeypatch):
    from keras_exfm._cli import shared

    kept = []
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr(shared.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(shared, "keep_freed_memory", lambda: kept.append(True))
    shared.import_keras()
    assert kept == [True]
