import pytest

import keras_exfm as kx
from keras_exfm.das import Job, JobError
from keras_exfm.streaming import partitions
from tests.das import made

pytestmark = pytest.mark.backend_free

LINEAR = {"entry_point": "tests.das.teachers:linear"}
TOML = """
name = "ads"
source = "data"
output = "s3://bucket/out/"
[[features]]
kind = "numeric"
name = "x"
[tasks.click]
window = "90m"
[tasks.conversion]
labels = "conversions"
window = "1d"
[verticals.feed]
tasks = ["click"]
verticals = ["feed", "reels"]
[verticals.shop]
tasks = ["conversion", "click"]
where = "price > 0"
[teacher]
snapshots = "teachers"
representation = "representation"
representation_size = 64
timeout = "1.5s"
"""


def test_a_toml_file_is_a_job(tmp_path):
    file = tmp_path / "ads.toml"
    file.write_text(TOML)
    job = Job.load(file)
    assert job.stream("shop") == "s3://bucket/out/shop"
    assert (job.predictions(), job.side) == ("s3://bucket/out/predictions", "s3://bucket/out/side")
    assert [t.name for t in job.tasks_of("shop")] == ["conversion", "click"]
    assert (job.lag("feed"), job.lag("shop")) == (2, 24)
    assert job.label_tasks["click"].window_ms == 90 * 60_000
    assert job.teacher.timeout == 1500
    assert (job.engine, job.join.memory_limit, job.follow.poll) == ("local", "2GB", 10_000)
    assert job.schema_of_features() == kx.Schema([kx.Numeric("x")])


def test_teachers_with_names_stand_beside_the_one_without(tmp_path):
    file = tmp_path / "ads.toml"
    file.write_text(TOML + '[teachers.pay]\nentry_point = "a.b:c"\nworkers = 3\n')
    job = Job.load(file)
    assert list(job.all_teachers) == ["", "pay"]
    assert job.all_teachers["pay"].workers == 3
    assert job.predictions("pay") == "s3://bucket/out/predictions_pay"
    file.write_text(TOML.replace("[teacher]", "[teachers.pay]"))
    assert list(Job.load(file).all_teachers) == ["pay"]
    assert list(made.job(tmp_path, teacher=None).all_teachers) == []


def test_the_schema_may_come_from_the_source(tmp_path):
    job = made.job(tmp_path, features=None)
    with pytest.raises(JobError, match=r"`features` is left out.*dataset\.json"):
        job.schema_of_features()
    partitions.DatasetInfo("toy", "", made.SCHEMA, 0, 1, 1, ("feed",)).write(tmp_path / "data")
    assert job.schema_of_features() == made.SCHEMA


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: no such key. There are: name, source, output, "),
        ({"name": "a b"}, "name: .*pattern"),
        ({"tasks": {"click": {"window": "soon"}}}, r"tasks\.click\.window: .*Received: 'soon'"),
        ({"tasks": {"click": {"window": 90}}}, r"tasks\.click\.window: .*'90m'.*Received: 90"),
        ({"tasks": {"click": {"window": "0m"}}}, r"tasks\.click: .*longer than 0"),
        ({"tasks": {"click": {"window": "1h"}}}, r"verticals\.shop\.tasks: .*\['click'\].*conver"),
        (
            {"tasks": {"click": {"window": "1h"}, "conversion": {"window": "1h"}}},
            r"label folder of its own.*\['labels', 'labels'\]",
        ),
        ({"verticals": {"side": {"tasks": ["click"]}}}, r"verticals\.side: should be an ident"),
        ({"verticals": {"a": {"tasks": ["click", "click"]}}}, r"verticals\.a\.tasks.*distinct"),
        ({"verticals": {"a": {"tasks": []}}}, r"verticals\.a\.tasks"),
        ({"teacher": {}}, "either `snapshots` or an `entry_point`"),
        ({"teacher": {"snapshots": "t", "representation": "r"}}, "come together"),
        ({"teacher": {"snapshots": "t", "arguments": {}}}, "an entry point's"),
        ({"teacher": {"snapshots": "t", "timeout": "0s"}}, "longer than 0"),
        ({"teachers": {"pay": {}}}, "either `snapshots` or an `entry_point`"),
        (
            {"teachers": {"pay": {**LINEAR, "colour": 3}}},
            r"pay\.colour: .*There are: snapshots, entry",
        ),
        ({"teachers": {"a b": LINEAR}}, r"teachers\.a b: should be an identifier"),
        ({"teachers": {"": LINEAR}}, r"teachers\.: should be an identifier"),
        ({"teachers": {"Pay": LINEAR, "pay": LINEAR}}, r"upper and lower.*\['Pay', 'pay'\]"),
        (
            {"teachers": {"x": LINEAR}, "verticals": {"predictions_x": {"tasks": ["click"]}}},
            r"verticals\.predictions_x: should be an identifier other than",
        ),
        ({"features": [{"kind": "numeric", "name": "label"}]}, "'label' is reserved"),
        ({"engine": "spark"}, "engine: .*'local' or 'ray'. Received: 'spark'"),
    ],
)
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(JobError, match=message):
        made.job(tmp_path, **changes)


def test_faults_name_the_file(tmp_path):
    file = tmp_path / "ads.toml"
    with pytest.raises(JobError, match=r"ads\.toml.*No such file"):
        Job.load(file)
    file.write_text("name = ")
    with pytest.raises(JobError, match=r"ads\.toml: Invalid value"):
        Job.load(file)
    file.write_text(TOML + "colour = 3\n")
    with pytest.raises(JobError, match=r"ads\.toml: teacher\.colour: no such key"):
        Job.load(file)
