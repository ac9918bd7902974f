"""Settings of `benchmarks/zoo.py`: one table of models, and the trials of the search.

The first setting of a model is its base: the structure of BARS' own configuration for the set
(embeddings of 10 numbers, BatchNorm and dropout where BARS has them), with MLPs of two layers of
300 where BARS has three of 400, so that the whole sweep fits a machine of two cores. `l2` is the
factor of the sum of squares of every embedding table, all rows, at each step; FuxiCTR's
`embedding_regularizer` is twice this number. Every model has three changes of its base to
try; for all with an MLP the last has the size and the dropout that helped Wukong most. On
MovieLens-1M base and changes are `ML1M`; Wukong has five there.
"""

# AUC and LogLoss as published by BARS (MaskNet, FinalMLP and so on as named there).
PUBLISHED = {
    "frappe_x1": {
        "LogisticRegression": (0.9356, 0.3076),
        "FM": (0.9671, 0.2065),
        "DeepFM": (0.9842, 0.1482),
        "DLRM": (0.9840, 0.1444),
        "DCNv2": (0.9845, 0.1491),
        "AutoInt": (0.9848, 0.1490),
        "AFN": (0.9826, 0.2139),
        "FinalMLP": (0.9861, 0.1484),
        "MaskNet": (0.9837, 0.1696),
        "XDeepFM": (0.9845, 0.1466),
    },
    "ml1m": {},
}

MLP = {"dropout": 0.2, "batch_norm": True}
UNITS = (300, 300)

# model -> (base setting, changes of it)
SETTINGS = {
    "Wukong": (
        {
            "dim": 64,
            "num_layers": 1,
            "n_fmb": 16,
            "n_lcb": 12,
            "rank": 10,
            "mlp_units": (128,),
            "head_units": UNITS,
            "dropout": 0.4,
            "head_dropout": 0.5,
            "head_batch_norm": True,
            "l2": 0.025,
        },
        [
            {"dim": 32},
            {"dim": 32, "dropout": 0.2, "head_dropout": 0.2},
            {
                "dim": 32,
                "num_layers": 2,
                "n_fmb": 4,
                "rank": 8,
                "dropout": 0.2,
                "head_dropout": 0.2,
            },
        ],
    ),
    "FinalMLP": (
        {
            "dim": 10,
            "mlp1_units": UNITS,
            "mlp2_units": (300,),
            "mlp1_dropout": 0.4,
            "mlp2_dropout": 0.2,
            "batch_norm": True,
            "num_heads": 10,
            "fs1_context": ("user",),
            "fs2_context": ("item",),
            "l2": 0.025,
        },
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "mlp1_dropout": 0.5, "mlp2_dropout": 0.4}],
    ),
    "DCNv2": (
        {"dim": 10, "num_cross_layers": 3, "parallel_units": UNITS, **MLP, "l2": 0.025},
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dropout": 0.4}],
    ),
    "DLRM": (
        {"dim": 10, "top_units": UNITS, **MLP, "l2": 0.025},
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dropout": 0.4}],
    ),
    "AutoInt": (
        {
            "dim": 10,
            "num_layers": 2,
            "attention_units": 40,
            "num_heads": 2,
            "dnn_units": UNITS,
            **MLP,
            "l2": 0.025,
        },
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dropout": 0.4}],
    ),
    "XDeepFM": (
        {"dim": 10, "cin_units": (16, 16), "dnn_units": UNITS, **MLP, "l2": 0.025},
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dropout": 0.4}],
    ),
    "MaskNet": (
        {
            "dim": 10,
            "structure": "serial",
            "block_units": (300, 300),
            "dnn_units": (),
            "dropout": 0.2,
            "l2": 0.025,
        },
        [
            {"l2": 0.01},
            {"dim": 32},
            {"dim": 64, "dropout": 0.4},
        ],
    ),
    "AFN": (
        {
            "dim": 10,
            "neurons": 200,
            "afn_units": (300,),
            "dnn_units": UNITS,
            "dnn_dropout": 0.2,
            "l2": 0.025,
        },
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dnn_dropout": 0.4}],
    ),
    "DeepFM": (
        {"dim": 10, "dnn_units": UNITS, **MLP, "l2": 0.025},
        [{"l2": 0.01}, {"dim": 32}, {"dim": 64, "dropout": 0.4}],
    ),
    "FM": ({"dim": 10, "l2": 1e-4}, [{"l2": 5e-4}, {"l2": 2e-5}, {"l2": 2e-3}]),
    "LogisticRegression": ({"l2": 0.0}, [{"l2": 1e-6}, {"l2": 1e-5}, {"l2": 1e-4}]),
}


# What is other on MovieLens-1M: (changes of the base setting, changes of the result to try). The
# penalty is a fifth, which is what BARS has for its larger MovieLens. Wukong has the two layers of
# its last trial above, with as many embeddings from either block; as it did badly, two trials more
# than the others, of the single layer and the dropout that were best on Frappe.
CROSSES = {"dim": 16, "l2": 0.005}, [{"l2": 5e-4}, {"dim": 32}, {"dim": 32, "l2": 0.025}]
SINGLE = {"num_layers": 1, "n_fmb": 16, "n_lcb": 12, "rank": 10, "dropout": 0.4}
ML1M = {
    "Wukong": (
        {
            **CROSSES[0],
            "num_layers": 2,
            "n_fmb": 8,
            "n_lcb": 8,
            "rank": 8,
            "dropout": 0.2,
            "head_dropout": 0.2,
        },
        [
            *CROSSES[1],
            {**SINGLE, "head_dropout": 0.5},
            {**SINGLE, "head_dropout": 0.5, "dim": 32, "l2": 0.025},
        ],
    ),
    "FinalMLP": (
        {**CROSSES[0], "fs1_context": ("user_id",), "fs2_context": ("movie_id",)},
        CROSSES[1],
    ),
    "FM": ({"dim": 16}, [{"l2": 1e-5}, {"l2": 1e-3}, {"l2": 5e-3}]),
    "LogisticRegression": ({}, [{"l2": 1e-6}, {"l2": 1e-5}, {"l2": 1e-4}]),
}


def trials(dataset, name):
    """All settings of a model that are tried, the base first."""
    base, changes = SETTINGS[name]
    if dataset == "ml1m":
        other, changes = ML1M.get(name, CROSSES)
        base = {**base, **other}
    return [{"class": name, **base, **change} for change in ({}, *changes)]


def setting_of(dataset, name):
    """The base setting of a model."""
    return trials(dataset, name)[0]
