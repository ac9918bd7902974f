"""Take the parts out of Wukong's layers one by one, on the Globo news stream.

    python benchmarks/ablations_stream.py --data DIR --out FOLDER --seeds 1,2,3

What `benchmarks/ablations.py` does on synthetic clicks, on real ones: the Wukong of
`benchmarks/zoo_stream.py`, on its stream, by progressive validation (each hour is predicted, then
trained on, once; figures of days 4 to 10), with the rates and the size that were chosen for the
whole model there. `--layers` makes it deeper. Runs that are recorded in
`FOLDER/ablations/<backend>` are not repeated; `KERAS_BACKEND` is TensorFlow by default. Writes
`runs.csv`, `summary.csv` and `run.json` to benchmarks/results/ablations/globo-<layers>. Negatives
are sampled, see `keras_exfm.datasets.globo`.
"""

import argparse
import os
import shlex
import time
from pathlib import Path

# Before `ablations`, which imports Keras.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from _processes import keras_versions, machine
from _records import data_of, recorded
from ablations import ABLATIONS, RESULTS, network, record
from zoo_stream import BATCH, CLIP, FIGURES, SETTINGS, prepare

from keras_exfm._cli.shared import keep_memory
from keras_exfm.optimizers import RowwiseAdagrad
from keras_exfm.streaming import progressive_validation

# As chosen for the whole model in `results/zoo/globo.md`.
DIM, TABLE_RATE, DENSE_RATE = 32, 0.3, 1e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file or folder of the Globo clicks")
    parser.add_argument("--out", required=True, type=Path, help="folder of the prepared stream")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--layers", default=3, type=int)
    parser.add_argument("--user-fraction", type=float, default=0.15)
    return parser.parse_args()


def run(stream, info, name, seed, model):
    """One pass over the stream."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    tables = RowwiseAdagrad(TABLE_RATE, clip_row_norm=CLIP)
    net = network(info.schema, ABLATIONS[name][0], optimizer=tables, **model)
    net.compile(
        keras.optimizers.Adam(DENSE_RATE), keras.losses.BinaryCrossentropy(from_logits=True)
    )
    started = time.monotonic()
    figures = progressive_validation(
        net, stream, batch_size=BATCH, metrics_from=info.first_hour + FIGURES
    ).whole
    print(
        f"{time.monotonic() - started:5.0f} s  seed {seed}  {name:14} NE {figures['ne']:.5f}",
        flush=True,
    )
    return {
        "seed": seed,
        "zero": name,
        "log_loss": figures["logloss"],
        "normalized_entropy": figures["ne"],
        "auc": figures["auc"],
    }


def main():
    options = arguments()
    keep_memory(keras.backend.backend())
    info = prepare(options)
    model = {**SETTINGS["Wukong"], "dim": DIM, "num_layers": options.layers}
    folder = options.out / "ablations" / keras.backend.backend()
    rows = [
        recorded(
            folder / f"{options.layers}-{name.replace('+', '-')}-{seed}.json",
            lambda name=name, seed=seed: run(options.out / "labelled", info, name, seed, model),
        )
        for seed in map(int, options.seeds.split(","))
        for name in ABLATIONS
    ]
    words = f"--seeds {options.seeds} --layers {options.layers}"
    words += f" --user-fraction {options.user_fraction}"
    script = "python benchmarks/ablations_stream.py --data DIR --out FOLDER"
    about = {
        "command": shlex.join([*script.split(), *words.split()]),
        "data": data_of(info),
        "model": model,
        "training": {
            "batch": BATCH,
            "table_learning_rate": TABLE_RATE,
            "learning_rate": DENSE_RATE,
            "clip_row_norm": CLIP,
        },
        "backend": keras.backend.backend(),
        "versions": keras_versions(),
        "machine": machine(),
    }
    record(RESULTS / f"globo-{options.layers}", rows, about)


if __name__ == "__main__":
    main()
