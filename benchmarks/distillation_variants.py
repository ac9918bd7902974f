"""Teachers, students and experiments of `benchmarks/distillation.py`.

A variant says what trains the student: `parts` (of `ExternalDistillation`), the `teacher`, the
`age` of its weights in hours, a distortion of its logit (`scale`, `shift`), the share of rows that
it scores (`coverage`), the `student` and changes of it (`override`), the `traffic` that it trains
on, and whether the teacher's label comes `at_once` (see `serving_logits`), for the student's own
rows or for `all` that the teacher scores. Variants of one experiment are compared with its "no
teacher", or with `baseline`.

Weights and the gate were chosen on Globo's days 3 to 5, with one seed (`keras.distillation`: the
best of 0.5, 0.9, 0.97 and 0.99 on the label); batches and learning rates on each stream's own early
days.
"""

from distillation_data import REPRESENTATION

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
LARGE_DLRM = {"class": "DLRM", "dim": 32, "top_units": (128, REPRESENTATION)}
# The three knobs of Wukong's own scaling path at once, and the tables' vectors with them.
TINY = {"dim": 4, "num_layers": 1, "n_fmb": 2, "n_lcb": 2, "rank": 2, "mlp_units": (16,)}
SMALL = {"dim": 8, "num_layers": 1, "n_fmb": 4, "n_lcb": 4, "rank": 4, "mlp_units": (32,)}
MEDIUM = {"dim": 16, "num_layers": 2, "n_fmb": 8, "n_lcb": 8, "rank": 8, "mlp_units": (64,)}


def teachers(of):
    """The teachers of a stream: settings of the model, and what it trains on and logs."""
    large = {"Wukong": WUKONG, "DLRM": LARGE_DLRM}[of.teacher]
    large = {**large, "table_learning_rate": of.teacher_rate}
    found = {
        "foundation": {**large, "ages": True},
        # What a large model knows with the student's fields.
        "foundation, fewer fields": {**large, "without": of.personal},
        "other vertical": {**large, "only": of.other},
        # Other weights at the start: does one teacher's luck decide?
        "foundation, seed 2": {**large, "seed": 2},
        "foundation, seed 3": {**large, "seed": 3},
    }
    if of.teacher != "Wukong":
        return found
    wukong = large
    return {
        **found,
        "medium": {**wukong, **MEDIUM},
        "small": {**wukong, **SMALL, "head_units": (64, REPRESENTATION)},
        "tiny": {**wukong, **TINY, "head_units": (16, REPRESENTATION)},
    }


def students(of):
    """The students of a stream."""
    dlrm = {
        "class": "DLRM",
        "dim": 16,
        "top_units": (64, 32),
        "table_learning_rate": of.student_rate,
    }
    return {"all fields": dlrm, "fewer fields": {**dlrm, "without": of.personal}}


F = {"teacher": "foundation"}
AT_ONCE = {"at_once": "own"}
ALL = {"at_once": "all"}


def vanilla(weight=1.0, **other):
    return {"parts": {"shared_head_weight": weight, **other}}


def head(weight=1.0, beta=1.0, alpha=1.0, output_initializer=None, prior=None, **other):
    start = {} if prior is None else {"output_initializer": output_initializer, "prior": prior}
    arguments = {
        **start,
        "units": (16,),
        "loss_weight": weight,
        "gradient_scale": beta,
        "label_scale": alpha,
    }
    return {"parts": {"auxiliary_head": arguments, **other}}


SA = {"student_adapter": {"residual": True}}
REP = {"representation_head": {"size": REPRESENTATION}}
GATE = {"gate": {"half_life": 20000.0, "margin": 0.01}}


def adapted(**other):
    """The adapter's label in the serving head: vanilla distillation without the teacher's bias."""
    return vanilla(1.0, shared_head_source="adapter", **SA, **other)


