import json
import re

import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm.tuner import Cost, scaling
from keras_exfm.tuner._oracle import replace_json
from keras_exfm.tuner.scaling import Configuration, ScalingLaw, Sweep
from tests.tuner import streams

COMPUTE = np.repeat(10.0 ** np.arange(4, 9.5, 0.5), 3)


def wide_schema():
    return kx.Schema([kx.Categorical(f"field{i}", 50) for i in range(8)])


def test_wukong_grows_in_layers_then_in_all_widths():
    targets = np.geomspace(1e5, 1e8, 7)
    found = list(scaling.configurations("Wukong", wide_schema(), targets))
    for each, target in zip(found, targets):
        assert each.cost.training_flops == pytest.approx(target, rel=0.15)
        model = kx.models.shapes_only(kx.models.Wukong, wide_schema(), **each.options)
        assert Cost.of(model) == each.cost
        options = each.options
        assert options["n_fmb"] == options["n_lcb"]
        # No width beyond the next layer's cost before all layers are there.
        assert options["num_layers"] == 8 or options["n_fmb"] <= 8
    layers = [c.options["num_layers"] for c in found]
    assert layers == sorted(layers)
    assert layers[0] < 8 == layers[-1]
    last, before = found[-1].options, found[-2].options
    for name in ("n_fmb", "rank"):
        assert last[name] > before[name]
    assert last["mlp_units"][0] > before["mlp_units"][0]


@pytest.mark.parametrize("model", [m for m in scaling.MODELS if m != "Wukong"])
def test_other_models_grow_in_their_widths(model):
    targets = [2e5, 2e6]
    small, large = scaling.configurations(model, wide_schema(), targets, {"dim": 8})
    for each, target in ((small, targets[0]), (large, targets[1])):
        assert each.cost.training_flops == pytest.approx(target, rel=0.15)
        assert each.options["dim"] == 8
    for name, value in small.options.items():
        if name.endswith("_units") and isinstance(value, list):
            assert len(value) == len(large.options[name])
            assert value <= large.options[name]


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="cheapest DLRM"):
        list(scaling.configurations("DLRM", wide_schema(), [10]))
    with pytest.raises(ValueError, match="model='FM'"):
        list(scaling.configurations("FM", wide_schema(), [1e6]))


def test_knobs_double_one_thing_each():
    base = {"num_layers": 1, "n_fmb": 2, "n_lcb": 2, "rank": 2, "mlp_units": [4], "dim": 4}
    found = list(scaling.knobs(wide_schema(), base, doublings=2))
    assert found[0].name == "base"
    assert len(found) == 1 + 6 * 2
    for each in found[1:]:
        changed = {k for k, v in each.options.items() if v != base[k]}
        assert changed == set(each.name.replace(" and ", ", ").split(", "))
    assert found[2].options["num_layers"] == 4
    assert [c.options["mlp_units"] for c in found if c.name == "mlp_units"] == [[8], [16]]
    assert len({c.key for c in found}) == len(found)


@pytest.mark.parametrize(("a", "b", "c"), [(0.7, 4.0, 0.25), (0.0, 3.0, 0.1), (0.5, 300.0, 0.8)])
def test_exact_curves_are_recovered(a, b, c):
    law = ScalingLaw.fit(COMPUTE, a + b * COMPUTE**-c, samples=5)
    assert law.a == pytest.approx(a, abs=2e-3)
    assert law.b == pytest.approx(b, rel=2e-2)
    assert law.c == pytest.approx(c, rel=1e-2)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    a, b, c = 0.7, 4.0, 0.3
    truth, inside = a + b * COMPUTE**-c, 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.004, len(COMPUTE))
        law = ScalingLaw.fit(COMPUTE, truth + noise, samples=80, seed=seed)
        low, high = law.interval("c")
        inside += low < c < high
        assert law.noise == pytest.approx(0.004, rel=0.6)
    # 19 of 20 are expected; fewer than 15 would be one in ten thousand.
    assert inside >= 15


def test_next_size_is_predicted_and_checked():
    rng = np.random.default_rng(0)
    loss = 0.7 + 4 * COMPUTE**-0.3 + rng.normal(0, 0.002, len(COMPUTE))
    check = ScalingLaw.check(COMPUTE, loss)
    assert check.compute == COMPUTE.max()
    assert check.holds
    assert check.low < check.observed < check.high
    # A model that gets worse again at its largest size does not follow its law.
    worse = np.where(COMPUTE.max() == COMPUTE, loss + 0.05, loss)
    assert ScalingLaw.check(COMPUTE, worse).holds is False
    law = ScalingLaw.fit(COMPUTE, loss, samples=50)
    assert law.predict(1e12).holds is None
    assert law.predict(1e12).expected == pytest.approx(0.701, abs=0.01)
    low, high = law.band([1e5, 1e9])
    assert (low < law([1e5, 1e9])).all()
    assert (law([1e5, 1e9]) < high).all()


