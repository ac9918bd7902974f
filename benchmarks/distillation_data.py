"""The streams of `benchmarks/distillation.py`, read whole into memory.

All have a teacher of all traffic and students of one vertical. They differ in what a step of time
is, after which labels are known: an hour of Globo and of the synthetic stream, a day of MovieLens,
whose days have some thousand ratings.
"""

import dataclasses
from pathlib import Path

import numpy as np

# Size of the last layer that a teacher logs.
REPRESENTATION = 32


@dataclasses.dataclass(frozen=True)
class Setting:
    """What differs between streams.

    Attributes:
        step: Unit of time of the protocol.
        own: The student's vertical by default.
        other: Another vertical, as the teacher that learns from it alone is told.
        verticals: Names of all.
        personal: Features that "fewer fields" leaves out.
        embeddings: Features whose embeddings a teacher logs.
        item: The feature whose values come and go.
        tuned: Days by which the settings were chosen, the first and the last.
        days: Days of the figures by default.
        own_fraction: Share of the users that a student sees.
        user_fraction: Share of the users that a teacher sees by default.
        batch: Rows of a student's batch.
        teacher_batch: Rows of a teacher's batch.
        at_once: Rows after which a student trains on the teacher's labels, if they come at once: of
            its own, or of all traffic.
        student_rate: Of the student's tables.
        teacher_rate: Of the teacher's tables.
        rate: About the share of positive labels.
        teacher: Its class. On MovieLens no Wukong that was tried predicted as well as a DLRM.
    """

    name: str
    title: str
    step: str
    own: str
    other: str
    verticals: tuple
    personal: tuple
    embeddings: tuple
    item: str
    tuned: tuple
    days: tuple
    own_fraction: float
    user_fraction: float
    batch: int
    teacher_batch: int
    at_once: dict
    student_rate: float
    teacher_rate: float
    rate: float
    teacher: str = "Wukong"


GLOBO = Setting(
    name="globo",
    title="Globo",
    step="hours",
    own="device3",
    other="device1",
    verticals=("device1", "device3", "device4"),
    personal=("user", "past_clicks", "last_article", "history"),
    embeddings=("user", "article", "last_article", "history"),
    item="article",
    tuned=(3, 5),
    days=(6, 10),
    own_fraction=0.15,
    user_fraction=0.45,
    batch=320,
    teacher_batch=2560,
    at_once={"own": 320, "all": 1280},
    student_rate=0.2,
    teacher_rate=0.05,
    rate=0.2,
)
MOVIELENS = Setting(
    name="ml1m",
    title="MovieLens-1M",
    step="days",
    own="F",
    other="M",
    verticals=("F", "M"),
    personal=("user_id", "zip"),
    embeddings=("user_id", "movie_id"),
    item="movie_id",
    tuned=(30, 90),
    days=(91, 249),
    own_fraction=1.0,
    user_fraction=1.0,
    batch=80,
    teacher_batch=80,
    at_once={"own": 80, "all": 320},
    student_rate=0.1,
    teacher_rate=0.05,
    rate=0.58,
    teacher="DLRM",
)
SYNTHETIC = Setting(
    name="synthetic",
    title="synthetic ads",
    step="hours",
    own="search",
    other="feed",
    verticals=("feed", "search", "video"),
    personal=("user", "history"),
    embeddings=("user", "ad", "history"),
    item="ad",
    tuned=(3, 5),
    days=(6, 10),
    own_fraction=1.0,
    user_fraction=1.0,
    batch=320,
    teacher_batch=640,
    at_once={"own": 320, "all": 1280},
    student_rate=0.1,
    teacher_rate=0.05,
    rate=0.14,
)
STREAMS = {each.name: each for each in (GLOBO, MOVIELENS, SYNTHETIC)}


@dataclasses.dataclass
class Rows:
    """All rows of a stream in time order: columns, and where each step of time begins."""

    schema: object
    columns: dict
    days: np.ndarray
    """Day of each step, counted from 1."""
    starts: np.ndarray
    vertical: np.ndarray
    own: np.ndarray
    """Rows of the student: its vertical, and its share of the users."""

    def hour(self, i):
        return slice(self.starts[i], self.starts[i + 1])

    def __len__(self):
        return int(self.starts[-1])

    def of_days(self, first, last):
        """Mask of the rows of days `first` to `last`."""
        mask = np.zeros(len(self), bool)
        begin, end = np.searchsorted(self.days, [first, last + 1])
        mask[self.starts[begin] : self.starts[end]] = True
        return mask


def load(of, options):
    """What the stream is, as a dict for the record, and its `Rows`; prepares it if need be."""
    return {"globo": globo_rows, "ml1m": movielens_rows, "synthetic": synthetic_rows}[of.name](
        of, options
    )


