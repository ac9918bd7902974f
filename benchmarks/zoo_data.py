"""The data sets of `benchmarks/zoo.py`: files on disk -> schema, columns and labels.

Nothing of a data set is kept in this repository; the folders hold what the data sets' authors
publish, see the results' README for where from.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_exfm.features import Categorical, MultiHot, Schema

# The column's name and its first id: Frappe_x1 numbers the ids of all columns in one range.
FRAPPE = [
    ("user", 0),
    ("item", 957),
    ("daytime", 5039),
    ("weekday", 5046),
    ("isweekend", 5053),
    ("homework", 5055),
    ("cost", 5058),
    ("weather", 5060),
    ("country", 5069),
    ("city", 5149),
]
FRAPPE_END = 5382
DRAWS = (2021, 2022, 2023)


@dataclass
class Part:
    """Rows of a data set: feature name -> column, and the labels."""

    features: dict
    label: np.ndarray

    def __len__(self):
        return len(self.label)

    def where(self, mask):
        return Part({name: x[mask] for name, x in self.features.items()}, self.label[mask])


def sha256(path):
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def frappe_schema():
    """One feature a column; its ids start at 0."""
    ends = [first for _, first in FRAPPE[1:]] + [FRAPPE_END]
    return Schema([Categorical(name, end - first) for (name, first), end in zip(FRAPPE, ends)])


def read_frappe(path):
    """A file in the format of Frappe_x1: `label,user,item,...`, gzipped or not."""
    import pyarrow.csv

    table = pyarrow.csv.read_csv(path)
    expected = ["label", *(name for name, _ in FRAPPE)]
    if table.column_names != expected:
        raise SystemExit(f"{path}: expected the columns {expected}, found {table.column_names}")
    raw = {name: table[name].to_numpy().astype("int64") - first for name, first in FRAPPE}
    label = table["label"].to_numpy().astype("float32")
    return Part(frappe_schema().encode(raw), label)


def halves(part):
    """Splits rows into two halves by a hash of their features: for choosing, and for reporting.

    Equal rows fall into the same half, so what is chosen on one half has not seen the other.
    """
    ids = np.stack([np.asarray(x, np.uint64) for x in part.features.values()], axis=1)
    state = np.full(len(part), 0x9E3779B97F4A7C15, np.uint64)
    for column in ids.T:
        # The finalizer of MurmurHash3, as a chain over the columns.
        state = state ^ (column + np.uint64(0x632BE59BD9B4E019))
        for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    first = (state & np.uint64(1)) == 0
    return part.where(first), part.where(~first)


def frappe(folder, draw):
    """Training rows of a draw, and the two halves of `valid`: for choosing, for reporting."""
    folder = Path(folder)
    files = [folder / f"train_draw{draw}.csv.gz", folder / "valid.csv.gz"]
    train, valid = (read_frappe(path) for path in files)
    checksums = {path.name: sha256(path) for path in files}
    return frappe_schema(), train, *halves(valid), checksums


def read_ml1m(path):
    """MovieLens-1M in the order of time: schema, rows, times in seconds, splits and genders.

    No feature of time: some timestamps of split 0 are imputed, all of them on negatives.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    table = table.take(np.argsort(table["timestamp"].to_numpy(), kind="stable"))

    def index(name, values=None):
        values = table[name].to_numpy(zero_copy_only=False) if values is None else values
        names, ids = np.unique(values, return_inverse=True)
        return ids, len(names)

    raw, features = {}, []
    year = np.nan_to_num(table["year"].to_numpy(zero_copy_only=False), nan=-1)
    for name in ("user_id", "movie_id", "gender", "age", "occupation", "zip", "year"):
        raw[name], count = index(name, year if name == "year" else None)
        features.append(Categorical(name, count))
    lists = [text.split("|") for text in table["genres"].to_pylist()]
    genres = sorted({genre for words in lists for genre in words})
    rows = {genre: i for i, genre in enumerate(genres)}
    length = max(len(words) for words in lists)
    raw["genres"] = np.array(
        [[rows[w] for w in words] + [-1] * (length - len(words)) for words in lists]
    )
    features.append(MultiHot("genres", len(genres), length))
    schema = Schema(features)
    part = Part(schema.encode(raw), table["label"].to_numpy().astype("float32"))
    gender = table["gender"].to_numpy(zero_copy_only=False).astype(str)
    return schema, part, table["timestamp"].to_numpy(), table["split"].to_numpy(), gender


def ml1m(path):
    """MovieLens-1M by time: the first 90 % of split 0, its last 10 %, and split 1."""
    schema, everything, _, split, _ = read_ml1m(path)
    old = np.flatnonzero(split == 0)
    cut = int(0.9 * len(old))
    mask = np.zeros((3, len(everything)), bool)
    mask[0, old[:cut]] = mask[1, old[cut:]] = True
    mask[2] = split == 1
    return schema, *(everything.where(m) for m in mask), {Path(path).name: sha256(path)}
