"""An ordered set of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exfm.features._columns import encode_column
from keras_exfm.features._kinds import KINDS, Feature
from keras_exfm.features.categorical import Categorical
from keras_exfm.features.multi_hot import MultiHot
from keras_exfm.features.numeric import Numeric
from keras_exfm.features.schema_error import SchemaError

if TYPE_CHECKING:
    import keras


class Schema:
    """An ordered set of features.

    Args:
        features: `Categorical`, `MultiHot` and `Numeric` descriptions with distinct names.
            Features that share a table must agree on `vocabulary_size`, `embeddings`, `hashed`,
            `dim` and `admit_after`.

    Raises:
        SchemaError: For duplicate names or sharers of a table that disagree.

    Example:

    >>> schema = Schema([Categorical("user", 100), Numeric("age")])
    >>> list(schema.names)
    ['user', 'age']
    >>> Schema.from_dict(schema.to_dict()) == schema
    True
    """

    def __init__(self, features: list[Feature] | tuple[Feature, ...]) -> None:
        for feature in features:
            if not isinstance(feature, (Categorical, MultiHot, Numeric)):
                raise SchemaError(
                    "`features` should hold Categorical, MultiHot and Numeric. "
                    f"Received: {feature!r}"
                )
        if not features:
            raise SchemaError("`features` should hold at least one feature. Received none.")
        names = [feature.name for feature in features]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise SchemaError(f"Feature names should be distinct. Received twice: {doubles}")
        self.features: tuple[Feature, ...] = tuple(features)
        self.tables()

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def sparse(self) -> tuple[Categorical | MultiHot, ...]:
        """The features that read an embedding table."""
        return tuple(f for f in self.features if not isinstance(f, Numeric))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numeric features."""
        return tuple(f for f in self.features if isinstance(f, Numeric))

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"No feature {name!r}; the schema has {list(self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.features == other.features

    def __hash__(self) -> int:
        return hash(self.features)

    def __repr__(self) -> str:
        return f"Schema({list(self.features)!r})"

    def tables(self) -> dict[str, Categorical | MultiHot]:
        """Table name -> a feature that describes it, in order."""
        tables: dict[str, Categorical | MultiHot] = {}
        for feature in self.sparse:
            first = tables.setdefault(feature.table_name, feature)
            for key in ("vocabulary_size", "embeddings", "hashed", "dim", "admit_after"):
                if getattr(first, key) != getattr(feature, key):
                    raise SchemaError(
                        f"Features {first.name!r} and {feature.name!r} share the table "
                        f"{feature.table_name!r} but differ in `{key}`: "
                        f"{getattr(first, key)!r} and {getattr(feature, key)!r}"
                    )
        return tables

    def select(self, names: list[str] | tuple[str, ...]) -> Schema:
        """The sub-schema with these features, in this schema's order."""
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise SchemaError(f"Unknown features {unknown}. The schema has {list(self.names)}.")
        return Schema([feature for feature in self.features if feature.name in set(names)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        kinds = {cls: kind for kind, cls in KINDS.items()}
        return {
            "features": [
                {"kind": kinds[type(feature)], **dataclasses.asdict(feature)}
                for feature in self.features
            ]
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`."""
        features: list[Feature] = []
        for item in config["features"]:
            item = dict(item)
            kind = item.pop("kind", None)
            if kind not in KINDS:
                raise SchemaError(
                    f"A feature's `kind` should be one of {list(KINDS)}. Received: {kind!r}"
                )
            try:
                features.append(KINDS[kind](**item))
            except TypeError as error:
                raise SchemaError(f"Cannot read the feature {item!r}: {error}") from error
        return cls(features)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """Symbolic Keras inputs by feature name, for a functional model.

        Shapes: `(batch,)` int32 for `Categorical`, `(batch, length)` int32 for `MultiHot`,
        `(batch,)` or `(batch, size)` float32 for `Numeric`.
        """
        import keras

        return {
            feature.name: keras.Input(shape=feature.shape, dtype=feature.dtype, name=feature.name)
            for feature in self.features
        }

    def encode(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Checks raw columns and turns them into what the model's inputs take.

        Ids become int32; strings and 64-bit ids of `hashed` and dynamic features are folded to 32
        bits (`fold_ids`). A null (`None`, or `NaN` among strings) is a missing id, -1. Rows of a
        `MultiHot` may be lists of any length up to its own: -1 fills them up. Extra columns are
        dropped.

        Args:
            batch: Feature name -> array-like with one row per example: an array, a list, a column
                of pandas or Arrow.

        Returns:
            Feature name -> array of the input's dtype and shape; the array that was given, where
            it has both.

        Raises:
            SchemaError: For a missing column, a wrong dtype or shape, or an id out of range. It
                names the column, the first bad row and its value.

        Example:

        >>> schema = Schema([Categorical("user", 100), Numeric("age")])
        >>> schema.encode({"user": [3, 99], "age": [0.5, 1.0]})["user"].dtype
        dtype('int32')
        >>> words = Schema([MultiHot("words", 100, length=3, hashed=True)])
        >>> words.encode({"words": [["red", "shoes"], None]})["words"].tolist()
        [[95939479, 1608189340, -1], [-1, -1, -1]]
        """
        missing = [name for name in self.names if name not in batch]
        if missing:
            raise SchemaError(f"Missing columns {missing}. Received columns: {sorted(batch)}")
        encoded = {f.name: encode_column(f, batch[f.name]) for f in self.features}
        sizes = {name: len(column) for name, column in encoded.items()}
        if len(set(sizes.values())) > 1:
            raise SchemaError(f"Columns should have the same number of rows. Received: {sizes}")
        return encoded
