import re
from html.parser import HTMLParser

import pytest

from keras_exfm import report
from keras_exfm.report import ReportError
from keras_exfm.report.page import count, deviation, duration, number, signed

from .results import write_run

pytestmark = pytest.mark.backend_free


class Reader(HTMLParser):
    """Text, tags, ids and links; refuses tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "clip-path", "data", "action"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def read(path):
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    return page, reader, re.sub(r"\s+", " ", "".join(reader.text))


def test_page_is_whole_and_needs_nothing_else(tmp_path):
    write_run(tmp_path)
    path = report.write(tmp_path)
    assert path == tmp_path / "report.html"
    page, reader, text = read(path)
    assert reader.tags.count("svg") >= 2 * 5 + 1
    assert len(reader.ids) == len(set(reader.ids))
    inner = {f"#{i}" for i in reader.ids} | {f"url(#{i})" for i in reader.ids}
    assert set(reader.links) <= inner
    assert not re.search(
        r"(?:src|href)\s*=\s*[\"']?(?:https?:|//)|url\(\s*[\"']?http|@import", page
    )
    assert "script" not in reader.tags
    # Names come as they are, and nothing of them is taken for markup or a formula.
    for part in ("Ex$FM_1$ <b>", "& <i>more</i>", "A note <script>alert(1)</script>."):
        assert part in text
    assert "b" not in re.findall(r"<(b|i)>[^<]*Ex", page)
    for part in (
        "keras-exfm run made-up.toml --seeds 1,2,3",
        "93.1 %",
        "30 min",
        "1 234 567",
        "evaluation.batch_size",
        "students.0.shared_head_weight",
        "keras 3.0",
        "mean over verticals",
        "Transfer ratio",
        "Bayes",
        "4 min",
        "Teacher coverage",
    ):
        assert part.replace(" ", "") in re.sub(r"\s", "", text), part
    assert [f.name for f in tmp_path.iterdir() if f.name != "results"] == ["report.html"]


def test_figures_of_the_table_are_those_of_gain_table(tmp_path):
    write_run(tmp_path)
    results = report.load(tmp_path)
    _, _, text = read(report.write(tmp_path))
    rows = [dict(zip(results.overall, v)) for v in zip(*results.overall.values())]
    flat = re.sub(r"\s", "", text)
    for row in report.gain_table(rows, "no teacher"):
        assert f"{row['ne_mean']:.4f}±{row['ne_sd']:.4f}" in flat
        if row["model"] != "no teacher":
            assert f"{row['gain_mean']:+.2f}±{row['gain_sd']:.2f}" in flat.replace("−", "-")


def test_same_results_same_bytes(tmp_path):
    write_run(tmp_path, hours=4, warmup=0, verticals=("v",))
    one = report.write(tmp_path, tmp_path / "deep" / "a.html").read_bytes()
    assert report.write(tmp_path, tmp_path / "b.html").read_bytes() == one


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": (7,), "bayes": False, "group": False, "verticals": ("only",)},
        {"hours": 1, "warmup": 0, "unscored": 0, "verticals": ("v",)},
        {"hours": 3, "warmup": 2, "seeds": (1,), "unscored": 3},
        {"silent_hours": (0, 3, 9, 29), "verticals": ("v",)},
        {"noise": {"no teacher": 0.9}, "seeds": (1,)},
        {
            "noise": {"no teacher": 0.5, **{f"s{i}": 0.5 for i in range(8)}},
            "hours": 6,
            "warmup": 0,
            "verticals": ("v",),
        },
        {"hours": 100, "warmup": 24, "seeds": (1,), "verticals": ("v",)},
    ],
)
def test_partial_results(tmp_path, options):
    write_run(tmp_path, **options)
    _, _, text = read(report.write(tmp_path))
    assert "nan" not in text.lower()
    assert ("Bayes line" in text) == options.get("bayes", True)
    assert ("grouped AUC" in text) == options.get("group", True)


def test_sparse_note(tmp_path):
    write_run(tmp_path, hours=3, warmup=0)
    (tmp_path / "results" / "run.json").write_text('{"baseline": "no teacher"}')
    _, _, text = read(report.write(tmp_path))
    assert "Once more" not in text
    assert "Settings" not in text


def damage_json(folder):
    (folder / "run.json").write_text("{")


def damage_parquet(folder):
    (folder / "overall.parquet").write_bytes(b"PAR1 no")


def wrong_baseline(folder):
    (folder / "run.json").write_text('{"baseline": "x"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "run.json").unlink(), "run.json: no results there"),
        (lambda f: (f / "windows.parquet").unlink(), "windows.parquet: no results there"),
        (damage_json, "run.json: not valid JSON"),
        (damage_parquet, "overall.parquet: cannot read"),
        (wrong_baseline, r"overall.parquet: no rows of the baseline 'x'.*'vanilla'"),
        (lambda f: (f / "overall.parquet").replace(f / "windows.parquet"), "overall.parquet"),
    ],
)
def test_bad_results_are_named_and_leave_no_page(tmp_path, damage, message):
    write_run(tmp_path, hours=2, warmup=0)
    damage(tmp_path / "results")
    with pytest.raises(ReportError, match=message):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_numbers():
    assert number(0.81234, 3) == "0.812"
    assert number(-0.5, 1) == "−0.5"
    assert number(-0.0001, 2) == "0.00"
    assert number(float("nan"), 2) == number(None, 2) == "–"
    assert signed(0.5, 1) == "+0.5"
    assert signed(0.001, 2) == "0.00"
    assert deviation(float("nan"), 2) == ""
    assert re.sub(r"\s", "", deviation(0.123, 2)) == "±0.12"
    assert [re.sub(r"\s", " ", duration(s)) for s in (1.25, 59.6, 600, 9000)] == [
        "1.2 s",
        "60 s",
        "10 min",
        "2.5 h",
    ]
    assert re.sub(r"\s", " ", count(1234567)) == "1 234 567"
