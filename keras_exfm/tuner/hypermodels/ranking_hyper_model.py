"""What the search spaces of the zoo's models share."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import keras_tuner

from keras_exfm.features import Schema
from keras_exfm.metrics import AUC, CalibrationError, LogLoss, NormalizedEntropy
from keras_exfm.optimizers import RowwiseAdagrad
from keras_exfm.streaming import Stream
from keras_exfm.tuner._space import Asker, Choices, Parameter, Range, parameter
from keras_exfm.tuner._stream_fit import fit_stream

# The tables' rate is a hyper-parameter like any other, and of much weight: on a real stream the
# best one was found between 0.05 and 0.4, and differed from model to model.
RATES: dict[str, Parameter] = {
    "learning_rate": Range(1e-4, 1e-2, 1e-3, log=True),
    "table_learning_rate": Range(0.01, 1.0, 0.1, log=True),
}
DROPOUT = Choices((0.0, 0.1, 0.2, 0.3), 0.0)
DIM = Choices((4, 8, 16, 32, 64), 16)
WIDTHS = Choices((32, 64, 128, 256, 512, 1024), 128)
DEPTHS = Range(1, 4, 2)

_NOT_OPTIONS = ("schema", "optimizer", "name", "trainable")


class RankingHyperModel(keras_tuner.HyperModel):
    """A search space of one model of the zoo; the base of one class for each.

    Hyper-parameters have the names of the model's arguments. An argument that is a list of widths
    is searched as one width under its own name and the number of layers as `<...>_depth`
    (`mlp_units` and `mlp_depth`). Beside them stand `learning_rate`, of the dense weights, and
    `table_learning_rate`, of the embedding tables, on log scales.

    Args:
        schema: A `keras_exfm.Schema`, or what its `to_dict` gives.
        fixed: Name -> value of hyper-parameters, or other arguments of the model, that are not
            searched; lists of widths as the model takes them. Defaults to `None`.
        space: Name -> a list of choices, or a tuple `(low, high)`, that replace the class's.
            Defaults to `None`.
        optimizer: Learning rate -> optimizer of the dense weights. Defaults to `None`,
            `keras.optimizers.Adam`.
        table_optimizer: Learning rate -> `keras_exfm.optimizers.RowOptimizer` of the tables.
            Defaults to `None`, `keras_exfm.optimizers.RowwiseAdagrad`.
        loss: Loss of the logit. Defaults to `None`,
            `keras.losses.BinaryCrossentropy(from_logits=True)`.
        weighted_metrics: Metrics for training on arrays; each model gets copies. On a stream,
            progressive validation gives the figures and there are none. Defaults to `None`:
            `NormalizedEntropy`, `AUC`, `LogLoss` and `CalibrationError`.
        jit_compile: As in `keras.Model.compile`. Defaults to `"auto"`.

    Raises:
        ValueError: For a name that neither the model nor the space has.
    """

    network_class: ClassVar[type[keras.Model]]
    """The model's class."""

    defaults: ClassVar[Mapping[str, Parameter]]
    """The class's own hyper-parameters."""

    def __init__(
        self,
        schema: Schema | Mapping[str, Any],
        fixed: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        optimizer: Callable[[float], Any] | None = None,
        table_optimizer: Callable[[float], Any] | None = None,
        loss: Any = None,
        weighted_metrics: Sequence[keras.metrics.Metric] | None = None,
        jit_compile: bool | str = "auto",
    ) -> None:
        super().__init__()
        self.schema = schema if isinstance(schema, Schema) else Schema.from_dict(schema)
        self.fixed = dict(fixed or {})
        self.optimizer = optimizer
        self.table_optimizer = table_optimizer
        self.loss = loss
        self.weighted_metrics = weighted_metrics
        self.jit_compile = jit_compile
        signature = inspect.signature(self.network_class).parameters
        self._model_defaults = {n: p.default for n, p in signature.items() if n not in _NOT_OPTIONS}
        own = {**self.defaults, **RATES}
        given = {
            name: parameter(name, value, own.get(name)) for name, value in (space or {}).items()
        }
        known = {*own, *self._model_defaults}
        unknown = sorted({*self.fixed, *given} - known)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no hyper-parameters {unknown}. It has: {sorted(known)}"
            )
        both = sorted({*self.fixed} & {*given})
        if both:
            raise ValueError(f"Fixed and searched at once: {both}")
        self.space: dict[str, Parameter] = {**own, **given}

    # Subclasses with conditions override this.
    def _options(self, ask: Asker) -> dict[str, Any]:
        return {name: self._argument(ask, name) for name in self._own_names()}

    def _own_names(self) -> list[str]:
        """Arguments of the model that are searched or fixed, in order."""
        return [n for n in {**self.space, **self.fixed} if n in self._model_defaults]

    def _argument(self, ask: Asker, name: str, parent: str | None = None, active: Any = ()) -> Any:
        """One argument as the model takes it; `None` where it is not active."""
        value = ask(name, parent, active)
        if value is None or isinstance(value, (tuple, list)):
            return value
        depth = f"{name.removesuffix('_units')}_depth"
        if name.endswith("_units") and depth in self.space:
            return (value,) * ask(depth, parent, active)
        return (value,) if isinstance(self._model_defaults[name], tuple) else value

    def options(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The model's arguments under these hyper-parameters, all but schema and optimizer."""
        return self._options(Asker(hp, self.space, self.fixed))

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Asks for every hyper-parameter, without a model."""
        self.options(hp)
        ask = Asker(hp, self.space, self.fixed)
        for name in RATES:
            ask(name)

    def network(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The model, not compiled: what a `Budget` counts."""
        options = self.options(hp)
        rate = Asker(hp, self.space, self.fixed)("table_learning_rate")
        make: Any = self.network_class
        return make(
            self.schema, optimizer=(self.table_optimizer or RowwiseAdagrad)(rate), **options
        )

    def architecture(self, hp: keras_tuner.HyperParameters) -> str:
        """What the cost depends on, as text: equal texts cost the same."""
        options = {k: v for k, v in self.options(hp).items() if not k.endswith("dropout")}
        return json.dumps([type(self).__name__, options], sort_keys=True, default=str)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A compiled model."""
        return self.compile(self.network(hp), hp)

    def compile(self, model: keras.Model, hp: keras_tuner.HyperParameters) -> Any:
        """Compiles a model that these hyper-parameters gave, and returns it."""
        rate = Asker(hp, self.space, self.fixed)("learning_rate")
        optimizer = (self.optimizer or keras.optimizers.Adam)(rate)
        self._compile(model, optimizer, metrics=True)
        # Weights that are loaded before training, as Hyperband does, then bring its state along.
        model.optimizer.build(model.trainable_variables)
        return model

    def _compile(self, model: keras.Model, optimizer: Any, metrics: bool) -> None:
        chosen = self.weighted_metrics
        if chosen is None:
            chosen = [NormalizedEntropy(), AUC(), LogLoss(), CalibrationError()]
        copies = [m.__class__.from_config(m.get_config()) for m in chosen] if metrics else None
        model.compile(
            optimizer=optimizer,
            loss=self._loss(),
            weighted_metrics=copies,
            jit_compile=self.jit_compile,
        )

    def _loss(self) -> Any:
        return keras.losses.BinaryCrossentropy(from_logits=True) if self.loss is None else self.loss

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        stream: str | os.PathLike[str] | Stream | None = None,
        **kwargs: Any,
    ) -> Any:
        """Trains a model of the search; takes what `tuner.search(...)` got.

        Args:
            hp: The hyper-parameters.
            model: What `build` gave.
            *args: Of `model.fit`.
            stream: A labelled stream, for progressive validation in place of `model.fit`: its
                figures are the score, and the weights are those after the last hour. Defaults to
                `None`.
            **kwargs: Of `model.fit`; or with `stream` those of
                `keras_exfm.streaming.progressive_validation`, and `hours_per_epoch`: the hours that
                an epoch of `Hyperband` (and of callbacks) has.

        Returns:
            The history of `model.fit`; or a dict with `progressive_normalized_entropy`,
            `progressive_log_loss`, `progressive_auc`, `progressive_calibration`,
            `progressive_calibration_error`, and where the stream has what they need
            `progressive_grouped_auc` and `progressive_bayes_normalized_entropy`.
        """
        if stream is None:
            return model.fit(*args, **kwargs)
        if args:
            raise ValueError(
                f"A search over a stream takes no arrays. Received: {len(args)} beside `stream`"
            )
        self._compile(model, model.optimizer, metrics=False)
        return fit_stream(model, stream, self.schema, **kwargs)

    def settings(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The model as `keras-exfm run` takes it in `[teacher]` and `[student]`."""
        ask = Asker(hp, self.space, self.fixed)
        return {
            "model": self.network_class.__name__,
            "learning_rate": ask("learning_rate"),
            "table_learning_rate": ask("table_learning_rate"),
            "options": {k: _plain(v) for k, v in self.options(hp).items() if v is not None},
        }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
