"""External distillation on the Globo news stream: what transfers, and when it hurts.

    python benchmarks/distillation.py run --data DIR --out FOLDER --from 6 --to 10
    python benchmarks/distillation.py summarize --out FOLDER --from 6 --to 10

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
import sys
import time
from pathlib import Path

import distillation_report as report
import distillation_stream as streams
import numpy as np
from distillation_variants import EXPERIMENTS, STUDENTS, TEACHERS

# Batch, rates, weights and gate were chosen on days 3 to 5.
TUNED = 5
OWN_FRACTION = 0.15
BATCH, TEACHER_BATCH = 320, 2560
# Rows after which a student trains on the teacher's labels, if they come at once.
AT_ONCE = {"own": 320, "all": 1280}
AGES = (0, 1, 3, 6, 24)
# The log's first hour makes no impressions, so day 1 has 23 hours.


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "summarize"))
    parser.add_argument("--data", help="file or folder of the Globo clicks")
    parser.add_argument("--out", required=True, type=Path, help="folder of streams, logs and runs")
    parser.add_argument(
        "--from", dest="first", type=int, default=6, help="first day of the figures"
    )
    parser.add_argument("--to", dest="last", type=int, default=10, help="last day")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--vertical", default="device3", help="the student's: a device group")
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
    if options.first <= TUNED:
        parser.error(f"--from {options.first}: the settings were chosen on days 3 to {TUNED}")
    options.days = (options.first, options.last)
    return options


class Stream:
    """The stream and the teachers' logs, each made when it is first asked for."""

    def __init__(self, options, say):
        self.options, self.say = options, say
        self.info, self.rows = streams.load(
            options, options.user_fraction, OWN_FRACTION, options.vertical
        )
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
    """A longer stream has other numbers for its articles, so other logs.

    Embeddings and logs of age are of the student's rows.
    """
    name = f"{teacher.replace(', ', '-').replace(' ', '-')}-users{options.user_fraction:g}"
    where = "" if options.vertical == "device3" else f"-{options.vertical}"
    return options.out / "teachers" / f"{name}{where}-days{options.last}.npz"


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


def serving_logits(stream, variant, seed):
    """One progressive pass: the serving logit of every row, the last logs, seconds of training.

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
    logit = np.full(len(rows), np.nan, np.float32)
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
    return logit, logs, spent


def run_student(stream, variant, seed):
    """The figures of one progressive pass."""
    started = time.monotonic()
    logit, logs, spent = serving_logits(stream, variant, seed)
    rows, days = stream.rows, {}
    for day in range(stream.options.first, stream.options.last + 1):
        mask = np.zeros(len(rows), bool)
        begin, end = (np.searchsorted(rows.hours, stream.hour_of_day(d)) for d in (day, day + 1))
        if begin < end:
            mask[rows.starts[begin] : rows.starts[end]] = True
            days[day] = stream.figures(logit, mask)["ne"]
    if stream.figures(logit)["examples"] < stream.counted.sum():
        raise SystemExit(f"{variant}, seed {seed}: it predicts NaN or infinity")
    return {
        "seed": seed,
        "variant": variant,
        "figures": stream.figures(logit),
        "ne_of_days": days,
        "last_logs": {k: float(np.asarray(v)) for k, v in logs.items()},
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_training": round(spent, 1),
    }


def bounds(stream, seed):
    """How well the student without a teacher and the teacher's log predict together, by its age.

    When a student predicts an hour, what it can have read of the teacher was logged an hour
    earlier, by weights that are an hour older. If it learned all of it, it would know what the
    student alone knows and what that older teacher does: NE of the best `a z_student + b z_teacher
    + c` over the counted rows.
    """
    from scipy.optimize import minimize

    alone, _, _ = serving_logits(stream, {}, seed)
    log, mask = stream.log("foundation"), stream.counted
    label = stream.rows.columns["label"][mask].astype(np.float64)

    def stacked(age):
        z = np.stack([alone[mask], log[f"logit_{age}"][mask], np.ones(len(label))], 1)
        z = z.astype(np.float64)

        def loss(w):
            logit = z @ w
            error = 1 / (1 + np.exp(-logit)) - label
            return np.mean(np.logaddexp(0, logit) - label * logit), z.T @ error / len(label)

        found = np.full(len(stream.rows), np.nan, np.float32)
        found[mask] = z @ minimize(loss, np.zeros(3), jac=True).x
        return stream.figures(found)["ne"]

    return {"seed": seed, "alone": stream.figures(alone)["ne"]} | {
        str(age): stacked(age) for age in (0, 1, 3)
    }


def costs(stream):
    """Training and serving FLOPs of the student, an example."""
    from keras_exfm.models import flops

    model, _ = student_model({}, stream.info.schema)
    found = flops(model.serving_model())
    return {
        "training_flops": int(found.training),
        "inference_flops": int(found.inference),
        "rows": int(stream.rows.own.sum()),
        "counted": int(stream.counted.sum()),
    }


def recorded(options, variant, seed, stream=None):
    """The record of a run, made if there is a `stream`; `None` if it is not there."""
    settings = [
        STUDENTS[variant.get("student", "all fields")],
        TEACHERS.get(variant.get("teacher")),
        AT_ONCE.get(variant.get("at_once")),
        [BATCH, TEACHER_BATCH, OWN_FRACTION, options.vertical],
    ]
    text = json.dumps(
        [variant, settings, options.backend, options.days, options.user_fraction], sort_keys=True
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
            "student": costs(stream),
            "bounds": [bounds(stream, seed) for seed in options.seeds[:3]],
            "batch": BATCH,
            "at_once": AT_ONCE,
            "teacher_batch": TEACHER_BATCH,
            "vertical": options.vertical,
            "student_fraction": OWN_FRACTION,
            "data": {
                "description": stream.info.description,
                "source": stream.info.source,
                "parameters": stream.info.parameters,
                "statistics": stream.info.statistics,
            },
        }
        report.about_file(options).write_text(json.dumps(about))
    report.write(options, lambda variant, seed: recorded(options, variant, seed))


if __name__ == "__main__":
    sys.exit(main())
