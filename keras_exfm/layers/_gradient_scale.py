"""A factor that acts on the gradient alone."""

from __future__ import annotations

from typing import Any

from keras import ops


def scale_gradient(x: Any, scale: Any = 1.0, gate: Any = None) -> Any:
    """`x` itself; its gradient is multiplied by `scale`, and by `gate` if there is one."""
    if isinstance(scale, float) and scale == 1.0 and gate is None:
        return x
    if gate is not None:
        scale = scale * gate
    if not isinstance(scale, float):
        scale = ops.cast(ops.stop_gradient(scale), x.dtype)
    # In this order the value is exact: x - sg(x) is 0 for every finite x.
    constant = ops.stop_gradient(x)
    return constant + scale * (x - constant)
