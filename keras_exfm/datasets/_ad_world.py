"""What the synthetic ad stream is made of: a fixed world, a drifting state, rows of both."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from keras_exfm.datasets._conversions import Conversions, Events
from keras_exfm.datasets._draws import delays, drift, intercept, pick, standard
from keras_exfm.streaming.columns import MS_PER_HOUR

if TYPE_CHECKING:
    from keras_exfm.datasets.synthetic import SyntheticAds

FIELDS = {
    "segment": 12,
    "category": 10,
    "device": 4,
    "region": 8,
    "language": 5,
    "browser": 6,
    "format": 4,
    "hour_of_day": 24,
}
"""Fields that planted interactions are made of, in this order, and their numbers of values."""

PLACEMENTS = 3
ADVERTISERS = 40
HISTORY = 8
_DIM = 4
_OFFSET = 0.3
_GROUP_SHARE = np.float32(2 / 3)
# Kinds of random draws; each hour and kind has a generator of its own.
_WORLD, _STATE, _ROWS = range(3)


def births(steps: int, count: int, lifetime: float) -> int:
    """Newcomers among `count` places after so many hours."""
    return int(steps * count / lifetime)


class AdWorld:
    """What does not change."""

    def __init__(self, ads: SyntheticAds) -> None:
        rng = np.random.default_rng([ads.seed, _WORLD])
        count = len(ads.verticals)
        traffic = np.array(ads.traffic, np.float64)
        self.traffic = np.cumsum(traffic / traffic.sum())[:-1]
        self.placement = standard(rng, PLACEMENTS * count)
        self.device = standard(rng, FIELDS["device"])
        shares = rng.dirichlet(np.full(FIELDS["device"], 2.0), count)
        self.device_share = np.cumsum(shares, 1)[:, :-1]
        self.category_share = np.exp(rng.normal(0, 0.7, (count, FIELDS["category"])))
        self.category_offset = rng.normal(0, _OFFSET, (count, FIELDS["category"]))
        self.slope = np.linspace(0.7, 1.3, count) if count > 1 else np.ones(1)
        self.category_slope = standard(rng, FIELDS["category"])
        self.relevance = rng.normal(0, 0.5, count)
        self.advertiser_category = rng.integers(0, FIELDS["category"], ADVERTISERS)
        self.advertiser = standard(rng, ADVERTISERS)
        self.third = rng.choice([-1.0, 1.0], (FIELDS["device"], _DIM)).astype(np.float32)
        self.signs = [
            rng.permutation(np.where(np.arange(size) % 2 == 0, 1.0, -1.0))
            for size in FIELDS.values()
        ]
        variance = sum(x**2 for x in (*ads.effects.values(), *ads.planted.values(), _OFFSET))
        self.intercept = np.array([intercept(rate, variance**0.5) for rate in ads.click_rates])
        self.conversions: Conversions | None = None
        if ads.conversion_rate is not None:
            rest = (variance - ads.effects["pair"] ** 2) ** 0.5
            self.conversions = Conversions(
                ads, self.intercept, rest, FIELDS["segment"], ADVERTISERS, _DIM
            )


class AdState:
    """What changes from hour to hour: who is there, their effects, and what users clicked."""

    def __init__(self, ads: SyntheticAds, world: AdWorld) -> None:
        self._ads, self._world = ads, world
        rng = np.random.default_rng([ads.seed, _STATE, 0])
        self.segment = rng.normal(0, 1, (FIELDS["segment"], 2, _DIM)).astype(np.float32)
        self.category = rng.normal(0, 1, (FIELDS["category"], 2, _DIM)).astype(np.float32)
        self.user = self._new_users(rng, ads.users)
        self.ad = self._new_ads(rng, ads.ads)
        for one, count, lifetime in self._both():
            one["id"] = np.arange(count)
            one["born"] = -rng.exponential(lifetime, count)
        self.history = np.full((ads.users, HISTORY), -1, np.int64)
        most = ads.ads + births(ads.hours - 1, ads.ads, ads.ad_lifetime_hours)
        self._vector_of_id = np.zeros((most, _DIM), np.float32)
        self._combine()

    def step(self, index: int) -> None:
        """Goes from the hour before to the hour `index`."""
        ads = self._ads
        rng = np.random.default_rng([ads.seed, _STATE, index])
        keep = np.exp(-1 / ads.drift_hours)
        for one in (self.user, self.ad):
            one["own"] = drift(rng, one["own"], keep)
            one["main"] = drift(rng, one["main"], keep)
        self.segment = drift(rng, self.segment, keep)
        self.category = drift(rng, self.category, keep)
        makers = (self._new_users, self._new_ads)
        for (one, count, lifetime), make in zip(self._both(), makers):
            before, now = (births(i, count, lifetime) for i in (index - 1, index))
            slots = rng.choice(count, now - before, replace=False)
            for name, values in make(rng, len(slots)).items():
                one[name][slots] = values
            one["id"][slots] = count + np.arange(before, now)
            one["born"][slots] = index
            if one is self.user:
                self.history[slots] = -1
        self._combine()

    def clicked(self, clicks: Clicks) -> None:
        """Puts clicks, in time order, at the front of the users' histories."""
        # A user who left meanwhile has given the place to another.
        there = clicks.user == self.user["id"][clicks.slot]
        slot, ad = clicks.slot[there], clicks.ad[there]
        while len(slot):
            # The first click of each user, then the first of what is left.
            slots, first = np.unique(slot, return_index=True)
            self.history[slots, 1:] = self.history[slots, :-1]
            self.history[slots, 0] = ad[first]
            slot, ad = np.delete(slot, first), np.delete(ad, first)

    def interests(self) -> np.ndarray:
        """Mean vector of the ads in each user's history, `(users, dim)`."""
        known = self.history >= 0
        total = (self._vector_of_id[self.history] * known[..., None]).sum(1)
        return total / np.maximum(known.sum(1), 1)[:, None].astype(np.float32)

    def _both(self) -> tuple[tuple[dict[str, np.ndarray], int, float], ...]:
        ads = self._ads
        return (
            (self.user, ads.users, ads.user_lifetime_hours),
            (self.ad, ads.ads, ads.ad_lifetime_hours),
        )

    def _combine(self) -> None:
        """Vectors of pairs (0) and triples (1): two thirds the group's, one third one's own."""
        for one, groups, name in (
            (self.user, self.segment, "segment"),
            (self.ad, self.category, "category"),
        ):
            # Few groups: as drawn, their spread and so the terms' would vary from seed to seed.
            groups = (groups - groups.mean(0)) / groups.std(0)
            one["vector"] = _GROUP_SHARE**0.5 * groups[one[name]]
            one["vector"] += (1 - _GROUP_SHARE) ** 0.5 * one["own"]
        ad = self.ad
        self._vector_of_id[ad["id"]] = ad["vector"][:, 0]

    def _new_users(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        return {
            "segment": rng.integers(0, FIELDS["segment"], count),
            "region": rng.integers(0, FIELDS["region"], count),
            "language": rng.integers(0, FIELDS["language"], count),
            "activity": np.exp(rng.normal(0, 0.8, count)),
            "own": rng.normal(0, 1, (count, 2, _DIM)).astype(np.float32),
            "main": rng.normal(0, 1, count),
        }

    def _new_ads(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        advertiser = rng.integers(0, ADVERTISERS, count)
        return {
            "advertiser": advertiser,
            "category": self._world.advertiser_category[advertiser],
            "format": rng.integers(0, FIELDS["format"], count),
            "popularity": np.exp(rng.normal(0, 0.5, count)),
            "own": rng.normal(0, 1, (count, 2, _DIM)).astype(np.float32),
            "main": rng.normal(0, 1, count),
        }


@dataclasses.dataclass
class Clicks(Events):
    """Clicks whose label events are still to come."""

    slot: np.ndarray
    user: np.ndarray
    ad: np.ndarray


def impressions_of_hour(
    ads: SyntheticAds, world: AdWorld, state: AdState, index: int, start_hour: int
) -> tuple[pa.Table, Clicks, tuple[np.ndarray, Events] | None]:
    """The hour's impressions in time order and the clicks on them.

    Where there are conversions, each impression's probability of one, and those that come.
    """
    rng = np.random.default_rng([ads.seed, _ROWS, index])
    rows = ads.examples_per_hour
    user, ad = state.user, state.ad
    time = np.sort(rng.integers(0, MS_PER_HOUR, rows)) + index * MS_PER_HOUR
    vertical = np.searchsorted(world.traffic, rng.random(rows), side="right")
    u = pick(np.cumsum(user["activity"]), rng.random(rows))
    # One line of cumulative shares over all verticals: one search picks every row's ad.
    share = ad["popularity"] * world.category_share[:, ad["category"]]
    ends = np.cumsum(share / share.sum(1, keepdims=True), 1)
    ends /= ends[:, -1:]
    line = (ends + np.arange(len(ends))[:, None]).ravel()
    a = np.searchsorted(line, vertical + rng.random(rows), side="right") - vertical * ads.ads
    a = np.minimum(a, ads.ads - 1)
    device = (rng.random(rows)[:, None] >= world.device_share[vertical]).sum(1)
    placement = vertical * PLACEMENTS + rng.integers(0, PLACEMENTS, rows)
    fields = {
        "segment": user["segment"][u],
        "category": ad["category"][a],
        "device": device,
        "region": user["region"][u],
        "language": user["language"][u],
        "browser": rng.integers(0, FIELDS["browser"], rows),
        "format": ad["format"][a],
        "hour_of_day": np.full(rows, (start_hour + index) % 24),
    }
    relevance = rng.normal(0, 1, rows)
    price = rng.normal(0, 1, rows)
    age = np.log1p(index - ad["born"])
    age = (age - age.mean()) / max(float(age.std()), 1e-6)

    daily = np.sin(2 * np.pi * fields["hour_of_day"] / 24)
    p, q = user["vector"][u], ad["vector"][a]
    root = _DIM**0.5
    terms = {
        "main": (
            0.5 * user["main"][u]
            + 0.6 * ad["main"][a]
            + 0.4 * world.advertiser[ad["advertiser"][a]]
            + 0.3 * world.placement[placement]
            + 0.25 * world.device[device]
            + 0.2 * daily
            - 0.2 * age[a]
        ),
        "pair": np.einsum("nd,nd->n", p[:, 0], q[:, 0]) / root,
        "third": np.einsum("nd,nd,nd->n", p[:, 1], q[:, 1], world.third[device]) / root,
        # The mean of several vectors is shorter than one.
        "history": np.einsum("nd,nd->n", state.interests()[u], q[:, 0]) * (1.3 / root),
        "numeric": world.slope[vertical]
        * (
            (0.6 + 0.5 * world.category_slope[fields["category"]]) * relevance
            + 0.6 * (price**2 - 1) / 2**0.5
        ),
    }
    z = world.intercept[vertical] + world.category_offset[vertical, fields["category"]]
    for name, values in terms.items():
        z += ads.effects[name] * values
    product = np.ones(rows)
    for order, (signs, values) in enumerate(zip(world.signs, fields.values()), 1):
        product *= signs[values]
        z += ads.planted.get(order, 0.0) * product
    probability = 1 / (1 + np.exp(-z))
    label = rng.random(rows) < probability
    delay = delays(
        rng.random(rows), ads.label_delay_minutes * 60_000, ads.label_window_hours * MS_PER_HOUR
    )

    example = index * rows + np.arange(rows)
    listed = state.history[u]
    known = listed >= 0
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))]).astype(np.int32)
    features = {
        "user": user["id"][u],
        "ad": ad["id"][a],
        "advertiser": ad["advertiser"][a],
        "placement": placement,
        **fields,
    }
    numbers = {"relevance": relevance + world.relevance[vertical], "price": price, "ad_age": age[a]}
    table = pa.table(
        {
            "example_id": example,
            "timestamp": time + start_hour * MS_PER_HOUR,
            "vertical": pa.DictionaryArray.from_arrays(
                vertical.astype(np.int32), list(ads.verticals)
            ).dictionary_decode(),
            "true_probability": probability,
            **{name: values.astype(np.int32) for name, values in features.items()},
            "history": pa.ListArray.from_arrays(offsets, pa.array(listed[known], pa.int32())),
            **{name: values.astype(np.float32) for name, values in numbers.items()},
        }
    )
    clicked = Clicks(example, time + delay, u, user["id"][u], ad["id"][a])
    later = None
    if world.conversions is not None:
        after_click, conversions = world.conversions.of_hour(
            index,
            example_id=example,
            clicked=label,
            click_time=time + delay,
            closes=time + round(ads.conversion_window_hours * MS_PER_HOUR),
            vertical=vertical,
            pair=terms["pair"],
            user=p[:, 0],
            ad=q[:, 0],
            segment=fields["segment"],
            advertiser=features["advertiser"],
            price=price,
        )
        later = probability * after_click, conversions
    return table, clicked.select(label), later
