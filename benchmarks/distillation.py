"""External distillation on real and synthetic streams: what transfers, and when it hurts.

    python benchmarks/distillation.py run --data DIR --out FOLDER --from 6 --to 10
    python benchmarks/distillation.py run --stream ml1m --data FILE --out FOLDER
    python benchmarks/distillation.py run --stream synthetic --out FOLDER
    python benchmarks/distillation.py tune --stream ml1m --data FILE --out FOLDER
    python benchmarks/distillation.py summarize --out FOLDER --from 6 --to 10

One teacher (a Wukong with all features) learns from all traffic, hour by hour; before it learns
from an hour its predictions for it are logged. Students are small DLRMs for one vertical. They
predict an hour, then train on it, once. The streams:

* globo: news clicks; the teacher has 45 % of the users on all devices, a student 15 % of the users
  of one device group. Negatives are sampled, see `keras_exfm.datasets.globo`.
* ml1m: MovieLens-1M by the day (what is said of hours here is then meant of days); the teacher has
  all ratings, a student those of one gender.
* synthetic: `keras_exfm.datasets.SyntheticAds`; the teacher has all verticals, a student one.

Figures are of the days `--from` to `--to`, counted from 1; a stream begins at day 1 in any case, so
that the same recipe runs on later days of a longer file. All students of an experiment have the
same serving model; what differs is what trains it. Runs that are recorded in FOLDER are not
repeated. `tune` tries batches and rates of student (without a teacher) and teacher on the days
before; what it finds is entered in `distillation_data.py` by hand.

gain: reduction of NE against the student without a teacher and with the same seed, in percent.
transfer ratio: that reduction as a share of (student without a teacher - teacher).
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import _records
import distillation_report as report
import distillation_stream as streams
import numpy as np
from distillation_data import STREAMS, load
from distillation_variants import experiments, students, teachers

AGES = (0, 1, 3, 6, 24)
# What MovieLens and the synthetic stream repeat by default.
SOME = ("all in one", "labels of all traffic")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "tune", "summarize"))
    parser.add_argument("--stream", default="globo", choices=list(STREAMS))
    parser.add_argument("--data", help="file or folder of the Globo clicks or of MovieLens-1M")
    parser.add_argument("--out", required=True, type=Path, help="folder of streams, logs and runs")
    parser.add_argument("--from", dest="first", type=int, help="first day of the figures")
    parser.add_argument("--to", dest="last", type=int, help="last day")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--vertical", help="the student's: device group, gender, or vertical")
    parser.add_argument("--user-fraction", type=float, help="of the teacher's users (globo)")
    parser.add_argument("--experiments", help="names, with ; between them")
    parser.add_argument("--backend", default="tensorflow", choices=["jax", "tensorflow"])
    options = parser.parse_args()
    of = options.of = STREAMS[options.stream]
    if options.command != "summarize" and options.data is None and options.stream != "synthetic":
        parser.error(f"{options.command} needs --data")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    known = experiments(of)
    default = known if options.stream == "globo" else SOME
    options.default = options.experiments is None
    options.experiments = options.experiments.split(";") if options.experiments else list(default)
    if unknown := sorted(set(options.experiments) - set(known)):
        parser.error(f"unknown experiments {unknown}; there are {', '.join(known)}")
    options.first, options.last = options.first or of.days[0], options.last or of.days[1]
    if options.first <= of.tuned[1]:
        first, last = of.tuned
        parser.error(f"--from {options.first}: settings were chosen on days {first} to {last}")
    options.vertical = options.vertical or of.own
    if options.vertical not in of.verticals:
        parser.error(f"--vertical {options.vertical}: expected one of {', '.join(of.verticals)}")
    options.user_fraction = options.user_fraction or of.user_fraction
    options.days = of.tuned if options.command == "tune" else (options.first, options.last)
    return options


class Stream:
    """The stream and the teachers' logs, each made when it is first asked for."""

    def __init__(self, options, say):
        self.options, self.say, self.of = options, say, options.of
        self.teachers, self.students = teachers(self.of), students(self.of)
        self.about, self.rows = load(self.of, options)
        self.counted = self.rows.of_days(*options.days) & self.rows.own
        self.logs = {}
        self.item_age = None

    def log(self, name):
        if name not in self.logs:
            setting = dict(self.teachers[name])
            seed, only = setting.pop("seed", 1), setting.pop("only", None)
            ages = AGES if setting.pop("ages", False) else (0,)
            mask = None if only is None else self.mask(only)
            path = log_path(self.options, name)
            self.logs[name] = streams.teacher_log(
                path,
                self.rows,
                setting,
                seed,
                ages,
                self.of.teacher_batch,
                self.of.embeddings,
                mask,
                self.say,
            )
        return self.logs[name]

    def mask(self, only):
        """Rows of one vertical, or the student's."""
        return self.rows.own if only == "own" else self.rows.vertical == only

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

    def by_item_age(self, logit):
        """NE of rows whose item first occurred, to any user, at most so many hours before."""
        if self.item_age is None:
            hour = np.repeat(np.arange(len(self.rows.starts) - 1), np.diff(self.rows.starts))
            item = self.rows.columns[self.of.item].reshape(-1)
            first = np.full(int(item.max()) + 1, len(self.rows.starts), np.int64)
            np.minimum.at(first, item, hour)
            self.item_age = hour - first[item]
        bounds = (0, 3, 12, 48, np.inf)
        return {
            f"{low}-{high}": self.figures(logit, (self.item_age >= low) & (self.item_age < high))
            for low, high in itertools.pairwise(bounds)
        }


