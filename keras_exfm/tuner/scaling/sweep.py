"""Runs of several models at several sizes over one stream."""

from __future__ import annotations

import dataclasses
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


class Sweep:
    """Trains each configuration once over a stream, in a single pass, for each seed.

    Each run is a JSON file in `folder/runs`; a run that is there is not repeated, so a sweep that
    was stopped goes on, and one can be widened. The tables' learning rate decides much and differs
    between models: if several are given, each model's own is chosen by the NE of its middle size
    on `choosing_hours`, with the first seed.

    Args:
        folder: Where the runs are kept.
        stream: The labelled stream.
        table_learning_rates: Rates of the tables to choose from. Defaults to `(0.1,)`.
        learning_rate: Adam's, of the dense weights. Defaults to `0.001`.
        batch_size: Rows a batch. Defaults to `1024`.
        hours: First and last hour. Defaults to `None`, all.
        metrics_from: First hour that counts. Defaults to `None`, the first.
        choosing_hours: First and last hour by which the rate is chosen; the hours before are
            trained on too. Defaults to `None`: the third quarter of the hours before
            `metrics_from`, or of all, to its end.
        progress: Called with a line of text after each run. Defaults to `None`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stream: str | os.PathLike[str] | Stream,
        table_learning_rates: Sequence[float] = (0.1,),
        learning_rate: float = 1e-3,
        batch_size: int = 1024,
        hours: tuple[int | None, int | None] | None = None,
        metrics_from: int | None = None,
        choosing_hours: tuple[int, int] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.stream = as_stream(stream)
        self.table_learning_rates = tuple(table_learning_rates)
        if not self.table_learning_rates:
            raise ValueError("`table_learning_rates` should hold a rate. Received: none")
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        chosen = self.stream.select_hours(hours)
        self.hours = (chosen[0], chosen[-1])
        self.metrics_from = chosen[0] if metrics_from is None else metrics_from
        early = [h for h in chosen if h < self.metrics_from] or chosen
        self.choosing_hours = choosing_hours or (early[len(early) // 2], early[-1])
        self.progress = progress or (lambda line: None)

    def run(self, configurations: Iterable[Configuration], seeds: Sequence[int] = (1,)) -> None:
        """Makes the runs that are not there yet, seed by seed."""
        wanted = list(configurations)
        rates = {model: self._rate(model, wanted, seeds[0]) for model in {c.model for c in wanted}}
        for seed in seeds:
            for each in wanted:
                self._run(each, seed, rates[each.model], self.hours, self.metrics_from, "runs")

    def records(self, seeds: Sequence[int] | None = None) -> list[Record]:
        """All runs that are there, by size."""
        found = [json.loads(f.read_text()) for f in sorted(self.folder.glob("runs/*.json"))]
        found = [r for r in found if seeds is None or r["seed"] in seeds]
        return sorted(found, key=lambda r: (r["cost"]["training_flops"], r["name"], r["seed"]))

    def _rate(self, model: str, wanted: list[Configuration], seed: int) -> float:
        if len(self.table_learning_rates) == 1:
            return self.table_learning_rates[0]
        sizes = sorted((c for c in wanted if c.model == model), key=lambda c: c.cost.training_flops)
        middle = sizes[len(sizes) // 2]
        start, end = self.choosing_hours
        tried = {
            rate: self._run(middle, seed, rate, (self.hours[0], end), start, "rates")
            for rate in self.table_learning_rates
        }

        def quality(rate: float) -> float:
            # Too high a rate may end in NaN, which no comparison would put last.
            ne = float(tried[rate]["figures"]["ne"])
            return ne if math.isfinite(ne) else math.inf

        return min(tried, key=quality)

    def _run(
        self,
        each: Configuration,
        seed: int,
        rate: float,
        hours: tuple[int, int],
        metrics_from: int,
        kind: str,
    ) -> Record:
        file = self.folder / kind / f"{each.key}-rate{rate:g}-seed{seed}.json"
        if file.exists():
            return json.loads(file.read_text())
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        model = each.build(self.stream.schema, RowwiseAdagrad(rate))
        model.compile(
            keras.optimizers.Adam(self.learning_rate),
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
            "learning_rate": self.learning_rate,
            "table_learning_rate": rate,
            "seconds": round(time.monotonic() - started, 1),
            "figures": result.whole,
            "hours": [
                {k: row[k] for k in ("hour", "examples", "ne", "bayes_ne")} for row in result.rows
            ],
        }
        replace_json(file, record)
        self.progress(
            f"{each.name} {each.cost.training_flops:,} FLOPs, table rate {rate:g}, seed {seed}: "
            f"NE {result.whole['ne']:.5f} in {record['seconds']:.0f} s"
        )
        return record


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
