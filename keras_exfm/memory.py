"""What the process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for the next step instead of giving it back.

    On a CPU, XLA asks for the large arrays of each training step anew and frees them at its end.
    glibc's `malloc` gets such blocks from the kernel and gives them back, so that every step begins
    with pages that the kernel has to clear. Kept, they are there: a training step of a three-layer
    Wukong at batch 2048 on JAX took two thirds of the time (see
    `benchmarks/results/wukong-speed`). Once TensorFlow's threads are in the process, as where
    `streaming.read` feeds JAX, small models feel it too: of a 25 ms step of a small DLRM 7 went
    into page faults. TensorFlow has an allocator of its own where it runs oneDNN's kernels, and
    nothing to gain there: steps were 7 to 9 % longer. On an x86 processor without VNNI it runs
    without them (unless `TF_ENABLE_ONEDNN_OPTS=1`), and with Python in the pipeline of its batches,
    as with `streaming.read`, a step of a small DLRM took twice its time
    (`benchmarks/results/freed-memory`). The process holds on to up to 2 GiB.

    It acts on the whole process from the call on; call it once, before training. `keras-exfm run`,
    `demo`, `tune` and `export` do where it helps. On a GPU it does little. The environment
    variables `MALLOC_MMAP_MAX_=0`, `MALLOC_ARENA_MAX=1`, `MALLOC_TOP_PAD_` and
    `MALLOC_TRIM_THRESHOLD_` do the same from outside.

    Returns:
        Whether the C library took the settings: `False` where it is not glibc (macOS, musl).

    Example:

    >>> import keras_exfm as kx
    >>> kx.keep_freed_memory() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        # No block from the kernel directly: all from one heap, which grows by 256 MiB and gives
        # back what exceeds 2 GiB (the argument is an int).
        (_M_MMAP_MAX, 0),
        (_M_ARENA_MAX, 1),
        (_M_TOP_PAD, 2**28),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
    )
    taken = [libc.mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
