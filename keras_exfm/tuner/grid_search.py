"""Grid search under a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras_tuner
from keras_tuner.oracles import GridSearchOracle

from keras_exfm.tuner._oracle import RUNNING, STOPPED, BudgetedOracle, Values
from keras_exfm.tuner._search import Search
from keras_exfm.tuner.budget import Budget


class _Oracle(BudgetedOracle, GridSearchOracle):
    """Goes through the combinations within the budget, by their place in the whole grid.

    KerasTuner's own goes from one trial's values to the next ones, so it cannot leave any out.
    """

    _place = 0

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        for place, values in enumerate(combinations(self.get_space().space)):
            if place < self._place:
                continue
            self._place = place + 1
            if self.meter.allows(self.with_values(values)):
                return {"status": RUNNING, "values": values}
        return {"status": STOPPED, "values": None}

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "grid_place": self._place}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._place = state["grid_place"]


def combinations(space: list[Any]) -> Iterator[Values]:
    """All combinations of active values, the last parameter fastest, its default first."""

    def below(position: int, hp: keras_tuner.HyperParameters) -> Iterator[Values]:
        if position == len(space):
            yield dict(hp.values)
            return
        each = space[position]
        hp.merge([each])
        if not hp.is_active(each):
            hp.values.pop(each.name, None)
            yield from below(position + 1, hp)
            return
        for value in dict.fromkeys([each.default, *each.values]):
            hp.values[each.name] = value
            yield from below(position + 1, hp)
        hp.values.pop(each.name)

    yield from below(0, keras_tuner.HyperParameters())


class GridSearch(Search, keras_tuner.GridSearch):
    """All combinations within the budget, one after the other.

    Ranges without a step have ten values each, so give the hypermodel lists of choices and fix
    the rest: the grid of a whole space never ends.

    Args:
        hypermodel: As in `RandomSearch`.
        objective: As in `RandomSearch`.
        max_trials: Most trials. Defaults to `None`: as many as the grid has within the budget.
        budget: As in `RandomSearch`. Defaults to `None`.
        seed: Seed of each trial's weights. Defaults to `None`.
        hyperparameters: As in `keras_tuner.GridSearch`. Defaults to `None`.
        max_retries_per_trial: As in `keras_tuner.GridSearch`. Defaults to `0`.
        max_consecutive_failed_trials: As in `keras_tuner.GridSearch`. Defaults to `3`.
        **kwargs: As in `RandomSearch`.

    Raises:
        ValueError: If no model of the space is found within the budget.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.tuner import FMHyperModel, objectives
    >>> schema = Schema([Categorical("user", 100), Categorical("ad", 50)])
    >>> space = FMHyperModel(schema, fixed={"learning_rate": 0.001}, space={
    ...     "dim": [4, 8], "table_learning_rate": [0.05, 0.1, 0.4]})
    >>> search = GridSearch(space, objectives.auc("progressive"), directory="searches")
    >>> search.oracle.verbose = 0
    >>> [search.oracle.create_trial(f"tuner{i}").status for i in range(7)].count("RUNNING")
    6
    """

    def __init__(
        self,
        hypermodel: Any,
        objective: Any,
        max_trials: int | None = None,
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
