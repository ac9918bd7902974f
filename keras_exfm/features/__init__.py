"""Feature descriptions: what a model reads, how an id becomes a table row.

A `Schema` is the one place that knows the columns of a stream. Layers build their tables from
it, the reader checks batches against it, and it travels inside every `.keras` file.
"""

from keras_exfm.features._ids import fold_ids
from keras_exfm.features._kinds import Feature
from keras_exfm.features.categorical import Categorical
from keras_exfm.features.conventions import PADDING, RESERVED_COLUMNS
from keras_exfm.features.multi_hot import MultiHot
from keras_exfm.features.numeric import Numeric
from keras_exfm.features.schema import Schema
from keras_exfm.features.schema_error import SchemaError

__all__ = [
    "PADDING",
    "RESERVED_COLUMNS",
    "Categorical",
    "Feature",
    "MultiHot",
    "Numeric",
    "Schema",
    "SchemaError",
    "fold_ids",
]
