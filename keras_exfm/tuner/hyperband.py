"""Hyperband under a budget."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.oracles import HyperbandOracle

from keras_exfm.tuner._oracle import BudgetedOracle, Values
from keras_exfm.tuner._search import Search
from keras_exfm.tuner.budget import Budget


class _Oracle(BudgetedOracle, HyperbandOracle):
    def replacement(self) -> Values | None:
        # The bracket has counted the trial already, so one that was tried is better than none.
        return super().replacement() or self.draw()

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        trials = super().get_best_trials(len(self.trials))
        if self.objective.name.startswith("progressive_"):
            # Figures over different hours do not compare: those that saw the most come first.
            trials.sort(key=lambda t: -t.hyperparameters.values.get("tuner/epochs", 0))
            trials.sort(key=lambda t: t.status != "COMPLETED")
        return trials[:num_trials]


class Hyperband(Search, keras_tuner.Hyperband):
    """Hyperband: many models for a short time, the best of them for longer.

    Over a stream an epoch is `hours_per_epoch` hours (of `search(stream=..., hours_per_epoch=...)`;
    the stream's hours over `max_epochs` if left out, rounded up), and no hour is trained on twice:
    a model that goes on begins with its own weights, optimizer and tables at the hour where it
    stopped. Its figures are those of all its hours. `get_best_models` and `results` put trials that
    saw the whole stream before those that did not.

    Args:
        hypermodel: As in `RandomSearch`.
        objective: As in `RandomSearch`.
        max_epochs: Most epochs of a model. Defaults to `9`.
        factor: As in `keras_tuner.Hyperband`. Defaults to `3`.
        hyperband_iterations: As in `keras_tuner.Hyperband`. Defaults to `1`.
        budget: As in `RandomSearch`. Defaults to `None`.
        seed: As in `RandomSearch`. Defaults to `None`.
        hyperparameters: As in `keras_tuner.Hyperband`. Defaults to `None`.
        max_retries_per_trial: As in `keras_tuner.Hyperband`. Defaults to `0`.
        max_consecutive_failed_trials: As in `keras_tuner.Hyperband`. Defaults to `3`.
        **kwargs: As in `RandomSearch`.

    Raises:
        ValueError: If no model of the space is found within the budget.

    References:
        - [Li et al., 2018](http://jmlr.org/papers/v18/16-558.html).
    """

    def __init__(
        self,
        hypermodel: Any,
        objective: Any,
        max_epochs: int = 9,
        factor: int = 3,
        hyperband_iterations: int = 1,
        budget: Budget | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        options = {
            "objective": objective,
            "max_epochs": max_epochs,
            "factor": factor,
            "hyperband_iterations": hyperband_iterations,
            "hyperparameters": hyperparameters,
            "max_retries_per_trial": max_retries_per_trial,
            "max_consecutive_failed_trials": max_consecutive_failed_trials,
        }
        self.max_epochs = max_epochs
        self._start(_Oracle, hypermodel, budget, seed, options, **kwargs)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """As KerasTuner's; over a stream, with the predictions of the trial that it continues."""
        if kwargs.get("stream") is not None:
            kwargs.setdefault("hours_per_epoch", self._hours_per_epoch(kwargs))
            kwargs["predictions_path"] = self._continue_predictions(trial)
        return super().run_trial(trial, *args, **kwargs)

    def _hours_per_epoch(self, options: dict[str, Any]) -> int:
        from keras_exfm.streaming.stream import as_stream

        stream = as_stream(options["stream"], options.get("version"))
        return -(-len(stream.select_hours(options.get("hours"))) // self.max_epochs)

    def _continue_predictions(self, trial: Any) -> Path:
        """Folder of a trial's predictions, with those of the trial that it continues."""
        folder = Path(self.get_trial_dir(trial.trial_id)) / "predictions"
        shutil.rmtree(folder, ignore_errors=True)
        parent = trial.hyperparameters.values.get("tuner/trial_id")
        if parent:
            shutil.copytree(Path(self.get_trial_dir(parent)) / "predictions", folder)
        return folder
