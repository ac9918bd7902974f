"""`keras-exfm doctor`: what it calls wrong, what it notes, and its exit status."""

import json
import sys

from typer.testing import CliRunner

from keras_exfm._cli import doctor
from keras_exfm._cli.doctor import Finding
from keras_exfm.cli import app

REQUIREMENTS = [
    "keras>=3.15",
    "tensorflow-cpu>=2.18; sys_platform != 'nowhere'",
    "tensorflow>=2.18; sys_platform == 'nowhere'",
    'jax>=0.6; extra == "jax"',
    'keras-tuner[bayesian]>=1.4.8; extra == "tuner"',
    'tensorboard>=2.18; extra == "tuner"',
    'keras-exfm[jax]; extra == "dev"',
    'pytest>=8; extra == "dev"',
]
GOOD = {"keras": "3.15.1", "tensorflow-cpu": "2.21.0", "jax": "0.10.2"}


def named(findings):
    return {finding.name: finding for finding in findings}


def requirements(**changes):
    versions = {**GOOD, **{k.replace("_", "-"): v for k, v in changes.items()}}
    versions = {name: version for name, version in versions.items() if version}
    return named(doctor.check_requirements(versions, REQUIREMENTS))


def traps(versions=(), environment=(), backend="tensorflow"):
    found = doctor.check_traps(dict(environment), {**GOOD, **dict(versions)}, backend)
    return {f.name: f for f in found if f.status != "ok"}


def test_of_two_distributions_of_a_name_the_first_on_the_path_counts(tmp_path, monkeypatch):
    for folder, name, version in (("one", "Some_Name", "2.0"), ("two", "some.name", "1.0")):
        about = tmp_path / folder / f"{name}-{version}.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / folder)])
    assert doctor.installed()["some-name"] == "2.0"


def test_requirements():
    found = requirements()
    assert found["keras"] == Finding("keras", "3.15.1")
    assert found["tensorflow-cpu"] == Finding("tensorflow-cpu", "2.21.0")
    assert found["extra jax"] == Finding("extra jax", "jax 0.10.2")
    assert found["extra tuner"].status == "note"
    assert found["extra tuner"].advice == "pip install 'keras-exfm[tuner]'"
    assert set(found) == {"keras", "tensorflow-cpu", "extra jax", "extra tuner"}
    old = requirements(keras="3.9.0")["keras"]
    assert (old.status, old.advice) == ("wrong", "needs keras>=3.15")
    missing = requirements(keras=None)["keras"]
    assert (missing.found, missing.advice) == ("missing", "pip install 'keras>=3.15'")
    # The other TensorFlow does as well.
    assert requirements(tensorflow_cpu=None, tensorflow="2.21.0")["tensorflow-cpu"].status == "ok"
    assert requirements(jax="0.4.30")["extra jax"].status == "wrong"
    part = requirements(keras_tuner="1.4.8")["extra tuner"]
    assert (part.status, part.found) == ("note", "keras-tuner 1.4.8")
    assert doctor.check_requirements(GOOD, [])[0].status == "note"


def test_backend(tmp_path):
    def check(versions=GOOD, **environment):
        found, (finding,) = doctor.check_backend(environment, versions)
        return found, finding

    empty = str(tmp_path / "none")
    assert check(KERAS_BACKEND="jax") == ("jax", Finding("Keras backend", "jax (KERAS_BACKEND)"))
    backend, finding = check(KERAS_HOME=empty)
    assert backend == "tensorflow"
    assert "not set" in finding.found
    backend, finding = check(KERAS_BACKEND="torch")
    assert backend is None
    assert (finding.status, "tensorflow or jax" in finding.advice) == ("wrong", True)
    backend, finding = check({"keras": "3.15.1"}, KERAS_BACKEND="jax")
    assert backend is None
    assert "keras-exfm[jax]" in finding.advice
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    backend, finding = check(KERAS_HOME=str(tmp_path))
    assert backend is None
    assert str(tmp_path / "keras.json") in finding.found


def test_traps(monkeypatch):
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(doctor, "uses_onednn", lambda environment: True)
    assert traps() == {}
    both = traps({"tensorflow": "2.21.0"})["TensorFlow"]
    assert (both.status, "uninstall both" in both.advice) == ("wrong", True)
    assert traps(environment={"TF_USE_LEGACY_KERAS": "True"})["TF_USE_LEGACY_KERAS"].status == (
        "wrong"
    )
    assert traps(environment={"TF_USE_LEGACY_KERAS": "0"}) == {}
    assert traps({"tf-keras": "2.20.1"})["tf_keras"].status == "wrong"
    assert traps({"tf-keras": "2.21.0"}) == {}
    assert traps({"keras-tuner": "1.4.8"})["tensorboard"].status == "wrong"
    jax = {"backend": "jax", "environment": {"MALLOC_MMAP_MAX_": "0"}}
    assert traps({"keras-tuner": "1.4.8"}, **jax)["tensorboard"].status == "note"
    assert traps({"keras-tuner": "1.4.8", "tensorboard": "2.21.0"}) == {}
    assert traps({"keras-rs": "0.3.0"})["keras-rs"].status == "note"
    assert traps({"keras-rs": "0.4.0"}) == {}
    assert "keep_freed_memory" in traps(backend="jax")["malloc"].advice
    assert traps(**jax) == {}
    assert traps(backend="jax", environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}) == {}
    monkeypatch.setattr(doctor, "uses_onednn", lambda environment: False)
    advice = traps()["malloc"].advice
    assert "TF_ENABLE_ONEDNN_OPTS=1" in advice
    assert "keep_freed_memory" in advice
    assert "ONEDNN" not in traps(backend="jax")["malloc"].advice
    assert traps(environment={"MALLOC_MMAP_MAX_": "0"}) == {}
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("", ""))
    assert traps(backend="jax") == traps() == {}


def test_a_library_that_dies_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import os; os.abort()")
    found = doctor.probe("jax", {})
    assert found.status == "wrong"
    monkeypatch.setattr(doctor, "_PROBE", "raise ImportError('libfoo.so is missing')")
    assert "libfoo.so is missing" in doctor.probe("jax", {}).found
    monkeypatch.setattr(doctor, "_PROBE", "import time; time.sleep(30)")
    assert "no answer within" in doctor.probe("jax", {}, timeout_s=0.2).found


def test_the_command_here(backend, monkeypatch):
    """On the machine of the tests nothing is wrong, and a broken requirement makes it fail."""
    monkeypatch.setenv("COLUMNS", "200")
    assert sys.version_info >= (3, 11)
    result = CliRunner().invoke(app, ["doctor", "--backend", backend])
    assert result.exit_code == 0, result.output
    assert f"{backend} (KERAS_BACKEND)" in result.output
    assert "cpu:0 (a product was computed)" in result.output
    assert "Nothing is wrong" in result.output
    monkeypatch.setattr(doctor, "probe", lambda *a: Finding("devices", "cpu:0"))
    monkeypatch.setattr(doctor, "declared", lambda: ["no-such-distribution>=1"])
    result = CliRunner().invoke(app, ["doctor", "--backend", backend])
    assert result.exit_code == 1
    assert "pip install 'no-such-distribution>=1'" in result.output
    assert "1 wrong" in result.output
