"""Quality of the zoo's models on the Globo news stream, in a single pass.

    python benchmarks/zoo_stream.py --data DIR --out FOLDER --seeds 1,2,3

Progressive validation: each hour of days 1 to 10 is predicted, then trained on, once. Figures are
of days 4 to 10. Every model has every feature of the stream, MLPs of (128, 64) where it has MLPs
(Wukong's are (128,)), Adam for its dense weights and row-wise Adagrad with `clip_row_norm` for its
tables. Both learning rates are chosen for each model with embeddings of 16 and of 32 numbers, then
the size, by the NE of days 2 and 3 with the first seed (`keras_exfm.tuner.scaling.Sweep`). Runs
that are recorded in `FOLDER/zoo` are not repeated. `--add` keeps what is recorded of other models,
if it is of the same data and settings. Writes `globo.json` and `globo.md` to
benchmarks/results/zoo/. Negatives are sampled, see `keras_exfm.datasets.globo`.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from _processes import keras_versions
from _records import data_of, spread, write_json

RESULTS = Path(__file__).parent / "results" / "zoo"
# The log's first hour makes no impressions: its days 2 and 3, and its days 4 to 10.
CHOOSING, FIGURES = (23, 70), 71
DIMS = (16, 32)
TABLE_RATES, DENSE_RATES = (0.03, 0.1, 0.3, 1.0), (1e-4, 3e-4, 1e-3, 3e-3)
# Without it Wukong's first step decides how its tables learn, see docs/tuning.md.
CLIP = 0.03
BATCH, UNITS = 512, (128, 64)
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
    parser.add_argument("--add", action="store_true", help="to the record, not in its place")
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


def configurations(name, schema):
    """The model with embeddings of each size."""
    from keras_exfm.tuner import scaling

    # Logistic regression has one number for each id, whatever the size.
    sizes = [{}] if name == "LogisticRegression" else [{"dim": dim} for dim in DIMS]
    return [
        scaling.Configuration.of(name, schema, {**size, **SETTINGS[name]}, name) for size in sizes
    ]


def short(record, kept=("examples", "ne", "logloss", "auc", "group_auc", "calibration")):
    """A run without its hours and its model's structure, which is in `settings`."""
    figures = {k: float(v) for k, v in record["figures"].items() if k in kept}
    dim = record["options"].get("dim")
    rest = {k: v for k, v in record.items() if k not in ("hours", "name", "options", "figures")}
    return {**rest, "dim": dim, "figures": figures}


def table(runs):
    lines = [
        "| model | seeds | dim | rates: tables / dense | NE | AUC | grouped AUC | calibration "
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
            f"| {name} | {len(group)} | {first['dim'] or '-'} "
            f"| {first['table_learning_rate']:g} / {first['learning_rate']:g} "
            f"| {' | '.join(cells)} | {first['cost']['training_flops'] / 1e3:.0f} |"
        )
    return "\n".join(lines)


def asked(options):
    """What all runs of a record have in common."""
    seeds = ",".join(map(str, options.seeds))
    return f"--seeds {seeds} --backend {options.backend} --user-fraction {options.user_fraction}"


def kept(same, options):
    """What is recorded of models that are not run now; refused if it is of something else."""
    path = RESULTS / "globo.json"
    if not path.exists():
        return None
    before = json.loads(path.read_text())
    expected, settings = json.loads(json.dumps([same, SETTINGS]))
    others = {r["model"] for r in before["runs"]} - set(options.models)
    wrong = [key for key in expected if before.get(key) != expected[key]]
    if asked(options) not in before["command"]:
        wrong.append("seeds, backend or users")
    wrong += [f"settings of {m}" for m in others if before["settings"][m] != settings[m]]
    if wrong:
        raise SystemExit(f"--add: {path} is of other {', '.join(wrong)}; run all models again.")
    for key in ("runs", "search"):
        before[key] = [r for r in before[key] if r["model"] in others]
    return before


def main():
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras_exfm.tuner import scaling

    info = prepare(options)
    same = {
        "batch": BATCH,
        "clip_row_norm": CLIP,
        "dims": DIMS,
        "table_rates": TABLE_RATES,
        "dense_rates": DENSE_RATES,
        "data": data_of(info),
        "versions": keras_versions(),
    }
    before = kept(same, options) if options.add else None
    sweep = scaling.Sweep(
        options.out / "zoo" / options.backend,
        options.out / "labelled",
        table_learning_rates=TABLE_RATES,
        learning_rates=DENSE_RATES,
        batch_size=BATCH,
        metrics_from=info.first_hour + FIGURES,
        choosing_hours=tuple(info.first_hour + hour for hour in CHOOSING),
        progress=lambda line: print(line, flush=True),
        clip_row_norm=CLIP,
    )
    best, tried = [], []
    for name in options.models:
        sizes = configurations(name, info.schema)
        trials = sweep.choose(sizes, options.seeds[0])
        tried += map(short, trials)
        best.append(min(zip(trials, sizes), key=lambda pair: pair[0]["figures"]["ne"])[1])
    sweep.run(best, options.seeds)
    chosen = [(c.model, dict(c.options)) for c in best]
    # The folder may hold runs of other models, from before.
    runs = [short(r) for r in sweep.records(options.seeds) if (r["model"], r["options"]) in chosen]
    command = f"python benchmarks/zoo_stream.py --data DIR --out FOLDER {asked(options)}"
    if options.models != list(SETTINGS):
        command += f" --models {','.join(options.models)}"
    if options.add:
        command += " --add"
    if before:
        lines = [*before["command"].splitlines(), command]
        command = "\n".join(dict.fromkeys(lines))
        runs, tried = before["runs"] + runs, before["search"] + tried
    about = {
        "command": command,
        "settings": SETTINGS,
        **same,
        "cores": os.cpu_count(),
        "runs": runs,
        "search": tried,
    }
    write_json(RESULTS / "globo.json", about)
    text = [
        "# Globo: single pass",
        "",
        *(f"    {line}" for line in command.splitlines()),
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
