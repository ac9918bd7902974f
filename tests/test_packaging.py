"""What a user gets: light imports, type information, data files, dependencies' licences."""

import email.message
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parent.parent
HEAVY = ("keras", "tensorflow", "jax", "torch", "ray", "pyarrow", "matplotlib")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import keras_exfm", (*HEAVY, "numpy", "duckdb", "typer")),
        ("import keras_exfm.cli", ("keras", "tensorflow", "jax", "torch", "ray", "matplotlib")),
        ("from keras_exfm import streaming, datasets", ("keras", "tensorflow", "jax", "torch")),
    ],
)
def test_imports_load_no_backend(code, absent):
    program = f"{code}; import sys; print([n for n in {absent!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_file_of_the_package_is_declared():
    """Whatever is no Python file has to be named in pyproject.toml, or a wheel lacks it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = declared["tool"]["setuptools"]["package-data"]["keras_exfm"]
    package = ROOT / "keras_exfm"
    named = {file for pattern in patterns for file in package.glob(pattern)}
    files = {f for f in package.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert files == named
    assert package / "py.typed" in named


def test_the_version_is_stated_once():
    import keras_exfm

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert declared["version"] == keras_exfm.__version__
    parts = declared["version"].split(".")
    assert len(parts) == 3
    assert all(part.isdigit() for part in parts)


def test_the_distribution_check_uses_every_extra():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    uses = runpy.run_path(str(ROOT / "scripts" / "dist_check.py"))["USES"]
    # A GPU, a Keras of its own, and tools of this repository.
    beside = {"gpu", "parity", "docs", "dev"}
    assert set(uses) == {"none", *declared["optional-dependencies"]} - beside


@pytest.fixture(scope="module")
def licences():
    return runpy.run_path(str(ROOT / "scripts" / "licences.py"))


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("MIT AND GPL-2.0-only", False),
        ("LGPL-3.0-or-later", False),
        ("mpl-2.0", False),
        ("", False),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND (BSD-3-Clause OR LGPL-3.0-only)", True),
        ("MIT OR (GPL-3.0-only AND BSD-3-Clause)", True),
        ("MIT AND (GPL-3.0-only AND BSD-3-Clause)", False),
        ("Python (CNRI", False),
    ],
)
def test_which_licences_are_permissive(licences, expression, fine):
    assert licences["permissive"](expression) is fine


def test_licences_are_read_from_any_kind_of_metadata(licences):
    def metadata(**fields):
        found = email.message.Message()
        for name, value in fields.items():
            found[name.replace("_", "-")] = value
        return found

    read = licences["licence"]
    assert read(metadata(License_Expression="MIT")) == "MIT"
    assert read(metadata(License="Apache License 2.0")) == "apache-2.0"
    gpl = "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
    assert not licences["permissive"](read(metadata(Classifier=gpl)))
    assert read(metadata(License="Copyright\nall rights")) == ""


def test_dependencies_are_found_through_extras(licences):
    found, _ = licences["dependencies"]()
    # Direct, of an extra, of a dependency.
    assert {"keras", "keras-tuner", "h5py"} <= set(found)
    assert "mkdocs-material" not in found