@pytest.mark.parametrize(
    ("compute", "loss", "message"),
    [
        ([1, 2, 3], [3, 2, 1], "four sizes"),
        ([1, 2, 3, -4], [4, 3, 2, 1], "positive"),
        ([1, 2, 3, 4], [4, 3, 2, np.nan], "finite"),
    ],
)
def test_laws_need_data(compute, loss, message):
    with pytest.raises(ValueError, match=message):
        ScalingLaw.fit(compute, loss)


def test_sweep_runs_each_once_and_goes_on(tmp_path):
    stream = streams.write(tmp_path / "labelled", hours=4)
    wanted = [Configuration.of("FM", streams.schema(), {"dim": d}) for d in (2, 4)]
    lines = []

    def sweep(**options):
        return Sweep(
            tmp_path / "sweep",
            stream,
            **{"table_learning_rates": (0.1, 1000.0), **options},
            batch_size=96,
            metrics_from=streams.FIRST + 2,
            progress=lines.append,
        )

    sweep().run(wanted[:1], seeds=[1])
    assert len(lines) == 3
    first = {f: f.read_bytes() for f in (tmp_path / "sweep").glob("*/*.json")}
    again = sweep()
    again.run(wanted[:1], seeds=[1])
    assert len(lines) == 3
    records = again.records()
    assert [r["options"]["dim"] for r in records] == [2]
    assert all(f.read_bytes() == text for f, text in first.items())
    record = records[0]
    # A rate that diverges is not chosen.
    assert record["table_learning_rate"] == 0.1
    assert record["figures"]["examples"] == 2 * 96
    assert [h["examples"] for h in record["hours"]] == [96] * 4
    assert record["cost"]["training_flops"] == wanted[0].cost.training_flops

    # A choice of rates makes no run over all hours.
    chosen = again.choose(wanted[::-1])
    assert [r["options"]["dim"] for r in chosen] == [4, 2]
    assert [r["table_learning_rate"] for r in chosen] == [0.1, 0.1]
    assert [r["figures"]["examples"] for r in chosen] == [96, 96]
    assert [r["options"]["dim"] for r in again.records()] == [2]
    assert len(lines) == 5

    # Clipped rows are other runs, chosen by themselves.
    clipped = sweep(clip_row_norm=1e-6, table_learning_rates=(0.1,))
    (other,) = clipped.choose(wanted[:1])
    assert other["clip_row_norm"] == 1e-6
    assert other["figures"]["ne"] != chosen[1]["figures"]["ne"]
    assert clipped.records() == []
    lines.clear()

    # Other rates choose anew, and what ran at the old ones no longer counts.
    sweep(table_learning_rates=(0.2,)).run(wanted[:1], seeds=[1])
    assert [r["table_learning_rate"] for r in again.records()] == [0.2]
    assert len(lines) == 1

    # What progressive validation gives by itself.
    import keras

    keras.utils.set_random_seed(1)
    model = wanted[0].build(streams.schema(), kx.optimizers.RowwiseAdagrad(0.1))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    result = kx.streaming.progressive_validation(
        model, stream, batch_size=96, metrics_from=streams.FIRST + 2
    )
    assert record["figures"]["ne"] == pytest.approx(result.whole["ne"], rel=1e-6)


