"""Dynamic ids against plain hashing at equal memory, on the Globo news stream.

    python benchmarks/dynamic_ids.py --data DIR --out FOLDER --seeds 1,2,3 --backend jax

Progressive validation (each hour is predicted, then trained on) of a small DLRM. The tables of
users and of articles, which the article's id, the last article and the history share, are

* plainly hashed: every id reads a row, with collisions;
* dynamic: ids are admitted at their n-th sight and the least recently used are evicted.

A budget is a share of the bytes that one row for each id of the whole stream would take, optimizer
state included; the keys, times and candidates of a dynamic table count. Writes `result.json` (every
run) and `README.md` (mean and standard deviation over seeds) to benchmarks/results/dynamic-ids/.
Runs that are recorded in `FOLDER/runs` are not repeated.
"""

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

from _processes import keras_versions
from _records import data_of, recorded

RESULTS = Path(__file__).parent / "results" / "dynamic-ids"
BUDGETS = {"tight": 0.05, "middle": 0.2, "ample": 0.5}
ADMIT_AFTER = (1, 2, 3, 5)
TABLES = ("user", "article")
# The rows of a group, one positive and four negatives, show a user five times at once.
LOOKUPS_OF_ONE_CLICK = {"user": 5, "article": 1}
WARMUP_HOURS = 71
BATCH = 1280


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file or folder of the Globo clicks")
    parser.add_argument("--out", required=True, type=Path, help="folder for the prepared stream")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--budgets", default="tight,ample")
    parser.add_argument("--backend", default="jax", choices=["jax", "tensorflow"])
    parser.add_argument("--user-fraction", type=float, default=0.15)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--dim", type=int, default=16)
    return parser.parse_args()


def prepare(options):
    from keras_exfm.das import DataAugmentationService
    from keras_exfm.datasets import globo

    info = globo.prepare(
        options.data,
        options.out / "impressions",
        user_fraction=options.user_fraction,
        days=(1, options.days),
        share_article_table=True,
    )
    service = DataAugmentationService(
        options.out / "impressions",
        options.out / "labelled",
        info.schema,
        label_window_hours=info.label_window_hours,
    )
    service.process_pending()
    return info


def dynamic_bytes(rows, dim, admit_after):
    """Bytes of a dynamic table: rows with Adagrad's accumulator, keys and times, candidates."""
    candidates = rows if admit_after > 1 else 0
    return rows * (4 * dim + 4 + 8) + 12 * candidates


def sized(schema, dim, budget, admit_after):
    """The schema with its id tables at the budget, and bytes and rows of each table."""
    features, sizes = [], {}
    for feature in schema.features:
        table = getattr(feature, "table_name", None)
        if table in TABLES and budget is not None:
            limit = int(BUDGETS[budget] * feature.vocabulary_size * (4 * dim + 4))
            if admit_after is None:
                rows = limit // (4 * dim + 4)
                change = {"hashed": True}
                used = rows * (4 * dim + 4)
            else:
                lookups = LOOKUPS_OF_ONE_CLICK[table] * (admit_after - 1) + 1
                rows = limit // (4 * dim + 4 + 8 + (12 if lookups > 1 else 0))
                change = {"admit_after": lookups}
                used = dynamic_bytes(rows, dim, lookups)
            assert used <= limit
            sizes[table] = {"rows": rows, "bytes": used, **change}
            feature = dataclasses.replace(feature, vocabulary_size=rows, **change)
        features.append(feature)
    return type(schema)(features), sizes


def run(options, info, seed, budget, admit_after):
    import keras

    from keras_exfm import models, streaming
    from keras_exfm.optimizers import RowwiseAdagrad

    keras.utils.set_random_seed(seed)
    schema, sizes = sized(info.schema, options.dim, budget, admit_after)
    model = models.DLRM(schema, dim=options.dim, top_units=(64, 32), optimizer=RowwiseAdagrad(0.05))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    started = time.monotonic()
    result = streaming.progressive_validation(
        model,
        options.out / "labelled",
        schema,
        batch_size=BATCH,
        metrics_from=info.first_hour + WARMUP_HOURS,
    )
    seconds = time.monotonic() - started
    layer = model.get_layer("feature-embedding")
    return {
        "seed": seed,
        "budget": budget,
        "admit_after": admit_after,
        "tables": sizes,
        "seconds": round(seconds, 1),
        "counters": layer.dynamic_counters(),
        "figures": {
            name: value
            for name, value in result.whole.items()
            if name in ("examples", "ne", "logloss", "auc", "group_auc", "calibration")
        },
    }


