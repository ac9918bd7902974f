import importlib.util
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# Need the extra `parity`, which is not part of `dev`: without it they say so and end with code 2.
PARITY = {"tfrs_teacher": ("tensorflow_recommenders", "tf_keras")}


def _missing(script):
    return [n for n in PARITY.get(script.stem, ()) if importlib.util.find_spec(n) is None]


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, capsys):
    if _missing(script):
        pytest.skip("needs keras-exfm[parity]")
    runpy.run_path(str(script), run_name="__main__")
    output = capsys.readouterr().out
    assert "NE " in output or "predictions are the same" in output


@pytest.mark.parametrize("name", list(PARITY))
def test_example_names_the_extra_that_it_needs(name, capsys, monkeypatch):
    found = importlib.util.find_spec
    hidden = PARITY[name][0]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == hidden else found(n, *a)
    )
    script = next(path for path in EXAMPLES if path.stem == name)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 2
    output = capsys.readouterr().out
    assert hidden in output
    assert 'pip install "keras-exfm[parity]"' in output
