"""What the site is made from: tables, docstrings, links, figures. `make docs` builds it whole."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

import keras_exfm
from keras_exfm import models
from keras_exfm.models._ranking_model import RankingModel

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"


def load(path):
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(monkeypatch):
    """Loads a module of docs/_site as MkDocs does: its folder comes first on the path."""
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    yield lambda name: load(DOCS / "_site" / f"{name}.py")
    for name in ("tables", "costs"):
        sys.modules.pop(name, None)


def zoo():
    return {
        name
        for name in models.__all__
        if isinstance(made := getattr(models, name), type) and issubclass(made, RankingModel)
    }


def test_every_model_has_a_page_with_its_tables(site):
    tables = site("tables")
    assert set(tables.costs.ZOO) == zoo()
    with_presets = {each.model for each in models.PRESETS.values()}
    index = (DOCS / "models" / "index.md").read_text()
    for name in zoo():
        file = f"{tables.PAGES.get(name, name.lower())}.md"
        asked = re.findall(
            r"^<!-- ([\w-]+): (\w+) -->$", (DOCS / "models" / file).read_text(), re.M
        )
        wanted = [("costs", name), ("results", name), ("presets", name)]
        assert asked == wanted[: 2 + (name in with_presets)], name
        assert f"]({file})" in index, name


def test_tables_of_costs(site):
    """DLRM with dim 8 and 64, 32 ReLU units, by hand."""
    tables = site("tables")
    numeric = (13 + 1) * 64 + (64 + 1) * 8
    top = (27 * 8 + 27 * 26 // 2 + 1) * 64 + (64 + 1) * 32 + (32 + 1)
    head, _, row = tables.model_costs("DLRM").splitlines()[:3]
    assert head == "| weights beside the tables | numbers an id | inference | training |"
    assert row.startswith(f"| {numeric + top:,} | 8 | ")
    dots = 2 * 27 * 27 * 8
    assert f"| `DotInteraction` | 1 | {dots / 1e3:,.1f} | " in tables.model_costs("DLRM")
    rows = tables.all_costs("zoo").splitlines()
    assert len(rows) == 2 + len(zoo())
    assert rows[3].startswith(f"| [DLRM](dlrm.md) | {numeric + top:,} | 8 | ")


def test_tables_of_presets(site):
    text = site("tables").presets("Wukong")
    assert "`wukong_4xlarge`" in text
    assert "`wukong_criteo`" in text
    assert "every row has `dim=160`, `form='attentive'`" in text
    (small,) = (line for line in text.splitlines() if line.startswith("| `wukong_small`"))
    assert "`(2048,) * 3`" in small
    assert small.endswith(" | 0.53 |")
    with pytest.raises(ValueError, match="FM has no presets"):
        site("tables").presets("FM")


def run(model, seed, ne):
    figures = {"ne": ne, "auc": 0.75, "group_auc": 0.74, "calibration": 1.0}
    return {
        "model": model,
        "seed": seed,
        "dim": 16,
        "table_learning_rate": 0.4,
        "learning_rate": 0.001,
        "cost": {"training_flops": 2_816_000},
        "figures": figures,
    }


def trial(model, auc, choose=0.9):
    return {
        "model": model,
        "choose": {"auc": choose},
        "test": {"auc": auc, "logloss": 0.15},
        "test_calibrated": {"auc": auc, "logloss": 0.13},
    }


def test_tables_of_results(site, tmp_path, monkeypatch):
    stream = {"runs": [run("DLRM", 1, 0.87), run("DCNv2", 1, 0.86), run("DCNv2", 2, 0.88)]}
    stream["runs"].append(run("FM", 1, 0.9))
    frappe = {
        "dataset": "frappe_x1",
        "runs": [trial("DLRM", 0.98), trial("DLRM", 0.96)],
        "search": [trial("DLRM", 0.7), trial("FM", 0.99, 0.8), trial("FM", 0.96, 0.95)],
    }
    (tmp_path / "globo.json").write_text(json.dumps(stream))
    (tmp_path / "frappe_x1.json").write_text(json.dumps(frappe))
    tables = site("tables")
    rows = tables.stream_rows(stream)
    assert list(rows) in (["DLRM", "DCNv2", "FM"], ["DCNv2", "DLRM", "FM"])
    assert rows["DCNv2"][:4] == [2, 16, "0.4 / 0.001", "0.8700 ± 0.0141"]
    assert rows["FM"][:4] == [1, 16, "0.4 / 0.001", "0.9000"]
    assert rows["FM"][-1] == "2,816"
    # BARS' figures as benchmarks/zoo_settings.py has them; trials are chosen by other rows.
    rows = tables.set_rows(frappe)
    assert list(rows) == ["FM", "DLRM"]
    assert rows["DLRM"] == [
        *(2, "0.9700 ± 0.0141", "0.1500 ± 0.0000", "0.1300 ± 0.0000"),
        *(1, "0.7000 / 0.1500", "0.9840 / 0.1444"),
    ]
    assert rows["FM"] == [0, "-", "-", "-", 2, "0.9600 / 0.1500", "0.9671 / 0.2065"]
    monkeypatch.setattr(tables.read_results, "__defaults__", (tmp_path,))
    text = tables.model_results("FM")
    assert "**Globo**\n\n| seeds | dim |" in text
    assert "**Frappe_x1**\n\n| runs | AUC |" in text
    assert tables.model_results("AFN").count("not measured") == 2
    assert "### Frappe_x1\n\n| model | runs | AUC |" in tables.all_results("zoo")


def test_recorded_results_have_the_form_that_the_tables_read(site):
    tables = site("tables")
    streams, sets = tables.read_results()
    assert streams.keys() >= {"globo"}
    assert sets.keys() >= {"frappe_x1"}
    for found in streams.values():
        assert set(tables.stream_rows(found)) <= zoo()
    for found in sets.values():
        assert set(tables.set_rows(found)) == {r["model"] for r in found["runs"] + found["search"]}


def test_docstrings_as_markdown(site):
    text = """One line.

