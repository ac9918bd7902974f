"""Teachers, students and experiments of `benchmarks/distillation.py`.

A variant says what trains the student: `parts` (of `ExternalDistillation`), the `teacher`, the
`age` of its weights in hours, a distortion of its logit (`scale`, `shift`), the share of rows that
it scores (`coverage`), the `student` and changes of it (`override`), and the `traffic` it trains
on. Variants of one experiment are compared with its "no teacher", or with `baseline`.
"""

from distillation_stream import PERSONAL, REPRESENTATION

WUKONG = {
    "class": "Wukong",
    "dim": 32,
    "num_layers": 3,
    "n_fmb": 8,
    "n_lcb": 8,
    "rank": 8,
    "mlp_units": (128,),
    "head_units": (128, REPRESENTATION),
    "table_learning_rate": 0.05,
}
TEACHERS = {
    "foundation": {**WUKONG, "ages": True},
    # What a large model knows with the student's fields.
    "foundation, fewer fields": {**WUKONG, "without": PERSONAL},
    # Another vertical's model: device group 1 is desktop, 3 is phones.
    "other vertical": {**WUKONG, "only": "device1"},
}
DLRM = {"class": "DLRM", "dim": 16, "top_units": (64, 32), "table_learning_rate": 0.4}
STUDENTS = {"all fields": DLRM, "fewer fields": {**DLRM, "without": PERSONAL}}

F = {"teacher": "foundation"}


def vanilla(weight=1.0, **other):
    return {"parts": {"shared_head_weight": weight, **other}}


def head(weight=1.0, beta=1.0, alpha=1.0, **other):
    arguments = {
        "units": (16,),
        "loss_weight": weight,
        "gradient_scale": beta,
        "label_scale": alpha,
    }
    return {"parts": {"auxiliary_head": arguments, **other}}


SA = {"student_adapter": {"residual": True}}
REP = {"representation_head": {"size": REPRESENTATION}}
GATE = {"gate": {"half_life": 20000.0, "margin": 0.01}}


def distiller(weight):
    """Squared error of logits: its own default, a divergence, is 0 for a single logit."""
    return {"distiller": {"loss": "mse", "temperature": 1.0, "student_weight": weight}}


def each(common, variants):
    """The variants, and the student without a teacher."""
    base = {key: common[key] for key in ("student", "override", "traffic") if key in common}
    return {"no teacher": base, **{name: {**common, **v} for name, v in variants.items()}}


PARTS = {
    "vanilla": vanilla(),
    "keras.distillation": distiller(0.9),
    "AH": head(),
    "SA": {"parts": SA},
    "AH + SA": head(**SA),
    "AH + SA + gate": head(**SA, **GATE),
}
STALE = {f"{age} h": {"age": age} for age in (1, 3, 6, 24)}
BIAS = {
    "logit + 1": {"shift": 1.0},
    "logit x 0.5": {"scale": 0.5},
    "other vertical": {"teacher": "other vertical"},
}


def crossed(conditions, variants):
    return {
        f"{condition}: {name}": {**how, **variant}
        for condition, how in conditions.items()
        for name, variant in variants.items()
    }


EXPERIMENTS = {
    "fresh teacher": each(
        F,
        {
            **PARTS,
            "keras.distillation, its weights": distiller(0.5),
            "vanilla, w 0.3": vanilla(0.3),
            "vanilla, w 3": vanilla(3.0),
            "AH, w 0.3": head(0.3),
            "AH, w 3": head(3.0),
            "AH, beta 3": head(beta=3.0),
            "AH, alpha 1.5": head(alpha=1.5),
            "vanilla + AH": vanilla(1.0, **head()["parts"]),
            "representation": {"parts": REP},
            "AH + representation": head(**REP),
            "vanilla + AH + representation": vanilla(1.0, **head(**REP)["parts"]),
        },
    ),
    "fewer fields": each(
        {**F, "student": "fewer fields"},
        {**PARTS, "AH + representation": head(**REP)},
    ),
    "fewer fields, their teacher": each(
        {"teacher": "foundation, fewer fields", "student": "fewer fields"},
        {"vanilla": vanilla(), "AH": head(), "AH + representation": head(**REP)},
    ),
    "stale teacher": each(F, crossed(STALE, PARTS)),
    "biased teacher": each(F, crossed(BIAS, PARTS)),
    "coverage": each(
        F,
        crossed(
            {f"{share:.0%}": {"coverage": share} for share in (0.5, 0.1)},
            {"vanilla": vanilla(), "AH": head()},
        ),
    ),
    "all traffic": {
        "no teacher": {},
        "no teacher, all traffic": {"traffic": "all"},
        **{
            f"{name}, all traffic": {**F, **PARTS[name], "traffic": "all"}
            for name in ("vanilla", "AH")
        },
    },
    "table learning rate": {
        f"{name}, rate {rate}": {
            **(F if parts else {}),
            **parts,
            "override": {"table_learning_rate": rate},
            "baseline": f"no teacher, rate {rate}",
        }
        for rate in (0.2, 0.8)
        for name, parts in (("no teacher", {}), ("vanilla", vanilla()), ("AH", head()))
    },
}
