"""What the oracles of this package add to KerasTuner's: a budget, and files that survive a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras_tuner

from keras_exfm.models import shapes_only
from keras_exfm.tuner.budget import Budget
from keras_exfm.tuner.cost import Cost

RUNNING, STOPPED = "RUNNING", "STOPPED"
_FINISHED = ("COMPLETED", "FAILED")
# Draws for one trial before the search is told that it will not find another model.
DRAWS = 500

Values = dict[str, Any]


class Meter:
    """Counts what a configuration costs, once for each architecture.

    Args:
        hypermodel: Of the search. One with `network(hp)` and `architecture(hp)`, as those of this
            package have, is built without weights and counted once for all that differ in rates
            alone; any other, or a function, is built as for a trial.
        budget: The limit, or `None`.
    """

    def __init__(self, hypermodel: Any, budget: Budget | None) -> None:
        self.hypermodel, self.budget = hypermodel, budget
        self._known: dict[str, Cost] = {}

    def cost(self, hp: keras_tuner.HyperParameters) -> Cost:
        """What the model of these hyper-parameters costs."""
        architecture = getattr(self.hypermodel, "architecture", None)
        key = architecture(hp.copy()) if architecture else json.dumps(own(hp.values), default=str)
        if key not in self._known:
            network = getattr(self.hypermodel, "network", None)
            if network is not None:
                model = shapes_only(network, hp.copy())
            else:
                # Compiling makes the optimizer's variables, which needs their values.
                model = getattr(self.hypermodel, "build", self.hypermodel)(hp.copy())
            self._known[key] = Cost.of(model)
        return self._known[key]

    def allows(self, hp: keras_tuner.HyperParameters) -> bool:
        """Whether the model is within the budget."""
        return self.budget is None or self.budget.allows(self.cost(hp))


def own(values: Values) -> Values:
    """The hyper-parameters without those that KerasTuner's Hyperband puts beside them."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


class BudgetedOracle(keras_tuner.Oracle):
    """Goes before an oracle of KerasTuner in a class's bases.

    A draw over the budget is replaced by a draw within it: the search does not end, and the draw is
    not a trial. The new draw is uniform over what the space has within the budget.

    KerasTuner writes its files in place and in an order in which a kill can lose or repeat a trial:
    `trial.json` before `oracle.json` at a trial's start, a finished trial still listed as running.
    Here `oracle.json` is replaced whole, and a reload puts right what a kill left.

    Args:
        meter: Counts costs and knows the budget.
        project_dir: Folder of the search.
        **kwargs: Of KerasTuner's oracle.
    """

    def __init__(self, *, meter: Meter, project_dir: str | os.PathLike[str], **kwargs: Any) -> None:
        self.meter = meter
        self.project_dir = Path(project_dir)
        self._draws = 0
        super().__init__(**kwargs)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As KerasTuner's, but within the budget."""
        response = super().populate_space(trial_id)
        if response["status"] != RUNNING or self.meter.allows(self.with_values(response["values"])):
            return response
        values = self.replacement()
        if values is None:
            return {"status": STOPPED, "values": None}
        beside = {k: v for k, v in response["values"].items() if k.startswith("tuner/")}
        return {"status": RUNNING, "values": {**values, **beside}}

    def replacement(self) -> Values | None:
        """A new configuration within the budget; `None` if none is found."""
        return self.draw(self.tried())

    def with_values(self, values: Values) -> keras_tuner.HyperParameters:
        """The search space with these values."""
        hp = self.get_space()
        hp.values = dict(values)
        return hp

    def tried(self) -> set[str]:
        """Configurations that have been trials."""
        return {_key(trial.hyperparameters.values) for trial in self.trials.values()}

    def draw(self, taken: set[str] = frozenset()) -> Values | None:  # type: ignore[assignment]
        """A configuration within the budget that is none of `taken`; `None` if none is found."""
        for _ in range(DRAWS):
            hp = self.random()
            if _key(hp.values) not in taken and self.meter.allows(hp):
                return dict(hp.values)
        return None

    def random(self) -> keras_tuner.HyperParameters:
        """Random values of what is active, from the seed and the number of draws so far."""
        hp = keras_tuner.HyperParameters()
        for each in self.get_space().space:
            hp.merge([each])
            if hp.is_active(each):
                hp.values[each.name] = each.random_sample(f"{self.seed}-{self._draws}-{each.name}")
        self._draws += 1
        return hp

    def check_budget(self) -> None:
        """Raises if no model of the space seems to be within the budget.

        Raises:
            ValueError: It names the cheapest that was drawn.
        """
        if self.meter.budget is None or self.tried():
            return
        before, smallest = self._draws, None
        for _ in range(DRAWS):
            hp = self.random()
            cost = self.meter.cost(hp)
            if self.meter.budget.allows(cost):
                # The draws of the trials do not depend on whether this was asked.
                self._draws = before
                return
            if smallest is None or cost.training_flops < smallest[0].training_flops:
                smallest = (cost, hp.values)
        assert smallest is not None
        raise ValueError(
            f"None of {DRAWS} draws from the search space is within {self.meter.budget}. The "
            f"cheapest, {smallest[1]}: {'; '.join(self.meter.budget.excess(smallest[0]))}. Allow "
            "more, or give the hypermodel a smaller `space`."
        )

    def get_state(self) -> dict[str, Any]:
        """KerasTuner's, and what a reload after a kill needs."""
        unfinished = {t.trial_id: t.get_state() for t in self.ongoing_trials.values()}
        return {**super().get_state(), "budget_draws": self._draws, "unfinished": unfinished}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse; `trials` are loaded already."""
        # Begun, but not yet in the oracle's file: it begins anew under the same number.
        for trial_id in set(self.trials) - set(state["start_order"]):
            del self.trials[trial_id]
        ongoing = {
            tuner: trial_id
            for tuner, trial_id in state["ongoing_trials"].items()
            if self.trials[trial_id].status not in _FINISHED
        }
        # A trial whose own file says that it ended, killed before the oracle's file said so.
        ended = [
            trial_id
            for trial_id in state["ongoing_trials"].values()
            if self.trials[trial_id].status in _FINISHED and trial_id not in state["end_order"]
        ]
        end_order = [*state["end_order"], *ended]
        super().set_state({**state, "ongoing_trials": ongoing, "end_order": end_order})
        self._draws = state.get("budget_draws", 0)

    def save(self) -> None:
        """Replaces the oracle's file as a whole."""
        replace_json(self.project_dir / "oracle.json", self.get_state())

    def reload(self) -> None:
        """Reads the search's files, after putting right a trial file that a kill cut short."""
        oracle = self.project_dir / "oracle.json"
        unfinished = json.loads(oracle.read_text()).get("unfinished", {}) if oracle.exists() else {}
        for file in self.project_dir.glob("trial_*/trial.json"):
            try:
                json.loads(file.read_text())
            except ValueError:
                trial_id = file.parent.name.removeprefix("trial_")
                if trial_id in unfinished:
                    replace_json(file, unfinished[trial_id])
                else:
                    file.unlink()
        super().reload()


def _key(values: Values) -> str:
    return json.dumps(own(values), sort_keys=True, default=str)


def replace_json(file: Path, state: Any) -> None:
    """Writes a file so that it is there as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(json.dumps(state))
    os.replace(partial, file)
