"""Builds wheel and sdist, and installs the wheel in an empty environment with each extra.

    python scripts/dist_check.py                       # make dist-check
    python scripts/dist_check.py --extras none jax     # only these

In each environment it runs `keras-exfm doctor` and a few lines that use what the extra is for.
Takes minutes, and about 2 GB an extra while it runs; pip fetches what it does not have.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = """
import keras, numpy as np, keras_exfm as kx
schema = kx.Schema([kx.Categorical("user", 100), kx.Numeric("age")])
model = kx.models.Wukong(schema, dim=4, num_layers=1, n_fmb=2, n_lcb=2, rank=2)
model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
x = schema.encode({"user": np.arange(64), "age": np.ones(64)})
y = np.ones(64, "float32")
model.fit(x, y, verbose=0)
"""
# Extra -> backend, and what shows that it works.
USES = {
    "none": ("tensorflow", MODEL),
    "jax": ("jax", MODEL + "assert keras.backend.backend() == 'jax'"),
    "tensorboard": (
        "tensorflow",
        "import keras_exfm as kx; kx.streaming.TensorBoardWindows('logs').close()",
    ),
    "tuner": (
        "tensorflow",
        MODEL
        + """
search = kx.tuner.RandomSearch(
    kx.tuner.LogisticRegressionHyperModel(schema), "val_loss", max_trials=1, directory="search")
search.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
assert len(search.results()) == 1
""",
    ),
    "das": (
        "tensorflow",
        """
import fsspec, prometheus_client, keras_exfm as kx
schema = kx.Schema([kx.Categorical("ad", 9)])
rows = {"example_id": [1], "timestamp": [0], "vertical": ["feed"], "ad": [3], "label": [1.0]}
kx.streaming.write_hour("labelled", 0, rows, schema)
assert kx.streaming.hours("labelled") == [0]
kx.das.SnapshotStore("snapshots")
""",
    ),
    "onnx": ("tensorflow", MODEL + "print(kx.export.onnx(model, 'model.onnx'))"),
    "litert": ("tensorflow", MODEL + "print(kx.export.litert(model, 'model.tflite'))"),
    "serve": (
        "tensorflow",
        MODEL
        + """
kx.export.onnx(model, "model.onnx")
import litserve, onnxruntime
onnxruntime.InferenceSession("model.onnx").get_modelmeta().custom_metadata_map["keras_exfm"]
""",
    ),
    "ray": (
        "tensorflow",
        "from keras_exfm.das.engines.ray import RayEngine; RayEngine('{}').connect()",
    ),
    "kafka": ("tensorflow", "import confluent_kafka, keras_exfm as kx; kx.das"),
}


def run(*command: str, **options: object) -> None:
    """Runs a command; ends the program with its output if it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        sys.exit(
            f"{' '.join(command)[:200]}\nfailed with exit code {done.returncode}:\n{done.stdout}"
        )


def environment(folder: Path) -> Path:
    """An empty environment; its folder of programs."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def build(out: Path) -> tuple[Path, Path]:
    """Wheel and sdist, from a copy of the files that git knows; the tree is left alone."""
    source = out / "source"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    programs = environment(out / "build-env")
    run(str(programs / "pip"), "install", "--quiet", "build")
    # The wheel is built from the sdist: what that lacks shows here.
    run(str(programs / "python"), "-m", "build", "--outdir", str(out / "dist"), str(source))
    (wheel,), (sdist,) = (list((out / "dist").glob(p)) for p in ("*.whl", "*.tar.gz"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        file.relative_to(source).as_posix()
        for file in (source / "keras_exfm").rglob("*")
        if file.is_file()
    }
    lacking, more = expected - inside, {n for n in inside - expected if ".dist-info/" not in n}
    if lacking or more or "keras_exfm/py.typed" not in inside:
        sys.exit(f"{wheel.name}: lacks {sorted(lacking)}; should not have {sorted(more)}")
    with tarfile.open(sdist) as archive:
        held = {n.partition("/")[2] for n in archive.getnames()}
    if lacking := {"LICENSE", "README.md", "pyproject.toml", *expected} - held:
        sys.exit(f"{sdist.name}: lacks {sorted(lacking)}")
    for file in (wheel, sdist):
        print(
            f"{file.name}: {file.stat().st_size / 1e3:.0f} kB, {len(expected)} files of the package"
        )
    return wheel, sdist


def main() -> None:
    """Builds, then checks extra by extra."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--extras", nargs="+", default=list(USES), choices=list(USES))
    parser.add_argument("--out", type=Path, help="keep wheel and sdist in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            for file in (wheel, sdist):
                shutil.copy2(file, options.out)
        for extra in options.extras:
            backend, code = USES[extra]
            start = time.monotonic()
            programs = environment(folder / extra)
            what = str(wheel) if extra == "none" else f"{wheel}[{extra}]"
            run(str(programs / "pip"), "install", "--quiet", what)
            installed = time.monotonic()
            work = folder / "work" / extra
            work.mkdir(parents=True)
            variables = {
                k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
            }
            variables |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            run(str(programs / "keras-exfm"), "doctor", cwd=work, env=variables)
            run(str(programs / "python"), "-c", code, cwd=work, env=variables)
            size = sum(f.stat().st_size for f in (folder / extra).rglob("*") if f.is_file())
            print(
                f"{extra}: installed in {installed - start:.0f} s, {size / 1e9:.2f} GB; doctor and "
                f"use on {backend} passed in {time.monotonic() - installed:.0f} s",
                flush=True,
            )
            shutil.rmtree(folder / extra)


if __name__ == "__main__":
    main()
