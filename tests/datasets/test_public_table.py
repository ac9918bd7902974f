"""Formats of the public click tables on rows made by hand, and what is refused."""

import gzip
import hashlib
import re
import typing
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.datasets import FORMATS, PublicTable
from keras_exfm.pipeline.config import PublicData
from keras_exfm.streaming import StreamError, partitions

pytestmark = pytest.mark.backend_free

HOUR = 3_600_000
CRITEO = "\t".join(["1", "3", "", "-2", *["0"] * 10, "68fd1e64", "", *["0000000a"] * 24])
CRITEO_0 = "\t".join(["0", *["7"] * 13, *["ffffffff"] * 26])
X4 = ["Label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def avazu(click, hour, c20="-1"):
    ids = ",".join(["1fbe01fe"] * 9)
    return f"10000094181,{click},{hour},1005,0,{ids},1,2,15706,320,50,1722,0,35,{c20},79"


FILES = {
    "criteo_kaggle": {"train.txt": [CRITEO, CRITEO_0]},
    "criteo_terabyte": {"day_9": [CRITEO], "day_10": [CRITEO_0]},
    "criteo_x4": {"train.csv": [",".join(X4), CRITEO.replace("\t", ",")]},
    "avazu": {"train.csv": [AVAZU, avazu(0, "14102100"), avazu(1, "14102101", "100084")]},
    "avazu_x4": {"train.csv": [AVAZU, avazu(0, "14102101"), avazu(1, "14102100")]},
    "taobao_ad": {
        "raw_sample.csv": [
            "user,time_stamp,adgroup_id,pid,nonclk,clk",
            "9,1494140000,63133,430539_1007,0,1",
            "234,1494032110,1,430548_1007,1,0",
        ],
        # The published header ends with a blank.
        "user_profile.csv": [
            "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,"
            "shopping_level,occupation,new_user_class_level ",
            "234,0,5,2,5,,3,0,3",
        ],
        "ad_feature.csv": [
            "adgroup_id,cate_id,campaign_id,customer,brand,price",
            "63133,6406,83237,1,95471,170.0",
        ],
    },
    "taobao_ad_x1": {
        "train.csv": [
            "clk,btag_his,cate_his,brand_his,userid,cms_segid,cms_group_id,final_gender_code,"
            "age_level,pvalue_level,shopping_level,occupation,new_user_class_level,adgroup_id,"
            "cate_id,campaign_id,customer,brand,price,pid,btag",
            "0,1^1^2,4^5^4,7^8^9,3,0,5,2,5,0,3,0,3,11,4,12,13,7,0.5,1,1",
            "1,,,,4,0,5,1,5,2,3,0,3,12,5,12,13,8,0.25,2,1",
        ]
    },
    "kuaivideo_x1": {
        "train.csv": [
            "timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items",
            "0.1,5,100,1,0,0," + "^".join(str(i) for i in range(103)) + ",7",
            "0.2,6,100,0,0,0,,100^101",
        ]
    },
    "microvideo_x1": {
        "train.csv": [
            "user_id,item_id,cate_id,timestamp,clicked_items,clicked_categories,is_click",
            "1,2,3,17,4^5,3^3,1",
        ]
    },
    "frappe_x1": {
        "train.csv": [
            "label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city",
            "1,0,957,5039,5046,5053,5055,5058,5060,5069,5149",
            "0,956,5038,5045,5052,5054,5057,5059,5068,5148,5381",
        ]
    },
    "movielens_100k": {
        "u.data": ["196\t242\t3\t881250949", "186\t302\t4\t891717742"],
        "u.user": ["196|49|M|writer|55105", "186|39|F|executive|00000"],
        "u.item": [
            "242|Kolya (1996)|24-Jan-1997||http://x|" + "|".join(["0"] * 5 + ["1"] + ["0"] * 13),
            "302|L'été: (1997)|01-Jan-1997||http://x|" + "|".join(["1"] + ["0"] * 17 + ["1"]),
        ],
    },
    "movielens_1m": {
        "ratings.dat": ["1::1193::5::978300760", "2::661::3::978302109"],
        "users.dat": ["1::F::1::10::48067", "2::M::56::16::70072"],
        "movies.dat": ["1193::Star Wars: A::Drama|War", "661::L'été (1996)::Animation"],
    },
    "movielens_atomic": {
        "ml.inter": [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "196\t242\t3\t881250949",
        ],
        "ml.user": [
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
            "196\t49\tM\twriter\t55105",
        ],
        "ml.item": [
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            "242\tKolya\t1996\tComedy War",
        ],
    },
}


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        encoding = "latin1" if name in ("u.item", "movies.dat") else "utf8"
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return folder


def rows(name, folder, **options):
    """The examples as dicts, in the order of `hours`, with their hours."""
    hours = PublicTable(name, **options).hours(folder)
    return [{"hour": hour, **row} for hour, table in hours for row in table.to_pylist()]


def test_the_pipeline_knows_all_formats():
    assert set(FILES) == set(FORMATS) == set(kx.datasets.DATASETS) - {"synthetic", "globo"}
    assert set(typing.get_args(PublicData.model_fields["source"].annotation)) == set(FORMATS)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_is_read_encoded_and_written(name, tmp_path):
    folder = put(tmp_path / "in", FILES[name])
    table = PublicTable(name)
    features, label = table.arrays(folder)
    assert list(features) == list(table.schema.names)
    assert set(label.tolist()) <= {0.0, 1.0}
    (batch,) = table.batches(folder, 4)
    count = len(label)
    assert batch[2].tolist() == [1.0] * count + [0.0] * (4 - count)
    for feature in table.schema:
        assert batch[0][feature.name].shape == (4, *feature.shape)
        found = batch[0][feature.name][:count]
        # `arrays` is in the order of time, `batches` in the file's.
        found = found[::-1] if name in ("avazu_x4", "taobao_ad") else found
        np.testing.assert_array_equal(found, features[feature.name])
    info = kx.datasets.prepare(name, tmp_path / "out", folder, {"check": False})
    assert info == table.write(folder, tmp_path / "out", check=False)
    assert info.statistics["rows"] == count
    written = partitions.read_impressions(tmp_path / "out", info.first_hour, info.schema)
    assert written["vertical"][0].as_py() in info.verticals
    events = partitions.read_labels(tmp_path / "out", info.first_hour, info.last_hour)
    assert events.num_rows == label.sum() == info.statistics["clicks"]


def test_criteo(tmp_path):
    folder = put(tmp_path, FILES["criteo_kaggle"])
    first, second = rows("criteo_kaggle", folder)
    assert (first["label"], second["label"]) == (1.0, 0.0)
    assert first["I1"] == pytest.approx(np.log(4))
    assert (first["I2"], first["I3"]) == (0.0, 0.0)
    assert (first["C1"], first["C2"], first["C3"]) == (0x68FD1E64, None, 10)
    assert second["C26"] == 2**32 - 1
    # The Kaggle winners' bins, three up: 3 -> floor(log(3)^2) = 1, -2, none, 7 -> 3.
    first, second = rows("criteo_kaggle", folder, numbers="bins")
    assert (first["I1"], first["I2"], first["I3"], second["I1"]) == (4, -1, 1, 6)
    binned = PublicTable("criteo_kaggle", numbers="bins").schema
    assert binned["I1"] == kx.Categorical("I1", 465)
    assert (binned["C1"].hashed, len(binned)) == (True, 39)


def test_terabyte_days_are_in_order_and_share_no_hour(tmp_path):
    folder = put(tmp_path, {"day_10": [CRITEO_0] * 3, "day_9": [CRITEO] * 3})
    found = rows("criteo_terabyte", folder, rows_per_hour=2)
    assert [row["hour"] for row in found] == [0, 0, 1, 2, 2, 3]
    assert [row["label"] for row in found] == [1, 1, 1, 0, 0, 0]
    assert [row["timestamp"] for row in found[:3]] == [0, HOUR // 2, HOUR]
    assert [row["example_id"] for row in found] == list(range(6))
    assert len(rows("criteo_terabyte", folder, limit=4)) == 4


def test_other_files_beside_the_days_are_not_read(tmp_path):
    folder = put(tmp_path, {**FILES["criteo_terabyte"], "day_9.md5": ["d41d8cd9"]})
    assert len(PublicTable("criteo_terabyte").arrays(folder)[1]) == 2


def test_a_header_without_rows(tmp_path):
    folder = put(tmp_path, {"train.csv": [",".join(X4)]})
    table = PublicTable("criteo_x4")
    with pytest.raises(StreamError, match="no rows"):
        table.arrays(folder)
    with pytest.raises(StreamError, match="no rows"):
        table.write(folder, tmp_path / "out", check=False)
    assert list(table.batches(folder)) == []


def test_avazu_by_hour(tmp_path):
    before, after = rows("avazu", put(tmp_path, FILES["avazu"]))
    # 2014-10-21 00:00 UTC, a Tuesday.
    assert before["timestamp"] == 1_413_849_600_000 == before["hour"] * HOUR
    assert (before["hour_of_day"], before["weekday"], after["hour_of_day"]) == (0, 1, 1)
    assert (before["site_id"], before["C14"], before["C20"]) == (0x1FBE01FE, 15706, -1)
    features, _ = PublicTable("avazu").arrays(tmp_path)
    # The publisher's -1 is a missing value here too.
    assert features["C20"].tolist() == [-1, 100084]


def test_taobao_is_sorted_by_time_and_joined(tmp_path):
    early, late = rows("taobao_ad", put(tmp_path, FILES["taobao_ad"]))
    assert (early["user"], early["timestamp"]) == ("234", 1_494_032_110_000)
    assert (early["cms_group_id"], early["pvalue_level"], early["brand"]) == ("5", None, None)
    assert (early["price"], early["label"], early["vertical"]) == (0.0, 0.0, "430548_1007")
    assert (late["cms_group_id"], late["cate_id"]) == (None, "6406")
    assert late["price"] == pytest.approx(np.log(171))
    assert early["group"] != late["group"]


def test_histories(tmp_path):
    taobao, none = rows("taobao_ad_x1", put(tmp_path / "t", FILES["taobao_ad_x1"]))
    assert (taobao["cate_his"], none["cate_his"]) == (["4", "5", "4"], [])
    features, _ = PublicTable("taobao_ad_x1").arrays(tmp_path / "t")
    assert features["cate_his"].shape == (2, 50)
    # One table, one id: history and target are the same.
    assert features["cate_his"][0, 0] == features["cate_id"][0]
    assert PublicTable("taobao_ad_x1", rows={"cate_id": 9}).schema["cate_his"].vocabulary_size == 9
    kuai, second = rows("kuaivideo_x1", put(tmp_path / "k", FILES["kuaivideo_x1"]))
    # The newest hundred.
    assert kuai["pos_items"] == [str(i) for i in range(3, 103)]
    assert second["neg_items"] == ["100", "101"]
    assert "is_like" not in kuai


def test_seconds_may_have_fractions(tmp_path):
    ratings = {"u.data": ["1\t2\t3\t881250949.123", "1\t2\t3\t881250949.1239"]}
    first, second = rows("movielens_100k", put(tmp_path, FILES["movielens_100k"] | ratings))
    assert (first["timestamp"], second["timestamp"]) == (881250949123, 881250949124)


def test_frappe_ids_are_not_hashed(tmp_path):
    table = PublicTable("frappe_x1", rows=7)
    features, label = table.arrays(put(tmp_path, FILES["frappe_x1"]))
    assert {name: column.tolist() for name, column in features.items()} == {
        feature.name: [0, feature.vocabulary_size - 1] for feature in table.schema
    }
    assert sum(feature.vocabulary_size for feature in table.schema) == 5382
    assert label.tolist() == [1.0, 0.0]


def test_movielens(tmp_path):
    small = rows("movielens_100k", put(tmp_path / "a", FILES["movielens_100k"]))
    assert [row["genres"] for row in small] == [["Comedy"], ["unknown", "Western"]]
    assert [row["label"] for row in small] == [0.0, 1.0]
    assert (small[0]["occupation"], small[1]["zip_code"]) == ("writer", "00000")
    large = rows("movielens_1m", put(tmp_path / "b", FILES["movielens_1m"]), positive_rating=3)
    assert [row["genres"] for row in large] == [["Drama", "War"], ["Animation"]]
    assert [row["label"] for row in large] == [1.0, 1.0]
    assert (large[0]["gender"], large[0]["age"]) == ("F", "1")
    (atomic,) = rows("movielens_atomic", put(tmp_path / "c", FILES["movielens_atomic"]))
    assert {k: v for k, v in atomic.items() if k != "genres"} == {
        k: v for k, v in small[0].items() if k != "genres"
    }
    assert atomic["genres"] == ["Comedy", "War"]


def test_archives_and_gzip_hold_the_same(tmp_path):
    plain = put(tmp_path / "plain", FILES["movielens_1m"])
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in plain.iterdir():
            target.write(file, f"ml-1m/{file.name}")
    assert rows("movielens_1m", archive) == rows("movielens_1m", plain)
    (checksum,) = PublicTable("movielens_1m").checksums(archive)
    assert checksum.published == "c4d9eecfca2ab87c1945afe126590906"
    assert checksum.md5 == hashlib.md5(archive.read_bytes()).hexdigest()
    assert not checksum.matches

    criteo = put(tmp_path / "criteo", FILES["criteo_kaggle"])
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "train.txt.gz").write_bytes(
        gzip.compress((criteo / "train.txt").read_bytes())
    )
    assert rows("criteo_kaggle", tmp_path / "gz") == rows("criteo_kaggle", criteo)
    packed, unpacked = (
        PublicTable("criteo_kaggle").checksums(folder)[0] for folder in (tmp_path / "gz", criteo)
    )
    assert (packed.md5, packed.sha256) == (unpacked.md5, unpacked.sha256)
    assert packed.sha256 == hashlib.sha256((criteo / "train.txt").read_bytes()).hexdigest()
    assert packed.published is None
    assert packed.matches


def test_a_file_of_a_published_name_is_checked(tmp_path):
    folder = put(tmp_path / "in", FILES["frappe_x1"])
    with pytest.raises(StreamError, match="published MD5 ba7306e6c4fc19dd2cd84f2f0596d158"):
        kx.datasets.prepare("frappe_x1", tmp_path / "out", folder)
    info = kx.datasets.prepare("movielens_1m", tmp_path / "m", put(tmp_path, FILES["movielens_1m"]))
    assert info.source["file"] == "ratings.dat, users.dat, movies.dat"
    assert info.source["sha256"].count(",") == 2


def test_a_stopped_preparation_goes_on(tmp_path):
    class Stopped(Exception):
        pass

    class Watcher:
        def begin(self, label, total):
            pass

        def step(self, done, note=""):
            if note.startswith("2 hours"):
                raise Stopped

    def content(out):
        return {
            file.relative_to(out): pq.read_table(file, partitioning=None).to_pylist()
            for file in sorted(out.rglob("*.parquet"))
        }

    folder = put(tmp_path / "in", {"train.txt": [CRITEO, CRITEO_0] * 4})
    table = PublicTable("criteo_kaggle", rows_per_hour=2)
    with pytest.raises(Stopped):
        table.write(folder, tmp_path / "a", progress=Watcher())
    assert partitions.hours(tmp_path / "a") == [0, 1]
    whole = table.write(folder, tmp_path / "b")
    assert table.write(folder, tmp_path / "a") == whole
    assert content(tmp_path / "a") == content(tmp_path / "b")
    # Whether the file's sum is computed makes no other data set; another sum does.
    assert table.write(folder, tmp_path / "a", check=False) == whole
    altered = put(tmp_path / "altered", {"train.txt": [CRITEO] * 8})
    with pytest.raises(StreamError, match="another data set: source.sha256"):
        table.write(altered, tmp_path / "a")
    other = PublicTable("criteo_kaggle", rows_per_hour=4)
    with pytest.raises(StreamError, match="another data set: parameters.rows_per_hour: 4"):
        other.write(folder, tmp_path / "a")


def damaged(name, file, line, old, new):
    files = {key: list(lines) for key, lines in FILES[name].items()}
    files[file][line - 1] = files[file][line - 1].replace(old, new, 1)
    return files


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 2, "7\t", ""),
            r"train.txt: line 2: expected 40 columns separated by '\\t'. Received 39: '0\\t7",
        ),
        (
            "criteo_kaggle",
            {"train.txt": [CRITEO, "", CRITEO]},
            "line 2: expected 40 columns separated by '\\\\t'. Received 1: ''",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 2, "0\t", "2\t"),
            "line 2: column 'label': expected 0 or 1. Received '2'",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 1, "1\t", "\t"),
            "line 1: column 'label': expected 0 or 1. Received ''",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 1, "\t3\t", "\tx\t"),
            "line 1: column 'I1': expected a number, or nothing. Received 'x'",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 1, "\t3\t", "\tnan\t"),
            "line 1: column 'I1': expected a number, or nothing. Received 'nan'",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 1, "68fd1e64", "68fd1e6"),
            "line 1: column 'C1': expected eight hexadecimal digits, or nothing. Received '68fd1e6",
        ),
        (
            "criteo_kaggle",
            damaged("criteo_kaggle", "train.txt", 1, "68fd1e64", "68fd1eg4"),
            "line 1: column 'C1': expected eight hexadecimal digits",
        ),
        (
            "avazu",
            damaged("avazu", "train.csv", 1, "app_id", "appid"),
            r"line 1: expected a header with the columns .*Received: .*\(no 'app_id'\)",
        ),
        (
            "avazu",
            damaged("avazu", "train.csv", 3, "14102101", "14102125"),
            "line 3: column 'hour': expected an hour as YYMMDDHH. Received '14102125'",
        ),
        (
            "avazu",
            damaged("avazu", "train.csv", 3, "14102101", "14102023"),
            "expected rows in order of time. Received a row of hour .* after hour",
        ),
        (
            "frappe_x1",
            damaged("frappe_x1", "train.csv", 3, "5038", "5039"),
            r"line 3: column 'item': expected an integer in 957..5038, or nothing. Received '5039'",
        ),
        (
            "taobao_ad",
            damaged("taobao_ad", "ad_feature.csv", 2, "63133", ""),
            "ad_feature.csv: line 2: column 'adgroup_id': expected a value. Received ''",
        ),
        (
            "taobao_ad",
            damaged("taobao_ad", "raw_sample.csv", 3, "1494032110", "now"),
            "raw_sample.csv: line 3: column 'time_stamp': expected seconds since 1970. Received",
        ),
        (
            "movielens_1m",
            damaged("movielens_1m", "ratings.dat", 1, "::5::", "::"),
            "ratings.dat: line 1: expected 4 columns separated by '::'. Received 3",
        ),
        ("movielens_1m", FILES["movielens_1m"] | {"users.dat": []}, "users.dat: .*Empty CSV"),
        (
            "taobao_ad",
            FILES["taobao_ad"] | {"ad_feature.csv": FILES["taobao_ad"]["ad_feature.csv"][:1]},
            "ad_feature.csv: no rows",
        ),
        ("movielens_1m", {"ratings.dat": ["1::2::3::4"]}, "no file users.dat"),
        ("criteo_kaggle", {"other.txt": ["1"]}, "no file train.txt or .* get it from https://"),
        (
            "criteo_x4",
            dict.fromkeys(("train.csv", "train.csv.gz"), FILES["criteo_x4"]["train.csv"]),
            "each file once, plain or packed. Received both of .'train.csv'.",
        ),
        ("criteo_kaggle", {"train.txt.gz": ["1"]}, "train.txt.gz: cannot be read: Not a gzipped"),
    ],
)
def test_what_is_wrong_is_named(name, files, message, tmp_path):
    folder = put(tmp_path, files)
    with pytest.raises(StreamError, match=message) as failure:
        rows(name, folder)
    assert str(tmp_path) in str(failure.value)


