import platform
import subprocess
import sys

import pytest

from keras_exfm._cli import shared

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


@pytest.mark.parametrize(
    ("backend", "onednn", "calls"),
    [("jax", "1", 1), ("tensorflow", "0", 1), ("tensorflow", "1", 0)],
)
def test_commands_keep_freed_memory_where_it_helps(backend, onednn, calls, monkeypatch):
    kept = []
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    monkeypatch.setattr(shared.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(shared, "keep_freed_memory", lambda: kept.append(True))
    shared.import_keras()
    assert len(kept) == calls


def test_onednn_is_asked_for_or_chosen_by_the_processor(tmp_path):
    def used(asked=None, flags=None):
        cpuinfo = tmp_path / "cpuinfo"
        if flags:
            cpuinfo.write_text(f"flags\t\t: {flags}\n")
        environment = {} if asked is None else {"TF_ENABLE_ONEDNN_OPTS": asked}
        return shared.uses_onednn(environment, cpuinfo)

    assert used()
    old, new = "fpu sse2 avx2 avx512f", "fpu sse2 avx2 avx512f avx512_vnni"
    assert [used(flags=flags) for flags in (old, new, "asimd bf16")] == [False, True, True]
    assert [used(asked, old) for asked in ("1", "TRUE", "0", "no", "")] == [True, True] + [
        False
    ] * 3
    assert [used(asked, new) for asked in ("0", "false", "no", "")] == [False, False, True, True]
