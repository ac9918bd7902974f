"""Conversions, the synthetic stream's second task."""

import json

import numpy as np
import pyarrow as pa
import pytest

from keras_exfm.datasets import SyntheticAds
from keras_exfm.datasets.synthetic import CONVERSION_TRUTH, CONVERSIONS, START_HOUR
from keras_exfm.metrics.functional import bayes_normalized_entropy, normalized_entropy
from keras_exfm.streaming import StreamError, partitions

pytestmark = pytest.mark.backend_free

HOUR = 3_600_000
# Of the first six hours of seed 0, before there were conversions.
RECORDED = {
    "events": 271,
    "first": [55, 16, 43, 58],
    "times": [1704067701445, 1704067758155, 1704067987912, 1704068049636],
    "sum": 342426,
    "probabilities": [0.02113433091295135, 0.11962156612055931, 0.07358877469892144],
}
FOLDERS = ("impressions", "labels", CONVERSIONS)


def stream(**options):
    return SyntheticAds(
        **{"hours": 6, "examples_per_hour": 400, "conversion_rate": 0.25, **options}
    )


def folders(ads):
    """The whole stream, by folder."""
    found = {name: [] for name in FOLDERS}
    for _, tables in ads.tables_by_folder():
        for name, table in tables.items():
            found[name].append(table)
    return {name: pa.concat_tables(tables) for name, tables in found.items() if tables}


def column(table, name):
    return table.column(name).to_numpy()


def times(table):
    return dict(zip(table["example_id"].to_pylist(), table["timestamp"].to_pylist()))


def came(impressions, events):
    return np.isin(column(impressions, "example_id"), column(events, "example_id"))


@pytest.fixture(scope="module")
def large():
    return folders(stream(hours=10, examples_per_hour=20_000))


def test_impressions_and_clicks_are_what_they_are_without():
    alone = list(SyntheticAds(hours=6, examples_per_hour=400).tables())
    beside = list(stream().tables())
    events = pa.concat_tables([labels for _, _, labels in alone])
    assert events.num_rows == RECORDED["events"]
    assert events["example_id"].to_pylist()[:4] == RECORDED["first"]
    assert events["timestamp"].to_pylist()[:4] == RECORDED["times"]
    assert sum(events["example_id"].to_pylist()) == RECORDED["sum"]
    p = column(alone[0][1], "true_probability")
    np.testing.assert_allclose(p[:3], RECORDED["probabilities"], rtol=1e-9)
    assert len(alone) == len(beside) == 8
    for one, other in zip(alone, beside):
        assert one[0] == other[0]
        assert one[1] is other[1] is None or one[1].equals(other[1].drop([CONVERSION_TRUTH]))
        assert one[2].equals(other[2])


def test_conversions_come_after_clicks_within_their_window():
    found = folders(stream(examples_per_hour=4000))
    shown, clicked, bought = (times(found[name]) for name in FOLDERS[:3])
    assert len(bought) == found[CONVERSIONS].num_rows > 400
    assert set(bought) < set(clicked)
    assert set(found[CONVERSIONS]["label"].to_pylist()) == {1.0}
    delay = np.array([time - clicked[i] for i, time in bought.items()]) / HOUR
    whole = np.array([time - shown[i] for i, time in bought.items()]) / HOUR
    assert delay.min() >= 0
    assert whole.max() <= 24
    # An exponential with mean 6, given that it is below about 24.
    assert delay.mean() == pytest.approx(6 - 24 / (np.exp(4) - 1), rel=0.12)
    assert delay.max() > 12


def test_long_delays_are_cut_at_the_window():
    found = folders(
        stream(
            examples_per_hour=3000,
            conversion_delay_hours=1e5,
            conversion_window_hours=2.5,
            label_delay_minutes=1e6,
        )
    )
    shown, clicked, bought = (times(found[name]) for name in FOLDERS[:3])
    left = np.array([shown[i] + 2.5 * HOUR - clicked[i] for i in bought])
    delay = np.array([time - clicked[i] for i, time in bought.items()])
    # Far below the mean, an exponential is uniform over what the click left of the window.
    assert (delay >= 0).all()
    assert (delay <= left).all()
    assert (delay / left).mean() == pytest.approx(0.5, abs=0.05)


def test_conversions_follow_the_true_probability(large):
    impressions = large["impressions"]
    p, click = column(impressions, CONVERSION_TRUTH), column(impressions, "true_probability")
    assert (p < click).all()
    y = came(impressions, large[CONVERSIONS])
    # On all impressions, and on the clicked alone.
    clicked = came(impressions, large["labels"])
    for label, probability in ((y, p), (y[clicked], (p / click)[clicked])):
        for part in np.array_split(np.argsort(probability), 10):
            error = (probability[part] * (1 - probability[part])).sum() ** 0.5
            assert abs(label[part].sum() - probability[part].sum()) < 4 * error
    bayes = bayes_normalized_entropy(y, p)
    assert bayes == pytest.approx(normalized_entropy(y, p, from_logits=False), abs=0.01)
    # Knowing clicks alone is not knowing conversions.
    rate = y.sum() / clicked.sum()
    assert normalized_entropy(y, click * rate, from_logits=False) > bayes + 0.03


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_the_rate_is_about_that_of_the_clicks(rate):
    found = folders(stream(hours=24, examples_per_hour=2000, conversion_rate=rate, seed=2))
    impressions, p = found["impressions"], column(found["impressions"], CONVERSION_TRUTH)
    click = column(impressions, "true_probability")
    assert p.sum() / click.sum() == pytest.approx(rate, rel=0.25)


