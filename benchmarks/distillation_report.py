"""Tables and figures of `benchmarks/distillation.py`."""

import json
import math
import os
import platform
import statistics
from pathlib import Path

from distillation_variants import EXPERIMENTS, STUDENTS

RESULTS = Path(__file__).parent / "results" / "distillation"
BASELINE = "no teacher"


def command(options):
    return (
        "python benchmarks/distillation.py run --data DIR --out FOLDER "
        f"--from {options.first} --to {options.last} --vertical {options.vertical} "
        f"--seeds {','.join(map(str, options.seeds))} --backend {options.backend} "
        f"--user-fraction {options.user_fraction:g}"
    )


def about_file(options):
    """Where a `run` leaves what is not in the students' records."""
    return options.out / f"about-{options.vertical}-{options.first}-{options.last}.json"


def spread(values, digits=2, sign=""):
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def sure(values):
    """Whether a mean lies beyond two standard errors: `+`, `-` or nothing."""
    if len(values) < 3:
        return ""
    error = statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return "+" if mean > 2 * error else "-" if mean < -2 * error else ""


def baseline_of(variants, variant):
    return variants.get(variant.get("baseline", BASELINE))


def rows_of(variants, seeds, recorded, teachers):
    """Name -> figures by seed, gain against the baseline, transfer ratio."""
    found = {}
    for name, variant in variants.items():
        records = [r for r in (recorded(variant, seed) for seed in seeds) if r]
        if not records:
            continue
        base = {}
        for r in records:
            known = recorded(baseline_of(variants, r["variant"]), r["seed"])
            if known:
                base[r["seed"]] = known["figures"]["ne"]
        pairs = [(r["figures"]["ne"], base[r["seed"]]) for r in records if r["seed"] in base]
        teacher = teachers.get(variant.get("teacher"))
        ratios = []
        if teacher:
            best = teacher["figures"][f"logit_{variant.get('age', 0)}"]["ne"]
            ratios = [(b - ne) / (b - best) for ne, b in pairs if b > best]
        found[name] = {
            "records": records,
            "gains": [100 * (1 - ne / b) for ne, b in pairs],
            "ratios": ratios,
        }
    return found


