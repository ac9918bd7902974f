import pytest

from keras_exfm.report.gains import gain_table
from keras_exfm.report.headline import headline

pytestmark = pytest.mark.backend_free


def say(gains, seeds=3, wobble=0.0, teacher=5.0, verticals=("feed",)):
    """`gains`: student -> gain in percent, the same in every vertical unless a dict."""
    rows = []
    for v in verticals:
        for seed in range(seeds):
            shift = wobble * (seed - (seeds - 1) / 2)

            def add(model, gain, seed=seed, v=v):
                rows.append(
                    {
                        "seed": seed,
                        "model": model,
                        "vertical": v,
                        "examples": 10,
                        "clicks": 1.0,
                        "logloss": 0.1,
                        "ne": 0.8 * (1 - gain / 100),
                        "auc": 0.7,
                        "calibration": 1.0,
                    }
                )

            add("alone", 0.0)
            if teacher is not None:
                add("teacher", teacher[v] if isinstance(teacher, dict) else teacher)
            for model, gain in gains.items():
                add(model, (gain[v] if isinstance(gain, dict) else gain) + shift)
    table = gain_table(rows, "alone")
    mean = gain_table(rows, "alone", mean_over_verticals=True) if len(verticals) > 1 else table
    told = headline(table, mean, "alone", seeds)
    return told["tone"], told["main"], " ".join(told["more"])


def test_gain():
    tone, main, more = say({"a": 1.0, "b": 2.0}, wobble=0.1)
    assert tone == "good"
    assert main == (
        "Best of 2 distilled students: “b” has 2.00 ± 0.10 % lower NE than “alone” "
        "(one vertical, 3 seeds)."
    )
    assert more == (
        "“a”: 1.00 ± 0.10 % lower. The teacher itself: 5.00 ± 0.00 % lower, of which “b” gets 40 %."
    )


def test_share_of_the_teachers_gain_is_of_the_gains_shown():
    gains = {"feed": 2.0, "search": 0.1}
    _, _, more = say({"a": gains}, teacher={"feed": 4.0, "search": 0.01}, verticals=tuple(gains))
    assert "The teacher itself: 2.00 ± 0.00 % lower, of which “a” gets 52 %" in more
    _, _, more = say({"a": -1.0})
    assert more.endswith("The teacher itself: 5.00 ± 0.00 % lower.")


def test_loss_is_said():
    tone, main, more = say({"a": -1.0, "b": -2.0}, wobble=0.1)
    assert tone == "bad"
    assert "No distilled student beats “alone”: the best, “a”, has 1.00 ± 0.10 % higher" in main
    assert "“b”: 2.00 ± 0.10 % higher." in more


def test_gain_within_the_spread_of_seeds_is_open():
    tone, _, more = say({"a": 0.5}, wobble=0.5)
    assert tone == "open"
    assert "95 % interval of the mean includes 0" in more


@pytest.mark.parametrize(("seeds", "tone"), [(2, "open"), (6, "good")])
def test_two_seeds_prove_less_than_six(seeds, tone):
    assert say({"a": 0.5}, seeds=seeds, wobble=0.5 / seeds)[0] == tone


def test_one_seed_is_open():
    tone, main, more = say({"a": 3.0}, seeds=1)
    assert tone == "open"
    assert main == "Distilled: “a” has 3.00 % lower NE than “alone” (one vertical, one seed)."
    assert "nothing is known of the spread" in more


def test_losing_vertical_and_useless_teacher_are_said():
    _, main, more = say(
        {"a": {"feed": 2.0, "search": -0.5}}, verticals=("feed", "search"), wobble=0.01
    )
    assert "(mean of 2 verticals, 3 seeds)" in main
    assert "It loses in “search”." in more
    _, _, more = say({"a": 1.0}, teacher=-2.0)
    assert "The teacher itself: 2.00 ± 0.00 % higher, so there was nothing to transfer." in more


def test_nobody_was_distilled():
    assert say({}, teacher=None) == ("open", "No student was distilled; “alone” stands alone.", "")
