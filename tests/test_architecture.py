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

# Lowest first, as in docs/architecture.md: a module may import its own group and those before.
ORDER = [
    {"features"},
    {"optimizers"},
    {"distribution"},
    {"losses"},
    {"metrics"},
    {"layers"},
    {"models"},
    {"distillation"},
    {"streaming"},
    {"export"},
    {"das"},
    {"datasets"},
    {"tuner"},
    {"report"},
    {"pipeline"},
    {"_cli"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


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


@pytest.mark.parametrize("name", [m for m in MODULES if m != "keras_exfm"])
def test_imports_point_one_way(name):
    own = name.split(".")[1]
    path = ROOT / "/".join(name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    imported = _imports(path)
    assert not [m for m in imported if m.startswith("keras.src")]
    for module in imported:
        parts = module.split(".")
        if parts[0] == "keras_exfm" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{name} imports {module}"


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
