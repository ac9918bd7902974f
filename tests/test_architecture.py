"""The house keeps its shape: imports point one way, public symbols only, defaults are true."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import keras_exfm

pytestmark = pytest.mark.backend_free

ROOT = Path(keras_exfm.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "keras_exfm."))


def _table() -> dict[str, set[str]]:
    """Folder -> the folders that it imports, in the order of docs/architecture.md."""
    text = (ROOT.parent / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \| .* \| (.*) \|$", text, re.M)
    return {name: set(re.findall(r"\w+", imports.partition("(")[0])) for name, imports in rows}


TABLE = _table()


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "keras_exfm":
                found |= {f"keras_exfm.{alias.name}" for alias in node.names}
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _file(name: str) -> Path:
    path = ROOT / "/".join(name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_the_table_names_every_folder_and_points_up():
    assert set(TABLE) == {m.split(".")[1] for m in MODULES}
    above: set[str] = set()
    for name, imports in TABLE.items():
        assert imports <= above, f"{name} imports what stands below it"
        above.add(name)


@pytest.mark.parametrize("folder", TABLE)
def test_imports_are_those_of_the_table(folder):
    found = {}
    for name in MODULES:
        if name.split(".")[1] != folder:
            continue
        imported = _imports(_file(name))
        assert not [m for m in imported if m.startswith("keras.src")]
        for parts in (module.split(".") for module in imported):
            if parts[0] == "keras_exfm" and parts[1:] and parts[1] in TABLE:
                found.setdefault(parts[1], name)
    found.pop(folder, None)
    more = {own: name for own, name in found.items() if own not in TABLE[folder]}
    assert not more, f"docs/architecture.md lacks these imports of {folder}: {more}"
    assert set(found) == TABLE[folder], f"docs/architecture.md names imports that {folder} has not"


def _public_classes():
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == name and attribute[0] != "_":
                yield value


@pytest.mark.parametrize("cls", list(_public_classes()), ids=lambda c: c.__name__)
def test_documented_defaults_are_the_signatures(cls):
    documentation = inspect.getdoc(cls) or ""
    signature = inspect.signature(cls.__init__)
    pattern = r"^ {4}(\w+): (?:(?!^ {4}\w+: ).)*?Defaults to\s+`([^`]+)`"
    for name, default in re.findall(pattern, documentation, re.M | re.S):
        if name not in signature.parameters:
            continue
        actual = signature.parameters[name].default
        if actual is inspect.Parameter.empty:
            continue
        try:
            stated = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            continue
        assert stated == actual, f"{cls.__name__}.{name}: documented {stated!r}, is {actual!r}"