def name_of(budget, admit_after):
    if budget is None:
        return "a row for every id"
    return "hashed" if admit_after is None else f"dynamic, admit after {admit_after}"


def summary(runs, options, info):
    lines = [
        "# Dynamic ids against plain hashing at equal memory",
        "",
        f"    {' '.join(map(shlex.quote, command(options)))}",
        "",
        f"{info.description}",
        "",
        "Progressive validation of a small DLRM; figures over days 4 on, mean and standard",
        "deviation over the seeds; gain: reduction of NE against hashing with the same seed and",
        "budget, in percent. Budgets are shares of the bytes of a row for every id of the stream.",
        "Default share (training lookups without a row), evictions, occupancy: of the article",
        "table, first seed.",
        "",
        "| budget | tables | rows user / article | NE | gain % | AUC | default share | evictions "
        "| occupancy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def spread(values):
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        return statistics.mean(values), deviation

    groups = {}
    for item in runs:
        groups.setdefault((item["budget"], item["admit_after"]), []).append(item)
    for (budget, admit_after), items in groups.items():
        ne = spread([item["figures"]["ne"] for item in items])
        auc = spread([item["figures"]["auc"] for item in items])
        base = {item["seed"]: item["figures"]["ne"] for item in groups.get((budget, None), [])}
        gains = [
            100 * (1 - item["figures"]["ne"] / base[item["seed"]])
            for item in items
            if item["seed"] in base
        ]
        gain = spread(gains) if admit_after is not None and gains else None
        rows = " / ".join(str(items[0]["tables"][t]["rows"]) for t in TABLES if budget)
        counters = items[0]["counters"].get("article")
        cells = [
            f"{budget} ({BUDGETS[budget]:.0%})" if budget else "-",
            name_of(budget, admit_after),
            rows if budget else "all",
            f"{ne[0]:.5f} ± {ne[1]:.5f}",
            f"{gain[0]:+.2f} ± {gain[1]:.2f}" if gain else "",
            f"{auc[0]:.4f} ± {auc[1]:.4f}",
            f"{counters['default_share']:.3f}" if counters else "",
            f"{counters['evictions']}" if counters else "",
            f"{counters['occupancy']} of {counters['capacity']}" if counters else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def command(options):
    return [
        "python",
        "benchmarks/dynamic_ids.py",
        *("--data", "DIR", "--out", "FOLDER", "--seeds", options.seeds),
        *("--budgets", options.budgets, "--backend", options.backend),
        *("--user-fraction", str(options.user_fraction), "--days", str(options.days)),
        *("--dim", str(options.dim)),
    ]


def main():
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    info = prepare(options)
    folder = options.out / "runs"
    runs = []
    plan = [(None, None)]
    plan += [(b, n) for b in options.budgets.split(",") for n in (None, *ADMIT_AFTER)]
    for seed in map(int, options.seeds.split(",")):
        for budget, admit_after in plan:
            file = folder / f"{options.backend}-{options.dim}-{seed}-{budget}-{admit_after}.json"
            item = recorded(
                file, lambda s=seed, b=budget, n=admit_after: run(options, info, s, b, n)
            )
            runs.append(item)
            print(
                f"seed {seed} {budget} {name_of(budget, admit_after)}: "
                f"NE {item['figures']['ne']:.5f} in {item['seconds']} s",
                flush=True,
            )
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(command(options)),
        "model": {"class": "DLRM", "dim": options.dim, "top_units": [64, 32]},
        "optimizers": {"tables": "RowwiseAdagrad(0.05)", "rest": "Adam(0.001)"},
        "batch": BATCH,
        "warmup_hours": WARMUP_HOURS,
        "budgets": BUDGETS,
        "data": data_of(info),
        "versions": keras_versions(),
        "cores": os.cpu_count(),
        "runs": runs,
    }
    (RESULTS / "result.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "README.md").write_text(summary(runs, options, info))


if __name__ == "__main__":
    sys.exit(main())
