"""Random search under a budget."""

from __future__ import annotations

from typing import Any

import keras_tuner
from keras_tuner.oracles import RandomSearchOracle

from keras_exfm.tuner._oracle import BudgetedOracle
from keras_exfm.tuner._search import Search
from keras_exfm.tuner.budget import Budget


class _Oracle(BudgetedOracle, RandomSearchOracle):
    pass


class RandomSearch(Search, keras_tuner.RandomSearch):
    """Random search: trials are drawn from the whole space that is within the budget.

    A search in a folder that has one goes on there: finished trials are kept, one that was cut
    short, even by `kill -9`, is run again. With `KERASTUNER_TUNER_ID`, `KERASTUNER_ORACLE_IP` and
    `KERASTUNER_ORACLE_PORT` in the environment, several processes share one search.

    Args:
        hypermodel: A `keras_tuner.HyperModel`, such as `WukongHyperModel`, or a function of `hp`
            that returns a compiled model.
        objective: A `keras_tuner.Objective`, see `keras_exfm.tuner.objectives`.
        max_trials: Number of trials. Defaults to `10`.
        budget: What a model may cost, a `Budget`. Draws beyond it are made anew and do not count
            as trials. Defaults to `None`.
        seed: Seed of the draws and of each trial's weights. Defaults to `None`.
        hyperparameters: As in `keras_tuner.RandomSearch`. Defaults to `None`.
        max_retries_per_trial: As in `keras_tuner.RandomSearch`. Defaults to `0`.
        max_consecutive_failed_trials: As in `keras_tuner.RandomSearch`. Defaults to `3`.
        **kwargs: `directory`, `project_name` (`"search"` if left out), `overwrite`,
            `executions_per_trial` and the other arguments of `keras_tuner.Tuner`.

    Raises:
        ValueError: If no model of the space is found within the budget.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.tuner import Budget, WukongHyperModel, objectives
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50)])
    >>> search = RandomSearch(
    ...     WukongHyperModel(schema), objectives.normalized_entropy("progressive"),
    ...     budget=Budget(training_flops=1e6), seed=1, directory="searches")
    >>> search.oracle.verbose = 0
    >>> trial = search.oracle.create_trial("tuner0")
    >>> search.cost(trial.hyperparameters).training_flops <= 1e6
    True
    """

    def __init__(
        self,
        hypermodel: Any,
        objective: Any,
        max_trials: int = 10,
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
            "hyperparameters": hyperparameters,
            "max_retries_per_trial": max_retries_per_trial,
            "max_consecutive_failed_trials": max_consecutive_failed_trials,
        }
        self._start(_Oracle, hypermodel, budget, seed, options, **kwargs)