def student_table(rows):
    lines = [
        "| student | seeds | NE | gain % | 2 s.e. | transfer ratio | AUC | calibration |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        figures = [r["figures"] for r in row["records"]]
        cells = [
            name,
            str(len(figures)),
            spread([f["ne"] for f in figures], 4),
            spread(row["gains"], 2, "+") if row["gains"] else "",
            sure(row["gains"]),
            spread(row["ratios"], 2) if row["ratios"] else "",
            spread([f["auc"] for f in figures], 4),
            spread([f["calibration"] for f in figures], 3),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def teacher_table(teachers):
    lines = [
        "| teacher | training FLOPs an example | log of age, hours | NE | AUC | calibration |",
        "|---|---|---|---|---|---|",
    ]
    for name, teacher in teachers.items():
        for key, f in teacher["figures"].items():
            lines.append(
                f"| {name} | {teacher['training_flops']:,} | {key.removeprefix('logit_')} "
                f"| {f['ne']:.4f} | {f['auc']:.4f} | {f['calibration']:.3f} |"
            )
    return lines


def bound_table(bounds):
    """What limits a student that learns from the log alone."""
    lines = [
        "| together | NE |",
        "|---|---|",
        f"| student without a teacher | {spread([b['alone'] for b in bounds], 4)} |",
    ]
    for age in ("0", "1", "3"):
        ne = spread([b[age] for b in bounds], 4)
        lines.append(f"| with the teacher's log of age {age} h | {ne} |")
    return lines


def amortization_table(teacher, student):
    """Training FLOPs of k students: one external teacher for all, or one for each."""
    teach = teacher["training_flops"] * teacher["rows"]
    score = teacher["inference_flops"] * student["rows"]
    # At once: a training step more for each row. The heads, some hundred weights, are left out.
    learn = 2 * student["training_flops"] * student["rows"]
    lines = [
        "| students | one external teacher | a co-trained teacher each | ratio |",
        "|---|---|---|---|",
    ]
    for k in (1, 2, 4, 8):
        external, together = teach + k * (score + learn), k * (teach + learn)
        lines.append(f"| {k} | {external:.2e} | {together:.2e} | {together / external:.2f} |")
    return lines


def staleness_figure(experiments, path):
    """Gain over the age of the teacher, with the label and at once."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sides = (
        ("teacher at once", "stale teacher, at once", ", at once", "at once"),
        ("teacher with the label", "stale teacher, with the label", "", "with the label"),
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (fresh, stale, end, title) in zip(axes, sides):
        names = ("vanilla", "keras.distillation", "AH + SA", "AH + SA + gate")
        for color, name in enumerate(names):
            points = []
            for age in (0, 1, 3, 6, 24):
                rows = experiments.get(fresh if age == 0 else stale, {})
                row = rows.get(f"{name}{end}" if age == 0 else f"{age} h: {name}{end}")
                if row and row["gains"]:
                    points.append((age, statistics.mean(row["gains"])))
            if points:
                axis.plot(*zip(*points), "o-", color=f"C{color}", label=name)
        axis.axhline(0, color="0.6", linewidth=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 1, 3, 6, 24], ["0", "1", "3", "6", "24"])
        axis.set_xlabel("age of the teacher's weights, hours")
        axis.set_xlim(-0.1, 27)
        axis.set_title(f"the teacher {title}")
        axis.legend(frameon=False)
    axes[0].set_ylabel("gain against no teacher, % NE")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def size_figure(rows, teachers, path):
    """Gain of the student over the size of its teacher."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = sorted(
        (teachers[r["records"][0]["variant"]["teacher"]]["training_flops"], r["gains"])
        for r in rows.values()
        if "teacher" in r["records"][0]["variant"] and r["gains"]
    )
    if not points:
        return
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    x = [flops for flops, _ in points]
    y = [statistics.mean(gains) for _, gains in points]
    error = [statistics.stdev(gains) if len(gains) > 1 else 0 for _, gains in points]
    axis.errorbar(x, y, error, fmt="o-", capsize=3)
    axis.set_xscale("log")
    axis.set_xlabel("training FLOPs of the teacher, an example")
    axis.set_ylabel("gain against no teacher, % NE")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(options, recorded):
    """Writes the tables and the figures of all finished runs.

    Args:
        options: Of the command.
        recorded: Gives the record of a variant and a seed, or `None`.
    """
    import keras

    about = json.loads(about_file(options).read_text())
    teachers = about["teachers"]
    lines = [
        f"# Distillation on Globo, {options.vertical}, days {options.first} to {options.last}",
        "",
        f"    {command(options)}",
        "",
        about["data"]["description"],
        "",
        "± is the standard deviation over seeds of the students (gain and transfer ratio: of the "
        "paired values); all read the log of one teacher. 2 s.e.: the mean gain is above (+) or "
        "below (-) 0 by more than two standard errors, not corrected for the number of students. A "
        "transfer ratio is the share of the distance to the teacher's log, undistorted, that the "
        "student came. Batch, rates, weights and gate were chosen on days 3 to 5, with one seed.",
        "",
        *teacher_table(teachers),
        "",
        "## What a log can carry",
        "",
        *bound_table(about["bounds"]),
        "",
        "## Training FLOPs of k students, the stream once",
        "",
        "The student learns at once (two steps a row). A co-trained teacher sees all traffic too.",
        "",
        *amortization_table(teachers["foundation"], about["student"]),
    ]
    experiments = {
        name: rows_of(variants, options.seeds, recorded, teachers)
        for name, variants in EXPERIMENTS.items()
    }
    for name, rows in experiments.items():
        if any(row["records"][0]["variant"] for row in rows.values()):
            lines += ["", f"## {name}", "", *student_table(rows)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    other = "" if options.vertical == "device3" else f"-{options.vertical}"
    stem = f"globo{other}-days-{options.first}-{options.last}"
    figures = []
    if len(experiments["stale teacher, at once"]) > 2:
        staleness_figure(experiments, RESULTS / f"{stem}-age.png")
        figures.append("age")
    if len(experiments["teacher size"]) > 2:
        size_figure(experiments["teacher size"], teachers, RESULTS / f"{stem}-size.png")
        figures.append("size")
    record = {
        "command": command(options),
        **about,
        "students": STUDENTS,
        "fractions": {"teacher": options.user_fraction},
        "versions": {"python": platform.python_version(), "keras": keras.__version__},
        "cores": os.cpu_count(),
        "runs": {
            experiment: {
                name: [{k: v for k, v in r.items() if k != "last_logs"} for r in row["records"]]
                for name, row in rows.items()
            }
            for experiment, rows in experiments.items()
        },
    }
    lines += ["", *(f"![]({stem}-{name}.png)" for name in figures)]
    (RESULTS / f"{stem}.json").write_text(json.dumps(record) + "\n")
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
