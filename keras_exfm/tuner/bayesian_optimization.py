"""Bayesian optimization under a budget."""

from __future__ import annotations

from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Fixed
from keras_tuner.oracles import BayesianOptimizationOracle

from keras_exfm.tuner._oracle import BudgetedOracle, Values
from keras_exfm.tuner._search import Search
from keras_exfm.tuner.budget import Budget

_CANDIDATES = 32


class _Oracle(BudgetedOracle, BayesianOptimizationOracle):
    """Beyond the budget, takes the best of some draws within it by the same acquisition."""

    def replacement(self) -> Values | None:
        taken = self.tried()
        first = self.draw(taken)
        if first is None or not hasattr(self.gpr, "X_train_"):
            return first
        candidates = [first]
        # Some draws more, however many of them are beyond the budget: the search has to go on.
        for _ in range(_CANDIDATES):
            hp = self.random()
            if self.meter.allows(hp):
                candidates.append(dict(hp.values))
        mean, deviation = self.gpr.predict(
            np.array([self._position(values) for values in candidates]), return_std=True
        )
        return candidates[int(np.argmin(mean - self.beta * deviation))]

    def _position(self, values: Values) -> list[float]:
        """The configuration as KerasTuner hands it to its Gaussian process."""
        return [
            each.value_to_prob(values.get(each.name, each.default))
            for each in self.get_space().space
            if not isinstance(each, Fixed)
        ]


class BayesianOptimization(Search, keras_tuner.BayesianOptimization):
    """Bayesian optimization: a Gaussian process over the finished trials says where to look next.

    Where it points beyond the budget, the trial is the best of some draws within it, by the same
    measure (lower confidence bound).

    Args:
        hypermodel: As in `RandomSearch`.
        objective: As in `RandomSearch`.
        max_trials: Number of trials. Defaults to `10`.
        num_initial_points: Random trials at the start. Defaults to `None`: three for each
            hyper-parameter.
        alpha: As in `keras_tuner.BayesianOptimization`. Defaults to `1e-4`.
        beta: As in `keras_tuner.BayesianOptimization`. Defaults to `2.6`.
        budget: As in `RandomSearch`. Defaults to `None`.
        seed: As in `RandomSearch`. Defaults to `None`.
        hyperparameters: As in `keras_tuner.BayesianOptimization`. Defaults to `None`.
        max_retries_per_trial: As in `keras_tuner.BayesianOptimization`. Defaults to `0`.
        max_consecutive_failed_trials: As in `keras_tuner.BayesianOptimization`. Defaults to `3`.
        **kwargs: As in `RandomSearch`.

    Raises:
        ValueError: If no model of the space is found within the budget.
    """

    def __init__(
        self,
        hypermodel: Any,
        objective: Any,
        max_trials: int = 10,
        num_initial_points: int | None = None,
        alpha: float = 1e-4,
        beta: float = 2.6,
        budget: Budget | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        options = {
            "objective": objective,
            "max_trials": max_trials,
            "num_initial_points": num_initial_points,
            "alpha": alpha,
            "beta": beta,
            "hyperparameters": hyperparameters,
            "max_retries_per_trial": max_retries_per_trial,
            "max_consecutive_failed_trials": max_consecutive_failed_trials,
        }
        self._start(_Oracle, hypermodel, budget, seed, options, **kwargs)
