import numpy as np
import pyarrow as pa
import pytest

from keras_exfm import datasets
from keras_exfm.datasets import SyntheticAds
from keras_exfm.datasets._ad_world import FIELDS
from keras_exfm.datasets.synthetic import START_HOUR
from keras_exfm.metrics.functional import bayes_normalized_entropy, normalized_entropy
from keras_exfm.streaming import StreamError, partitions
from keras_exfm.streaming.columns import prepare_hour

pytestmark = pytest.mark.backend_free

HOUR = 3_600_000
NO_EFFECTS = dict.fromkeys(("main", "pair", "third", "history", "numeric"), 0.0)


def stream(**options):
    return SyntheticAds(**{"hours": 6, "examples_per_hour": 400, **options})


def hours_of(ads):
    """Impressions and label events by hour."""
    found = list(ads.tables())
    impressions = {hour: table for hour, table, _ in found if table is not None}
    return impressions, {hour: labels for hour, _, labels in found}


def column(tables, name):
    """A column over all hours."""
    return pa.concat_tables(tables.values()).column(name).to_numpy()


def labels_of(impressions, events):
    return np.isin(column(impressions, "example_id"), column(events, "example_id")).astype(float)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ads")
    return folder, stream().write(folder)


def test_tables_are_as_the_architecture_says(written):
    folder, info = written
    assert partitions.DatasetInfo.read(folder) == info
    assert partitions.hours(folder) == list(range(START_HOUR, START_HOUR + 6))
    assert partitions.hours(folder, "labels") == list(range(START_HOUR, START_HOUR + 8))
    assert (info.first_hour, info.last_hour) == (START_HOUR, START_HOUR + 5)
    seen = set()
    for hour in partitions.hours(folder):
        table = partitions.read_impressions(folder, hour, info.schema)
        assert table.num_rows == 400
        assert not seen & set(table["example_id"].to_pylist())
        seen |= set(table["example_id"].to_pylist())
        assert set(table["vertical"].to_pylist()) == set(info.verticals)
        assert table.schema.field("true_probability").type == pa.float64()
        assert table.schema.field("history").type.value_type == pa.int32()
        labelled = table.append_column("label", pa.array(np.zeros(400, np.float32)))
        assert prepare_hour(labelled, hour, info.schema).num_rows == 400


def test_events_are_of_clicks_alone_delayed_within_the_window(written):
    folder, _ = written
    events = partitions.read_labels(folder, START_HOUR, START_HOUR + 8)
    impressions = pa.concat_tables(
        partitions.read_impressions(folder, hour) for hour in partitions.hours(folder)
    )
    shown = dict(zip(*(impressions[c].to_pylist() for c in ("example_id", "timestamp"))))
    ids, times = events["example_id"].to_pylist(), events["timestamp"].to_pylist()
    assert len(ids) == len(set(ids)) > 150
    assert set(events["label"].to_pylist()) == {1.0}
    delay = np.array([t - shown[i] for i, t in zip(ids, times)]) / 60_000
    assert delay.min() >= 0
    assert delay.max() <= 120
    assert delay.mean() == pytest.approx(20, rel=0.25)


def test_long_delays_are_cut_at_the_window():
    impressions, events = hours_of(
        stream(hours=4, examples_per_hour=3000, label_delay_minutes=1e6, label_window_hours=1)
    )
    shown = dict(zip(column(impressions, "example_id"), column(impressions, "timestamp")))
    delay = column(events, "timestamp") - np.array([shown[i] for i in column(events, "example_id")])
    # Far below the mean, an exponential is uniform.
    assert 0 <= delay.min() < delay.max() <= HOUR
    assert delay.mean() / HOUR == pytest.approx(0.5, abs=0.05)


def test_labels_follow_the_true_probability():
    impressions, events = hours_of(stream(hours=10, examples_per_hour=20_000))
    p, y = column(impressions, "true_probability"), labels_of(impressions, events)
    order = np.argsort(p)
    for part in np.array_split(order, 10):
        error = (p[part] * (1 - p[part])).sum() ** 0.5
        assert abs(y[part].sum() - p[part].sum()) < 4 * error
    bayes = bayes_normalized_entropy(y, p)
    assert bayes == pytest.approx(normalized_entropy(y, p, from_logits=False), abs=0.005)


@pytest.mark.parametrize("seed", [1, 2])
def test_difficulty_and_click_rates_are_as_documented(seed):
    ads = stream(hours=48, examples_per_hour=2000, seed=seed)
    impressions, _ = hours_of(ads)
    p = column(impressions, "true_probability")
    assert 0.8 < bayes_normalized_entropy(p, p) < 0.88
    vertical = column(impressions, "vertical")
    for name, rate, share in zip(ads.verticals, ads.click_rates, ads.traffic):
        assert p[vertical == name].mean() == pytest.approx(rate, rel=0.4)
        assert (vertical == name).mean() == pytest.approx(share, abs=0.01)
    ad, count = np.unique(column(impressions, "ad"), return_counts=True)
    rate = np.bincount(column(impressions, "ad"), p)[ad] / count
    assert np.quantile(rate[count > 200], 0.05) < 0.07
    assert np.quantile(rate[count > 200], 0.95) > 0.15


