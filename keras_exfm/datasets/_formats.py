"""Public click data sets as their publishers lay them out: files, columns, what each one means.

A format is data, not code: `_lines.py` reads all of them. MD5 sums are the published ones, of the
plain text (a `.gz` is unpacked for the comparison) or of a `.zip` as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Kind = Literal[
    "skip",
    "key",
    "label",
    "rating",
    "seconds",
    "yymmddhh",
    "hex",
    "int",
    "string",
    "strings",
    "flag",
    "number",
]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a text table.

    Args:
        name: Name in the header; `a|b` where distributions differ. Without a header, its name
            in messages.
        kind: `"label"` (0 or 1), `"rating"` (a label by a threshold), `"seconds"` (Unix time),
            `"yymmddhh"`, ids as eight `"hex"` digits, `"int"` or `"string"`, lists of
            `"strings"`, a `"flag"` (0 or 1: whether the column's name is in the list `feature`),
            a `"number"`, a `"key"` of side tables, or `"skip"`.
        rows: Rows of the embedding table. Defaults to `0`: no table.
        feature: Name of the feature. Defaults to the column's.
        first: The lowest id, where ids are consecutive numbers and need no hashing. Defaults to
            `None`: ids are hashed.
        length: Most entries of a list that are kept: the last ones. Defaults to `0`.
        separator: What stands between a list's entries. Defaults to `"^"`.
        table: Feature whose table is read. Defaults to the feature's own.
    """

    name: str
    kind: Kind
    rows: int = 0
    feature: str | None = None
    first: int | None = None
    length: int = 0
    separator: str = "^"
    table: str | None = None

    @property
    def feature_name(self) -> str:
        """Name of the feature."""
        return self.feature or self.name


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A text file, or several with the same columns."""

    patterns: tuple[str, ...]
    columns: tuple[Column, ...]
    delimiter: str = ","
    header: bool = True
    encoding: str = "utf8"
    md5: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> Column:
        """Of a side table: the column that the main table's column of this name refers to."""
        return next(column for column in self.columns if column.kind == "key")


@dataclasses.dataclass(frozen=True)
class Format:
    """A data set: its examples, and small tables with features of their users or items.

    Args:
        title: What it is, one line.
        source: Where its publisher has it.
        main: The examples.
        sides: Tables that are joined by their key. Defaults to none.
        in_order: Whether the examples come in order of time. Defaults to `True`.
        group: Column whose values are groups of a grouped AUC. Defaults to `None`.
        vertical: Column whose values are verticals. Defaults to `None`.
    """

    title: str
    source: str
    main: TextTable
    sides: tuple[TextTable, ...] = ()
    in_order: bool = True
    group: str | None = None
    vertical: str | None = None

    @property
    def time(self) -> Column | None:
        """The column of the time; `None` where rows have an order only, or none."""
        found = [c for c in self.main.columns if c.kind in ("seconds", "yymmddhh")]
        return found[0] if found else None


def _skip(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "skip") for name in names)


def _criteo(label: str = "label") -> tuple[Column, ...]:
    # Of the order of the Kaggle set's frequent values; the rare ones share rows with others.
    big = {3: 200_000, 4: 150_000, 12: 200_000, 16: 200_000, 21: 200_000, 24: 80_000}
    large = {7: 15_000, 10: 60_000, 11: 8_000, 15: 15_000, 18: 5_000, 26: 60_000}
    return (
        Column(label, "label"),
        *(Column(f"I{i}", "number") for i in range(1, 14)),
        *(Column(f"C{i}", "hex", rows={**big, **large}.get(i, 4_000)) for i in range(1, 27)),
    )


def _avazu() -> tuple[Column, ...]:
    return (
        Column("id", "skip"),
        Column("click", "label"),
        Column("hour", "yymmddhh"),
        Column("C1", "int", rows=100),
        Column("banner_pos", "int", rows=100),
        Column("site_id", "hex", rows=8_000),
        Column("site_domain", "hex", rows=10_000),
        Column("site_category", "hex", rows=200),
        Column("app_id", "hex", rows=12_000),
        Column("app_domain", "hex", rows=1_000),
        Column("app_category", "hex", rows=200),
        Column("device_id", "hex", rows=1_000_000),
        Column("device_ip", "hex", rows=2_000_000),
        Column("device_model", "hex", rows=12_000),
        Column("device_type", "int", rows=100),
        Column("device_conn_type", "int", rows=100),
        Column("C14", "int", rows=5_000),
        Column("C15", "int", rows=100),
        Column("C16", "int", rows=100),
        Column("C17", "int", rows=1_000),
        Column("C18", "int", rows=100),
        Column("C19", "int", rows=500),
        Column("C20", "int", rows=500),
        Column("C21", "int", rows=500),
    )


