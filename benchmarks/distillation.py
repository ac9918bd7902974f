"""External distillation on the Globo news stream: what transfers, and when it hurts.

    python benchmarks/distillation.py run --data DIR --out FOLDER --from 4 --to 10
    python benchmarks/distillation.py summarize --out FOLDER --from 4 --to 10

One teacher (a Wukong with all features) learns from the clicks of 45 % of the users on all devices,
hour by hour; before it learns from an hour its predictions for it are logged. Students are small
DLRMs for one device group and 15 % of the users. They predict an hour, then train on it, once.
Figures are of the days `--from` to `--to`, counted from 1 (2017-10-01); the stream begins at day 1
in any case, so that the same recipe runs on later days of a longer file. All students of an
experiment have the same serving model; what differs is what trains it. Runs that are recorded in
FOLDER are not repeated. Negatives are sampled, see `keras_exfm.datasets.globo`.

gain: reduction of NE against the student without a teacher and with the same seed, in percent.
transfer ratio: that reduction as a share of (student without a teacher - teacher).
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import distillation_stream as streams
import numpy as np
from distillation_variants import EXPERIMENTS, STUDENTS, TEACHERS

RESULTS = Path(__file__).parent / "results" / "distillation"
OWN_FRACTION, VERTICAL = 0.15, "device3"
BATCH, TEACHER_BATCH = 320, 2560
# Rows after which a student trains on the teacher's labels, if they come at once.
AT_ONCE = {"own": 320, "all": 1280}
AGES = (0, 1, 3, 6, 24)
# The log's first hour makes no impressions, so day 1 has 23 hours.
BASELINE = "no teacher"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "summarize"))
    parser.add_argument("--data", help="file or folder of the Globo clicks")
    parser.add_argument("--out", required=True, type=Path, help="folder of streams, logs and runs")
    parser.add_argument(
        "--from", dest="first", type=int, default=4, help="first day of the figures"
    )
    parser.add_argument("--to", dest="last", type=int, default=10, help="last day")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--user-fraction", type=float, default=0.45, help="of the teacher's users")
    parser.add_argument(
        "--experiments", default=";".join(EXPERIMENTS), help="names, with ; between them"
    )
    parser.add_argument("--backend", default="tensorflow", choices=["jax", "tensorflow"])
    options = parser.parse_args()
    if options.command == "run" and options.data is None:
        parser.error("run needs --data")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.experiments = options.experiments.split(";")
    if unknown := sorted(set(options.experiments) - set(EXPERIMENTS)):
        parser.error(f"unknown experiments {unknown}; there are {', '.join(EXPERIMENTS)}")
    options.days = (options.first, options.last)
    return options


class Stream:
    """The stream and the teachers' logs, each made when it is first asked for."""

    def __init__(self, options, say):
        self.options, self.say = options, say
        self.info, self.rows = streams.load(options, options.user_fraction, OWN_FRACTION, VERTICAL)
        first = [h for h in self.rows.hours if h >= self.hour_of_day(options.first)]
        self.counted = np.zeros(len(self.rows), bool)
        self.counted[self.rows.starts[self.rows.hours.index(first[0])] :] = True
        self.counted &= self.rows.own
        self.logs = {}

    @staticmethod
    def hour_of_day(day):
        from keras_exfm.datasets import globo

        return globo.START // 3_600_000 + 24 * (day - 1)

    def log(self, name):
        if name not in self.logs:
            setting = dict(TEACHERS[name])
            seed, only = setting.pop("seed", 1), setting.pop("only", None)
            ages = AGES if setting.pop("ages", False) else (0,)
            mask = None if only is None else self.mask(only)
            path = log_path(self.options, name)
            self.logs[name] = streams.teacher_log(
                path, self.rows, setting, seed, ages, TEACHER_BATCH, mask, self.say
            )
        return self.logs[name]

    def mask(self, only):
        """Rows of one device group, or the student's."""
        if only == "own":
            return self.rows.own
        return self.rows.columns["device"] == int(only.removeprefix("device"))

    def figures(self, logit, mask=None):
        """Scores of the counted rows that have a logit."""
        from keras_exfm.metrics import functional

        mask = self.counted & np.isfinite(logit) & (True if mask is None else mask)
        label, z = self.rows.columns["label"][mask], logit[mask]
        rate = float(label.mean())
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        loss = functional.log_loss(label, z)
        return {
            "examples": int(mask.sum()),
            "ne": float(loss / entropy),
            "logloss": float(loss),
            "auc": float(functional.auc(label, z)),
            "calibration": float(functional.calibration(label, z)),
        }


