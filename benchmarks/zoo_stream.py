"""Quality of the zoo's models on the Globo news stream, in a single pass.

    python benchmarks/zoo_stream.py --data DIR --out FOLDER --seeds 1,2,3

Progressive validation: each hour of days 1 to 10 is predicted, then trained on, once. Figures are
of days 4 to 10. Every model has every feature of the stream, MLPs of (128, 64) where it has MLPs
(Wukong's are (128,)), Adam at 0.001 for its dense weights and row-wise Adagrad for its tables. The
tables' learning rate is chosen for each model from the same three with embeddings of 16 numbers,
then 16 or 32 numbers at that rate, by the NE of days 2 and 3 with one seed. Writes `globo.json` and
`globo.md` to benchmarks/results/zoo/. Runs that are recorded in `FOLDER/zoo` are not repeated.
Negatives are sampled, see `keras_exfm.datasets.globo`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from _processes import keras_versions
from _records import data_of, recorded, spread

RESULTS = Path(__file__).parent / "results" / "zoo"
# The log's first hour makes no impressions: its days 2 and 3, and its days 4 to 10.
CHOOSING, FIGURES = (23, 70), 71
DIMS, RATES = (16, 32), (0.05, 0.15, 0.4)
BATCH, UNITS = 1280, (128, 64)
SETTINGS = {
    "Wukong": {
        "num_layers": 3,
        "n_fmb": 8,
        "n_lcb": 8,
        "rank": 8,
        "mlp_units": (128,),
        "head_units": (128,),
    },
    "FinalMLP": {
        "mlp1_units": UNITS,
        "mlp2_units": UNITS,
        "num_heads": 4,
        "fs1_context": ("user",),
        "fs2_context": ("article",),
    },
    "DCNv2": {"num_cross_layers": 2, "parallel_units": UNITS},
    "DLRM": {"top_units": UNITS},
    "AutoInt": {"num_layers": 2, "attention_units": 32, "num_heads": 2, "dnn_units": UNITS},
    "XDeepFM": {"cin_units": (16, 16), "dnn_units": UNITS},
    "MaskNet": {"structure": "serial", "block_units": (128, 128), "dnn_units": (64,)},
    "AFN": {"neurons": 64, "afn_units": (64,), "dnn_units": UNITS},
    "DeepFM": {"dnn_units": UNITS},
    "FM": {},
    "LogisticRegression": {},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file or folder of the Globo clicks")
    parser.add_argument("--out", required=True, type=Path, help="folder of the prepared stream")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--backend", default="tensorflow", choices=["jax", "tensorflow"])
    parser.add_argument("--user-fraction", type=float, default=0.15)
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.models = options.models.split(",")
    if unknown := sorted(set(options.models) - set(SETTINGS)):
        parser.error(f"unknown models {unknown}; there are {', '.join(SETTINGS)}")
    return options


def prepare(options):
    """The stream of all verticals, without a teacher."""
    from keras_exfm.das import DataAugmentationService
    from keras_exfm.datasets import globo

    source = options.out / "impressions"
    info = globo.prepare(
        options.data,
        source,
        user_fraction=options.user_fraction,
        days=(1, 10),
        share_article_table=True,
    )
    DataAugmentationService(
        source, options.out / "labelled", info.schema, label_window_hours=info.label_window_hours
    ).process_pending()
    return info


def build(name, schema, dim, rate):
    from keras_exfm import models
    from keras_exfm.optimizers import RowwiseAdagrad

    size = {} if name == "LogisticRegression" else {"dim": dim}
    return getattr(models, name)(schema, **size, **SETTINGS[name], optimizer=RowwiseAdagrad(rate))


def run(options, info, name, setting, seed, last=None):
    """One pass, to the hour `last`."""
    import keras

    from keras_exfm import streaming
    from keras_exfm.models import flops

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(name, info.schema, *setting)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    started = time.monotonic()
    first = CHOOSING[0] if last is not None else FIGURES
    result = streaming.progressive_validation(
        model,
        options.out / "labelled",
        info.schema,
        batch_size=BATCH,
        hours=None if last is None else (None, info.first_hour + last),
        metrics_from=info.first_hour + first,
    )
    kept = ("examples", "ne", "logloss", "auc", "group_auc", "calibration")
    return {
        "model": name,
        "seed": seed,
        "dim": setting[0],
        "table_learning_rate": setting[1],
        "seconds": round(time.monotonic() - started, 1),
        "training_flops": int(flops(model).training),
        "parameters": int(model.count_params()),
        "figures": {k: float(v) for k, v in result.whole.items() if k in kept},
    }


def table(runs):
    lines = [
        "| model | seeds | dim | table rate | NE | AUC | grouped AUC | calibration "
        "| training kFLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_model = {}
    for r in runs:
        by_model.setdefault(r["model"], []).append(r)
    for name, group in sorted(
        by_model.items(), key=lambda x: statistics.mean(r["figures"]["ne"] for r in x[1])
    ):
        cells = [
            spread([r["figures"][key] for r in group], digits)
            for key, digits in (("ne", 4), ("auc", 4), ("group_auc", 4), ("calibration", 3))
        ]
        first = group[0]
        lines.append(
            f"| {name} | {len(group)} | {first['dim']} | {first['table_learning_rate']} "
            f"| {' | '.join(cells)} "
            f"| {first['training_flops'] / 1e3:.0f} |"
        )
    return "\n".join(lines)


def main():
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    info = prepare(options)
    folder, runs, tried = options.out / "zoo" / options.backend, [], []

    def report(text, record):
        print(f"{text}: NE {record['figures']['ne']:.4f} in {record['seconds']} s", flush=True)

    best = {}
    for name in options.models:

        def trial(setting, name=name):
            record = recorded(
                folder / f"{name}-dim{setting[0]}-rate{setting[1]}.json",
                lambda: run(options, info, name, setting, 1, CHOOSING[1]),
            )
            report(f"{name}, dim {setting[0]}, table rate {setting[1]}, days 2 and 3", record)
            return record

        trials = [trial((DIMS[0], rate)) for rate in RATES]
        # Logistic regression has one number for each id, whatever the size.
        if name != "LogisticRegression":
            chosen = min(trials, key=lambda r: r["figures"]["ne"])["table_learning_rate"]
            trials += [trial((dim, chosen)) for dim in DIMS[1:]]
        tried += trials
        first = min(trials, key=lambda r: r["figures"]["ne"])
        best[name] = (first["dim"], first["table_learning_rate"])
    for seed in options.seeds:
        for name in options.models:
            runs.append(
                recorded(
                    folder / f"{name}-seed{seed}.json",
                    lambda n=name, s=seed: run(options, info, n, best[n], s),
                )
            )
            report(f"{name}, seed {seed}", runs[-1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = (
        "python benchmarks/zoo_stream.py --data DIR --out FOLDER "
        f"--seeds {','.join(map(str, options.seeds))} --backend {options.backend} "
        f"--user-fraction {options.user_fraction}"
    )
    if options.models != list(SETTINGS):
        command += f" --models {','.join(options.models)}"
    about = {
        "command": command,
        "settings": SETTINGS,
        "batch": BATCH,
        "dims": DIMS,
        "table_rates": RATES,
        "data": data_of(info),
        "versions": keras_versions(),
        "cores": os.cpu_count(),
        "runs": runs,
        "search": tried,
    }
    (RESULTS / "globo.json").write_text(json.dumps(about, indent=1) + "\n")
    text = [
        "# Globo: single pass",
        "",
        f"    {command}",
        "",
        info.description,
        "",
        "Progressive validation; figures of days 4 to 10, mean ± standard deviation over seeds,",
        "best NE first. NE 1 is a constant prediction of the click rate.",
        "",
        table(runs),
    ]
    (RESULTS / "globo.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
