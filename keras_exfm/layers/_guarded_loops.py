"""Loops of Keras that leave a model usable when a step of them fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras


def guarded(loop: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a model's `fit`, `evaluate` or `predict`.

    Where a step fails, for a column that is missing or of a wrong type, Keras leaves the model
    broken. On JAX it takes the values out of the variables while a loop runs and, if the first
    step fails, does not put them back: all that was learned is lost. On TensorFlow a step that
    was traced in part cannot make the optimizer's variables any more. Here the values are put
    back, and the step is traced anew.

    Args:
        loop: The method, of the class above.
        *args: Its arguments.
        **kwargs: Its arguments by name.
    """
    model = loop.__self__  # type: ignore[attr-defined]
    bound = inspect.signature(loop).bind_partial(*args, **kwargs)
    callbacks = bound.arguments.get("callbacks")
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # The evaluation within a `fit`, which looks after itself.
        return loop(*args, **kwargs)
    if keras.backend.backend() != "jax":
        try:
            return loop(*args, **kwargs)
        except Exception:
            _trace_anew(model)
            raise
    held = _Held()
    given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    bound.arguments["callbacks"] = [*given, held]
    try:
        return loop(*bound.args, **bound.kwargs)
    except BaseException:
        held.put_back()
        raise


def _trace_anew(model: keras.Model) -> None:
    if model.compiled:
        model.make_train_function(force=True)
        model.make_test_function(force=True)
    model.make_predict_function(force=True)


class _Held(keras.callbacks.Callback):
    """The values of a model's variables as a loop begins.

    They are references: a training step gives their memory to its results, as without. No batch is
    looked at, so Keras may go on to the next one before a batch's logs are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[Any, Any]] = []

    def put_back(self) -> None:
        if not self.values:
            return
        # Of steps that succeeded; `fit` has done it already, `evaluate` and `predict` have not.
        self.model.jax_state_sync()
        for variable, value in self.values:
            if _is_empty(variable):
                variable.assign(value)

    def _begin(self) -> None:
        if self.values:  # The evaluation within `fit`.
            return
        variables = [*self.model.variables, *self.model.metrics_variables]
        # There is none before `compile`.
        variables += getattr(getattr(self.model, "optimizer", None), "variables", [])
        self.values = [(v, v.value) for v in {id(v): v for v in variables}.values()]

    def on_train_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_test_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_predict_begin(self, logs: Any = None) -> None:
        self._begin()


def _is_empty(variable: Any) -> bool:
    try:
        return variable.value is None
    except TypeError:  # It has no initializer any more to make up a value with.
        return True