def distiller(weight):
    """Squared error of logits: its own default, a divergence, is 0 for a single logit."""
    return {"distiller": {"loss": "mse", "temperature": 1.0, "student_weight": weight}}


def each(common, variants):
    """The variants, and the student without a teacher."""
    base = {key: common[key] for key in ("student", "override", "traffic") if key in common}
    return {"no teacher": base, **{name: {**common, **v} for name, v in variants.items()}}


PAPER = {
    "vanilla": vanilla(),
    "keras.distillation": distiller(0.9),
    "AH": head(),
    "SA": {"parts": SA},
    "AH + SA": head(**SA),
}
MAIN = {
    "vanilla": vanilla(),
    "AH + SA": head(**SA),
    "AH + SA + gate": head(**SA, **GATE),
    "adapter's label + gate": adapted(**GATE),
}
PROVED = {name: MAIN[name] for name in ("vanilla", "AH + SA", "AH + SA + gate")}
# Steps without a label and without a teacher: no gradient, but Adam's momentum moves on.
EMPTY = {"no teacher, empty steps": {**F, **vanilla(), **AT_ONCE, "coverage": 0.0}}
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


def at_once(variants, traffic=AT_ONCE):
    suffix = ", at once" if traffic is AT_ONCE else ", at once, all traffic"
    return {f"{name}{suffix}": {**variant, **traffic} for name, variant in variants.items()}


TOGETHER = {
    name: PAPER[name] if name in PAPER else MAIN[name]
    for name in ("vanilla", "keras.distillation", "AH + SA", "AH + SA + gate")
}


