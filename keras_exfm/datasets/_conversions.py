"""Conversions after the clicks of the synthetic ad stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from keras_exfm.datasets._draws import delays, sigmoid_mean, solve, standard
from keras_exfm.streaming.columns import MS_PER_HOUR

if TYPE_CHECKING:
    from keras_exfm.datasets.synthetic import SyntheticAds

# Kinds of random draws, apart from those of `_ad_world`: with conversions or without, impressions
# and clicks are the same.
_WORLD, _ROWS = 3, 4


@dataclasses.dataclass
class Events:
    """Label events that are still to come; `time` in ms since the stream's start."""

    example_id: np.ndarray
    time: np.ndarray

    def select(self, which: np.ndarray) -> Self:
        """Some of them, in the order of `which`, or those where it is true."""
        return type(self)(*(getattr(self, f.name)[which] for f in dataclasses.fields(self)))

    def in_time_order(self) -> Self:
        """All of them by time, then example."""
        return self.select(np.lexsort((self.example_id, self.time)))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The events of several."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


class Conversions:
    """What makes conversions, as far as it does not change.

    Args:
        ads: The stream.
        click_intercept: That of the click's logit, by vertical.
        click_rest: Standard deviation of the click's logit without its term `pair`.
        segments: Number of users' segments.
        advertisers: Number of advertisers.
        dim: Length of the vectors of users and ads.
    """

    def __init__(
        self,
        ads: SyntheticAds,
        click_intercept: np.ndarray,
        click_rest: float,
        segments: int,
        advertisers: int,
        dim: int,
    ) -> None:
        self._ads = ads
        rng = np.random.default_rng([ads.seed, _WORLD])
        self.segment = standard(rng, segments)
        self.advertiser = standard(rng, advertisers)
        # A turn by a right angle in random planes: <p, turn q> tells nothing of <p, q>.
        basis, _ = np.linalg.qr(rng.normal(0, 1, (dim, dim)))
        planes = np.kron(np.eye(dim // 2), [[0.0, -1.0], [1.0, 0.0]])
        self.turn = (basis @ planes @ basis.T).astype(np.float32)
        effects = ads.conversion_effects
        rest = sum(x**2 for name, x in effects.items() if name != "pair") ** 0.5
        assert ads.conversion_rate is not None
        self.intercept = np.array(
            [
                _intercept(
                    ads.conversion_rate,
                    (click, ads.effects["pair"], click_rest),
                    (effects["pair"], rest),
                )
                for click in click_intercept
            ]
        )

    def of_hour(
        self,
        index: int,
        *,
        example_id: np.ndarray,
        clicked: np.ndarray,
        click_time: np.ndarray,
        closes: np.ndarray,
        vertical: np.ndarray,
        pair: np.ndarray,
        user: np.ndarray,
        ad: np.ndarray,
        segment: np.ndarray,
        advertiser: np.ndarray,
        price: np.ndarray,
    ) -> tuple[np.ndarray, Events]:
        """Each impression's probability of a conversion should it be clicked, and those that come.

        Args:
            index: The hour.
            example_id: The impressions.
            clicked: Which are clicked.
            click_time: When they are or would be.
            closes: Until when a conversion may come.
            vertical: Their verticals, as numbers.
            pair: The click's term of this name.
            user: Vectors of their users.
            ad: Vectors of their ads.
            segment: Their users' segments.
            advertiser: Their ads' advertisers.
            price: The feature.
        """
        rng = np.random.default_rng([self._ads.seed, _ROWS, index])
        terms = {
            "pair": pair,
            "intent": np.einsum("nd,nd->n", user, ad @ self.turn.T) / user.shape[1] ** 0.5,
            "main": 0.7 * self.advertiser[advertiser] + 0.7 * self.segment[segment],
            "price": -price,
        }
        z = self.intercept[vertical]
        for name, values in terms.items():
            z = z + self._ads.conversion_effects[name] * values
        probability = 1 / (1 + np.exp(-z))
        converted = clicked & (rng.random(len(z)) < probability)
        delay = delays(
            rng.random(len(z)),
            self._ads.conversion_delay_hours * MS_PER_HOUR,
            closes - click_time,
        )
        return probability, Events(example_id, click_time + delay).select(converted)


def _intercept(
    rate: float, click: tuple[float, float, float], conversion: tuple[float, float]
) -> float:
    """The intercept with which `rate` of the clicks are followed by a conversion.

    The clicked are not the average: where `pair` is large, clicks and conversions both are likely.

    Args:
        rate: Share of the clicks.
        click: Intercept, weight of `pair`, and deviation of the rest of the click's logit.
        conversion: Weight of `pair`, and deviation of the rest of the conversion's logit.
    """
    pair, weight = np.polynomial.hermite_e.hermegauss(31)
    base, slope, rest = click
    weight = weight * sigmoid_mean(base + slope * pair, rest)
    own_slope, own_rest = conversion

    def share(b: float) -> float:
        return float((weight * sigmoid_mean(b + own_slope * pair, own_rest)).sum() / weight.sum())

    return solve(share, rate)
