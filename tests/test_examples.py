import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# What an example needs beyond `keras-exfm`, and what it tells the user to install: without it, it
# ends with code 2. The extra `parity` is not part of `dev`.
NEEDED = {
    "tfrs_teacher": (
        ("tensorflow_recommenders", "tf_keras"),
        'pip install "keras-exfm[parity]"',
    ),
    "keras_rs_retrieval_then_rank": (("keras_rs",), "pip install keras-rs"),
}


def run(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, capsys, monkeypatch):
    for name in NEEDED.get(script.stem, ((), ""))[0]:
        pytest.importorskip(name)
    run(script, monkeypatch)
    output = capsys.readouterr().out
    assert "NE " in output or "predictions are the same" in output


@pytest.mark.parametrize("name", list(NEEDED))
def test_example_names_what_it_needs(name, capsys, monkeypatch):
    found = importlib.util.find_spec
    (hidden, *_), install = NEEDED[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == hidden else found(n, *a)
    )
    script = next(path for path in EXAMPLES if path.stem == name)
    with pytest.raises(SystemExit) as stopped:
        run(script, monkeypatch)
    assert stopped.value.code == 2
    output = capsys.readouterr().out
    assert hidden in output
    assert install in output