def log_path(options, teacher):
    """A longer stream has other numbers for its articles, so other logs."""
    name = f"{teacher.replace(', ', '-').replace(' ', '-')}-users{options.user_fraction:g}"
    return options.out / "teachers" / f"{name}-days{options.last}.npz"


def columns_of(stream, variant):
    """The teacher's columns as the variant wants them: aged, distorted, thinned out."""
    name = variant.get("teacher")
    if name is None:
        return []
    log = stream.log(name)
    if f"logit_{variant.get('age', 0)}" not in log:
        raise SystemExit(f"teacher {name} has no log of age {variant['age']}")
    logit = log[f"logit_{variant.get('age', 0)}"].astype(np.float32)
    logit = variant.get("scale", 1.0) * logit + variant.get("shift", 0.0)
    if (coverage := variant.get("coverage", 1.0)) < 1:
        # By the impression group, as a service would sample requests.
        chance = np.random.default_rng(0).random(int(stream.rows.columns["group"].max()) + 1)
        logit = np.where(chance[stream.rows.columns["group"]] < coverage, logit, np.nan)
    found = [("teacher_logit", logit.astype(np.float32))]
    parts = variant.get("parts", {})
    if "embeddings" in parts:
        vectors = [log[f"embedding_{name}"] for name in parts["embeddings"]]
        whole = np.full((len(logit), sum(v.shape[1] for v in vectors)), np.nan, np.float16)
        whole[stream.rows.own] = np.concatenate(vectors, axis=1)
        found.append(("teacher_representation", whole))
    elif "representation_head" in parts:
        found.append(("teacher_representation", log["representation"]))
    return found


def student_model(variant, schema):
    import keras

    import keras_exfm as kx
    from keras_exfm import layers, models
    from keras_exfm.optimizers import RowwiseAdagrad

    setting = {**STUDENTS[variant.get("student", "all fields")], **variant.get("override", {})}
    rate, names = setting.pop("table_learning_rate"), setting.pop("without", ())
    cls = getattr(models, setting.pop("class"))
    schema = schema.select([name for name in schema.names if name not in names])
    backbone = cls(schema, optimizer=RowwiseAdagrad(rate), **setting)
    optimizer = keras.optimizers.Adam(1e-3)
    if variant.get("distiller"):
        return distiller(backbone, optimizer, variant["distiller"]), schema.names
    classes = {
        "auxiliary_head": layers.AuxiliaryHead,
        "adapter_head": layers.AuxiliaryHead,
        "student_adapter": layers.StudentAdapter,
        "representation_head": layers.RepresentationHead,
        "gate": layers.TeacherGate,
    }
    parts = {
        key: classes[key](**value) if key in classes else value
        for key, value in variant.get("parts", {}).items()
    }
    model = kx.ExternalDistillation.from_model(
        backbone, strict=variant.get("strict", False), **parts
    )
    model.compile(optimizer)
    return model, schema.names


