"""Runs of several models at several sizes over one stream."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_exfm.optimizers import RowwiseAdagrad
from keras_exfm.streaming import Stream, progressive_validation
from keras_exfm.streaming.stream import as_stream
from keras_exfm.tuner._oracle import replace_json
from keras_exfm.tuner.scaling.configuration import Configuration
from keras_exfm.tuner.scaling.scaling_law import Prediction, ScalingLaw

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Learning rates of the tables and of the dense weights."""

    table: float
    dense: float

    @property
    def name(self) -> str:
        """For files."""
        return f"table{self.table:g}-dense{self.dense:g}"


class Sweep:
    """Trains each configuration once over a stream, in a single pass, for each seed.

    Each run is a JSON file in `folder/runs`; a run that is there is not repeated, so a sweep that
    was stopped goes on, and one can be widened.

    Learning rates decide much, and the best ones differ between models and between sizes of one
    model. If several are given, each configuration's own pair is chosen by NE on `choosing_hours`
    with the first seed: a walk on the grid goes to the best neighbour while one is better, once
    from the middle of both lists and once from the pair of the next smaller configuration of the
    model, and the better end is taken (where the NE at the middle is not finite, the lowest rates
    at which it is take its place).
    Choices are kept in `folder/chosen`; with other lists or hours a run chooses anew, and sweeps
    with and without `clip_row_norm` may share a folder.

    Args:
        folder: Where the runs are kept.
        stream: The labelled stream.
        table_learning_rates: Rates of the tables to choose from. Defaults to `(0.1,)`.
        learning_rates: Rates of Adam, for the dense weights, to choose from. Defaults to
            `(0.001,)`.
        batch_size: Rows a batch. Defaults to `1024`.
        hours: First and last hour. Defaults to `None`, all.
        metrics_from: First hour that counts. Defaults to `None`, the first.
        choosing_hours: First and last hour by which the rates are chosen; the hours before are
            trained on too. Defaults to `None`: the third quarter of the hours before
            `metrics_from`, or of all, to its end.
        progress: Called with a line of text after each run. Defaults to `None`.
        clip_row_norm: Of the tables' `RowwiseAdagrad`. Defaults to `None`: no clipping.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stream: str | os.PathLike[str] | Stream,
        table_learning_rates: Sequence[float] = (0.1,),
        learning_rates: Sequence[float] = (1e-3,),
        batch_size: int = 1024,
        hours: tuple[int | None, int | None] | None = None,
        metrics_from: int | None = None,
        choosing_hours: tuple[int, int] | None = None,
        progress: Callable[[str], None] | None = None,
        clip_row_norm: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.stream = as_stream(stream)
        self.table_learning_rates = _rates("table_learning_rates", table_learning_rates)
        self.learning_rates = _rates("learning_rates", learning_rates)
        self.batch_size = batch_size
        chosen = self.stream.select_hours(hours)
        self.hours = (chosen[0], chosen[-1])
        self.metrics_from = chosen[0] if metrics_from is None else metrics_from
        early = [h for h in chosen if h < self.metrics_from] or chosen
        self.choosing_hours = choosing_hours or (early[len(early) // 2], early[-1])
        self.progress = progress or (lambda line: None)
        self.clip_row_norm = clip_row_norm

    def run(self, configurations: Iterable[Configuration], seeds: Sequence[int] = (1,)) -> None:
        """Makes the runs that are not there yet, seed by seed, from the smallest size on."""
        wanted = sorted(configurations, key=lambda c: c.cost.training_flops)
        rates: dict[str, _Rates] = {}
        for seed in seeds:
            smaller: dict[str, _Rates] = {}
            for each in wanted:
                if each.key not in rates:
                    rates[each.key] = self._chosen(each, seeds[0], smaller.get(each.model))
                smaller[each.model] = rates[each.key]
                self._run(each, seed, rates[each.key], self.hours, self.metrics_from, "runs")

    def choose(self, configurations: Iterable[Configuration], seed: int = 1) -> list[Record]:
        """Chooses rates, and makes no other run.

        Returns:
            Each configuration's run on `choosing_hours` at its rates, in the order given: by its
            NE a structure may be chosen before `run`.
        """
        wanted = list(configurations)
        found: dict[str, Record] = {}
        smaller: dict[str, _Rates] = {}
        for each in sorted(wanted, key=lambda c: c.cost.training_flops):
            rates = self._chosen(each, seed, smaller.get(each.model))
            smaller[each.model] = rates
            found[each.key] = self._choosing_run(each, seed, rates)
        return [found[each.key] for each in wanted]

    def records(self, seeds: Sequence[int] | None = None) -> list[Record]:
        """All runs that are there, at the rates that were chosen, by size."""
        found = []
        for file in sorted(self.folder.glob("chosen/*.json")):
            choice = json.loads(file.read_text())
            if choice["grid"].get("clip_row_norm") != self.clip_row_norm:
                continue
            rates, key = _Rates(**choice["rates"]), file.stem.removesuffix(self._clip)
            runs = self.folder.glob(f"runs/{key}-{rates.name}{self._clip}-seed*.json")
            found += [json.loads(run.read_text()) for run in sorted(runs)]
        found = [r for r in found if seeds is None or r["seed"] in seeds]
        return sorted(found, key=lambda r: (r["cost"]["training_flops"], r["name"], r["seed"]))

    def _chosen(self, each: Configuration, seed: int, start: _Rates | None) -> _Rates:
        file = self.folder / "chosen" / f"{each.key}{self._clip}.json"
        grid: dict[str, Any] = {
            "table_learning_rates": list(self.table_learning_rates),
            "learning_rates": list(self.learning_rates),
            "hours": list(self.choosing_hours),
            # Choices made by one walk alone are not kept: from a smaller model's pair it may end
            # in a corner that is far from the best.
            "walks": 2,
        }
        if self.clip_row_norm is not None:
            grid["clip_row_norm"] = self.clip_row_norm
        if file.exists():
            there = json.loads(file.read_text())
            if there["grid"] == grid:
                return _Rates(**there["rates"])
        tables, dense = self.table_learning_rates, self.learning_rates
        tried: dict[tuple[int, int], float] = {}

        def quality(place: tuple[int, int]) -> float:
            if place not in tried:
                run = self._choosing_run(each, seed, _Rates(tables[place[0]], dense[place[1]]))
                ne = float(run["figures"]["ne"])
                # Too high a rate may end in NaN, which no comparison would put last.
                tried[place] = ne if math.isfinite(ne) else math.inf
            return tried[place]

        def better(place: tuple[int, int]) -> tuple[int, int]:
            near = [
                (place[0] + i, place[1] + j) for i, j in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
            ]
            return min(
                (p for p in near if 0 <= p[0] < len(tables) and 0 <= p[1] < len(dense)), key=quality
            )

        def walk(place: tuple[int, int]) -> tuple[int, int]:
            while (following := better(place)) != place:
                place = following
            return place

        place = (len(tables) // 2, len(dense) // 2)
        if len(tables) * len(dense) > 1:
            if math.isinf(quality(place)):
                # None of its neighbours need be better: begin where training is sure to be stable.
                grid_places = itertools.product(range(len(tables)), range(len(dense)))
                finite = (p for p in grid_places if math.isfinite(quality(p)))
                place = next(finite, place)
                if math.isinf(quality(place)):
                    raise ValueError(
                        f"{each.name} ({each.cost.training_flops:,} FLOPs): the NE is finite at no "
                        f"pair of rates. Received: {grid}"
                    )
            starts = [place]
            if start is not None:
                starts.append((tables.index(start.table), dense.index(start.dense)))
            place = min(map(walk, starts), key=quality)
        rates = _Rates(tables[place[0]], dense[place[1]])
        replace_json(file, {"rates": dataclasses.asdict(rates), "grid": grid})
        return rates

    @property
    def _clip(self) -> str:
        """What tells files of clipped runs from others."""
        return "" if self.clip_row_norm is None else f"-clip{self.clip_row_norm:g}"

    def _choosing_run(self, each: Configuration, seed: int, rates: _Rates) -> Record:
        first, last = self.choosing_hours
        return self._run(each, seed, rates, (self.hours[0], last), first, "rates")

    def _run(
        self,
        each: Configuration,
        seed: int,
        rates: _Rates,
        hours: tuple[int, int],
        metrics_from: int,
        kind: str,
    ) -> Record:
        file = self.folder / kind / f"{each.key}-{rates.name}{self._clip}-seed{seed}.json"
        if file.exists():
            return json.loads(file.read_text())
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        tables = RowwiseAdagrad(rates.table, clip_row_norm=self.clip_row_norm)
        model = each.build(self.stream.schema, tables)
        model.compile(
            keras.optimizers.Adam(rates.dense),
            keras.losses.BinaryCrossentropy(from_logits=True),
        )
        started = time.monotonic()
        result = progressive_validation(
            model,
            self.stream,
            batch_size=self.batch_size,
            hours=hours,
            metrics_from=metrics_from,
        )
        if result.whole is None:
            raise ValueError(f"No hour of {hours} counts. Received: metrics_from={metrics_from}")
        record = {
            "name": each.name,
            "model": each.model,
            "options": dict(each.options),
            "cost": dataclasses.asdict(each.cost),
            "seed": seed,
            "learning_rate": rates.dense,
            "table_learning_rate": rates.table,
            "clip_row_norm": self.clip_row_norm,
            "seconds": round(time.monotonic() - started, 1),
            "figures": result.whole,
            "hours": [
                {k: row[k] for k in ("hour", "examples", "ne", "bayes_ne")} for row in result.rows
            ],
        }
        replace_json(file, record)
        self.progress(
            f"{each.name} {each.cost.training_flops:,} FLOPs, table rate {rates.table:g}, dense "
            f"rate {rates.dense:g}, seed {seed}: NE {result.whole['ne']:.5f} in "
            f"{record['seconds']:.0f} s"
        )
        return record


def _rates(name: str, values: Sequence[float]) -> tuple[float, ...]:
    rates = tuple(sorted(set(values)))
    if not rates:
        raise ValueError(f"`{name}` should hold a rate. Received: none")
    return rates


def excess(figures: Record) -> float:
    """NE beyond the best possible, or NE itself where that is not known."""
    best = figures.get("bayes_ne")
    return float(figures["ne"]) - (0.0 if best is None or np.isnan(best) else float(best))


def laws(records: Iterable[Record]) -> dict[str, tuple[ScalingLaw, Prediction | None]]:
    """The law of each name with runs of at least four sizes.

    Returns:
        Name -> the law over all sizes, and the check: the largest size as the law of the others
        predicts it (`None` with fewer than five sizes).
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        point = (float(record["cost"]["training_flops"]), excess(record["figures"]))
        points.setdefault(record["name"], []).append(point)
    found: dict[str, tuple[ScalingLaw, Prediction | None]] = {}
    for name, own in points.items():
        x, y = np.array(own).T
        sizes = len(np.unique(x))
        if sizes >= 4:
            check = ScalingLaw.check(x, y) if sizes >= 5 else None
            found[name] = (ScalingLaw.fit(x, y), check)
    return found
