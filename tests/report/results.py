"""Made-up results of a run, computed row by row from made-up predictions."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST = 420_000


def bernoulli_entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p)) if 0 < p < 1 else 0.0


def figures(label, logit, truth, bayes, group):
    """The figures of some rows, restated plainly."""
    if not len(label):
        nan = float("nan")
        return dict.fromkeys(("logloss", "ne", "auc", "calibration"), nan) | {
            "examples": 0,
            "clicks": 0.0,
            "group_auc": None,
            "bayes_ne": None,
        }
    p = 1 / (1 + np.exp(-logit))
    loss = float(-np.mean(label * np.log(p) + (1 - label) * np.log(1 - p)))
    entropy = bernoulli_entropy(label.mean())
    pairs = logit[label == 1][:, None] - logit[label == 0][None, :]
    auc = float(((pairs > 0) + 0.5 * (pairs == 0)).mean()) if pairs.size else float("nan")
    expected = np.mean([bernoulli_entropy(t) for t in truth])
    return {
        "examples": len(label),
        "clicks": float(label.sum()),
        "logloss": loss,
        "ne": loss / entropy if entropy else float("nan"),
        "auc": auc,
        "calibration": float(p.sum() / label.sum()) if label.sum() else float("nan"),
        "group_auc": auc if group else None,
        "bayes_ne": float(expected / entropy) if bayes and entropy else None,
    }


NOISE = {"teacher": 0.3, "no teacher": 0.9, "vanilla": 0.8, "Ex$FM_1$ <b>": 0.6}


def predictions(
    seeds=(1, 2, 3),
    hours=30,
    verticals=("feed", "search"),
    noise=NOISE,
    silent_hours=(),
    unscored=2,
):
    """(seed, model, vertical, hour) -> label, logit, truth."""
    found = {}
    for v, vertical in enumerate(verticals):
        for h in range(hours):
            stream = np.random.default_rng([v, h])
            n = int(stream.integers(60, 100))
            truth = 1 / (1 + np.exp(-stream.normal(-1, 1, n)))
            label = (stream.random(n) < truth).astype(float)
            if h in silent_hours:
                label[:] = 0
            for seed in seeds:
                for m, (model, scale) in enumerate(noise.items()):
                    wobble = np.random.default_rng([v, h, seed, m]).normal(size=n)
                    logit = np.log(truth / (1 - truth)) + scale * wobble
                    rows = slice(0, 0 if model == "teacher" and h < unscored else n)
                    found[seed, model, vertical, FIRST + h] = label[rows], logit[rows], truth[rows]
    return found


def write_run(folder, warmup=6, bayes=True, group=True, about=(), **options):
    """Writes a run's results; returns the predictions that they describe."""
    made = predictions(**options)
    windows = [
        {"seed": s, "model": m, "vertical": v, "hour": h, **figures(*rows, bayes, group)}
        for (s, m, v, h), rows in made.items()
    ]
    pooled = {}
    for (s, m, v, h), rows in made.items():
        if h >= FIRST + warmup:
            pooled.setdefault((s, m, v), []).append(rows)
    overall = [
        {
            "seed": s,
            "model": m,
            "vertical": v,
            **figures(*(np.concatenate(c) for c in zip(*parts)), bayes, group),
        }
        for (s, m, v), parts in pooled.items()
    ]
    results = folder / "results"
    results.mkdir(parents=True)
    kinds = [("seed", pa.int64()), ("model", pa.string()), ("vertical", pa.string())]
    numbers = [
        (n, pa.float64())
        for n in ("clicks", "logloss", "ne", "auc", "calibration", "group_auc", "bayes_ne")
    ]
    overall_schema = pa.schema([*kinds, ("examples", pa.int64()), *numbers])
    windows_schema = pa.schema([*kinds, ("hour", pa.int64()), ("examples", pa.int64()), *numbers])
    pq.write_table(pa.Table.from_pylist(windows, windows_schema), results / "windows.parquet")
    pq.write_table(pa.Table.from_pylist(overall, overall_schema), results / "overall.parquet")
    note = {
        "name": "made-up",
        "description": "Rows that nobody clicked & <i>more</i>.",
        "config": {
            "evaluation": {"warmup_hours": warmup, "batch_size": 64},
            "students": [{"name": "vanilla", "shared_head_weight": 1.0}],
        },
        "dataset": {"source": "made-up", "first_hour": FIRST},
        "versions": {"keras": "3.0", "python": "3.11"},
        "backend": "jax",
        "seeds": list(options.get("seeds", (1, 2, 3))),
        "started": "2026-01-02T03:00:00+00:00",
        "finished": "2026-01-02T03:04:00+00:00",
        "command": "keras-exfm run made-up.toml --seeds 1,2,3",
        "baseline": "no teacher",
        "students": {"no teacher": {"parameters": 1234567, "training_seconds": 75.0}},
        "teacher": {"model": "Wukong", "parameters": 7654321},
        "das": {"rows": 4321, "coverage": 0.931, "mean_age_s": 1800.0, "late_labels": 7},
        "notes": ["A note <script>alert(1)</script>."],
        **dict(about),
    }
    (results / "run.json").write_text(json.dumps(note))
    return made