def distiller(backbone, optimizer, setting):
    """`keras.distillation.Distiller`, whose teacher hands on a logged logit.

    It takes a teacher that maps the student's own inputs to logits, so the log is one more input.
    """
    import keras

    inputs = {tensor.name: tensor for tensor in backbone.inputs}
    logged = keras.Input((1,), name="teacher_logit")
    everything = {**inputs, "teacher_logit": logged}
    teacher = keras.Model(everything, keras.layers.Identity()(logged))
    student = keras.Model(everything, backbone(inputs))
    loss = keras.distillation.LogitsDistillation(
        temperature=setting["temperature"], loss=setting["loss"]
    )
    model = keras.distillation.Distiller(
        teacher, student, distillation_losses=loss, student_loss_weight=setting["student_weight"]
    )
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def run_student(stream, variant, seed):
    """One progressive pass; the figures of the serving logit.

    An hour is predicted, then trained on: its labels are known when it is over. The teacher's
    predictions are known when an example is served. `at_once` uses that, as `teacher_batch_size` of
    `streaming.progressive_validation` does: every so many rows, in the order of time, the student
    predicts, and then trains on what the teacher said of them, without their labels.
    """
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    rows, extra = stream.rows, columns_of(stream, variant)
    model, names = student_model(variant, stream.info.schema)
    started, logit = time.monotonic(), np.full(len(rows), np.nan, np.float32)
    trains = rows.own if variant.get("traffic", "own") == "own" else np.ones(len(rows), bool)
    logs, spent = {}, 0.0
    for i in range(len(rows.hours)):
        here = np.arange(rows.hour(i).start, rows.hour(i).stop)
        own = here[rows.own[here]]
        early = variant.get("at_once")
        served, size = here if early == "all" else own, AT_ONCE.get(early, BATCH)
        for start, (x, weight, n) in zip(
            range(0, len(served), size), streams.batches(rows, served, size, names, extra)
        ):
            at = served[start : start + n]
            y = {name: x.pop(name) for name, _ in extra}
            y["label"] = np.full_like(x.pop("label"), np.nan, dtype=np.float32)
            if rows.own[at].any():
                if variant.get("distiller"):
                    x["teacher_logit"] = np.zeros((size, 1), np.float32)
                z = np.asarray(model.predict_on_batch(x)).reshape(-1)[:n]
                logit[at[rows.own[at]]] = z[rows.own[at]]
            if early:
                begun = time.monotonic()
                model.train_on_batch(x, y, weight)
                spent += time.monotonic() - begun
        begun = time.monotonic()
        for x, weight, _ in streams.batches(rows, here[trains[here]], BATCH, names, extra):
            y = {"label": x.pop("label")}
            y |= {name: x.pop(name) for name, _ in extra}
            if variant.get("distiller"):
                # It knows no weights and no missing teachers: whole rows that have one alone.
                kept = (weight > 0) & np.isfinite(y["teacher_logit"])
                at = np.resize(np.flatnonzero(kept), BATCH) if kept.any() else None
                if at is None:
                    continue
                x = {name: column[at] for name, column in x.items()}
                x["teacher_logit"] = y["teacher_logit"][at][:, None]
                logs = model.train_on_batch(x, y["label"][at], return_dict=True)
                continue
            logs = model.train_on_batch(x, y, weight, return_dict=True)
        spent += time.monotonic() - begun
    days = {}
    for day in range(stream.options.first, stream.options.last + 1):
        mask = np.zeros(len(rows), bool)
        begin, end = (np.searchsorted(rows.hours, stream.hour_of_day(d)) for d in (day, day + 1))
        if begin < end:
            mask[rows.starts[begin] : rows.starts[end]] = True
            days[day] = stream.figures(logit, mask)["ne"]
    return {
        "seed": seed,
        "variant": variant,
        "figures": stream.figures(logit),
        "ne_of_days": days,
        "last_logs": {k: float(np.asarray(v)) for k, v in logs.items()},
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_training": round(spent, 1),
    }


def recorded(options, variant, seed, stream=None):
    """The record of a run, made if there is a `stream`; `None` if it is not there."""
    text = json.dumps(
        [variant, BATCH, options.backend, options.days, options.user_fraction], sort_keys=True
    )
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    file = options.out / "students" / f"{key}-{seed}.json"
    if not file.exists():
        if stream is None:
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(run_student(stream, variant, seed), indent=1) + "\n")
        part.replace(file)
    return json.loads(file.read_text())


def main():
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    started = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    if options.command == "run":
        stream = Stream(options, say)
        for seed in options.seeds:
            for experiment in options.experiments:
                for name, variant in EXPERIMENTS[experiment].items():
                    record = recorded(options, variant, seed, stream)
                    say(
                        f"{experiment} / {name}, seed {seed}: NE {record['figures']['ne']:.5f} "
                        f"in {record['seconds']} s"
                    )
        teachers = {}
        for name in TEACHERS:
            if log_path(options, name).exists():
                log = stream.log(name)
                teachers[name] = {
                    **json.loads(str(log["about"])),
                    "figures": {
                        key: stream.figures(log[key]) for key in log if key.startswith("logit_")
                    },
                }
        about = {
            "teachers": teachers,
            "data": {
                "description": stream.info.description,
                "source": stream.info.source,
                "parameters": stream.info.parameters,
                "statistics": stream.info.statistics,
            },
        }
        (options.out / f"about-{options.first}-{options.last}.json").write_text(json.dumps(about))
    summarize(options)