def test_verticals_differ_in_what_they_show():
    impressions, _ = hours_of(stream(examples_per_hour=5000))
    table = pa.concat_tables(impressions.values())
    vertical = table["vertical"].to_numpy()
    for name in ("category", "device", "placement"):
        shares = [
            np.bincount(table[name].to_numpy()[vertical == v], minlength=10)
            for v in ("feed", "search")
        ]
        one, other = (s / s.sum() for s in shares)
        assert np.abs(one - other).sum() > 0.1
    placements = {v: set(table["placement"].to_numpy()[vertical == v]) for v in set(vertical)}
    assert sorted(x for own in placements.values() for x in own) == list(range(9))


def test_the_history_holds_the_clicks_before_the_hour():
    # Users who click often and leave soon.
    ads = stream(hours=8, examples_per_hour=1500, users=40, user_lifetime_hours=20.0)
    impressions, events = hours_of(ads)
    shown = {}
    for table in impressions.values():
        for row in table.select(["example_id", "user", "ad"]).to_pylist():
            shown[row["example_id"]] = (row["user"], row["ad"])
    full = 0
    for hour, table in impressions.items():
        past = {}
        for earlier in range(START_HOUR, hour):
            for event in events[earlier].to_pylist():
                user, ad = shown[event["example_id"]]
                past.setdefault(user, []).insert(0, ad)
        for row in table.select(["user", "history"]).to_pylist():
            assert row["history"] == past.get(row["user"], [])[:8]
            full += len(row["history"]) == 8
    assert full > 1000


def test_the_same_seed_gives_the_same_and_more_hours_change_nothing():
    short, events = hours_of(stream(hours=4))
    longer, more_events = hours_of(stream(hours=6))
    for hour in short:
        assert short[hour].equals(longer[hour])
    for hour in list(short):
        assert events[hour].equals(more_events[hour])
    other, _ = hours_of(stream(hours=4, seed=1))
    assert not other[START_HOUR].equals(short[START_HOUR])


def test_users_and_ads_come_and_go():
    ads = stream(
        hours=20,
        examples_per_hour=4000,
        users=100,
        ads=50,
        user_lifetime_hours=40.0,
        ad_lifetime_hours=10.0,
    )
    impressions, _ = hours_of(ads)
    first, last = (impressions[h].to_pydict() for h in (START_HOUR, START_HOUR + 19))
    assert max(first["user"]) < 100
    assert max(first["ad"]) < 50
    # 19 hours on, 47 users and 95 ads have joined.
    assert ads.schema["user"].vocabulary_size == 100 + 47
    assert ads.schema["ad"].vocabulary_size == ads.schema["history"].vocabulary_size == 50 + 95
    assert max(last["user"]) > 135
    assert max(last["ad"]) > 135
    assert len(set(last["user"])) <= 100
    assert len(set(last["ad"]) & set(first["ad"])) < 25


def test_effects_drift():
    """Without drift an ad's vector stays; with it the correlation falls with the hours."""

    def correlations(drift_hours):
        from keras_exfm.datasets._ad_world import AdState, AdWorld

        ads = stream(hours=40, ads=400, ad_lifetime_hours=1e9, drift_hours=drift_hours)
        state = AdState(ads, AdWorld(ads))
        start, found = state.ad["main"].copy(), []
        for index in range(1, 40):
            state.step(index)
            found.append(np.corrcoef(start, state.ad["main"])[0, 1])
        return found

    slow, fast = correlations(1e9), correlations(20.0)
    assert min(slow) > 0.999
    assert fast[19] == pytest.approx(np.exp(-1), abs=0.15)
    assert fast[0] > fast[9] > fast[38]


@pytest.mark.parametrize("order", [2, 3, 5, 8])
def test_a_planted_interaction_has_its_order_and_no_lower_one(order):
    ads = SyntheticAds(
        hours=24,
        examples_per_hour=3000,
        users=3000,
        ads=1000,
        verticals=("feed",),
        click_rates=(0.2,),
        traffic=(1.0,),
        effects=NO_EFFECTS,
        planted={order: 1.0},
        ad_lifetime_hours=10.0,
    )
    impressions, _ = hours_of(ads)
    table = pa.concat_tables(impressions.values())
    p = table["true_probability"].to_numpy()
    # Offsets per category are left: take each category's mean away.
    category = table["category"].to_numpy()
    z = np.log(p / (1 - p))
    middle = [(z[category == c].max() + z[category == c].min()) / 2 for c in range(10)]
    z = z - np.array(middle)[category]
    np.testing.assert_allclose(np.abs(z), 1.0, atol=1e-6)
    names = list(FIELDS)[:order]
    code = np.zeros(len(z), np.int64)
    for name in names:
        code = code * FIELDS[name] + table[name].to_numpy()
    # All the fields together fix the sign.
    _, cell = np.unique(code, return_inverse=True)
    total, count = np.bincount(cell, z), np.bincount(cell)
    np.testing.assert_allclose(np.abs(total), count, rtol=1e-9)
    # One of them alone says next to nothing; nor do the fields after them.
    for name in FIELDS:
        values = table[name].to_numpy()
        means = np.bincount(values, z)[np.unique(values)] / np.bincount(values)[np.unique(values)]
        spread = (np.bincount(values)[np.unique(values)] * means**2).sum() / len(z)
        assert spread < 0.25, name


