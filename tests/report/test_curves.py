import numpy as np
import pytest

from keras_exfm.report import load
from keras_exfm.report.curves import rolling_width, vertical_curves

from .results import FIRST, figures, write_run

pytestmark = pytest.mark.backend_free


def pooled(made, seed, model, hours, key):
    parts = [made[seed, model, "feed", h] for h in hours]
    return figures(*(np.concatenate(c) for c in zip(*parts)), True, True)[key]


@pytest.fixture
def run(tmp_path):
    made = write_run(tmp_path, seeds=(1, 2), hours=30, warmup=6)
    return made, vertical_curves(load(tmp_path), "feed")


def test_widths():
    assert [rolling_width(n) for n in (1, 10, 30, 72, 96, 400)] == [1, 1, 2, 6, 24, 24]


def test_rolling_and_cumulative_are_those_of_the_pooled_rows(run):
    made, curves = run
    assert curves.rolling_hours == 2
    assert curves.counted_from == FIRST + 6
    hour = FIRST + 17
    for model in ("teacher", "no teacher", "vanilla"):
        each = [pooled(made, s, model, [hour - 1, hour], "ne") for s in (1, 2)]
        assert curves.rolling_ne[model].mean[17] == pytest.approx(np.mean(each))
        assert curves.rolling_ne[model].sd[17] == pytest.approx(np.std(each, ddof=1))
        each = [pooled(made, s, model, range(FIRST + 6, hour + 1), "ne") for s in (1, 2)]
        assert curves.cumulative_ne[model].mean[17] == pytest.approx(np.mean(each))
        each = [pooled(made, s, model, [hour - 1, hour], "calibration") for s in (1, 2)]
        assert curves.rolling_calibration[model].mean[17] == pytest.approx(np.mean(each))
    assert np.isnan(curves.cumulative_ne["vanilla"].mean[:6]).all()


def test_bayes_line(run):
    made, curves = run
    hour = FIRST + 17
    assert curves.rolling_bayes[17] == pytest.approx(
        pooled(made, 1, "no teacher", [hour - 1, hour], "bayes_ne")
    )
    assert curves.cumulative_bayes[-1] == pytest.approx(
        pooled(made, 1, "no teacher", range(FIRST + 6, FIRST + 30), "bayes_ne")
    )


def test_gain_is_paired_and_ends_at_the_overall_gain(run):
    made, curves = run
    counted = range(FIRST + 6, FIRST + 30)
    base, own = (
        np.array([pooled(made, s, m, counted, "ne") for s in (1, 2)])
        for m in ("no teacher", "vanilla")
    )
    gain = 100 * (base - own) / base
    assert set(curves.cumulative_gain) == {"vanilla", "Ex$FM_1$ <b>"}
    assert curves.cumulative_gain["vanilla"].mean[-1] == pytest.approx(gain.mean())
    assert curves.cumulative_gain["vanilla"].sd[-1] == pytest.approx(gain.std(ddof=1))


def test_coverage(run):
    _, curves = run
    assert curves.coverage.tolist() == [0.0] * 2 + [1.0] * 28


def test_windows_without_clicks_still_count_when_pooled(tmp_path):
    made = write_run(tmp_path, seeds=(1,), hours=30, warmup=0, silent_hours=(9, 10))
    curves = vertical_curves(load(tmp_path), "feed")
    assert np.isnan(curves.ne["vanilla"].mean[9])
    assert np.isnan(curves.rolling_ne["vanilla"].mean[10])
    assert np.isfinite(curves.rolling_ne["vanilla"].mean[11])
    assert curves.cumulative_ne["vanilla"].mean[-1] == pytest.approx(
        pooled(made, 1, "vanilla", range(FIRST, FIRST + 30), "ne")
    )
    assert np.isnan(curves.cumulative_ne["vanilla"].sd).all()


def test_no_bayes_line_without_truth(tmp_path):
    write_run(tmp_path, seeds=(1,), hours=4, warmup=0, bayes=False)
    results = load(tmp_path)
    curves = vertical_curves(results, "feed")
    assert curves.rolling_bayes is None
    assert curves.cumulative_bayes is None
    assert vertical_curves(results, "nowhere") is None
