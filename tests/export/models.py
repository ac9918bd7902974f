"""Small trained models with every kind of feature, and rows for them."""

import inspect

import keras
import numpy as np

import keras_exfm as kx

SCHEMA = kx.Schema(
    [
        kx.Categorical("user", 40, embeddings=2),
        kx.Categorical("ad", 30, hashed=True),
        kx.MultiHot("seen", 30, length=4, table="ad", hashed=True),
        kx.MultiHot("tags", 15, length=3, combiner="sum"),
        kx.Categorical("page", 25, admit_after=1),
        kx.Numeric("age"),
        kx.Numeric("history", 3),
    ]
)
SMALL = {
    "dim": 4,
    "num_layers": 2,
    "n_fmb": 3,
    "n_lcb": 3,
    "rank": 4,
    "mlp_units": (8,),
    "head_units": (8,),
    "bottom_units": (8,),
    "top_units": (8,),
    "parallel_units": (8,),
    "deep_units": (8,),
    "units": (8,),
    "hidden_units": (8,),
}


def zoo():
    found = (getattr(kx.models, name) for name in kx.models.__all__)
    return sorted(
        (c for c in found if inspect.isclass(c) and issubclass(c, keras.Model)),
        key=lambda c: c.__name__,
    )


def rows(count, seed=0, schema=SCHEMA):
    rng = np.random.default_rng(seed)
    raw = {
        "user": rng.integers(-1, 40, count),
        "ad": rng.integers(-(2**31), 2**31, count),
        "seen": np.where(rng.random((count, 4)) < 0.5, rng.integers(0, 2**31, (count, 4)), -1),
        "tags": np.where(rng.random((count, 3)) < 0.5, rng.integers(0, 15, (count, 3)), -1),
        "page": rng.integers(-5, 60, count),
        "age": rng.normal(size=count),
        "history": rng.normal(size=(count, 3)),
    }
    return schema.encode({name: raw[name] for name in schema.names})


def trained(cls, schema=SCHEMA, **options):
    """A model whose weights and dynamic rows are not those of its start."""
    known = inspect.signature(cls).parameters
    small = {name: value for name, value in SMALL.items() if name in known}
    # Unlucky weights, of FinalMLP above all, make rounding errors larger than the check allows.
    keras.utils.set_random_seed(1)
    model = cls(schema, **{**small, **options})
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, kx.layers.FeatureEmbedding):
            for name in schema.tables():
                values = layer.read_table(name)
                layer.write_table(name, rng.normal(size=values.shape) / 3)
            for ids in layer.dynamic_ids.values():
                ids(rows(64, 7)["page"][:, None], training=True)
    return model