def about(info):
    return {
        "description": info.description,
        "source": info.source,
        "parameters": info.parameters,
        "statistics": info.statistics,
    }


def labelled(info, folder):
    """The labelled stream of prepared impressions."""
    from keras_exfm import streaming
    from keras_exfm.das import DataAugmentationService

    DataAugmentationService(
        folder / "impressions",
        folder / "labelled",
        info.schema,
        label_window_hours=info.label_window_hours,
    ).process_pending()
    return streaming.Stream(folder / "labelled")


def in_memory(stream, schema, extra):
    """Columns of all hours, hours, and where each begins."""
    from keras_exfm import streaming

    parts, starts = [], [0]
    for hour in stream.hours:
        part = streaming.read_hour(stream, hour, schema, columns=["example_id", "vertical", *extra])
        parts.append(part)
        starts.append(starts[-1] + len(part["label"]))
    columns = {
        name: np.concatenate([part[name] for part in parts])
        for name in (*schema.names, "label", "example_id", "vertical", *extra)
    }
    return columns, np.array(stream.hours), np.array(starts)


def globo_rows(of, options):
    """Clicks and sampled negatives by the hour.

    Users of a smaller share are also in a larger one, and an example has the same id in both.
    """
    from keras_exfm import streaming
    from keras_exfm.datasets import globo

    found = {}
    for share in {options.user_fraction, of.own_fraction}:
        folder = options.out / f"users{share:g}-days{options.days[1]}"
        info = globo.prepare(
            options.data,
            folder / "impressions",
            user_fraction=share,
            days=(1, options.days[1]),
            share_article_table=True,
        )
        found[share] = (info, labelled(info, folder))
    info, stream = found[options.user_fraction]
    columns, hours, starts = in_memory(stream, info.schema, ["group"])
    vertical = np.asarray(columns.pop("vertical")).astype(str)
    own = vertical == options.vertical
    if of.own_fraction != options.user_fraction:
        small = found[of.own_fraction][1]
        ids = [
            streaming.read_hour(
                small, hour, info.schema.select(["environment"]), columns=["example_id"]
            )
            for hour in small.hours
        ]
        own &= np.isin(columns["example_id"], np.concatenate([x["example_id"] for x in ids]))
    # The log's first hour makes no impressions, so day 1 has 23 hours.
    days = (hours - globo.START // 3_600_000) // 24 + 1
    return about(info), Rows(info.schema, columns, days, starts, vertical, own)


def movielens_rows(of, options):
    """Ratings by the day; the label is a rating of at least 4. Verticals are the users' gender."""
    import zoo_data

    path = Path(options.data)
    path = next(iter(sorted(path.glob("*.parquet"))), path) if path.is_dir() else path
    schema, part, stamp, _, gender = zoo_data.read_ml1m(path)
    day = stamp // 86_400
    days, first = np.unique(day, return_index=True)
    kept = np.arange(len(days)) < options.days[1]
    starts = np.append(first, len(day))[: int(kept.sum()) + 1]
    total = int(starts[-1])
    columns = {name: np.asarray(x)[:total] for name, x in part.features.items()}
    columns["label"] = part.label[:total]
    # A day of a user's is what a service would sample.
    _, columns["group"] = np.unique(
        day[:total] * 10_000 + columns["user_id"].reshape(-1), return_inverse=True
    )
    vertical = gender[:total]
    description = {
        "description": (
            f"MovieLens-1M, {total} ratings of {len(starts) - 1} days by the day; label: a rating "
            "of at least 4. Some times of the first split are imputed, all on negatives; no "
            "feature of time is used."
        ),
        "source": {"sha256": zoo_data.sha256(path)},
        "parameters": {},
        "statistics": {"click_rate": float(columns["label"].mean())},
    }
    return description, Rows(
        schema,
        columns,
        np.arange(len(starts) - 1) + 1,
        starts,
        vertical,
        vertical == options.vertical,
    )


def synthetic_rows(of, options):
    """Ads in three verticals whose click probabilities are known."""
    from keras_exfm.datasets import SyntheticAds
    from keras_exfm.datasets.synthetic import START_HOUR

    folder = options.out / f"synthetic-days{options.days[1]}"
    info = SyntheticAds(hours=24 * options.days[1], examples_per_hour=5000).write(
        folder / "impressions"
    )
    columns, hours, starts = in_memory(labelled(info, folder), info.schema, ["true_probability"])
    vertical = np.asarray(columns.pop("vertical")).astype(str)
    columns["group"] = np.arange(len(vertical))
    days = (hours - START_HOUR) // 24 + 1
    return about(info), Rows(
        info.schema, columns, days, starts, vertical, vertical == options.vertical
    )
