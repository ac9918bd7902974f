"""A drifting ad stream whose true click probabilities are known."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from keras_exfm.datasets._ad_world import (
    ADVERTISERS,
    FIELDS,
    HISTORY,
    PLACEMENTS,
    AdState,
    AdWorld,
    Clicks,
    births,
    impressions_of_hour,
)
from keras_exfm.datasets._conversions import Events
from keras_exfm.datasets._writing import DatasetWriter, Progress, Silent
from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
from keras_exfm.streaming.columns import MS_PER_HOUR
from keras_exfm.streaming.partitions import IMPRESSIONS, LABELS, DatasetInfo

START_HOUR = 473_352
"""2024-01-01 00:00 UTC, the hour that a synthetic stream begins with."""
CONVERSIONS = "conversions"
"""Folder of a synthetic stream's conversion events."""
CONVERSION_TRUTH = "true_probability_conversion"
"""Column of the impressions: what the probability of a conversion was."""

_EFFECTS = {"main": 0.5, "pair": 0.7, "third": 0.3, "history": 0.3, "numeric": 0.4}
_CONVERSION_EFFECTS = {"pair": 0.6, "intent": 0.6, "main": 0.5, "price": 0.4}
_Some = TypeVar("_Some", bound=Events)


class SyntheticAds:
    """Impressions of ads in several verticals, with a known click probability each.

    `label ~ Bernoulli(sigmoid(z))` with

    `z = b_v + main + pair + third + history + numeric + sum_k planted_k`

    * `main`: effects of user, ad, placement, device and hour of day;
    * `pair = <p_u, q_a>`: latent vectors of user and ad;
    * `third = sum_d r_ud s_ad c_d(device)`;
    * `history = <mean of q over the ads that the user clicked last, q_a>`;
    * `numeric`: `relevance`, whose slope depends on the category, and the square of `price`;
    * `planted_k = w_k f_1(x_1) ... f_k(x_k)` over the first `k` of the fields segment, category,
      device, region, language, browser, format, hour of day, with random signs `f_i`: an
      interaction of order `k` that no model of a lower order sees.

    Each term has mean 0 and about the standard deviation that `effects` says. Users and ads
    leave and are replaced; user, ad, segment and category vectors drift as Ornstein-Uhlenbeck
    processes. Two thirds of a user's vector are the segment's and of an ad's the category's,
    so that newcomers are not unknown. Verticals differ in click rate, traffic, devices, numeric
    slopes and their offsets per category; they share the vectors, so traffic of one helps the
    others. All columns of an impression are known before it: the history holds clicks that came in
    before its hour. A click's label event comes after an exponential delay that is shorter than
    the label window.

    **Conversions**, the second task, are there if `conversion_rate` is given. They come after
    clicks alone, `conversion ~ Bernoulli(sigmoid(c))` with

    `c = b + pair + intent + main + price`

    * `pair`: the click's term, so that each task says something about the other;
    * `intent = <p_u, T q_a>`: the click's vectors, and a fixed `T` that makes it uncorrelated
      with `pair`;
    * `main`: effects of advertiser and segment, other ones than the click's;
    * `price`: falls with the price.

    A conversion's event comes after an exponential delay from the click, within
    `conversion_window_hours` of the impression. A task that is learned on all impressions has the
    label "clicked and converted within the window", whose probability is
    `sigmoid(z) sigmoid(c)`, the impressions' column `true_probability_conversion`. All else of the
    impressions and the clicks of a seed is the same with conversions and without.

    Hours depend on `seed` and on the hours before them, not on how many follow.

    Args:
        hours: Number of hours. Defaults to `96`.
        examples_per_hour: Impressions an hour. Defaults to `2500`.
        users: Users at any time. Defaults to `1000`.
        ads: Ads at any time. Defaults to `300`.
        verticals: Names. Defaults to `("feed", "search", "video")`.
        click_rates: About the click rate of each vertical. Defaults to `(0.08, 0.14, 0.1)`.
        traffic: Share of the impressions of each vertical. Defaults to `(0.5, 0.25, 0.25)`.
        effects: Standard deviation of each term of `z` that is to differ from
            `{"main": 0.5, "pair": 0.7, "third": 0.3, "history": 0.3, "numeric": 0.4}`.
            Defaults to `None`.
        planted: Order (2 to 8) -> weight `w_k`. Defaults to `None`: `{3: 0.3, 4: 0.2}`.
        user_lifetime_hours: Mean time until a user leaves. Defaults to `400.0`.
        ad_lifetime_hours: Mean time until an ad leaves. Defaults to `120.0`.
        drift_hours: Time in which the correlation of a drifting effect with itself falls to
            1/e. Defaults to `300.0`.
        label_window_hours: Longest delay of a label. Defaults to `2`.
        label_delay_minutes: Mean of the delay before it is cut. Defaults to `20.0`.
        seed: Seed of everything. Defaults to `0`.
        conversion_rate: About the share of the clicks that are followed by a conversion. Defaults
            to `None`: there are no conversions.
        conversion_delay_hours: Mean of the delay from the click before it is cut. Defaults to
            `6.0`.
        conversion_window_hours: Longest time from the impression to the conversion, more than
            `label_window_hours`. Defaults to `24.0`.
        conversion_effects: Standard deviation of each term of `c` that is to differ from
            `{"pair": 0.6, "intent": 0.6, "main": 0.5, "price": 0.4}`. Defaults to `None`.

    Example:

    >>> stream = SyntheticAds(hours=3, examples_per_hour=200)
    >>> info = stream.write("ads")
    >>> info.last_hour - info.first_hour, info.verticals
    (2, ('feed', 'search', 'video'))
    >>> from keras_exfm.streaming import partitions
    >>> table = partitions.read_impressions("ads", info.first_hour, info.schema)
    >>> table.num_rows, 0 < table["true_probability"][0].as_py() < 1
    (200, True)

    With conversions there is a label folder more, as a second task of a `das.Job` reads it:

    >>> stream = SyntheticAds(hours=3, examples_per_hour=200, conversion_rate=0.2)
    >>> info = stream.write("shop")
    >>> hours = partitions.hours("shop", "conversions")
    >>> conversions = partitions.read_labels("shop", hours[0], hours[-1], folder="conversions")
    >>> len(hours), conversions.num_rows
    (27, 14)
    """

    def __init__(
        self,
        hours: int = 96,
        examples_per_hour: int = 2500,
        users: int = 1000,
        ads: int = 300,
        verticals: Sequence[str] = ("feed", "search", "video"),
        click_rates: Sequence[float] = (0.08, 0.14, 0.1),
        traffic: Sequence[float] = (0.5, 0.25, 0.25),
        effects: Mapping[str, float] | None = None,
        planted: Mapping[int | str, float] | None = None,
        user_lifetime_hours: float = 400.0,
        ad_lifetime_hours: float = 120.0,
        drift_hours: float = 300.0,
        label_window_hours: int = 2,
        label_delay_minutes: float = 20.0,
        seed: int = 0,
        conversion_rate: float | None = None,
        conversion_delay_hours: float = 6.0,
        conversion_window_hours: float = 24.0,
        conversion_effects: Mapping[str, float] | None = None,
    ) -> None:
        for name, value in (
            ("hours", hours),
            ("examples_per_hour", examples_per_hour),
            ("users", users),
            ("ads", ads),
            ("label_window_hours", label_window_hours),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` should be an integer of at least 1. Received: {name}={value!r}"
                )
        for name, number in (
            ("user_lifetime_hours", user_lifetime_hours),
            ("ad_lifetime_hours", ad_lifetime_hours),
            ("drift_hours", drift_hours),
        ):
            if not number >= 1:
                raise ValueError(f"`{name}` should be at least 1. Received: {name}={number!r}")
        if not label_delay_minutes > 0:
            raise ValueError(
                "`label_delay_minutes` should be positive. "
                f"Received: label_delay_minutes={label_delay_minutes!r}"
            )
        if conversion_rate is not None and not 0 < conversion_rate < 1:
            raise ValueError(
                "`conversion_rate` should be above 0 and below 1, or None. "
                f"Received: conversion_rate={conversion_rate!r}"
            )
        if not 0 < conversion_delay_hours < np.inf:
            raise ValueError(
                "`conversion_delay_hours` should be positive. "
                f"Received: conversion_delay_hours={conversion_delay_hours!r}"
            )
        # A click at the end of its window still has time for a conversion.
        if conversion_rate is not None and not (
            label_window_hours < conversion_window_hours < np.inf
        ):
            raise ValueError(
                "`conversion_window_hours` should be more than `label_window_hours`. Received: "
                f"conversion_window_hours={conversion_window_hours!r}, "
                f"label_window_hours={label_window_hours!r}"
            )
        if not verticals or len(set(verticals)) != len(verticals):
            raise ValueError(
                f"`verticals` should be distinct names. Received: verticals={verticals!r}"
            )
        for name, numbers, top in (("click_rates", click_rates, 1.0), ("traffic", traffic, np.inf)):
            if len(numbers) != len(verticals) or not all(0 < x < top for x in numbers):
                raise ValueError(
                    f"`{name}` should have a number above 0 for each of {list(verticals)}"
                    f"{', below 1' if top == 1 else ''}. Received: {name}={numbers!r}"
                )
        self.hours = hours
        self.examples_per_hour = examples_per_hour
        self.users = users
        self.ads = ads
        self.verticals = tuple(verticals)
        self.click_rates = tuple(click_rates)
        self.traffic = tuple(traffic)
        self.effects = _effects("effects", _EFFECTS, effects)
        self.planted = _orders({3: 0.3, 4: 0.2} if planted is None else planted)
        self.user_lifetime_hours = user_lifetime_hours
        self.ad_lifetime_hours = ad_lifetime_hours
        self.drift_hours = drift_hours
        self.label_window_hours = label_window_hours
        self.label_delay_minutes = label_delay_minutes
        self.seed = seed
        self.conversion_rate = conversion_rate
        self.conversion_delay_hours = conversion_delay_hours
        self.conversion_window_hours = conversion_window_hours
        self.conversion_effects = _effects(
            "conversion_effects", _CONVERSION_EFFECTS, conversion_effects
        )

    @property
    def schema(self) -> Schema:
        """The features; `user` has two embeddings, `history` reads the table of `ad`."""
        ads = self.ads + births(self.hours - 1, self.ads, self.ad_lifetime_hours)
        return Schema(
            [
                Categorical(
                    "user",
                    self.users + births(self.hours - 1, self.users, self.user_lifetime_hours),
                    embeddings=2,
                ),
                Categorical("ad", ads),
                Categorical("advertiser", ADVERTISERS),
                Categorical("placement", PLACEMENTS * len(self.verticals)),
                *(Categorical(name, size) for name, size in FIELDS.items()),
                MultiHot("history", ads, length=HISTORY, table="ad"),
                Numeric("relevance"),
                Numeric("price"),
                Numeric("ad_age"),
            ]
        )

    def write(self, path: str | os.PathLike[str], progress: Progress | None = None) -> DatasetInfo:
        """Writes `impressions/`, `labels/` and `dataset.json`.

        With conversions, also `conversions/`.

        A repeated call completes what a stopped one left, and does nothing when all is there.

        Args:
            path: Folder to write to.
            progress: Told how many hours are done. Defaults to `None`: silent.

        Returns:
            The content of `dataset.json`.

        Raises:
            StreamError: If the folder holds other data.
        """
        progress = progress or Silent()
        writer = DatasetWriter(path, "synthetic", self._parameters())
        if writer.finished is not None:
            return writer.finished
        progress.begin("Synthetic impressions", self.hours + self._awaited_hours)
        for done, (hour, tables) in enumerate(self.tables_by_folder(), 1):
            writer.put(hour, tables.pop(IMPRESSIONS, None), tables.pop(LABELS, None), tables)
            progress.step(done)
        return writer.finish(
            DatasetInfo(
                name="synthetic",
                description=(
                    f"Synthetic ads in {', '.join(self.verticals)}: {self.users} users, {self.ads} "
                    "ads, drifting effects, delayed labels. Click probabilities are known."
                    + (" So are those of conversions." if self.conversion_rate is not None else "")
                ),
                schema=self.schema,
                first_hour=START_HOUR,
                last_hour=START_HOUR + self.hours - 1,
                label_window_hours=self.label_window_hours,
                verticals=self.verticals,
                parameters=self._parameters(),
            )
        )

    def tables(self) -> Iterator[tuple[int, pa.Table | None, pa.Table]]:
        """Hour, its impressions (`None` after the last hour) and its label events, in time order.

        Label events go on for `label_window_hours` after the last impressions.
        """
        for hour, tables in self.tables_by_folder():
            if LABELS in tables:
                yield hour, tables.get(IMPRESSIONS), tables[LABELS]

    def tables_by_folder(self) -> Iterator[tuple[int, dict[str, pa.Table]]]:
        """Hour and its tables, by the folder that `write` puts them into, in time order.

        `impressions` end with the last hour, `labels` after `label_window_hours` more, and
        `conversions` after `conversion_window_hours` more.
        """
        world = AdWorld(self)
        state = AdState(self, world)
        clicks: list[Clicks] = []
        conversions: list[Events] = []
        for index in range(self.hours + self._awaited_hours):
            tables: dict[str, pa.Table] = {}
            if index < self.hours:
                if index:
                    state.step(index)
                impressions, found, later = impressions_of_hour(
                    self, world, state, index, START_HOUR
                )
                tables[IMPRESSIONS] = impressions
                clicks.append(found)
                if later is not None:
                    probability, events = later
                    conversions.append(events)
                    at = impressions.column_names.index("true_probability") + 1
                    tables[IMPRESSIONS] = impressions.add_column(
                        at, CONVERSION_TRUTH, pa.array(probability)
                    )
            if index < self.hours + self.label_window_hours:
                due, clicks = _due(clicks, index)
                # Known from the next hour on.
                state.clicked(due)
                tables[LABELS] = _label_events(due)
            if self.conversion_rate is not None:
                bought, conversions = _due(conversions, index)
                tables[CONVERSIONS] = _label_events(bought)
            yield START_HOUR + index, tables

    @property
    def _awaited_hours(self) -> int:
        """Hours after the last impressions in which events still come."""
        if self.conversion_rate is None:
            return self.label_window_hours
        return math.ceil(self.conversion_window_hours)

    def _parameters(self) -> dict[str, Any]:
        planted = {str(order): weight for order, weight in self.planted.items()}
        # Not in the parameters of a stream without them: older folders know nothing of them.
        conversions = {
            "conversion_rate": self.conversion_rate,
            "conversion_delay_hours": self.conversion_delay_hours,
            "conversion_window_hours": self.conversion_window_hours,
            "conversion_effects": self.conversion_effects,
        }
        return {
            "hours": self.hours,
            "examples_per_hour": self.examples_per_hour,
            "users": self.users,
            "ads": self.ads,
            "verticals": self.verticals,
            "click_rates": self.click_rates,
            "traffic": self.traffic,
            "effects": self.effects,
            "planted": planted,
            "user_lifetime_hours": self.user_lifetime_hours,
            "ad_lifetime_hours": self.ad_lifetime_hours,
            "drift_hours": self.drift_hours,
            "label_window_hours": self.label_window_hours,
            "label_delay_minutes": self.label_delay_minutes,
            "seed": self.seed,
            **(conversions if self.conversion_rate is not None else {}),
        }


def _effects(
    name: str, defaults: Mapping[str, float], given: Mapping[str, float] | None
) -> dict[str, float]:
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ValueError(f"`{name}` has the terms {list(defaults)}. Received: {unknown} as well")
    return {**defaults, **(given or {})}


def _due(waiting: Iterable[_Some], index: int) -> tuple[_Some, list[_Some]]:
    """The events up to the end of an hour, in time order, and those after it."""
    parts = list(waiting)
    everything = type(parts[0]).concatenate(parts)
    now = everything.time < (index + 1) * MS_PER_HOUR
    return everything.select(now).in_time_order(), [everything.select(~now)]


def _label_events(events: Events) -> pa.Table:
    return pa.table(
        {
            "example_id": events.example_id,
            "timestamp": events.time + START_HOUR * MS_PER_HOUR,
            "label": np.ones(len(events.time), np.float32),
        }
    )


def _orders(planted: Mapping[int | str, float]) -> dict[int, float]:
    """Keys as integers: TOML and JSON know strings only."""
    orders: dict[int, float] = {}
    for key, weight in planted.items():
        order = int(key) if str(key).isdigit() else 0
        if not 2 <= order <= len(FIELDS) or not weight >= 0:
            raise ValueError(
                f"`planted` should map orders 2..{len(FIELDS)} to weights of at least 0. "
                f"Received: {key!r}: {weight!r}"
            )
        orders[order] = float(weight)
    return dict(sorted(orders.items()))