def test_lines_are_counted_over_blocks(tmp_path, monkeypatch):
    from keras_exfm.datasets import _lines

    monkeypatch.setattr(_lines, "_BLOCK", 4096)
    folder = put(tmp_path, {"train.txt": [CRITEO] * 500 + ["1\t2"]})
    message = "line 501: expected 40 columns"
    with pytest.raises(StreamError, match=message):
        PublicTable("criteo_kaggle").arrays(folder)
    batches = PublicTable("criteo_kaggle", limit=450).batches(folder, 100)
    assert [label.sum() for _, label, _ in batches] == [100, 100, 100, 100, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "criteo"}, "There are: .*criteo_kaggle"),
        ({"numbers": "raw"}, "numbers='raw'"),
        ({"rows": 0}, "rows=0"),
        ({"name": "frappe_x1", "rows": -1}, "rows=-1"),
        ({"rows": {"C1": 0}}, r"rows\['C1'\]=0"),
        ({"rows": {"C99": 3}}, r"\['C99'\]. criteo_kaggle has: \['C1'"),
        ({"rows_per_hour": 0}, "rows_per_hour=0"),
        ({"limit": True}, "limit=True"),
        ({"positive_rating": float("nan")}, "positive_rating=nan"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PublicTable(**{"name": "criteo_kaggle", **options})


def test_registry_refuses_unknown_options(tmp_path):
    with pytest.raises(ValueError, match=r"no options \['days'\]. It has: .*'rows'.*'check'"):
        kx.datasets.prepare("avazu", tmp_path, tmp_path, {"days": 3})
    with pytest.raises(ValueError, match=re.escape("--data DIR")):
        kx.datasets.prepare("avazu", tmp_path)


def test_tf_data(tmp_path):
    folder = put(tmp_path, {"train.txt": [CRITEO, CRITEO_0] * 8})
    table = PublicTable("criteo_kaggle")
    (kept,) = [label.numpy() for _, label, _ in table.dataset(folder, 16)]
    assert kept.tolist() == [1.0, 0.0] * 8
    shuffled = list(table.dataset(folder, 6, shuffle_batches=3, seed=1))
    assert [features["C1"].shape for features, _, _ in shuffled] == [(6,)] * 3
    assert sum(float(weight.numpy().sum()) for _, _, weight in shuffled) == 16
    with pytest.raises(StreamError, match="no such file"):
        table.dataset(tmp_path / "nowhere")


def test_hours_go_into_a_labelled_stream(tmp_path):
    folder = put(tmp_path / "in", FILES["movielens_100k"])
    table = PublicTable("movielens_100k")
    for hour, examples in table.hours(folder):
        kx.streaming.write_hour(tmp_path / "labelled", hour, examples, table.schema)
    first = kx.streaming.hours(tmp_path / "labelled")[0]
    read = kx.streaming.read_hour(tmp_path / "labelled", first, table.schema)
    features, label = table.arrays(folder)
    assert read["label"].tolist() == [label[0]]
    np.testing.assert_array_equal(read["genres"], features["genres"][:1])


def test_a_sort_that_fails_says_why(tmp_path):
    files = FILES["movielens_100k"] | {"u.data": ["1\t2\t3\t4", "1\t2"]}
    with pytest.raises(StreamError, match="line 2: expected 4 columns"):
        rows("movielens_100k", put(tmp_path, files))