def test_each_size_has_its_own_rates(tmp_path, monkeypatch):
    """Two walks to the best neighbour on the grid: from the middle and from the smaller's end."""
    stream = streams.write(tmp_path / "labelled", hours=4)
    wanted = [Configuration.of("FM", streams.schema(), {"dim": d}) for d in (4, 8, 2)]
    tables, dense = (0.01, 0.1, 1.0, 10.0), (1e-4, 1e-3, 1e-2)
    middle = (1.0, 1e-3)
    best = {2: (0.01, 1e-4), 4: (1.0, 1e-2), 8: (0.1, 1e-2)}
    # No neighbour is better there, but the best pair is: first where the walk from the smaller
    # size's pair begins, then where the other one does.
    traps = {2: best[2], 4: best[2], 8: middle}
    tried = []

    def distance(rates, place):
        return abs(np.log10(rates.table / place[0])) + abs(np.log10(rates.dense / place[1]))

    def run(self, each, seed, rates, hours, metrics_from, kind):
        dim = each.options["dim"]
        if kind == "rates":
            tried.append((dim, rates.table, rates.dense))
            assert hours == (streams.FIRST, streams.FIRST + 1)
            assert metrics_from == streams.FIRST + 1
        ne = min(0.8 + distance(rates, best[dim]), 0.85 + distance(rates, traps[dim]))
        ne = np.nan if rates.table == 10.0 else ne
        replace_json(
            self.folder / kind / f"{each.key}-{rates.name}-seed{seed}.json",
            {"figures": {"ne": ne}, "cost": {"training_flops": each.cost.training_flops}, "seed": 1,
             "name": "FM", "kind": kind, "rates": [rates.table, rates.dense]},
        )  # fmt: skip
        return {"figures": {"ne": ne}}

    monkeypatch.setattr(Sweep, "_run", run)
    sweep = Sweep(
        tmp_path / "sweep", stream, tables, dense, batch_size=96, metrics_from=streams.FIRST + 2
    )
    sweep.run(wanted)
    assert [r["rates"] for r in sweep.records()] == [list(best[d]) for d in (2, 4, 8)]
    assert [next(t for t in tried if t[0] == d) for d in (2, 4, 8)] == [
        (d, *middle) for d in (2, 4, 8)
    ]
    assert len(tried) == len(set(tried)) < 3 * len(tables) * len(dense)


@pytest.mark.parametrize("finite", [True, False])
def test_rates_that_diverge_are_left(tmp_path, monkeypatch, finite):
    """The middle of the list and all its neighbours diverge; the lowest rate alone does not."""
    stream = streams.write(tmp_path / "labelled", hours=4)
    wanted = [Configuration.of("FM", streams.schema(), {"dim": 2})]
    rates_of_runs = []

    def run(self, each, seed, rates, hours, metrics_from, kind):
        if kind == "runs":
            rates_of_runs.append(rates.table)
        return {"figures": {"ne": 0.8 if finite and rates.table == 0.1 else np.nan}}

    monkeypatch.setattr(Sweep, "_run", run)
    sweep = Sweep(tmp_path / "sweep", stream, (0.1, 1.0, 10.0, 100.0, 1000.0), batch_size=96)
    if finite:
        sweep.run(wanted)
        assert rates_of_runs == [0.1]
    else:
        with pytest.raises(ValueError, match="finite at no pair"):
            sweep.run(wanted)


def records(name, c, seeds=(1, 2)):
    """Runs as a sweep records them, of a made-up law."""
    found = []
    for size in (1e4, 1e5, 1e6, 1e7, 1e8):
        for seed in seeds:
            noise = np.random.default_rng(seed + int(size)).normal(0, 1e-4)
            ne = 0.6 + 2 * size**-c + noise
            hours = [
                {"hour": h, "examples": 100, "ne": ne + 0.1 / (h + 1), "bayes_ne": 0.5}
                for h in range(30)
            ]
            cost = {"training_flops": size, "inference_flops": size / 3, "parameters": 10}
            found.append(
                {
                    "name": name,
                    "cost": cost,
                    "seed": seed,
                    "figures": {"ne": ne, "bayes_ne": 0.5},
                    "hours": hours,
                }
            )
    return found


def test_figures_and_laws_of_a_sweep(tmp_path):
    runs = [*records("Wukong", 0.3), *records("DLRM", 0.15)]
    found = scaling.laws(runs)
    law, check = found["Wukong"]
    # The best possible NE, 0.5, is taken off.
    assert (law.a, law.c) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.3, abs=0.02))
    assert check.holds
    assert set(found) == {"Wukong", "DLRM"}
    for draw in (scaling.plot_compute, scaling.plot_data):
        file = draw(runs, tmp_path / "figures" / f"{draw.__name__}.png", title="test")
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = scaling.write_page(runs, tmp_path / "page" / "sweep.html", 'a "<b>" sweep').read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<b>" not in page
    assert "beyond the best possible" in page
    sizes = re.findall(r"<td>DLRM</td><td>([\d,]+)</td><td>2</td><td>([\d.]+)</td>", page)
    assert [size for size, _ in sizes] == ["10,000", "100,000", "1,000,000", "10,000,000",
                                           "100,000,000"]  # fmt: skip
    assert float(sizes[0][1]) == pytest.approx(0.1 + 2 * 1e4**-0.15, abs=1e-3)
    assert re.search(r"<td>Wukong</td><td>0\.\S+ \[", page)
    few = [r for r in runs if r["cost"]["training_flops"] < 1e7]
    assert "at least four sizes" in scaling.write_page(few, tmp_path / "few.html").read_text()
    with pytest.raises(ValueError, match="no runs"):
        scaling.plot_compute([], tmp_path / "none.png")
    assert json.dumps(runs)