def log_path(options, teacher):
    """A longer stream has other numbers for its articles, so other logs.

    Embeddings and logs of age are of the student's rows.
    """
    name = f"{teacher.replace(', ', '-').replace(' ', '-')}-users{options.user_fraction:g}"
    where = "" if options.vertical == options.of.own else f"-{options.vertical}"
    stream = "" if options.stream == "globo" else f"{options.stream}-"
    return options.out / "teachers" / f"{stream}{name}{where}-days{options.last}.npz"


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


def student_model(variant, schema, students):
    import keras

    import keras_exfm as kx
    from keras_exfm import layers, models
    from keras_exfm.optimizers import RowwiseAdagrad

    setting = {**students[variant.get("student", "all fields")], **variant.get("override", {})}
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
    model, names = student_model(variant, stream.rows.schema, stream.students)
    of, accumulators = stream.of, [v for v in model.variables if v.path.endswith("/accumulator")]
    logit = np.full(len(rows), np.nan, np.float32)
    trains = rows.own if variant.get("traffic", "own") == "own" else np.ones(len(rows), bool)
    logs, spent = {}, 0.0

    def teacher_step(x, y, weight):
        """A step on what the teacher said alone, as `progressive_validation` makes it."""
        if getattr(model, "gates_closed", False):
            return
        before = None
        if variant.get("accumulators") == "labels":
            before = [np.array(v) for v in accumulators]
        model.train_on_batch(x, {**y, "label": np.full(len(weight), np.nan, np.float32)}, weight)
        for variable, value in zip(accumulators, before or []):
            variable.assign(value)

    for i in range(len(rows.starts) - 1):
        here = np.arange(rows.hour(i).start, rows.hour(i).stop)
        own = here[rows.own[here]]
        early = variant.get("at_once")
        served, size = here if early == "all" else own, of.at_once.get(early, of.batch)
        for start, (x, weight, n) in zip(
            range(0, len(served), size), streams.batches(rows, served, size, names, extra)
        ):
            at = served[start : start + n]
            y = {name: x.pop(name) for name, _ in extra}
            x.pop("label")
            if rows.own[at].any():
                if variant.get("distiller"):
                    x["teacher_logit"] = np.zeros((size, 1), np.float32)
                z = np.asarray(model.predict_on_batch(x)).reshape(-1)[:n]
                logit[at[rows.own[at]]] = z[rows.own[at]]
            if early:
                begun = time.monotonic()
                teacher_step(x, y, weight)
                spent += time.monotonic() - begun
        begun = time.monotonic()
        for x, weight, _ in streams.batches(rows, here[trains[here]], of.batch, names, extra):
            y = {"label": x.pop("label")}
            y |= {name: x.pop(name) for name, _ in extra}
            if variant.get("distiller"):
                # It knows no weights and no missing teachers: whole rows that have one alone.
                kept = (weight > 0) & np.isfinite(y["teacher_logit"])
                at = np.resize(np.flatnonzero(kept), of.batch) if kept.any() else None
                if at is None:
                    continue
                x = {name: column[at] for name, column in x.items()}
                x["teacher_logit"] = y["teacher_logit"][at][:, None]
                logs = model.train_on_batch(x, y["label"][at], return_dict=True)
                continue
            if variant.get("apart"):
                teacher_step(x, y, weight)
                y |= {name: np.full_like(y[name], np.nan) for name, _ in extra}
            logs = model.train_on_batch(x, y, weight, return_dict=True)
        spent += time.monotonic() - begun
    return logit, logs, spent