_TAOBAO_USER = (
    ("cms_segid", 300),
    ("cms_group_id", 100),
    ("final_gender_code", 20),
    ("age_level", 50),
    ("pvalue_level", 20),
    ("shopping_level", 20),
    ("occupation", 20),
    ("new_user_class_level", 50),
)
_TAOBAO_AD = (
    ("cate_id", 10_000),
    ("campaign_id", 600_000),
    ("customer", 350_000),
    ("brand", 150_000),
)
_ML_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
_FRAPPE = (
    *(("user", 0, 957), ("item", 957, 5039), ("daytime", 5039, 5046), ("weekday", 5046, 5053)),
    *(("isweekend", 5053, 5055), ("homework", 5055, 5058), ("cost", 5058, 5060)),
    *(("weather", 5060, 5069), ("country", 5069, 5149), ("city", 5149, 5382)),
)
_RATINGS = (
    Column("user_id", "string", rows=10_000),
    Column("item_id", "string", rows=6_000),
    Column("rating", "rating"),
    Column("timestamp", "seconds"),
)
_AGE = Column("age", "string", rows=200)
_GENDER = Column("gender", "string", rows=20)
_OCCUPATION = Column("occupation", "string", rows=100)
_ZIP = Column("zip_code", "string", rows=5_000)
_USER, _ITEM = Column("user_id", "key"), Column("item_id", "key")
_HUGGINGFACE = "https://huggingface.co/datasets/reczoo"

