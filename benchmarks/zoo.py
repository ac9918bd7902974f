"""Quality of the zoo's models on public data: search, training, evaluation and tables.

    python benchmarks/zoo.py search --data DIR             # trials of each model, on one draw
    python benchmarks/zoo.py train --data DIR --seeds 1,2,3
    python benchmarks/zoo.py evaluate --test FILE          # score the saved models on a file
    python benchmarks/zoo.py summarize                     # benchmarks/results/zoo/

`train` chooses settings by the trials in `runs/` and by those of the record in `benchmarks/results/
zoo/`, so a search need not be run again, and `summarize` adds to that record. With `--recorded`,
`search` and `train` take what it holds as finished; those runs have no saved models. For a record
of one's own from nothing, delete the old one.

DIR holds `train_draw{2021,2022,2023}.csv.gz` and `valid.csv.gz` of Frappe_x1; with `--dataset
ml1m` it is the MovieLens-1M Parquet file. Finished runs are skipped, so every command can be
stopped and given again. Models and records go to `runs/zoo/<dataset>/`.

The protocol is that of BARS: Adam at 0.001, batches of 4096, logloss, and after each epoch the AUC
of held-out rows; an epoch without a better AUC divides the learning rate by 10, two in a row end
the run, and the weights of the best epoch are the model. `valid` is halved by a hash of its rows:
one half is used for all choices (epoch, setting), the other one for the figures. Every model has
four trials to run, Wukong six on MovieLens-1M (`zoo_settings.py`); the record says which were run.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import zoo_data
from _processes import keras_versions, machine
from _records import write_json
from zoo_settings import PUBLISHED, SETTINGS, setting_of, trials

from keras_exfm._cli.shared import keep_memory

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "zoo"
BATCH, LEARNING_RATE, FACTOR, PATIENCE, EPOCHS = 4096, 1e-3, 0.1, 2, 100


def build(schema, setting):
    """The model of a setting; `l2` is the factor of the sum of squares of all tables."""
    import keras

    from keras_exfm import models

    arguments = dict(setting)
    cls = getattr(models, arguments.pop("class"))
    l2 = arguments.pop("l2", 0.0)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    return cls(schema, optimizer=None, embeddings_regularizer=regularizer, **arguments)


def scores(label, logit):
    from keras_exfm.metrics import functional

    return {
        "auc": functional.auc(label, logit),
        "logloss": functional.log_loss(label, logit),
        "calibration": functional.calibration(label, logit),
    }


def calibrated(choose, test):
    """Scores of `test` after `logit -> a logit + c`, fitted on the rows for choosing.

    Platt scaling by Newton's method: two numbers, which change no order and so no AUC.
    """
    from keras_exfm.metrics import functional

    (y, z), (label, logit) = choose, test
    x = np.stack([z, np.ones_like(z)], axis=1)
    w, step = np.array([1.0, 0.0]), 1.0
    best = functional.log_loss(y, x @ w)
    for _ in range(100):
        p = (1 + np.tanh(x @ w / 2)) / 2
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + 1e-3 * np.eye(2)
        new = w - step * np.linalg.solve(hessian, x.T @ (p - y))
        loss = functional.log_loss(y, x @ new)
        if loss < best:
            w, best, step = new, loss, min(1.0, 2 * step)
        else:
            step /= 2
    return {**scores(label, w[0] * logit + w[1]), "slope": float(w[0]), "shift": float(w[1])}


def predict(model, part):
    from keras_exfm.datasets import in_memory

    rows = in_memory(part.features, batch_size=8192)
    return model.predict(rows, verbose=0)[:, 0].astype("float64")


def fit(model, train, choose, say):
    """Trains by the protocol; leaves the best epoch's weights in the model."""
    import keras

    from keras_exfm.datasets import in_memory

    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.BinaryCrossentropy(from_logits=True),
        # One dispatch for ten steps; XLA's GEMM on a CPU is slower than oneDNN's.
        steps_per_execution=10,
        jit_compile="auto" if keras.backend.backend() == "jax" else False,
    )

    class Protocol(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs, self.best, self.weights, self.waited = [], -np.inf, None, 0
            self.least, self.least_weights = np.inf, None
            self.seconds = 0.0

        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.monotonic()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds += time.monotonic() - self.started
            figures = scores(choose.label, predict(self.model, choose))
            rate = float(self.model.optimizer.learning_rate)
            self.epochs.append({"train_loss": logs["loss"], "learning_rate": rate, **figures})
            say(
                f"  {epoch + 1}: loss {logs['loss']:.4f} auc {figures['auc']:.5f} "
                f"logloss {figures['logloss']:.4f} ({time.monotonic() - self.started:.0f} s)"
            )
            if figures["logloss"] < self.least:
                self.least, self.least_weights = figures["logloss"], self.model.get_weights()
            if figures["auc"] > self.best:
                self.best, self.waited = figures["auc"], 0
                self.weights = self.model.get_weights()
                return
            self.waited += 1
            self.model.optimizer.learning_rate = rate * FACTOR
            self.model.stop_training = self.waited >= PATIENCE

    protocol = Protocol()
    rows = in_memory(train.features, train.label, batch_size=BATCH, shuffle=True)
    model.fit(rows, epochs=EPOCHS, callbacks=[protocol], shuffle=False, verbose=0)
    return protocol


def run(setting, data, seed, out, about, say):
    """One training; writes `<out>.keras` and, last, `<out>.json`."""
    import keras

    keras.utils.set_random_seed(seed)
    schema, train, choose, test, checksums = data
    started = time.monotonic()
    model = build(schema, setting)
    say(f"{out.name}: {model.count_params()} weights, {setting}")
    protocol = fit(model, train, choose, say)
    # The epoch of the least logloss is reported beside the model, which is the best AUC's.
    model.set_weights(protocol.least_weights)
    least = scores(test.label, predict(model, test))
    model.set_weights(protocol.weights)
    known, unseen = predict(model, choose), predict(model, test)
    record = {
        **about,
        "setting": setting,
        "seed": seed,
        "parameters": model.count_params(),
        "rows": {"train": len(train), "choose": len(choose), "test": len(test)},
        "best_epoch": int(np.argmax([e["auc"] for e in protocol.epochs])) + 1,
        "choose": scores(choose.label, known),
        "test": scores(test.label, unseen),
        "test_calibrated": calibrated((choose.label, known), (test.label, unseen)),
        "test_of_least_logloss": least,
        "epochs": protocol.epochs,
        "seconds_of_training": round(protocol.seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
        "checksums": checksums,
        "versions": {"backend": keras.backend.backend(), **keras_versions()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save(out.with_name(out.name + ".keras"))
    write_json(out.with_name(out.name + ".json"), record)
    say(f"{out.name}: test auc {record['test']['auc']:.5f} logloss {record['test']['logloss']:.4f}")
    return record


def read_json(path):
    return json.loads(path.read_text()) if path.exists() else None


def load(dataset, folder, draw):
    if dataset == "frappe_x1":
        return zoo_data.frappe(folder, draw)
    return zoo_data.ml1m(folder)


def draws_of(dataset, arguments):
    return [int(d) for d in arguments.draws.split(",")] if dataset == "frappe_x1" else [0]


def chosen(out, dataset, name):
    """The setting with the best AUC among the trials, its record, and its file if it has one.

    The base setting and no record where there is no trial.
    """
    best = (setting_of(dataset, name), None, None)
    kept = [r for r in recorded(dataset)["search"] if r["model"] == name]
    for i, setting in enumerate(trials(dataset, name)):
        path = out / "search" / f"{name}-{i}.json"
        for record, file in ((read_json(path), path), *((r, None) for r in kept)):
            if same(record, setting):
                if best[1] is None or record["choose"]["auc"] > best[1]["choose"]["auc"]:
                    best = (setting, record, file)
                break
    return best


def same(record, setting):
    """Whether a record is of this setting (JSON has lists for tuples)."""
    return record is not None and record["setting"] == json.loads(json.dumps(setting))


def recorded(dataset):
    """The record of a data set, as `summarize` writes it; empty where there is none."""
    return read_json(RESULTS / f"{dataset}.json") or {"runs": [], "search": []}


def merged(older, newer, *keys):
    """Both lists of records; a newer one takes the place of an older one with the same keys."""

    def identity(record):
        return json.dumps([record["model"], *(record[key] for key in keys)], sort_keys=True)

    found = {identity(record): record for record in [*older, *newer]}
    return sorted(found.values(), key=lambda r: (r["model"], r.get("trial", 0), r["seed"]))


def runs_of(out, dataset, records, say=print):
    """The runs that a model's figures are made from: those of its best setting.

    Where none has been run with it yet, those of the setting that has the most.
    """
    figures = []
    for name in SETTINGS:
        mine = [r for r in records if r["model"] == name]
        best = [r for r in mine if same(r, chosen(out, dataset, name)[0])]
        if mine and not best:
            settings = [r["setting"] for r in mine]
            best = [r for r in mine if r["setting"] == max(settings, key=settings.count)]
        if len(best) < len(mine):
            say(f"{dataset}: {len(mine) - len(best)} runs of {name} with another setting left out")
        figures += best
    return figures


def search(arguments, say):
    """The trials of each model, on the first draw, with one seed."""
    out = arguments.runs / arguments.dataset
    draw = draws_of(arguments.dataset, arguments)[0]
    data = load(arguments.dataset, arguments.data, draw)
    known = recorded(arguments.dataset)["search"] if arguments.recorded else []
    for i in range(arguments.trials):
        for name in arguments.models:
            settings = trials(arguments.dataset, name)
            if i >= len(settings) or any(same(record, settings[i]) for record in known):
                continue
            target = out / "search" / f"{name}-{i}"
            if not same(read_json(target.with_suffix(".json")), settings[i]):
                about = {"model": name, "trial": i, "draw": draw}
                run(settings[i], data, 1, target, about, say)


def train(arguments, say):
    """Every model, draw and seed; a first round has every draw once, each with another seed."""
    out = arguments.runs / arguments.dataset
    draws, seeds = draws_of(arguments.dataset, arguments), arguments.seeds
    known = recorded(arguments.dataset)["runs"] if arguments.recorded else []
    for turn in range(min(arguments.rounds or len(seeds), len(seeds))):
        for i, draw in enumerate(draws):
            seed, data = seeds[(turn + i) % len(seeds)], None
            for name in arguments.models:
                target = out / f"{name}-{draw}-{seed}"
                setting, found, path = chosen(out, arguments.dataset, name)
                about = {"model": name, "draw": draw}
                this = {**about, "seed": seed}
                if any(same(r, setting) and this.items() <= r.items() for r in known):
                    continue
                if same(read_json(out / f"{target.name}.json"), setting):
                    continue
                if path and (draw, seed) == (found["draw"], found["seed"]):
                    for end in (".keras", ".json"):
                        shutil.copy(path.with_suffix(end), target.with_name(target.name + end))
                    continue
                data = data or load(arguments.dataset, arguments.data, draw)
                run(setting, data, seed, target, about, say)


def evaluate(arguments, say):
    """Scores the saved models on a file in the format of Frappe_x1."""
    import keras

    import keras_exfm  # noqa: F401

    paths = sorted((arguments.runs / "frappe_x1").glob("*.keras"))
    if not paths:
        raise SystemExit(
            f"No saved models in {arguments.runs / 'frappe_x1'}. Train them first:\n"
            "    python benchmarks/zoo.py search --data DIR\n"
            "    python benchmarks/zoo.py train --data DIR --seeds 1,2,3\n"
            "where DIR holds train_draw2021.csv.gz, ... and valid.csv.gz of Frappe_x1."
        )
    test = zoo_data.read_frappe(arguments.test)
    say(f"{arguments.test}: {len(test)} rows, {test.label.mean():.4f} of them clicks")
    found = {"as saved": {}, "after the Platt scaling of each run's record": {}}
    for path in paths:
        model = keras.saving.load_model(path)
        logit = predict(model, test)
        record = read_json(path.with_suffix(".json"))
        fitted = record["test_calibrated"]
        both = (logit, fitted["slope"] * logit + fitted["shift"])
        for kind, values in zip(found.values(), both):
            kind.setdefault(record["model"], []).append(scores(test.label, values))
        figures = found["as saved"][record["model"]][-1]
        say(f"{path.stem}: auc {figures['auc']:.5f} logloss {figures['logloss']:.4f}")
        keras.utils.clear_session()
    for title, kind in found.items():
        rows = [row(name, kind[name]) for name in SETTINGS if name in kind]
        print(f"\n{title}\n\n{table(rows)}")


def row(name, figures):
    cells = {"model": name, "runs": len(figures)}
    for key in ("auc", "logloss"):
        values = np.array([f[key] for f in figures])
        cells[key] = float(values.mean())
        cells[f"{key}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return cells


def table(rows, published=PUBLISHED["frappe_x1"]):
    """A Markdown table: mean, and standard deviation where there are several runs."""

    def cell(r, key, digits):
        deviation = r[f"{key}_std"]
        return f"{r[key]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")

    lines = ["| model | runs | AUC | LogLoss | BARS: AUC / LogLoss |", "|---|---|---|---|---|"]
    for r in rows:
        bars = published.get(r["model"])
        known = f"{bars[0]:.4f} / {bars[1]:.4f}" if bars else "-"
        lines.append(
            f"| {r['model']} | {r['runs']} | {cell(r, 'auc', 5)} | {cell(r, 'logloss', 4)} "
            f"| {known} |"
        )
    return "\n".join(lines)


def summarize(arguments, say):
    """Writes `benchmarks/results/zoo/<dataset>.{json,md}` from the finished runs."""
    for dataset, published in PUBLISHED.items():
        out = arguments.runs / dataset
        old = recorded(dataset)
        new = [read_json(path) for path in sorted(out.glob("*.json"))]
        new_trials = [read_json(path) for path in sorted((out / "search").glob("*.json"))]
        runs = runs_of(out, dataset, merged(old["runs"], new, "draw", "seed", "setting"), say)
        tried = merged(old["search"], new_trials, "draw", "seed", "setting")
        fresh = new + new_trials
        if not runs or not fresh:
            continue

        def rows(key, runs=runs):
            by_model = {name: [r[key] for r in runs if r["model"] == name] for name in SETTINGS}
            return [row(name, figures) for name, figures in by_model.items() if figures]

        keep = ("model", "draw", "seed", "trial", "setting", "parameters", "best_epoch", "choose")
        keep += ("test", "test_calibrated", "test_of_least_logloss", "seconds_of_training")

        def short(records, keep=keep):
            return [{key: record[key] for key in keep if key in record} for record in records]

        kinds = {
            "test": "The epoch of the best AUC, which is the saved model",
            "test_calibrated": "The same logits after Platt scaling on the rows for choosing",
            "test_of_least_logloss": "The epoch of the least logloss",
        }
        summary = {
            "dataset": dataset,
            "models": {key: rows(key) for key in kinds},
            "runs": short(runs),
            "search": short(tried),
            # What does not differ from run to run stands in the record only once.
            "rows": fresh[0]["rows"],
            "checksums": {k: v for r in [old, *fresh] for k, v in r.get("checksums", {}).items()},
            "versions": distinct(old.get("versions", []), [r["versions"] for r in fresh]),
            "machines": distinct(old.get("machines", []), [machine()]),
        }
        counts = ", ".join(f"{part} {number}" for part, number in fresh[0]["rows"].items())
        text = [f"# {dataset}: {len(runs)} runs, {len(tried)} trials", "", f"Rows: {counts}."]
        text += [
            "Figures are of rows that no choice has seen. Mean ± standard deviation over runs."
        ]
        for key, title in kinds.items():
            text += ["", f"## {title}", "", table(rows(key), published)]
        text += ["", "## The best trial of each model", "", *best_trials(tried, dataset)]
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS / f"{dataset}.json", rounded(summary))
        (RESULTS / f"{dataset}.md").write_text("\n".join(text) + "\n")
        say("\n".join(text))


def distinct(old, new):
    """Each of the values once, the older ones first."""
    return [json.loads(text) for text in dict.fromkeys(map(json.dumps, [*old, *new]))]


def best_trials(tried, dataset):
    """A table of what the search found, by the AUC of the rows for choosing."""
    lines = [
        "One draw, one seed; chosen by the AUC of the rows for choosing, scored on the others.",
        "",
        "| model | trials | AUC | LogLoss | after Platt scaling | change of the base |",
        "|---|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        settings = trials(dataset, name)
        mine = [r for r in tried if r["model"] == name and any(same(r, s) for s in settings)]
        if not mine:
            continue
        best = max(mine, key=lambda r: r["choose"]["auc"])
        base = json.loads(json.dumps(settings[0]))
        change = {k: v for k, v in best["setting"].items() if base.get(k) != v}
        lines.append(
            f"| {name} | {len(mine)} | {best['test']['auc']:.5f} | {best['test']['logloss']:.4f} "
            f"| {best['test_calibrated']['logloss']:.4f} "
            f"| {', '.join(f'{k} {v}' for k, v in change.items()) or 'none'} |"
        )
    return lines


def rounded(value):
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("search", "train", "evaluate", "summarize"))
    parser.add_argument("--data", type=Path, help="folder or file of the data set")
    parser.add_argument("--dataset", choices=tuple(PUBLISHED), default="frappe_x1")
    parser.add_argument("--test", type=Path, help="file to score")
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--draws", default=",".join(map(str, zoo_data.DRAWS)))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rounds", type=int, help="of training; default: one for each seed")
    parser.add_argument("--trials", type=int, default=6, help="of a model, at most")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "zoo")
    parser.add_argument(
        "--recorded", action="store_true", help="take the record in benchmarks/results/zoo/ as done"
    )
    arguments = parser.parse_args()
    needed = {"search": "data", "train": "data", "evaluate": "test"}.get(arguments.command)
    if needed and getattr(arguments, needed) is None:
        parser.error(f"{arguments.command} needs --{needed}")
    arguments.models = arguments.models.split(",")
    if unknown := sorted(set(arguments.models) - set(SETTINGS)):
        parser.error(f"unknown models {unknown}; there are {', '.join(SETTINGS)}")
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    started = time.monotonic()
    keep_memory(arguments.backend)

    def say(text):
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    command = {"search": search, "train": train, "evaluate": evaluate, "summarize": summarize}
    command[arguments.command](arguments, say)


if __name__ == "__main__":
    main()
