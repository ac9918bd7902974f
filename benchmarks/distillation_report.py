"""Tables and figures of `benchmarks/distillation.py`."""

import json
import math
import os
import statistics
from pathlib import Path

from _processes import keras_versions
from _records import spread
from distillation_variants import experiments, students

RESULTS = Path(__file__).parent / "results" / "distillation"
BASELINE = "no teacher"


def command(options):
    return (
        f"python benchmarks/distillation.py run --stream {options.stream} "
        f"{'' if options.stream == 'synthetic' else '--data DIR '}--out FOLDER "
        f"--from {options.first} --to {options.last} --vertical {options.vertical} "
        f"--seeds {','.join(map(str, options.seeds))} --backend {options.backend} "
        f"--user-fraction {options.user_fraction:g}"
        + ("" if options.default else f' --experiments "{";".join(options.experiments)}"')
    )


def about_file(options):
    """Where a `run` leaves what is not in the students' records."""
    stream = "" if options.stream == "globo" else f"{options.stream}-"
    return options.out / f"about-{stream}{options.vertical}-{options.first}-{options.last}.json"


def rounded(tree):
    """All numbers to six digits: more would not say more, and the files are kept in git."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [rounded(value) for value in tree]
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree


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


def item_age_table(rows):
    """NE by the age of the item, of students that were recorded with it."""
    ages = list(next(iter(rows.values()))["records"][0]["by_item_age"])
    lines = [
        f"| NE, item's age in steps of time | {' | '.join(ages)} |",
        f"|---{'|---' * len(ages)}|",
    ]
    for name, row in rows.items():
        cells = [spread([r["by_item_age"][age]["ne"] for r in row["records"]], 4) for age in ages]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def staleness_figure(experiments, path, step):
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
        axis.set_xlabel(f"age of the teacher's weights, {step}")
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
    of = options.of
    about = json.loads(about_file(options).read_text())
    teachers = about["teachers"]
    chosen = f"Batch and rates were chosen on days {of.tuned[0]} to {of.tuned[1]}"
    if of.name == "globo":
        chosen = chosen.replace("Batch and rates", "Batch, rates, weights and gate")
    else:
        chosen += ", weights and gate on Globo"
    chosen += ", with one seed."
    if of.step != "hours":
        chosen += f" A step of time, and so the unit of ages, is not an hour but one of {of.step}."
    bayes = []
    if "bayes" in about:
        bayes = ["", f"NE of the true probabilities: {about['bayes']['ne']:.4f}."]
    lines = [
        f"# Distillation on {of.title}, {options.vertical}, days {options.first} to {options.last}",
        "",
        f"    {command(options)}",
        "",
        about["data"]["description"],
        "",
        "± is the standard deviation over seeds of the students (gain and transfer ratio: of the "
        "paired values); all read the log of one teacher. 2 s.e.: the mean gain is above (+) or "
        "below (-) 0 by more than two standard errors, not corrected for the number of students. A "
        "transfer ratio is the share of the distance to the teacher's log, undistorted, that the "
        f"student came. {chosen}",
        "",
        *teacher_table(teachers),
        *bayes,
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
    known = experiments(of)
    found = {
        name: rows_of(known[name], options.seeds, recorded, teachers)
        for name in options.experiments
    }
    for name, rows in found.items():
        if any(set(row["records"][0]["variant"]) - {"student"} for row in rows.values()):
            lines += ["", f"## {name}", "", *student_table(rows)]
            if any("by_item_age" in row["records"][0] for row in rows.values()):
                lines += ["", *item_age_table(rows)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    other = "" if options.vertical == of.own else f"-{options.vertical}"
    stem = f"{of.name}{other}-days-{options.first}-{options.last}"
    figures = []
    if len(found.get("stale teacher, at once", ())) > 2:
        staleness_figure(found, RESULTS / f"{stem}-age.png", of.step)
        figures.append("age")
    if len(found.get("teacher size", ())) > 2:
        size_figure(found["teacher size"], teachers, RESULTS / f"{stem}-size.png")
        figures.append("size")
    record = {
        "command": command(options),
        **about,
        "students": students(of),
        "fractions": {"teacher": options.user_fraction},
        "versions": keras_versions(),
        "cores": os.cpu_count(),
        "runs": {
            experiment: {
                name: [{k: v for k, v in r.items() if k != "last_logs"} for r in row["records"]]
                for name, row in rows.items()
            }
            for experiment, rows in found.items()
        },
    }
    lines += ["", *(f"![]({stem}-{name}.png)" for name in figures)]
    (RESULTS / f"{stem}.json").write_text(json.dumps(rounded(record)) + "\n")
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
