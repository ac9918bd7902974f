"""What the tuners of this package add to KerasTuner's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from keras_exfm.tuner._oracle import BudgetedOracle, Meter, replace_json
from keras_exfm.tuner._settings import check_settings, settings_of, write_settings
from keras_exfm.tuner.budget import Budget
from keras_exfm.tuner.cost import Cost

_CLEAR_EVERY = 16


class _Declared(keras_tuner.HyperModel):
    """A hypermodel's space without its models."""

    def __init__(self, hypermodel: Any) -> None:
        super().__init__()
        self._hypermodel = hypermodel

    def build(self, hp: keras_tuner.HyperParameters) -> None:
        self._hypermodel.declare_hyperparameters(hp)


class _EnoughError(Exception):
    """Leaves KerasTuner's loop."""


class Search(keras_tuner.Tuner):
    """Goes before a tuner of KerasTuner in a class's bases."""

    _ended = 0
    trials_here: int | None = None
    """`search` returns after so many trials; another process may go on. `None`: no limit."""
    watcher: Callable[[Any], None] | None = None
    """Called with each trial when it begins and when it has ended."""

    def _start(
        self,
        make_oracle: Callable[..., BudgetedOracle],
        hypermodel: Any,
        budget: Budget | None,
        seed: int | None,
        oracle_options: dict[str, Any],
        *,
        directory: str | os.PathLike[str] | None = None,
        project_name: str = "search",
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        if budget is not None and not isinstance(budget, Budget):
            raise ValueError(f"`budget` should be a Budget or None. Received: budget={budget!r}")
        directory = "." if directory is None else str(directory)
        project = Path(directory) / project_name
        self.seed = seed
        self.meter = Meter(hypermodel, budget)
        oracle = make_oracle(
            meter=self.meter,
            project_dir=project,
            # KerasTuner takes 0 for no seed.
            seed=None if seed is None else seed + 1,
            **oracle_options,
        )
        kept = project / "settings.json"
        settings = settings_of(hypermodel, oracle.objective, budget)
        if not overwrite:
            check_settings(kept, settings)
        if (project / "oracle.json").exists() and not overwrite:
            # KerasTuner reloads a search only if it has a file of the tuner's own, which it writes
            # at the end of the first trial, and in place.
            name = os.environ.get("KERASTUNER_TUNER_ID", "tuner0")
            replace_json(project / f"{name}.json", {})
        # KerasTuner builds models to learn what the space is; ours can say so without.
        spaces = _Declared(hypermodel) if hasattr(hypermodel, "network") else hypermodel
        keras_tuner.Tuner.__init__(
            self,
            oracle=oracle,
            hypermodel=spaces,
            directory=directory,
            project_name=project_name,
            overwrite=overwrite,
            **kwargs,
        )
        if spaces is not hypermodel:
            self.hypermodel = hypermodel
        # Draws are made from the oracle that this process has; a worker's is the chief's.
        if isinstance(self.oracle, BudgetedOracle):
            self.oracle.check_budget()
        write_settings(kept, settings)

    def search(self, *args: Any, **kwargs: Any) -> None:
        """As KerasTuner's, but for `trials_here`."""
        try:
            super().search(*args, **kwargs)
        except _EnoughError:
            return

    @property
    def enough(self) -> bool:
        """Whether `trials_here` were run, and there may be more."""
        return self.trials_here is not None and self._ended >= self.trials_here

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """As KerasTuner's; with a `seed`, each trial draws from one of its own."""
        if self.seed is not None:
            text = f"{self.seed}-{trial.trial_id}".encode()
            keras.utils.set_random_seed(int(hashlib.sha256(text).hexdigest()[:8], 16))
        return super().run_trial(trial, *args, **kwargs)

    def on_trial_begin(self, trial: Any) -> None:
        """As KerasTuner's, and tells the `watcher`."""
        super().on_trial_begin(trial)
        if self.watcher is not None:
            self.watcher(trial)

    def on_trial_end(self, trial: Any) -> None:
        """As KerasTuner's, and from time to time lets go of what was compiled for trials."""
        super().on_trial_end(trial)
        if self.watcher is not None:
            self.watcher(trial)
        self._ended += 1
        # JAX keeps what it compiled for each trial's model, but also what the trials share.
        if self._ended % _CLEAR_EVERY == 0 and keras.backend.backend() == "jax":
            import jax

            jax.clear_caches()
        if self.enough:
            raise _EnoughError

    def cost(self, hp: keras_tuner.HyperParameters) -> Cost:
        """What the model of these hyper-parameters costs."""
        return self.meter.cost(hp)

    def results(self) -> list[dict[str, Any]]:
        """The completed trials, best first.

        Returns:
            Dicts with `trial`, `score`, `metrics`, `hyperparameters` and `cost`.
        """
        rows = []
        for trial in self.oracle.get_best_trials(10**9):
            if trial.status != "COMPLETED":
                continue
            rows.append(
                {
                    "trial": trial.trial_id,
                    "score": trial.score,
                    "metrics": {
                        name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics
                    },
                    "hyperparameters": dict(trial.hyperparameters.values),
                    "cost": self.cost(trial.hyperparameters),
                }
            )
        return rows
