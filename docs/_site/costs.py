"""What the zoo's models cost, for the tables of the site: counted while it is built."""

import functools
from typing import Any

from keras_exfm import models
from keras_exfm.features import Categorical, Numeric, Schema
from keras_exfm.models import PRESETS, flops, non_embedding_parameters, shapes_only

ZOO = (
    "Wukong",
    "DLRM",
    "DCNv2",
    "AutoInt",
    "AFN",
    "FinalMLP",
    "MaskNet",
    "XDeepFM",
    "DeepFM",
    "FM",
    "LogisticRegression",
)


def criteo(rows: int = 10) -> Schema:
    """The features of Criteo's logs: 13 numbers and 26 ids, here of `rows` ids each."""
    return Schema([Numeric("x", 13), *(Categorical(f"id{i}", rows) for i in range(26))])


@functools.cache
def of_model(name: str) -> dict[str, Any]:
    """A model with its default arguments on the features of Criteo.

    Returns:
        `dense` weights beside the tables, `numbers_per_id` that its tables keep, operations of
        `inference` and `training`, and `layers`: kind -> (number of layers, operations forward).
    """
    make = getattr(models, name)
    # Tables are plain weights here, without an optimizer's state.
    small, large = (shapes_only(make, criteo(rows), optimizer=None) for rows in (10, 11))
    cost = flops(small)
    kinds: dict[str, tuple[int, int]] = {}
    for layer in cost.layers.values():
        if layer.inference:
            number, operations = kinds.get(layer.kind, (0, 0))
            kinds[layer.kind] = (number + 1, operations + layer.inference)
    return {
        "dense": non_embedding_parameters(small),
        "numbers_per_id": (large.count_params() - small.count_params()) // 26,
        "inference": cost.inference,
        "training": cost.training,
        "layers": kinds,
    }


@functools.cache
def of_preset(name: str) -> dict[str, int]:
    """A preset on the features that its source had: 720 embeddings, or those of Criteo.

    Returns:
        `dense` weights beside the tables, and operations of `training`.
    """
    preset = PRESETS[name]
    # One input with many embeddings costs what as many inputs do, and is built faster.
    schema = Schema([Categorical("all", 1, embeddings=719), Categorical("one", 1)])
    overrides: dict[str, Any] = {}
    if name == "wukong_criteo":
        schema = criteo()
    elif preset.model == "FinalMLP" and preset.config.get("feature_selection", True):
        # What `PRESETS` says of the gates.
        overrides = {"fs1_context": schema.names, "fs2_context": schema.names[1:]}
    model = shapes_only(getattr(models, preset.model).from_preset, name, schema, **overrides)
    return {"dense": non_embedding_parameters(model), "training": flops(model).training}