def experiments(of):
    """Name -> variants, for a stream."""
    # The teacher's embeddings of the fields that matter most.
    embeddings = {
        "representation_head": {
            "size": len(of.embeddings) * WUKONG["dim"],
            "loss_weight": 0.5,
        },
        "embeddings": of.embeddings,
    }
    return {
        "teacher at once": each(
            F,
            {
                **EMPTY,
                **at_once(
                    {
                        **MAIN,
                        "AH": head(),
                        "vanilla + representation": vanilla(**REP),
                        "vanilla + embeddings": vanilla(**embeddings),
                        "AH + SA + embeddings": head(**SA, **embeddings),
                    }
                ),
                **at_once(
                    {"vanilla": vanilla(), "AH + SA": head(**SA)},
                    ALL,
                ),
            },
        ),
        "stale teacher, at once": each(F, {**EMPTY, **crossed(STALE, at_once(PROVED))}),
        "biased teacher, at once": each(F, {**EMPTY, **crossed(BIAS, at_once(PROVED))}),
        "teacher with the label": each(
            F,
            {
                **PAPER,
                "AH + SA + gate": head(**SA, **GATE),
                "AH, GS (beta 3)": head(beta=3.0),
                "AH, LS (alpha 1.5)": head(alpha=1.5),
                "AH, LW (w 3)": head(3.0),
                "AH, LW (w 0.3)": head(0.3),
                # A student that learns at once learns each of the teacher's labels twice.
                "vanilla, w 2": vanilla(2.0),
                "AH + SA, w 2": head(2.0, **SA, adapter_head={"units": (16,), "loss_weight": 2.0}),
                "vanilla + embeddings": vanilla(**embeddings),
            },
        ),
        "stale teacher, with the label": each(F, crossed(STALE, TOGETHER)),
        "biased teacher, with the label": each(F, crossed(BIAS, TOGETHER)),
        "fewer fields": each(
            {**F, "student": "fewer fields"},
            {
                "vanilla": vanilla(),
                "AH + SA": head(**SA),
                **at_once(PROVED),
                **at_once({"AH + SA": head(**SA)}, ALL),
            },
        ),
        "fewer fields, their teacher": each(
            {"teacher": "foundation, fewer fields", "student": "fewer fields"},
            {
                **at_once({"vanilla": vanilla(), "AH + SA": head(**SA)}),
                **at_once({"AH + SA": head(**SA)}, ALL),
            },
        ),
        "coverage": each(
            F,
            crossed(
                {f"{share:.0%}": {"coverage": share} for share in (0.5, 0.1)},
                at_once({"vanilla": vanilla(), "AH + SA": head(**SA)}),
            ),
        ),
        # Teachers that differ in nothing but the weights that they began with.
        "three teachers": {
            "no teacher": {},
            **{
                f"{name}, teacher {seed}": {
                    "teacher": "foundation" + ("" if seed == 1 else f", seed {seed}"),
                    **variant,
                    **AT_ONCE,
                }
                for seed in (1, 2, 3)
                for name, variant in (("vanilla", vanilla()), ("AH + SA", head(**SA)))
            },
        },
        "teacher size": each(
            {},
            crossed(
                {name: {"teacher": name} for name in ("tiny", "small", "medium", "foundation")},
                at_once({"AH + SA": head(**SA)}),
            ),
        ),
        "labels of all traffic": {
            "no teacher": {},
            "no teacher, labels of all traffic": {"traffic": "all"},
        },
        "in short": each(
            F,
            {
                "vanilla": vanilla(),
                "AH + SA": head(**SA),
                **at_once({"vanilla": vanilla(), "AH + SA": head(**SA)}),
            },
        ),
        # What MovieLens and the synthetic stream repeat.
        "all in one": each(
            F,
            {
                "vanilla": vanilla(),
                "keras.distillation": distiller(0.9),
                "AH + SA": head(**SA),
                **EMPTY,
                **at_once(
                    {
                        "vanilla": vanilla(),
                        "AH + SA": head(**SA),
                        "AH + SA + gate": head(**SA, **GATE),
                        "AH + SA from the base rate": head(
                            output_initializer="zeros", prior=of.rate, **SA
                        ),
                        "adapter's label": adapted(),
                        "vanilla + embeddings": vanilla(**embeddings),
                    }
                ),
                **at_once({"AH + SA": head(**SA)}, ALL),
                **crossed({"logit + 1": BIAS["logit + 1"], "age 6": STALE["6 h"]}, at_once(PROVED)),
            },
        ),
        "student's optimizer": {
            f"{name}, rate {rate:g}": {
                **(F if parts else {}),
                **parts,
                "override": {"table_learning_rate": rate},
                "baseline": f"no teacher, rate {rate:g}",
            }
            for rate in (of.student_rate / 4, of.student_rate * 2)
            for name, parts in (
                ("no teacher", {}),
                ("vanilla", vanilla()),
                ("AH, LW (w 3)", head(3.0)),
                ("vanilla, at once", {**vanilla(), **AT_ONCE}),
            )
        },
        # Does the teacher's gradient swell Adagrad's accumulators, so that new items are learned
        # more slowly? Teacher's and label's gradients in steps of their own ("apart"), and then
        # with the accumulators put back after each step of the teacher's ("labels' accumulators").
        "Adagrad's accumulators": {
            f"{name}{rate_name}": {
                **variant,
                **rates,
                "by_item_age": True,
                "baseline": f"no teacher{rate_name}",
            }
            for rate_name, rates in (
                ("", {}),
                *(
                    (
                        f", rate {of.student_rate * factor:g}",
                        {"override": {"table_learning_rate": of.student_rate * factor}},
                    )
                    for factor in (0.5, 0.25)
                ),
            )
            for name, variant in (
                ("no teacher", {}),
                ("vanilla", {**F, **vanilla()}),
                ("vanilla, apart", {**F, **vanilla(), "apart": True}),
                (
                    "vanilla, apart, labels' accumulators",
                    {**F, **vanilla(), "apart": True, "accumulators": "labels"},
                ),
                ("vanilla, at once", {**F, **vanilla(), **AT_ONCE}),
                (
                    "vanilla, at once, labels' accumulators",
                    {**F, **vanilla(), **AT_ONCE, "accumulators": "labels"},
                ),
            )
        },
    }