def logit(found):
    both = (column(found["impressions"], n) for n in (CONVERSION_TRUTH, "true_probability"))
    p = np.divide(*both)
    return np.log(p / (1 - p))


def test_every_term_has_its_weight_and_its_own_features():
    nothing = dict.fromkeys(("pair", "intent", "main", "price"), 0.0)
    z = {}
    for name in nothing:
        ads = stream(
            hours=12,
            examples_per_hour=3000,
            verticals=("feed",),
            click_rates=(0.1,),
            traffic=(1.0,),
            # Of the click's logit the shared term alone is left (and the categories' offsets).
            effects=dict.fromkeys(("main", "third", "history", "numeric"), 0.0) | {"pair": 2.0},
            planted={},
            conversion_effects=nothing | {name: 2.0},
            seed=4,
        )
        found = folders(ads)
        z[name] = logit(found) - logit(found).mean()
        assert z[name].std() / 2 == pytest.approx(1, abs=0.25), name
    impressions = found["impressions"]
    click = column(impressions, "true_probability")
    click = np.log(click / (1 - click))
    together = {name: np.corrcoef(click, values)[0, 1] for name, values in z.items()}
    assert together.pop("pair") > 0.95
    assert max(map(abs, together.values())) < 0.15
    np.testing.assert_allclose(z["price"] / 2, -column(impressions, "price"), atol=0.05)
    group = column(impressions, "advertiser") * 12 + column(impressions, "segment")
    for name, fixed in (("main", True), ("intent", False)):
        means = np.bincount(group, z[name]) / np.maximum(np.bincount(group), 1)
        assert (np.abs(z[name] - means[group]).max() < 1e-9) == fixed


def test_a_folder_of_old_is_known_and_one_with_conversions_is_another(tmp_path):
    options = {"hours": 2, "examples_per_hour": 50}
    SyntheticAds(**options).write(tmp_path / "clicks")
    written = json.loads((tmp_path / "clicks" / "dataset.json").read_text())
    assert not [name for name in written["parameters"] if name.startswith("conversion")]
    assert not (tmp_path / "clicks" / CONVERSIONS).exists()
    info = SyntheticAds(**options, conversion_delay_hours=1.0).write(tmp_path / "clicks")
    assert info.parameters == written["parameters"]
    with pytest.raises(StreamError, match=r"parameters.conversion_rate: 0.25 \(there: None\)"):
        stream(**options).write(tmp_path / "clicks")
    info = stream(**options).write(tmp_path / "both")
    assert info == stream(**options).write(tmp_path / "both")
    with pytest.raises(StreamError, match="parameters.conversion_delay_hours: 1.0"):
        stream(**options, conversion_delay_hours=1.0).write(tmp_path / "both")
    with pytest.raises(StreamError, match="parameters.conversion_rate: None"):
        SyntheticAds(**options).write(tmp_path / "both")
    hours = {name: partitions.hours(tmp_path / "both", name) for name in FOLDERS}
    assert [len(hours[name]) for name in FOLDERS] == [2, 4, 26]
    assert hours[CONVERSIONS][-1] == START_HOUR + 25


def test_a_stopped_write_is_completed(tmp_path):
    class Stop:
        def begin(self, label, total):
            assert total == 6 + 9

        def step(self, done, note=""):
            if done == 3:
                raise KeyboardInterrupt

    options = {"examples_per_hour": 100, "conversion_window_hours": 8.5}
    with pytest.raises(KeyboardInterrupt):
        stream(**options).write(tmp_path / "one", progress=Stop())
    assert len(list((tmp_path / "one").rglob("*.parquet"))) == 3 * 3
    info = stream(**options).write(tmp_path / "one")
    assert info == stream(**options).write(tmp_path / "other")
    files = sorted((tmp_path / "other").rglob("*.parquet"))
    assert len(files) == 6 + 8 + 15
    for file in files:
        same = tmp_path / "one" / file.relative_to(tmp_path / "other")
        assert file.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conversion_rate": 0.0}, "`conversion_rate`.*conversion_rate=0.0"),
        ({"conversion_rate": 1.0}, "`conversion_rate`.*below 1"),
        ({"conversion_delay_hours": 0}, "`conversion_delay_hours`.*=0"),
        ({"conversion_window_hours": 2}, "`conversion_window_hours`.*more than.*hours=2, label_w"),
        ({"conversion_window_hours": np.inf}, "`conversion_window_hours`.*inf"),
        ({"conversion_effects": {"third": 1.0}}, "`conversion_effects`.*'intent'.*'third'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stream(**options)