def run_student(stream, variant, seed):
    """The figures of one progressive pass."""
    started = time.monotonic()
    logit, logs, spent = serving_logits(stream, variant, seed)
    days = {}
    for day in range(stream.options.first, stream.options.last + 1):
        mask = stream.rows.of_days(day, day)
        # A day of a small stream may have clicks only, or none: its NE is not defined.
        if (
            0
            < stream.rows.columns["label"][mask & stream.counted].sum()
            < (mask & stream.counted).sum()
        ):
            days[day] = stream.figures(logit, mask)["ne"]
    if stream.figures(logit)["examples"] < stream.counted.sum():
        raise SystemExit(f"{variant}, seed {seed}: it predicts NaN or infinity")
    further = {"by_item_age": stream.by_item_age(logit)} if variant.get("by_item_age") else {}
    return {
        "seed": seed,
        "variant": variant,
        **further,
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


def tune(options, say):
    """Tries batches and rates on the days that do not count: for the student, for the teacher."""
    stream = Stream(options, say)
    of, rates = stream.of, (0.02, 0.05, 0.1, 0.2, 0.4)
    for batch, rate in itertools.product((of.batch // 2, of.batch, of.batch * 2), rates):
        stream.of = dataclasses.replace(of, batch=batch)
        logit, _, _ = serving_logits(stream, {"override": {"table_learning_rate": rate}}, seed=1)
        say(f"student, batch {batch}, rate {rate}: NE {stream.figures(logit)['ne']:.5f}")
    for batch, rate in itertools.product((of.teacher_batch // 2, of.teacher_batch), rates[:4]):
        setting = {**stream.teachers["foundation"], "table_learning_rate": rate}
        setting.pop("ages")
        path = options.out / "tuning" / f"{of.name}-{batch}-{rate}.npz"
        log = streams.teacher_log(path, stream.rows, setting, 1, (0,), batch, (), None, say)
        ne = stream.figures(log["logit_0"])["ne"]
        say(f"teacher, batch {batch}, rate {rate}: NE {ne:.5f}")


def costs(stream):
    """Training and serving FLOPs of the student, an example."""
    from keras_exfm.models import flops

    model, _ = student_model({}, stream.rows.schema, stream.students)
    found = flops(model.serving_model())
    return {
        "training_flops": int(found.training),
        "inference_flops": int(found.inference),
        "rows": int(stream.rows.own.sum()),
        "counted": int(stream.counted.sum()),
    }


def recorded(options, variant, seed, stream=None):
    """The record of a run, made if there is a `stream`; `None` if it is not there."""
    of = options.of
    settings = [
        students(of)[variant.get("student", "all fields")],
        teachers(of).get(variant.get("teacher")),
        of.at_once.get(variant.get("at_once")),
        [of.batch, of.teacher_batch, of.own_fraction, options.vertical],
        *([] if of.name == "globo" else [of.name]),
    ]
    text = json.dumps(
        [variant, settings, options.backend, options.days, options.user_fraction], sort_keys=True
    )
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    file = options.out / "students" / f"{key}-{seed}.json"
    if stream is None and not file.exists():
        return None
    return _records.recorded(file, lambda: run_student(stream, variant, seed))


def main():
    options = arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    started = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    if options.command == "tune":
        tune(options, say)
        return
    if options.command == "run":
        stream, known = Stream(options, say), experiments(options.of)
        for seed in options.seeds:
            for experiment in options.experiments:
                for name, variant in known[experiment].items():
                    record = recorded(options, variant, seed, stream)
                    say(
                        f"{experiment} / {name}, seed {seed}: NE {record['figures']['ne']:.5f} "
                        f"in {record['seconds']} s"
                    )
        logged = {}
        for name in stream.teachers:
            if log_path(options, name).exists():
                log = stream.log(name)
                logged[name] = {
                    **json.loads(str(log["about"])),
                    "figures": {
                        key: stream.figures(log[key]) for key in log if key.startswith("logit_")
                    },
                }
        about = {
            "teachers": logged,
            "student": costs(stream),
            "bounds": [bounds(stream, seed) for seed in options.seeds[:3]],
            "setting": dataclasses.asdict(options.of),
            "vertical": options.vertical,
            "data": stream.about,
        }
        if "true_probability" in stream.rows.columns:
            p = np.clip(stream.rows.columns["true_probability"], 1e-12, 1 - 1e-12)
            about["bayes"] = stream.figures(np.log(p / (1 - p)).astype(np.float32))
        report.about_file(options).write_text(json.dumps(about))
    report.write(options, lambda variant, seed: recorded(options, variant, seed))


if __name__ == "__main__":
    sys.exit(main())
