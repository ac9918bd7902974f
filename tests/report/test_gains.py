import math

import numpy as np
import pyarrow as pa
import pytest

from keras_exfm.report import ReportError, gain_table

pytestmark = pytest.mark.backend_free


def row(seed, model, ne, vertical="feed", auc=0.7, calibration=1.0, bayes=0.6, **changes):
    return {
        "seed": seed,
        "model": model,
        "vertical": vertical,
        "examples": 100,
        "clicks": 10.0,
        "logloss": ne / 3,
        "ne": ne,
        "auc": auc,
        "calibration": calibration,
        "group_auc": None,
        "bayes_ne": bayes,
        **changes,
    }


ROWS = [
    row(1, "ExFM", 0.78, auc=0.72),
    row(2, "ExFM", 0.873, auc=0.71),
    row(1, "alone", 0.80),
    row(2, "alone", 0.90, bayes=0.7),
    row(1, "teacher", 0.70),
    row(2, "teacher", 0.80),
]


def by_model(rows):
    return {(r["vertical"], r["model"]): r for r in rows}


def test_golden_values():
    rows = gain_table(ROWS, "alone")
    assert [r["model"] for r in rows] == ["teacher", "alone", "ExFM"]
    teacher, alone, exfm = rows
    # (0.80 - 0.78) / 0.80 = 2.5 %, (0.90 - 0.873) / 0.90 = 3 %
    assert exfm["gain_mean"] == pytest.approx(2.75)
    assert exfm["gain_sd"] == pytest.approx(0.5 / math.sqrt(2))
    # 0.02 / 0.10 and 0.027 / 0.10
    assert exfm["transfer_ratio_mean"] == pytest.approx(0.235)
    assert exfm["transfer_ratio_sd"] == pytest.approx(0.07 / math.sqrt(2))
    assert exfm["auc_gain_mean"] == pytest.approx(0.015)
    assert exfm["ne_mean"] == pytest.approx(0.8265)
    assert alone["bayes_distance_mean"] == pytest.approx(0.2)
    assert teacher["gain_mean"] == pytest.approx(50 * (0.1 / 0.8 + 0.1 / 0.9))
    for meaningless in (
        alone["gain_mean"],
        alone["transfer_ratio_mean"],
        teacher["transfer_ratio_mean"],
        exfm["group_auc_mean"],
    ):
        assert math.isnan(meaningless)


def test_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=5)
    rows = [row(s, "alone", 1 + 0.1 * shared[s]) for s in range(5)]
    rows += [row(s, "ExFM", 0.99 * (1 + 0.1 * shared[s])) for s in range(5)]
    exfm = by_model(gain_table(rows, "alone"))["feed", "ExFM"]
    assert exfm["gain_mean"] == pytest.approx(1.0)
    assert exfm["gain_sd"] == pytest.approx(0.0, abs=1e-9)
    assert exfm["ne_sd"] > 0.01


def test_only_common_seeds_are_compared():
    rows = [*ROWS, row(3, "ExFM", 0.1), row(4, "alone", 0.5)]
    exfm = by_model(gain_table(rows, "alone"))["feed", "ExFM"]
    assert exfm["seeds"] == 2
    assert exfm["gain_mean"] == pytest.approx(2.75)


def test_one_seed_has_no_deviation_and_no_teacher_no_ratio():
    rows = gain_table([r for r in ROWS if r["seed"] == 1 and r["model"] != "teacher"], "alone")
    exfm = by_model(rows)["feed", "ExFM"]
    assert exfm["gain_mean"] == pytest.approx(2.5)
    assert math.isnan(exfm["gain_sd"])
    assert math.isnan(exfm["transfer_ratio_mean"])


def test_no_ratio_where_the_teacher_is_no_better():
    rows = [r for r in ROWS if r["model"] != "teacher"]
    rows += [row(1, "teacher", 0.85), row(2, "teacher", 0.80)]
    exfm = by_model(gain_table(rows, "alone"))["feed", "ExFM"]
    assert exfm["transfer_ratio_mean"] == pytest.approx(0.27)  # seed 2 alone
    assert math.isnan(exfm["transfer_ratio_sd"])


def test_mean_over_verticals_is_of_each_seed_first():
    other = [
        {**r, "vertical": "search", "ne": r["ne"] * (1.1 if r["model"] == "ExFM" else 1)}
        for r in ROWS
    ]
    only_feed = [row(1, "half", 0.5), row(2, "half", 0.5)]
    rows = gain_table([*ROWS, *other, *only_feed], "alone", mean_over_verticals=True)
    assert [r["model"] for r in rows] == ["teacher", "alone", "ExFM"]
    gains = [np.mean([2.5, 100 * (0.8 - 0.858) / 0.8]), np.mean([3, 100 * (0.9 - 0.9603) / 0.9])]
    assert rows[2]["vertical"] == ""
    assert rows[2]["gain_mean"] == pytest.approx(np.mean(gains))
    assert rows[2]["gain_sd"] == pytest.approx(np.std(gains, ddof=1))


def test_over_verticals_the_ratio_is_of_the_mean_gains():
    """A vertical where the teacher gains next to nothing must not decide it."""
    rows = [row(1, "alone", 0.8), row(1, "teacher", 0.7), row(1, "ExFM", 0.76)]
    for model, ne in (("alone", 0.5), ("teacher", 0.4999), ("ExFM", 0.502)):
        rows.append(row(1, model, ne, vertical="search"))
    exfm = gain_table(rows, "alone", mean_over_verticals=True)[-1]
    # Gains of 5 and -0.4 %, the teacher's 12.5 and 0.02 %; the ratios alone are 0.4 and -20.
    assert exfm["transfer_ratio_mean"] == pytest.approx((5 - 0.4) / (12.5 + 0.02))


def test_arrow_tables_and_absent_optional_columns():
    table = pa.Table.from_pylist(ROWS).drop_columns(["group_auc", "bayes_ne"])
    exfm = by_model(gain_table(table, "alone"))["feed", "ExFM"]
    assert exfm["gain_mean"] == pytest.approx(2.75)
    assert math.isnan(exfm["bayes_distance_mean"])


@pytest.mark.parametrize(
    ("rows", "baseline", "message"),
    [
        (ROWS, "nobody", r"baseline 'nobody'.*'ExFM', 'alone', 'teacher'"),
        ([], "alone", "missing columns"),
        ([{k: v for k, v in r.items() if k != "auc"} for r in ROWS], "alone", r"\['auc'\]"),
        ([*ROWS, ROWS[0]], "alone", "two rows for .*'seed': 1, 'model': 'ExFM'"),
    ],
)
def test_bad_tables(rows, baseline, message):
    with pytest.raises(ReportError, match=message):
        gain_table(rows, baseline)