Args:
    x: A number.

Call arguments:
    ids: Some ids, of
        any shape.
    training: Whether.

Returns:
    Rows.

Example:

>>> for i in range(2):
...     print(i)
0
1

Then:

>>> a[0][1]
5

References:
    - [He](https://example.org), section 1.
"""
    made = site("docstrings").markdown(text, of_class=True)
    assert "Args:\n    x: A number." in made
    assert "**Call arguments:**\n\n* `ids`: Some ids, of\n    any shape.\n* `training`: W" in made
    assert "**Returns:**\n\nRows." in made
    assert "**Example:**\n\n```pycon\n>>> for i in range(2):\n...     print(i)\n0\n1\n```" in made
    assert "Then:\n\n```pycon\n>>> a[0][1]\n5\n```" in made
    assert "**References:**\n\n- [He]" in made
    assert "Returns:\n    Rows." in site("docstrings").markdown(text)


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("embeddings.md", "[a](scaling.md#x)", "[a](scaling.md#x)"),
        ("models/fm.md", "[a](../../benchmarks/results/zoo/README.md)", "[a](../{zoo})"),
        ("das.md", "[a](../benchmarks/results/zoo)", "[a]({zoo})"),
        ("contributing.md", "[a](docs/das.md)", "[a](das.md)"),
        ("das.md", "[the presets](../keras_exfm/cli.py)", "the presets (`keras_exfm/cli.py`)"),
        ("das.md", "[`keras_exfm/cli.py`](../keras_exfm/cli.py)", "`keras_exfm/cli.py`"),
        ("das.md", "[a](gone.md)", "[a](gone.md)"),
        ("das.md", "[a](https://keras.io/x.md)", "[a](https://keras.io/x.md)"),
        ("das.md", "```\n[a](../keras_exfm/cli.py)\n```", "```\n[a](../keras_exfm/cli.py)\n```"),
    ],
)
def test_links_between_files_become_links_between_pages(site, page, text, expected):
    hooks = site("hooks")

    class Files:
        src_uris = dict.fromkeys(("das.md", "embeddings.md", "scaling.md", "models/fm.md"))

    Files.src_uris |= dict.fromkeys(hooks.ELSEWHERE.values())
    of = type("Page", (), {"file": type("File", (), {"src_uri": page})})
    made = hooks.on_page_markdown(text, page=of, config=None, files=Files)
    assert made == expected.format(zoo="measurements/zoo/index.md")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So:\n* a\n* b\n", "So:\n\n* a\n* b\n"),
        ("So:\n1. a\n", "So:\n\n1. a\n"),
        ("So:\n| a |\n|---|\n", "So:\n\n| a |\n|---|\n"),
        ("* a\n  goes on\n* b\n", "* a\n  goes on\n* b\n"),
        ("```\nx\n* y\n```\n", "```\nx\n* y\n```\n"),
    ],
)
def test_lists_behind_text_are_set_apart(site, text, expected):
    of = type("Page", (), {"file": type("File", (), {"src_uri": "das.md"})})
    files = type("Files", (), {"src_uris": {}})
    made = site("hooks").on_page_markdown(text, page=of, config=None, files=files)
    assert made == expected


def test_links_lead_to_files_of_the_repository():
    pages = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found = 0
    for page in [*pages, *DOCS.rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            found += 1
    assert found > 50


def test_unknown_tables_are_errors(site):
    hooks = site("hooks")
    of = type("Page", (), {"file": type("File", (), {"src_uri": "das.md"})})
    files = type("Files", (), {"src_uris": {}})
    with pytest.raises(hooks.PluginError, match="unknown table '<!-- cost: FM -->'"):
        hooks.on_page_markdown("<!-- cost: FM -->", page=of, config=None, files=files)


def test_figures_are_those_of_the_script(tmp_path):
    """By their texts and sizes: versions of matplotlib differ in the last digits of a path."""
    make = load(DOCS / "figures" / "make.py")
    make.main(tmp_path)

    def content(file):
        svg = file.read_text()
        return re.findall(r"<text[^>]*>([^<]*)<", svg), re.search(r'viewBox="([^"]*)"', svg)[1]

    kept = sorted((DOCS / "figures").glob("*.svg"))
    assert [file.stem for file in kept] == sorted(make.FIGURES)
    for file in kept:
        assert content(file) == content(tmp_path / file.name), file.name
        assert f"figures/{file.name})" in "".join(p.read_text() for p in DOCS.rglob("*.md"))


def test_changelog_has_the_version():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (.*)$", text, re.M)[1]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert keras_exfm.__version__ == project["version"]
    assert keras_exfm.__version__ in newest
