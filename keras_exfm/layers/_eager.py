"""Loops that an eager call does not compile again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras


def compiled_on_jax(static: Sequence[str] = ()) -> Callable[[Callable], Callable]:
    """Decorator: on JAX the function is compiled, once for each shape.

    Outside of a compiled step JAX would trace and compile a `while_loop` anew in each call, since
    its functions are new objects. TensorFlow runs an eager loop as it is.

    Args:
        static: Names of the arguments that are Python values.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if keras.backend.backend() != "jax":
            return function
        import jax

        return jax.jit(function, static_argnames=tuple(static))

    return decorate
