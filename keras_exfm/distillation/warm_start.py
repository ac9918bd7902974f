"""A student starts from an earlier student, or from the tables of a larger teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_exfm.layers import FeatureEmbedding


@dataclasses.dataclass
class WarmStart:
    """What `warm_start` did.

    Attributes:
        tables: Name of each table that was taken over -> share of the source's squared norm that it
            holds: 1.0 for a copy, less for a projection to fewer dimensions.
        layers: Names of the layers whose other weights were copied.
        skipped: Name of each table or layer that was left as it was -> why.
    """

    tables: dict[str, float] = dataclasses.field(default_factory=dict)
    layers: list[str] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def warm_start(student: keras.Model, source: keras.Model, layers: bool | None = None) -> WarmStart:
    """Copies what a student can take over from another model.

    Embedding tables are matched by name, over the `FeatureEmbedding`s of both models; the ids
    should mean the same rows (equal vocabulary size and hashing). Where the vectors of an id are
    longer in the source (`E`, one row an id), they are replaced by their best approximation of the
    student's size in the sense of least squares (Eckart-Young), from the leading right singular
    vectors `V_d` of `E`:

        table = E V_d

    Its inner products between ids are the best of that rank. Where they are shorter, the further
    coordinates stay as they are. Signs are fixed (the largest entry of each singular vector is
    positive), so that the same source gives the same table. Optimizer state starts anew.

    All other layers are copied whole, by name, where every weight has the same shape.

    Args:
        student: The model that is to start warm, built: a functional model or an
            `ExternalDistillation` (its student is meant).
        source: The model to start from, likewise; it is not changed.
        layers: Whether to copy other layers than tables. Defaults to `None`: only if no table had
            to be projected, for a projected table has coordinates of its own, in which the
            source's other layers mean nothing.

    Returns:
        A `WarmStart`.

    Raises:
        ValueError: If nothing at all fits.

    Example:

    >>> import keras_exfm as kx
    >>> schema = kx.Schema([kx.Categorical("ad", 100), kx.Numeric("age")])
    >>> large = kx.models.DLRM(schema, dim=8, top_units=(8,))
    >>> small = kx.models.DLRM(schema, dim=2, top_units=(4,))
    >>> done = warm_start(small, large)
    >>> list(done.tables), done.layers, 0 < done.tables["ad"] < 1
    (['ad'], [], True)
    """
    student, source = (getattr(m, "student", m) for m in (student, source))
    result = WarmStart()
    exact = True
    held = _embeddings(source)
    for name, own in _embeddings(student).items():
        for table in own.schema.tables():
            found = held.get(name)
            if found is None or table not in found.schema.tables():
                having = [e for e in held.values() if table in e.schema.tables()]
                found = having[0] if len(having) == 1 else None
            if found is None:
                result.skipped[table] = "no table of this name in the source"
                continue
            why = _take_table(own, found, table, result)
            if why:
                result.skipped[table] = why
            exact = exact and result.tables.get(table) == 1.0 and own.dim == found.dim
    if layers or (layers is None and exact):
        by_name = {layer.name: layer for layer in source.layers}
        for layer in student.layers:
            if layer.weights and layer.name in by_name:
                _copy_layer(layer, by_name[layer.name], result)
    if not result.tables and not result.layers:
        raise ValueError(
            f"Nothing of the source fits the student. Received: {result.skipped or source.name}"
        )
    return result


def _embeddings(model: keras.Model) -> dict[str, FeatureEmbedding]:
    """The feature embeddings of a model, by the name of the layer that holds them."""
    found = {}
    for layer in model.layers:
        for part in _parts(layer):
            found[layer.name if part is layer else f"{layer.name}/{part.name}"] = part
    return found


def _parts(layer: keras.layers.Layer) -> list[FeatureEmbedding]:
    """The layer, if it is a feature embedding, or those that it holds (`FirstOrder` has one)."""
    if isinstance(layer, FeatureEmbedding):
        return [layer]
    return [part for part in vars(layer).values() if isinstance(part, FeatureEmbedding)]


def _take_table(
    own: FeatureEmbedding, found: FeatureEmbedding, name: str, result: WarmStart
) -> str | None:
    """Writes one table; why not, if it does not fit."""
    mine, theirs = own.schema.tables()[name], found.schema.tables()[name]
    for what in ("vocabulary_size", "hashed", "admit_after"):
        if getattr(mine, what) != getattr(theirs, what):
            return f"{what} is {getattr(mine, what)}, the source's {getattr(theirs, what)}"
    rows = mine.vocabulary_size

    def by_id(layer: FeatureEmbedding, feature: Any) -> np.ndarray:
        vectors = layer.read_table(name).reshape(feature.embeddings, rows, -1)
        return np.moveaxis(vectors, 0, 1).reshape(rows, -1)

    table, values = by_id(own, mine), by_id(found, theirs)
    same = mine.embeddings == theirs.embeddings and table.shape == values.shape
    kept = 1.0
    if not same:
        table[:, : values.shape[1]], kept = _leading(values, table.shape[1])
    else:
        table = values
    table = np.moveaxis(table.reshape(rows, mine.embeddings, -1), 1, 0)
    own.write_table(name, table.reshape(rows * mine.embeddings, -1))
    if name in own.dynamic_ids:
        # Which id has which row.
        own.dynamic_ids[name].set_weights(found.dynamic_ids[name].get_weights())
    result.tables[name] = kept
    return None


def _leading(values: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """The rows in their `size` leading coordinates, and the share of the squared norm kept."""
    if values.shape[1] <= size:
        return values, 1.0
    # By the small matrix of inner products: a table has many more rows than columns.
    gram = np.zeros((values.shape[1],) * 2)
    for start in range(0, len(values), 1 << 18):
        part = values[start : start + (1 << 18)].astype("float64")
        gram += part.T @ part
    power, vectors = np.linalg.eigh(gram)
    power, vectors = np.maximum(power[::-1], 0), vectors[:, ::-1][:, :size]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(size)]
    vectors = (vectors * np.where(largest < 0, -1.0, 1.0)).astype("float32")
    total = power.sum()
    return values @ vectors, float(power[:size].sum() / total) if total > 0 else 1.0


def _copy_layer(layer: keras.layers.Layer, source: keras.layers.Layer, result: WarmStart) -> None:
    own, theirs = _outside_tables(layer), _outside_tables(source)
    if not own:
        return
    shapes = [[tuple(v.shape) for v in side] for side in (own, theirs)]
    if type(layer) is not type(source) or shapes[0] != shapes[1]:
        result.skipped[layer.name] = f"weights of {shapes[0]}, the source's {shapes[1]}"
        return
    for variable, value in zip(own, theirs):
        variable.assign(value)
    result.layers.append(layer.name)


def _outside_tables(layer: keras.layers.Layer) -> list[Any]:
    """The layer's weights without tables and the state of dynamic ids."""
    tables: set[int] = set()
    for part in _parts(layer):
        inner: list[keras.layers.Layer] = [*part.tables, *part.dynamic_ids.values()]
        tables |= {id(v) for own in inner for v in own.variables}
    return [v for v in layer.variables if id(v) not in tables]