def spread(values, digits=2, sign=""):
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def summarize(options):
    """Writes the tables and the figures of all finished runs."""
    import keras

    about = json.loads((options.out / f"about-{options.first}-{options.last}.json").read_text())
    teachers = about["teachers"]
    lines = [
        f"# External distillation on Globo, days {options.first} to {options.last}",
        "",
        f"    {command(options)}",
        "",
        about["data"]["description"],
        "",
        "± is the standard deviation over seeds (gain and transfer ratio: of the paired values).",
        "",
        "| teacher | log of age, hours | NE | AUC | calibration |",
        "|---|---|---|---|---|",
    ]
    for name, teacher in teachers.items():
        for key, f in teacher["figures"].items():
            age = key.removeprefix("logit_")
            lines.append(
                f"| {name} | {age} | {f['ne']:.4f} | {f['auc']:.4f} | {f['calibration']:.3f} |"
            )
    runs = {}
    for experiment, variants in EXPERIMENTS.items():
        table = {}
        for name, variant in variants.items():
            found = [recorded(options, variant, seed) for seed in options.seeds]
            table[name] = [record for record in found if record]
        if not any(records for name, records in table.items() if variants[name]):
            continue
        runs[experiment] = table
        lines += [
            "",
            f"## {experiment}",
            "",
            "| student | seeds | NE | gain % | transfer ratio | AUC | calibration |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, records in table.items():
            if not records:
                continue
            base_variant = variants.get(records[0]["variant"].get("baseline", BASELINE))
            base = {}
            for r in records:
                if base_variant is None:
                    continue
                if known := recorded(options, base_variant, r["seed"]):
                    base[r["seed"]] = known["figures"]["ne"]
            gains = [
                100 * (1 - r["figures"]["ne"] / base[r["seed"]])
                for r in records
                if r["seed"] in base
            ]
            teacher = teachers.get(records[0]["variant"].get("teacher"))
            ratios = []
            if teacher:
                key = f"logit_{records[0]['variant'].get('age', 0)}"
                best = teacher["figures"][key]["ne"]
                ratios = [
                    (base[r["seed"]] - r["figures"]["ne"]) / (base[r["seed"]] - best)
                    for r in records
                    if r["seed"] in base and base[r["seed"]] > best
                ]
            cells = [
                name,
                str(len(records)),
                spread([r["figures"]["ne"] for r in records], 4),
                spread(gains, 2, "+") if gains else "",
                spread(ratios, 2) if ratios else "",
                spread([r["figures"]["auc"] for r in records], 4),
                spread([r["figures"]["calibration"] for r in records], 3),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = f"globo-days-{options.first}-{options.last}"
    record = {
        "command": command(options),
        **about,
        "students": STUDENTS,
        "batch": BATCH,
        "teacher_batch": TEACHER_BATCH,
        "vertical": VERTICAL,
        "fractions": {"teacher": options.user_fraction, "student": OWN_FRACTION},
        "versions": {"python": platform.python_version(), "keras": keras.__version__},
        "cores": os.cpu_count(),
        "runs": {
            experiment: {
                name: [{k: v for k, v in r.items() if k != "last_logs"} for r in records]
                for name, records in table.items()
            }
            for experiment, table in runs.items()
        },
    }
    (RESULTS / f"{stem}.json").write_text(json.dumps(record) + "\n")
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def command(options):
    return (
        "python benchmarks/distillation.py run --data DIR --out FOLDER "
        f"--from {options.first} --to {options.last} "
        f"--seeds {','.join(map(str, options.seeds))} --backend {options.backend} "
        f"--user-fraction {options.user_fraction:g}"
    )


if __name__ == "__main__":
    sys.exit(main())
