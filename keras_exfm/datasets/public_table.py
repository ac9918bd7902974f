"""Click data sets that the field publishes as text files, read block by block."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keras_exfm.datasets import _lines
from keras_exfm.datasets._formats import FORMATS, Column, TextTable
from keras_exfm.datasets._writing import DatasetWriter, Progress, Silent
from keras_exfm.datasets.checksum import Checksum
from keras_exfm.features import Categorical, Feature, MultiHot, Numeric, Schema, fold_ids
from keras_exfm.streaming.columns import MS_PER_HOUR, StreamError, raw_feature
from keras_exfm.streaming.partitions import DatasetInfo
from keras_exfm.streaming.reader import pad_batch, without_autotune

if TYPE_CHECKING:
    import tensorflow as tf

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]

_TIME_FEATURES = {"hour_of_day": 24, "weekday": 7}
_BINS = 465
_CHUNK = 100_000
_SORT_MEMORY = "2GB"


class PublicTable:
    """A public click data set in the layout of its publisher, from files that you have.

    Nothing is downloaded, and no file is read whole: memory does not grow with its size. The
    exceptions are side tables (users and items of MovieLens, profiles and ads of `taobao_ad`).

    Ids are hashed to a table's rows, so one pass is enough and new ids need no vocabulary; Frappe's
    and binned numbers, whose ranges are known, are not. Sets with a time get `hour_of_day` and
    `weekday` (UTC) as well.

    Args:
        name: One of `keras_exfm.datasets.FORMATS`: `"criteo_kaggle"`, `"criteo_terabyte"`,
            `"criteo_x4"`, `"avazu"`, `"avazu_x4"`, `"taobao_ad"`, `"taobao_ad_x1"`,
            `"kuaivideo_x1"`, `"microvideo_x1"`, `"frappe_x1"`, `"movielens_100k"`,
            `"movielens_1m"`, `"movielens_atomic"`.
        rows: Rows of all hashed tables, or table -> rows. Defaults to `None`: as the set's usual
            numbers of values ask for, see `schema`.
        numbers: `"log"`: a number is `log(1 + max(x, 0))`, 0 where missing. `"bins"`: an id,
            `floor(log(x)^2)` above 2 and `x` below, with
            -3 as the lowest value and a missing one as padding. Defaults to `"log"`.
        positive_rating: Lowest rating that is a click, for MovieLens. Defaults to `4.0`.
        rows_per_hour: Where rows have an order but no time, this many make one "hour" of the
            stream. An hour never holds rows of two files. Defaults to `200000`.
        limit: Stop after so many rows. Defaults to `None`: all.

    Raises:
        ValueError: For an unknown name, table or value.

    Example:

    >>> lines = ["label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city",
    ...          "1,0,957,5039,5046,5053,5055,5058,5060,5069,5149",
    ...          "0,9,958,5040,5047,5054,5056,5059,5061,5070,5150"]
    >>> with open("frappe.csv", "w") as file:
    ...     print(*lines, sep=chr(10), file=file)
    >>> frappe = PublicTable("frappe_x1")
    >>> for features, label, weight in frappe.batches("frappe.csv", batch_size=3):
    ...     print(features["item"].tolist(), label.tolist(), weight.tolist())
    [0, 1, -1] [1.0, 0.0, 0.0] [1.0, 1.0, 0.0]
    >>> frappe.checksums("frappe.csv")[0].published is None
    True

    Source of the rule for numbers: Y. Juan, W.-S. Chin and Y. Zhuang, 3 Idiots' Approach for
    Display Advertising Challenge (2014).
    """

    def __init__(
        self,
        name: str,
        *,
        rows: int | Mapping[str, int] | None = None,
        numbers: Literal["log", "bins"] = "log",
        positive_rating: float = 4.0,
        rows_per_hour: int = 200_000,
        limit: int | None = None,
    ) -> None:
        if name not in FORMATS:
            raise ValueError(f"No public table {name!r}. There are: {sorted(FORMATS)}")
        if numbers not in ("log", "bins"):
            raise ValueError(f"`numbers` should be 'log' or 'bins'. Received: numbers={numbers!r}")
        if not isinstance(positive_rating, (int, float)) or not math.isfinite(positive_rating):
            raise ValueError(
                "`positive_rating` should be a number. Received: "
                f"positive_rating={positive_rating!r}"
            )
        counts = {"rows_per_hour": rows_per_hour, "limit": limit}
        if isinstance(rows, Mapping):
            counts |= {f"rows[{table!r}]": count for table, count in rows.items()}
        else:
            counts["rows"] = rows
        for key, value in counts.items():
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ValueError(
                    f"`{key}` should be an integer of at least 1. Received: {key}={value!r}"
                )
        self.name = name
        self.format = FORMATS[name]
        self.rows = dict(rows) if isinstance(rows, Mapping) else rows
        self.numbers = numbers
        self.positive_rating = float(positive_rating)
        self.rows_per_hour = rows_per_hour
        self.limit = limit
        columns = {c.feature_name: c for c in self._columns()}
        tables = {c.table or n for n, c in columns.items() if c.rows and c.first is None}
        if isinstance(self.rows, dict) and set(self.rows) - tables:
            raise ValueError(
                f"`rows` names the tables {sorted(set(self.rows) - tables)}. "
                f"{name} has: {sorted(tables)}"
            )
        features = [self._feature(n, c) for n, c in columns.items()]
        if self.format.time is not None:
            features += [Categorical(n, size) for n, size in _TIME_FEATURES.items()]
        self.schema = Schema(features)

    @property
    def has_time(self) -> bool:
        """Whether rows carry a time; else their hours are made up, see `rows_per_hour`."""
        return self.format.time is not None

    def checksums(self, path: str | os.PathLike[str]) -> list[Checksum]:
        """MD5 and SHA-256 of the files, and the published MD5 where one is known.

        Published sums are known for the sets that BARS distributes (`*_x1`, `*_x4`) and for the
        `.zip` archives of `movielens_100k` and `movielens_1m`. A `.gz` is unpacked for it.

        Args:
            path: The file, a folder that has it, or an archive.

        Raises:
            StreamError: If there is no such file.
        """
        sources = [s for table in self._tables() for s in self._find(path, table)]
        known = {k: v for table in self._tables() for k, v in table.md5.items()}
        whole = {(s.file if s.member else s): s for s in sources}
        return [
            Checksum(str(s.file), published=known.get(s.name), **_lines.digests(s))
            for s in whole.values()
        ]

    def batches(
        self, path: str | os.PathLike[str], batch_size: int = 4096, *, drop_remainder: bool = False
    ) -> Iterator[Batch]:
        """Batches of one fixed size, in the order of the files.

        Args:
            path: The file, a folder that has it, or an archive.
            batch_size: Rows of a batch. Defaults to `4096`.
            drop_remainder: Leave a last batch that is not full out, instead of filling it up with
                rows of weight 0. Defaults to `False`.

        Yields:
            `(features, label, weight)`: arrays of the schema's inputs, float32, float32.

        Raises:
            StreamError: For a file that is missing or not as expected; names file, line, column,
                what was received and what was expected.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                "`batch_size` should be an integer of at least 1. "
                f"Received: batch_size={batch_size!r}"
            )
        held: dict[str, np.ndarray] | None = None
        for _, table in self._examples(path):
            more = self._encode(table)
            held = more if held is None else {n: np.concatenate([held[n], more[n]]) for n in held}
            count = len(held["label"])
            for start in range(0, count - batch_size + 1, batch_size):
                yield self._split({n: c[start : start + batch_size] for n, c in held.items()})
            held = {n: c[count - count % batch_size :] for n, c in held.items()}
        if held is not None and len(held["label"]) and not drop_remainder:
            yield self._split(pad_batch(held, self.schema, batch_size))

    def arrays(self, path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All features and labels in memory, for `fit`: for small files.

        In the order of time, where the set has one, else in that of the files.

        Args:
            path: The file, a folder that has it, or an archive.

        Raises:
            StreamError: As `batches`, or for a file without rows.
        """
        parts = [self._encode(table) for table in self._ordered(path)]
        if not parts:
            raise StreamError(f"{path}: no rows.")
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        features, label, _ = self._split(whole)
        return features, label

    def dataset(
        self,
        path: str | os.PathLike[str],
        batch_size: int = 4096,
        *,
        shuffle_batches: int = 0,
        seed: int | None = None,
    ) -> tf.data.Dataset:
        """`batches` as a `tf.data` dataset for `fit`, on either backend.

        Args:
            path: The file, a folder that has it, or an archive.
            batch_size: Rows of a batch. Defaults to `4096`.
            shuffle_batches: Shuffle rows within a buffer of so many batches. Defaults to `0`: keep
                the order.
            seed: Seed of the shuffling. Defaults to `None`.

        Raises:
            StreamError: For a file that is missing. What is wrong in it shows while iterating, as
                a `tf.errors` error with the message.
        """
        import tensorflow as tf

        for table in self._tables():
            self._find(path, table)
        spec = (
            {f.name: tf.TensorSpec((batch_size, *f.shape), f.dtype) for f in self.schema},
            tf.TensorSpec((batch_size,), tf.float32),
            tf.TensorSpec((batch_size,), tf.float32),
        )
        dataset = tf.data.Dataset.from_generator(
            lambda: self.batches(path, batch_size), output_signature=spec
        )
        if shuffle_batches:
            dataset = dataset.unbatch().shuffle(shuffle_batches * batch_size, seed=seed)
            # The padded rows weigh nothing wherever they end up, and keep the count even.
            dataset = dataset.batch(batch_size, drop_remainder=True)
        return without_autotune(dataset.prefetch(2))

    def hours(self, path: str | os.PathLike[str]) -> Iterator[tuple[int, pa.Table]]:
        """The examples hour by hour: impressions as docs/architecture.md has them, with `label`.

        Sets with a time that are not in its order are sorted by DuckDB, which spills to disk.

        Args:
            path: The file, a folder that has it, or an archive.

        Yields:
            The hour, and a table that `streaming.write_hour` takes.

        Raises:
            StreamError: As `batches`, or for rows that go back in time.
        """
        held: list[pa.Table] = []
        current: int | None = None
        for table in self._ordered(path):
            hours = np.asarray(table["timestamp"]) // MS_PER_HOUR
            cuts = np.flatnonzero(np.diff(hours)) + 1
            for start, end in zip([0, *cuts], [*cuts, len(hours)]):
                hour = int(hours[start])
                if current is not None and hour != current:
                    if hour < current:
                        raise StreamError(
                            f"{path}: expected rows in order of time. Received a row of hour "
                            f"{hour} after hour {current} (example_id "
                            f"{table['example_id'][int(start)].as_py()})."
                        )
                    yield current, pa.concat_tables(held)
                    held = []
                current = hour
                held.append(table.slice(start, end - start))
        if current is not None:
            yield current, pa.concat_tables(held)

    def write(
        self,
        path: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        check: bool = True,
        progress: Progress | None = None,
    ) -> DatasetInfo:
        """Writes `impressions/`, `labels/` and `dataset.json`, for the service and the pipeline.

        A repeated call completes what a stopped one left, and does nothing when all is there.

        Args:
            path: The file, a folder that has it, or an archive.
            out: Folder to write to.
            check: Compute the files' SHA-256 for `dataset.json`, and refuse a file of a published
                name whose MD5 is another. `False` saves a pass over the files. Defaults to `True`.
            progress: Told how far it is. Defaults to `None`: silent.

        Raises:
            StreamError: As `hours`; for a wrong checksum; or if `out` holds other data.
        """
        progress = progress or Silent()
        parameters = {
            "rows": self.rows,
            "numbers": self.numbers,
            "positive_rating": self.positive_rating,
            "rows_per_hour": self.rows_per_hour,
            "limit": self.limit,
        }
        source = self._source(path, check)
        writer = DatasetWriter(out, self.name, parameters, source)
        if writer.finished is not None:
            return writer.finished
        progress.begin(f"{self.name} impressions", 1)
        counts = {"rows": 0.0, "clicks": 0.0, "hours": 0.0}
        written: list[int] = []
        verticals: set[str] = set()
        for hour, table in self.hours(path):
            positive = table.filter(pc.equal(table["label"], 1.0))
            labels = positive.select(["example_id", "timestamp", "label"])
            writer.put(hour, table.drop_columns(["label"]), labels)
            verticals |= set(pc.unique(table["vertical"]).to_pylist())
            counts["rows"] += table.num_rows
            counts["clicks"] += positive.num_rows
            written.append(hour)
            progress.step(0, f"{len(written)} hours, {counts['rows']:.0f} rows")
        if not written:
            raise StreamError(f"{path}: no rows.")
        counts["hours"] = len(written)
        progress.step(1)
        made_up = (
            ""
            if self.has_time
            else f" Rows carry no time: {self.rows_per_hour} rows in order are one hour."
        )
        return writer.finish(
            DatasetInfo(
                name=self.name,
                description=f"{self.format.title}.{made_up}",
                schema=self.schema,
                first_hour=written[0],
                last_hour=written[-1],
                label_window_hours=0,
                verticals=tuple(sorted(verticals)),
                parameters=parameters,
                source=source,
                statistics=counts,
            )
        )

    def _source(self, path: str | os.PathLike[str], check: bool) -> dict[str, str]:
        if not check:
            files = [s.file for table in self._tables() for s in self._find(path, table)]
            return {"file": ", ".join(file.name for file in files)}
        found = self.checksums(path)
        for checksum in found:
            if not checksum.matches:
                raise StreamError(
                    f"{checksum.file}: expected the published MD5 {checksum.published}. Received "
                    f"{checksum.md5}. `check=False` reads it all the same."
                )
        return {
            "file": ", ".join(Path(c.file).name for c in found),
            "sha256": ", ".join(c.sha256 for c in found),
        }

    def _tables(self) -> tuple[TextTable, ...]:
        return (self.format.main, *self.format.sides)

    def _columns(self) -> Iterable[Column]:
        """The columns that are features."""
        return (
            c for t in self._tables() for c in t.columns if c.rows or c.kind in ("number", "flag")
        )

    def _feature(self, name: str, column: Column) -> Feature:
        if column.kind == "number":
            return Numeric(name) if self.numbers == "log" else Categorical(name, _BINS)
        rows = column.rows
        if column.first is None:
            given = self.rows
            given = given.get(column.table or name) if isinstance(given, dict) else given
            rows = rows if given is None else given
        if column.length:
            return MultiHot(name, rows, length=column.length, hashed=True, table=column.table)
        return Categorical(name, rows, hashed=column.first is None)

    def _find(self, path: str | os.PathLike[str], table: TextTable) -> list[_lines.Source]:
        where = Path(path)
        if where.is_file() and where.suffix != ".zip" and table is not self.format.main:
            where = where.parent
        hint = f"{self.name} does not come with this package; get it from {self.format.source}"
        return _lines.find(where, table, hint)

    def _examples(
        self, path: str | os.PathLike[str]
    ) -> Iterator[tuple[_lines.Source, pa.RecordBatch]]:
        """Blocks of rows with all their columns, as features are stored."""
        sides = [(table.key, self._side(path, table)) for table in self.format.sides]
        left = self.limit
        sources = self._find(path, self.format.main)
        for source, block in _lines.read(sources, self.format.main, self.positive_rating):
            if left is not None:
                block = block.slice(0, left)
                left -= block.num_rows
            columns = {name: block.column(name) for name in block.schema.names}
            for key, side in sides:
                at = pc.index_in(columns[key.feature_name], value_set=side[key.feature_name])
                for name, values in side.items():
                    if name != key.feature_name:
                        columns[name] = values.take(at)
            if "timestamp" in columns:
                seconds = pc.divide(columns["timestamp"], 3_600_000)
                columns["hour_of_day"] = pa.array(np.asarray(seconds) % 24)
                # 1970-01-01 was a Thursday; Monday is 0.
                columns["weekday"] = pa.array((np.asarray(seconds) // 24 + 3) % 7)
            for feature in self.schema:
                if isinstance(feature, Numeric) or self._binned(feature.name):
                    columns[feature.name] = self._number(columns[feature.name])
            yield source, pa.RecordBatch.from_pydict(columns)
            if left == 0:
                return

    def _side(self, path: str | os.PathLike[str], table: TextTable) -> dict[str, pa.Array]:
        """A side table's columns."""
        sources = self._find(path, table)
        blocks = [block for _, block in _lines.read(sources, table, self.positive_rating)]
        if not any(block.num_rows for block in blocks):
            raise StreamError(f"{sources[0]}: no rows.")
        return {
            name: pa.concat_arrays([block.column(name) for block in blocks])
            for name in blocks[0].schema.names
        }

    def _binned(self, name: str) -> bool:
        return self.numbers == "bins" and any(
            c.kind == "number" and c.feature_name == name for c in self._columns()
        )

    def _number(self, column: pa.Array) -> pa.Array:
        x = column.to_numpy(zero_copy_only=False)
        if self.numbers == "log":
            return pa.array(np.log1p(np.maximum(np.nan_to_num(x), 0)).astype(np.float32))
        with np.errstate(divide="ignore", invalid="ignore"):
            bins = np.where(x > 2, np.floor(np.log(x) ** 2), np.floor(np.maximum(x, -3)))
        bins = np.where(np.isnan(x), -1, np.minimum(np.nan_to_num(bins) + 3, _BINS - 1))
        return pa.array(bins.astype(np.int32))

    def _encode(self, table: pa.RecordBatch | pa.Table) -> dict[str, np.ndarray]:
        raw = {f.name: raw_feature(table.column(f.name), f) for f in self.schema}
        label = table.column("label").to_numpy()
        return {**self.schema.encode(raw), "label": label, "weight": np.ones_like(label)}

    def _split(self, batch: dict[str, np.ndarray]) -> Batch:
        return {n: batch[n] for n in self.schema.names}, batch["label"], batch["weight"]

    def _ordered(self, path: str | os.PathLike[str]) -> Iterator[pa.Table]:
        stamped = self._stamped(path)
        return self._sorted(stamped) if self.has_time and not self.format.in_order else stamped

    def _stamped(self, path: str | os.PathLike[str]) -> Iterator[pa.Table]:
        """Impressions with their labels, in the order of the files."""
        example = hour = filled = 0
        before: _lines.Source | None = None
        for source, table in self._examples(path):
            count = table.num_rows
            if "timestamp" in table.schema.names:
                stamp = table.column("timestamp")
            else:
                if before not in (None, source) and filled:
                    hour, filled = hour + 1, 0
                more, within = np.divmod(filled + np.arange(count), self.rows_per_hour)
                stamp = (hour + more) * MS_PER_HOUR + within * MS_PER_HOUR // self.rows_per_hour
                more, filled = divmod(filled + count, self.rows_per_hour)
                hour += more
            before = source
            columns: dict[str, Any] = {
                "example_id": np.arange(example, example + count),
                "timestamp": stamp,
                "vertical": self._vertical(table),
            }
            if self.format.group is not None:
                users = table.column(self.format.group).to_numpy(zero_copy_only=False)
                columns["group"] = fold_ids(users).astype(np.int64)
            columns |= {name: table.column(name) for name in (*self.schema.names, "label")}
            example += count
            yield pa.table(columns)

    def _vertical(self, table: pa.RecordBatch) -> pa.Array:
        if self.format.vertical is None:
            return pa.array(["all"] * table.num_rows)
        return pc.fill_null(table.column(self.format.vertical), "none")

    def _sorted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        first = next(tables, None)
        if first is None:
            return
        failure: list[Exception] = []

        def blocks() -> Iterator[pa.RecordBatch]:
            try:
                yield from first.to_batches()
                for table in tables:
                    yield from table.to_batches()
            except Exception as error:
                # DuckDB passes the text alone on.
                failure.append(error)
                raise

        with tempfile.TemporaryDirectory() as folder:
            database = duckdb.connect(
                config={"temp_directory": folder, "memory_limit": _SORT_MEMORY}
            )
            database.register("rows", pa.RecordBatchReader.from_batches(first.schema, blocks()))
            try:
                query = database.sql("SELECT * FROM rows ORDER BY timestamp, example_id")
                for batch in query.to_arrow_reader(_CHUNK):
                    yield pa.Table.from_batches([batch]).cast(first.schema)
            except (duckdb.Error, pa.ArrowException) as error:
                if failure:
                    raise failure[0] from None
                raise StreamError(f"{self.name}: cannot be sorted: {error}") from error
            finally:
                database.close()