def test_every_term_has_the_weight_that_effects_says():
    def spread(**effects):
        ads = SyntheticAds(
            hours=12,
            examples_per_hour=3000,
            verticals=("feed",),
            click_rates=(0.1,),
            traffic=(1.0,),
            effects=NO_EFFECTS | effects,
            planted={},
            seed=4,
        )
        impressions, _ = hours_of(ads)
        table = pa.concat_tables(impressions.values())
        p = table["true_probability"].to_numpy()
        return np.log(p / (1 - p)).std()

    offset = spread()
    assert 0.1 < offset < 0.5
    for name in NO_EFFECTS:
        assert (spread(**{name: 2.0}) ** 2 - offset**2) ** 0.5 / 2 == pytest.approx(1, abs=0.35), (
            name
        )


def test_a_stopped_write_is_completed(written, tmp_path):
    folder, info = written

    class Stop:
        def begin(self, label, total):
            assert total == 8

        def step(self, done, note=""):
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream().write(tmp_path, progress=Stop())
    assert len(partitions.hours(tmp_path)) == 3
    with pytest.raises(StreamError, match=r"another data set: parameters.seed: 5 \(there: 0\)"):
        stream(seed=5).write(tmp_path)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")}
    assert len(kept) == 6
    assert stream().write(tmp_path) == info
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    for file in sorted(folder.rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes()
    with pytest.raises(StreamError, match="parameters.examples_per_hour: 300"):
        stream(examples_per_hour=300).write(tmp_path)


def test_foreign_partitions_are_left_alone(tmp_path):
    rows = {"example_id": [1], "timestamp": [0], "vertical": ["feed"]}
    partitions.write_impressions(tmp_path, 0, pa.table(rows))
    with pytest.raises(StreamError, match="did not write"):
        stream().write(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hours": 0}, "`hours`.*hours=0"),
        ({"users": 2.5}, "`users`.*users=2.5"),
        ({"label_window_hours": True}, "`label_window_hours`.*True"),
        ({"drift_hours": 0.5}, "`drift_hours`.*0.5"),
        ({"label_delay_minutes": 0}, "`label_delay_minutes`.*0"),
        ({"verticals": ("a", "a", "b")}, "`verticals`.*distinct"),
        ({"verticals": ("a", "b")}, "`click_rates`.*'a', 'b'"),
        ({"click_rates": (0.1, 0.2, 1.0)}, "`click_rates`.*below 1.*1.0"),
        ({"traffic": (0.5, 0.5, 0.0)}, "`traffic`.*above 0"),
        ({"effects": {"pairs": 1.0}}, "`effects`.*'pair'.*'pairs'"),
        ({"planted": {9: 0.1}}, "`planted`.*2..8.*9: 0.1"),
        ({"planted": {"x": 0.1}}, "`planted`.*'x'"),
        ({"planted": {3: -0.1}}, "`planted`.*-0.1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticAds(**options)


def test_orders_may_be_strings_as_in_toml():
    assert SyntheticAds(planted={"4": 0.5, 2: 1}).planted == {2: 1.0, 4: 0.5}


def test_prepare_by_name(tmp_path):
    options = {"hours": 2, "examples_per_hour": 50}
    info = datasets.prepare("synthetic", tmp_path / "ads", options=options)
    assert info == partitions.DatasetInfo.read(tmp_path / "ads")
    assert info.parameters["hours"] == 2
    assert {"globo", "synthetic", *datasets.FORMATS} == set(datasets.DATASETS)
    for arguments, message in [
        (("nothing", tmp_path), "No data set 'nothing'.*'globo'.*'synthetic'"),
        (("synthetic", tmp_path, None, {"hour": 1}), "no options .'hour'.*'hours'"),
        (("synthetic", tmp_path, "clicks"), "reads no files.*clicks"),
        (("globo", tmp_path), "--data"),
        (("globo", tmp_path, "clicks", {"out": "x"}), "no options .'out'.*'user_fraction'"),
    ]:
        with pytest.raises(ValueError, match=message):
            datasets.prepare(*arguments)
    with pytest.raises(StreamError, match="no such file"):
        datasets.prepare("globo", tmp_path / "globo", tmp_path / "none", {"days": [1, 2]})
