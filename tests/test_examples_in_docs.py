"""Every docstring example and every Python block of the documentation runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import keras_exfm

REPOSITORY = Path(__file__).parent.parent
MODULES = sorted(
    m.name for m in pkgutil.walk_packages([str(Path(keras_exfm.__file__).parent)], "keras_exfm.")
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _doctests():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ["keras_exfm", *MODULES]:
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                yield pytest.param(test, id=test.name.removeprefix("keras_exfm."))


@pytest.mark.parametrize("test", list(_doctests()))
def test_docstring_example(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    output: list[str] = []
    runner.run(test, out=output.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)


def _pages():
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", _pages(), ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run in order in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, page.name, "exec"), namespace)


def test_readme_names_only_commands_that_exist():
    text = "\n".join(page.read_text() for page in _pages())
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"^\s*make ([a-z-]+)", text, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for script in set(re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", text)):
        assert (REPOSITORY / script).is_file(), script