FORMATS: dict[str, Format] = {
    "criteo_kaggle": Format(
        "Criteo display ads, seven days, clicks and non-clicks subsampled at different rates",
        "https://www.kaggle.com/c/criteo-display-ad-challenge",
        TextTable(("train.txt", "train*.tsv"), _criteo(), "\t", header=False),
    ),
    "criteo_terabyte": Format(
        "Criteo click logs, 24 days, a file a day, non-clicks subsampled",
        "https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset",
        TextTable(("day_*",), _criteo(), "\t", header=False),
    ),
    "criteo_x4": Format(
        "The Kaggle set as BARS splits it at random",
        f"{_HUGGINGFACE}/Criteo_x4",
        TextTable(
            ("train.csv",),
            _criteo("Label"),
            md5={
                "train.csv": "4a53bb7cbc0e4ee25f9d6a73ed824b1a",
                "valid.csv": "fba5428b22895016e790e2dec623cb56",
                "test.csv": "cfc37da0d75c4d2d8778e76997df2976",
            },
        ),
    ),
    "avazu": Format(
        "Avazu mobile ads, ten days, stamped by hour",
        "https://www.kaggle.com/c/avazu-ctr-prediction",
        TextTable(("train.csv", "train.gz"), _avazu()),
    ),
    "avazu_x4": Format(
        "The Avazu set as BARS splits it at random",
        f"{_HUGGINGFACE}/Avazu_x4",
        TextTable(
            ("train.csv",),
            _avazu(),
            md5={
                "train.csv": "de3a27264cdabf66adf09df82328ccaa",
                "valid.csv": "33232931d84d6452d3f956e936cab2c9",
                "test.csv": "3ebb774a9ca74d05919b84a3d402986d",
            },
        ),
        in_order=False,
    ),
    "taobao_ad": Format(
        "Taobao display ads, eight days (raw_sample, user_profile, ad_feature; no behavior_log)",
        "https://tianchi.aliyun.com/dataset/56",
        TextTable(
            ("raw_sample.csv",),
            (
                Column("user", "string", rows=1_500_000),
                Column("time_stamp", "seconds"),
                Column("adgroup_id", "string", rows=1_100_000),
                Column("pid", "string", rows=20),
                Column("nonclk", "skip"),
                Column("clk", "label"),
            ),
        ),
        sides=(
            TextTable(
                ("user_profile.csv",),
                (
                    Column("userid|user", "key", feature="user"),
                    *(Column(name, "string", rows) for name, rows in _TAOBAO_USER),
                ),
            ),
            TextTable(
                ("ad_feature.csv",),
                (
                    Column("adgroup_id", "key"),
                    *(Column(name, "string", rows) for name, rows in _TAOBAO_AD),
                    Column("price", "number"),
                ),
            ),
        ),
        in_order=False,
        group="user",
        vertical="pid",
    ),
    "taobao_ad_x1": Format(
        "Taobao display ads with histories, as BARS distributes it: seven days and a test day",
        f"{_HUGGINGFACE}/TaobaoAd_x1",
        TextTable(
            ("train.csv",),
            (
                Column("clk", "label"),
                Column("btag_his", "strings", 20, length=50, table="btag"),
                Column("cate_his", "strings", 10_000, length=50, table="cate_id"),
                Column("brand_his", "strings", 150_000, length=50, table="brand"),
                Column("userid", "string", rows=1_500_000),
                *(Column(name, "string", rows) for name, rows in _TAOBAO_USER),
                Column("adgroup_id", "string", rows=1_100_000),
                *(Column(name, "string", rows) for name, rows in _TAOBAO_AD),
                Column("price", "number"),
                Column("pid", "string", rows=20),
                Column("btag", "string", rows=20),
            ),
            md5={
                "train.csv": "eaabfc8629f23519b04593e26c7522fc",
                "test.csv": "f5ae6197e52385496d46e2867c1c8da1",
            },
        ),
        group="userid",
    ),
    "kuaivideo_x1": Format(
        "Kuaishou micro-videos with clicked and skipped histories, as BARS distributes it",
        f"{_HUGGINGFACE}/KuaiVideo_x1",
        TextTable(
            ("train.csv",),
            (
                # Times were altered by the publisher: they give an order only.
                Column("timestamp", "skip"),
                Column("user_id", "string", rows=15_000),
                Column("item_id", "string", rows=500_000),
                Column("is_click", "label"),
                *_skip("is_like", "is_follow"),
                Column("pos_items", "strings", 500_000, length=100, table="item_id"),
                Column("neg_items", "strings", 500_000, length=100, table="item_id"),
            ),
            md5={
                "train.csv": "16f13734411532cc313caf2180bfcd56",
                "test.csv": "ba26c01caaf6c65c272af11aa451fc7a",
            },
        ),
        group="user_id",
    ),
    "microvideo_x1": Format(
        "MicroVideo-1.7M with clicked histories, as BARS distributes it",
        f"{_HUGGINGFACE}/MicroVideo1.7M_x1",
        TextTable(
            ("train.csv",),
            (
                Column("user_id", "string", rows=15_000),
                Column("item_id", "string", rows=2_000_000),
                Column("cate_id", "string", rows=1_000),
                Column("clicked_items", "strings", 2_000_000, length=100, table="item_id"),
                Column("clicked_categories", "strings", 1_000, length=100, table="cate_id"),
                Column("is_click", "label"),
            ),
            md5={
                "train.csv": "936e6612714c887e76226a60829b4e0a",
                "test.csv": "9417a18304fb62411ac27c26c5e0de56",
            },
        ),
        group="user_id",
    ),
    "frappe_x1": Format(
        "Frappe app usage with sampled negatives, as BARS distributes it",
        "https://zenodo.org/record/6324454",
        TextTable(
            ("train.csv",),
            (
                Column("label", "label"),
                *(Column(n, "int", rows=end - first, first=first) for n, first, end in _FRAPPE),
            ),
            md5={
                "train.csv": "ba7306e6c4fc19dd2cd84f2f0596d158",
                "valid.csv": "88d51bf2173505436d3a8f78f2a59da8",
                "test.csv": "3470f6d32713dc5f7715f198ca7c612a",
            },
        ),
    ),
    "movielens_100k": Format(
        "MovieLens 100K: a rating of at least `positive_rating` is a click",
        "https://grouplens.org/datasets/movielens/100k",
        TextTable(
            ("u.data", "ml-100k/u.data"),
            _RATINGS,
            "\t",
            header=False,
            md5={"ml-100k.zip": "0e33842e24a9c977be4e0107933c0723"},
        ),
        sides=(
            TextTable(
                ("u.user", "ml-100k/u.user"),
                (_USER, _AGE, _GENDER, _OCCUPATION, _ZIP),
                "|",
                header=False,
            ),
            TextTable(
                ("u.item", "ml-100k/u.item"),
                (
                    _ITEM,
                    *_skip("title", "release date", "video release date", "URL"),
                    *(
                        Column(name, "flag", 100, feature="genres", length=19)
                        for name in _ML_GENRES
                    ),
                ),
                "|",
                header=False,
                encoding="latin1",
            ),
        ),
        in_order=False,
    ),
    "movielens_1m": Format(
        "MovieLens 1M: a rating of at least `positive_rating` is a click",
        "https://grouplens.org/datasets/movielens/1m",
        TextTable(
            ("ratings.dat", "ml-1m/ratings.dat"),
            _RATINGS,
            "::",
            header=False,
            md5={"ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906"},
        ),
        sides=(
            TextTable(
                ("users.dat", "ml-1m/users.dat"),
                (_USER, _GENDER, _AGE, _OCCUPATION, _ZIP),
                "::",
                header=False,
            ),
            TextTable(
                ("movies.dat", "ml-1m/movies.dat"),
                (
                    _ITEM,
                    Column("title", "skip"),
                    Column("genres", "strings", 100, length=19, separator="|"),
                ),
                "::",
                header=False,
                encoding="latin1",
            ),
        ),
        in_order=False,
    ),
    "movielens_atomic": Format(
        "MovieLens as RecBole's atomic files: a rating of at least `positive_rating` is a click",
        "https://recbole.io/dataset_list.html",
        TextTable(("*.inter",), _RATINGS, "\t"),
        sides=(
            TextTable(("*.user",), (_USER, _AGE, _GENDER, _OCCUPATION, _ZIP), "\t"),
            TextTable(
                ("*.item",),
                (
                    _ITEM,
                    Column("genre|class", "strings", 100, "genres", length=19, separator=" "),
                ),
                "\t",
            ),
        ),
        in_order=False,
    ),
}
"""Name -> format."""
