"""What a search is of, kept in its folder: a search that goes on must be the same one."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_exfm.tuner._oracle import replace_json
from keras_exfm.tuner.budget import Budget

Settings = dict[str, Any]


def settings_of(hypermodel: Any, objective: Any, budget: Budget | None) -> Settings:
    """What decides what a trial's hyper-parameters mean, as far as the hypermodel says it."""
    student = getattr(hypermodel, "base", None)
    model = getattr(hypermodel if student is None else student, "network_class", None)
    found: Settings = {
        "model": getattr(model, "__name__", None),
        "objective": getattr(objective, "name", None),
        "budget": None if budget is None else dataclasses.asdict(budget),
    }
    for level in (hypermodel, student):
        for kind in ("fixed", "space"):
            given = getattr(level, kind, None)
            if isinstance(given, Mapping):
                found |= {f"{kind} {name}": _words(value) for name, value in given.items()}
    return found


def _words(value: Any) -> str:
    """The same in every process: functions and objects are shown with their addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def check_settings(file: Path, settings: Settings) -> None:
    """Raises if the search in the file's folder has trials and was made with other settings.

    Raises:
        ValueError: It names what differs.
    """
    if not file.exists() or not any(file.parent.glob("trial_*")):
        return
    held, asked = json.loads(file.read_text()), _plain(settings)
    differ = [key for key in {**held, **asked} if held.get(key) != asked.get(key)]
    if differ:
        detail = "; ".join(
            f"{key}: {held.get(key, 'not given')} (now: {asked.get(key, 'not given')})"
            for key in differ
        )
        raise ValueError(
            f"{file.parent} holds a search with other settings, whose trials would be taken for "
            f"this one's: {detail}. Choose another folder, or discard it (`overwrite=True`; "
            "--fresh of `keras-exfm tune`)."
        )


def write_settings(file: Path, settings: Settings) -> None:
    """Keeps what the search is of."""
    replace_json(file, _plain(settings))


def _plain(settings: Settings) -> Settings:
    """As they come back from a file."""
    return json.loads(json.dumps(settings, default=str))
