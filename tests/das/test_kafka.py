"""Kafka in and out, against the mock cluster that librdkafka brings along."""

import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import keras_exfm as kx
from keras_exfm.das import KafkaSink, KafkaSource, kafka_source
from keras_exfm.streaming import MS_PER_HOUR, StreamError, partitions

pytestmark = pytest.mark.backend_free

kafka = pytest.importorskip("confluent_kafka")

SCHEMA = kx.Schema(
    [
        kx.Categorical("ad", 10),
        kx.MultiHot("seen", 10, length=3, hashed=True),
        kx.Numeric("x"),
    ]
)
HOURS = (5, 6, 7)


def quiet(config):
    import logging

    logger = logging.getLogger("kafka-test")
    logger.setLevel(logging.CRITICAL + 1)
    return {**config, "logger": logger}


@pytest.fixture(scope="module")
def brokers():
    # The mock brokers live as long as the client that made them.
    global host
    host = kafka.Producer(quiet({"bootstrap.servers": "mock", "test.mock.num.brokers": 2}))
    found = host.list_topics(timeout=10).brokers.values()
    return ",".join(f"{broker.host}:{broker.port}" for broker in found)


@pytest.fixture
def topic(request):
    return request.node.name.replace("[", "-").replace("]", "")


def send(brokers, topic, rows, partition=None):
    producer = kafka.Producer(quiet({"bootstrap.servers": brokers}))
    producer.list_topics(topic, timeout=10)  # makes it
    where = {} if partition is None else {"partition": partition}
    for row in rows:
        value = row if isinstance(row, bytes) else json.dumps(row).encode()
        key = str(row["example_id"]).encode() if isinstance(row, dict) else None
        producer.produce(topic, key=key, value=value, **where)
    assert producer.flush(30) == 0


def impression(id, time, **changes):
    return {
        "example_id": id,
        "timestamp": time,
        "vertical": "feed",
        "ad": id % 10,
        "seen": [id * 2**33, 5][: id % 3],
        "x": id / 7,
        "more": "ignored",
        **changes,
    }


def world(seed, n=300):
    """Impressions of three hours and label events of four, each topic in order of time."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(HOURS[0] * MS_PER_HOUR, (HOURS[-1] + 1) * MS_PER_HOUR, n))
    shown = [impression(i, int(t)) for i, t in enumerate(times)]
    clicks = [
        {"example_id": i, "timestamp": int(t + 1000 * rng.integers(1, 3000)), "label": 1.0}
        for i, t in enumerate(times)
        if rng.random() < 0.3
    ]
    return shown, sorted(clicks, key=lambda row: row["timestamp"])


def source(path, brokers, topic, **options):
    # Long patience for rows out of order: the mock's partitions are read one after the other.
    options = {"lateness_s": 1e6, "idle_s": 1e6, **options}
    config = quiet({"bootstrap.servers": brokers, **options.pop("config", {})})
    return KafkaSource(path, SCHEMA, f"{topic}-i", f"{topic}-l", config, **options)


def stored(path):
    """All rows of the partitions, hour by hour."""
    shown = {h: partitions.read_impressions(path, h).to_pylist() for h in partitions.hours(path)}
    labels = partitions.hours(path, partitions.LABELS)
    return shown, {h: partitions.read_labels(path, h, h).to_pylist() for h in labels}


def expected(shown, clicks):
    """What the partitions should hold, restated."""
    names = ("example_id", "timestamp", "vertical", *SCHEMA.names)
    first = {}
    for row in shown:
        first.setdefault(row["example_id"], row)
    by_hour, events = {}, {}
    for row in sorted(first.values(), key=lambda r: (r["timestamp"], r["example_id"])):
        kept = {name: row[name] for name in names}
        kept["x"] = float(np.float32(kept["x"]))
        by_hour.setdefault(row["timestamp"] // MS_PER_HOUR, []).append(kept)
    for row in sorted(clicks, key=lambda r: (r["timestamp"], r["example_id"])):
        events.setdefault(row["timestamp"] // MS_PER_HOUR, []).append(row)
    return by_hour, events


def check(path, shown, clicks):
    impressions, labels = stored(path)
    wanted, events = expected(shown, clicks)
    assert impressions == wanted
    assert {h: rows for h, rows in labels.items() if rows} == events


def test_topics_become_partitions(tmp_path, brokers, topic):
    shown, clicks = world(1)
    send(brokers, f"{topic}-i", [*shown, shown[3], shown[200]])  # two are sent twice
    send(brokers, f"{topic}-l", clicks)
    with source(tmp_path, brokers, topic) as ours:
        progress = ours.finish(timeout=0.2)
        assert progress.messages == len(shown) + 2 + len(clicks)
        assert ours.counts == {
            "rows": len(shown) + 2 + len(clicks),
            "late": 0,
            "repeated": 2,
            "rejected": 0,
        }
        assert progress.closed["impressions"] == list(HOURS)
    check(tmp_path, shown, clicks)
    # The service reads them as they are.
    das = kx.das.DataAugmentationService(tmp_path, tmp_path / "out", SCHEMA, label_window_hours=1)
    das.process_pending()
    rows = [kx.streaming.read_hour(tmp_path / "out", hour)["label"] for hour in HOURS]
    assert sum(len(r) for r in rows) == len(shown)
    assert sum(r.sum() for r in rows) == len(clicks)
    assert not list((tmp_path / ".kafka").rglob("*.parquet"))


def test_hours_close_as_time_goes_on(tmp_path, brokers, topic):
    start = 5 * MS_PER_HOUR
    for end in "il":
        send(brokers, f"{topic}-{end}", [])
    with source(tmp_path, brokers, topic, lateness_s=60, idle_s=0.0) as ours:

        def take(shown, clicks):
            send(brokers, f"{topic}-i", shown, 0)
            send(brokers, f"{topic}-l", clicks, 0)
            closed, deadline, taken = {}, time.monotonic() + 30, 0
            while taken < len(shown) + len(clicks) and time.monotonic() < deadline:
                progress = ours.poll(0.2)
                taken += progress.messages
                for folder, hours in progress.closed.items():
                    closed.setdefault(folder, []).extend(hours)
            return closed

        click = {"example_id": 1, "timestamp": start + 9, "label": 1.0}
        assert take([impression(1, start), impression(2, start + 5)], [click]) == {}
        # A minute after its end, not earlier; labels on their own clock.
        assert take([impression(3, start + MS_PER_HOUR + 59_999)], []) == {}
        assert take([impression(4, start + MS_PER_HOUR + 60_000)], []) == {"impressions": [5]}
        # An hour without events is told by an empty partition.
        assert take([], [{**click, "timestamp": start + 2 * MS_PER_HOUR + 60_000}]) == {
            "labels": [5, 6]
        }
        assert partitions.read_labels(tmp_path, 6, 6).num_rows == 0
        # Hour 5 has been read by others: it does not change any more.
        before = stored(tmp_path)
        take([impression(5, start + 7)], [])
        assert ours.counts["late"] == 1
        assert stored(tmp_path) == before
    (late,) = (tmp_path / "late" / "impressions").glob("*.parquet")
    assert pq.read_table(late).column("example_id").to_pylist() == [5]


class Killed(BaseException):
    pass


def test_an_hour_that_was_written_does_not_change_after_a_kill(
    tmp_path, brokers, topic, monkeypatch
):
    start = 5 * MS_PER_HOUR
    later = impression(3, start + 2 * MS_PER_HOUR)
    send(brokers, f"{topic}-i", [impression(1, start), impression(2, start + 5), later], 0)
    send(brokers, f"{topic}-l", [])
    write = partitions.write_impressions

    def then_killed(*args):
        write(*args)
        raise Killed

    options = {"lateness_s": 0, "idle_s": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "write_impressions", then_killed)
        ours = source(tmp_path, brokers, topic, **options)
        with pytest.raises(Killed):
            ours.run(stop=lambda: False, timeout=0.2)
    before = partitions.read_impressions(tmp_path, 5)
    assert before.column("example_id").to_pylist() == [1, 2]
    send(brokers, f"{topic}-i", [impression(4, start + 6)], 0)
    with source(tmp_path, brokers, topic, **options) as ours:
        ours.finish(timeout=0.2)
        assert ours.counts["late"] == 1
    assert partitions.read_impressions(tmp_path, 5) == before
    assert partitions.hours(tmp_path) == [5, 7]


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_write_and_nothing_is_lost_or_doubled(
    tmp_path, brokers, topic, seed, monkeypatch
):
    """Ends the source at each of its writes in turn; the next one goes on from what is on disk."""
    shown, clicks = world(seed, n=120)
    bad = [b"{", b""]
    send(brokers, f"{topic}-i", [*shown[:60], *bad, *shown[60:]])
    send(brokers, f"{topic}-l", clicks)
    replace, left = kafka_source.os.replace, [0]
    rng = np.random.default_rng(seed)

    def flaky(one, other):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        replace(one, other)

    monkeypatch.setattr(kafka_source.os, "replace", flaky)
    deaths = 0
    for _ in range(300):
        left[0] = int(rng.integers(1, 16))
        ours = source(tmp_path, brokers, topic, batch=20)
        try:
            ours.finish(timeout=0.2)
            break
        except Killed:
            deaths += 1
        finally:
            ours.close()
    else:
        pytest.fail("never came to its end")
    assert deaths >= 5
    check(tmp_path, shown, clicks)
    rejected = [pq.read_table(f) for f in (tmp_path / "rejected").rglob("segment-*.parquet")]
    assert sorted(v for t in rejected for v in t.column("value").to_pylist()) == sorted(bad)
    with source(tmp_path, brokers, topic) as ours:
        assert ours.finish(timeout=0.2).messages == 0
        assert ours.counts["rows"] == len(shown) + len(clicks)
        assert ours.counts["rejected"] == 2


def test_messages_that_are_no_rows(tmp_path, brokers, topic):
    start = 5 * MS_PER_HOUR
    far = int(time.time() * 1000) + 10 * MS_PER_HOUR
    good = [impression(i, start + i) for i in range(20)]
    lacking = impression(50, start)
    del lacking["vertical"]
    bad = {
        b"not json": "JSON",
        b"{}": "example_id|Column",
        b"": "empty",
        b'{"example_id": 1}{"example_id": 2}': "rows|JSON|Column",
        json.dumps(lacking).encode(): "vertical",
        json.dumps(impression(51, start, ad=10)).encode(): "'ad'.*0..9.*10",
        json.dumps(impression(52, start, ad=1.5)).encode(): "ad|JSON",
        json.dumps(impression(53, start, seen=[1, 2, 3, 4])).encode(): "'seen'.*at most 3",
        json.dumps(impression(54, start, x=None)).encode(): "'x'.*finite",
        json.dumps(impression(55, -1)).encode(): "timestamp",
        json.dumps(impression(56, far)).encode(): "after now",
    }
    spread = json.dumps(impression(20, start), indent=1).encode()  # over several lines: a row
    send(brokers, f"{topic}-i", [*good[:7], *bad, spread, *good[7:]], 0)
    wrong = {"example_id": 3, "timestamp": start, "label": 0.5}
    right = {"example_id": 3, "timestamp": start, "label": 1}
    send(brokers, f"{topic}-l", [wrong, right])
    with source(tmp_path, brokers, topic) as ours:
        ours.finish(timeout=0.2)
        assert ours.counts["rejected"] == len(bad) + 1
    rows = partitions.read_impressions(tmp_path, 5)
    assert sorted(rows.column("example_id").to_pylist()) == list(range(21))
    assert partitions.read_labels(tmp_path, 5, 5).num_rows == 1
    told = {}
    for file in (tmp_path / "rejected").rglob("*.parquet"):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            assert row["partition"] == 0 or row["topic"].endswith("-l")
            told[row["value"]] = row["reason"]
    import re

    for value, pattern in bad.items():
        assert re.search(pattern, told[value]), (value, told[value])
    assert "0 or 1" in told[json.dumps(wrong).encode()]


def test_own_decoding_and_string_ids(tmp_path, brokers, topic):
    schema = kx.Schema([kx.Categorical("user", 100, hashed=True), kx.Numeric("x", 2)])
    send(brokers, f"{topic}-i", [b"1|18000000|u-1|0.5", b"2|18000001|u-2|1.5", b"oops"])
    send(brokers, f"{topic}-l", [])

    def decode(message):
        id, stamp, user, x = message.decode().split("|")
        return {
            "example_id": int(id),
            "timestamp": int(stamp),
            "vertical": "feed",
            "group": 3,
            "user": user,
            "x": [float(x), 1.0],
        }

    ours = KafkaSource(
        tmp_path,
        schema,
        f"{topic}-i",
        f"{topic}-l",
        quiet({"bootstrap.servers": brokers}),
        columns=["group"],
        string_ids=["user"],
        decode=decode,
    )
    with ours:
        ours.finish(timeout=0.2)
        assert ours.counts["rejected"] == 1
    rows = partitions.read_impressions(tmp_path, 5, schema).to_pylist()
    assert [(r["user"], r["x"], r["group"]) for r in rows] == [
        ("u-1", [0.5, 1.0], 3),
        ("u-2", [1.5, 1.0], 3),
    ]


def test_two_sources_at_once(tmp_path, brokers, topic):
    for end in "il":
        send(brokers, f"{topic}-{end}", [])
    with (
        source(tmp_path, brokers, topic),
        pytest.raises(StreamError, match=r"another process consumes"),
    ):
        source(tmp_path, brokers, topic).open()
    source(tmp_path, brokers, topic).open()


def test_places_that_the_broker_no_longer_has(tmp_path, brokers, topic):
    shown, clicks = world(2, n=20)
    send(brokers, f"{topic}-i", shown)
    send(brokers, f"{topic}-l", clicks)
    with source(tmp_path, brokers, topic) as ours:
        ours.finish(timeout=0.2)
    file = tmp_path / ".kafka" / "state.json"
    state = json.loads(file.read_text())
    state["topics"][f"{topic}-i"]["next"]["0"] = 10_000
    file.write_text(json.dumps(state))
    ours = source(tmp_path, brokers, topic)
    with ours, pytest.raises(StreamError, match=r"partition 0.*no longer has"):
        ours.finish(timeout=0.2)
    file.write_text("{")
    with pytest.raises(StreamError, match=r"state.json: not valid JSON"):
        source(tmp_path, brokers, topic).open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "bootstrap.servers"),
        ({"lateness_s": -1}, "lateness_s=-1"),
        ({"labels": "i"}, "folder of its own"),
        ({"labels": {"a": "labels", "b": "labels"}}, "folder of its own"),
        ({"columns": ["nope"]}, "nope"),
        ({"string_ids": ["ad"]}, "'ad': only hashed"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    options = {"config": {"bootstrap.servers": "x"}, **change}
    with pytest.raises(ValueError, match=message):
        KafkaSource(tmp_path, SCHEMA, "i", **options)


# The sink.


def labelled(path, hours=(5, 6), n=25):
    for hour in hours:
        ids = np.arange(n) + 100 * hour
        rows = {
            "example_id": ids,
            "timestamp": hour * MS_PER_HOUR + np.arange(n),
            "vertical": ["feed"] * n,
            "ad": (ids % 10).astype(np.int32),
            "seen": [[1, 2]] * n,
            "x": np.linspace(0, 1, n),
            "label": (ids % 2).astype(np.float32),
            "teacher_logit": np.where(ids % 5, ids / 10, np.nan).astype(np.float32),
        }
        kx.streaming.write_hour(path, hour, rows, SCHEMA)


def received(brokers, topic):
    consumer = kafka.Consumer(
        quiet({"bootstrap.servers": brokers, "group.id": "t", "enable.partition.eof": True})
    )
    numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([kafka.TopicPartition(topic, n, kafka.OFFSET_BEGINNING) for n in numbers])
    rows, ends = [], 0
    while ends < len(numbers):
        for message in consumer.consume(100, timeout=0.1):
            if message.error() is None:
                rows.append((message.key(), json.loads(message.value())))
            else:
                ends += 1
    consumer.close()
    return rows


def test_rows_go_out_once(tmp_path, brokers, topic):
    labelled(tmp_path)
    config = quiet({"bootstrap.servers": brokers})
    sink = KafkaSink(tmp_path, topic, config, rows=10)
    assert sink.publish() == {5: 25, 6: 25}
    assert sink.publish() == {}
    labelled(tmp_path, hours=(7,))
    # Another process goes on behind the last note.
    assert KafkaSink(tmp_path, topic, config).publish() == {7: 25}
    rows = received(brokers, topic)
    assert sorted(int(key) for key, _ in rows) == sorted(
        i + 100 * h for h in (5, 6, 7) for i in range(25)
    )
    by_id = {row["example_id"]: row for _, row in rows}
    assert by_id[503]["seen"] == [1, 2]
    assert by_id[503]["label"] == 1.0
    assert by_id[503]["teacher_logit"] == pytest.approx(50.3, rel=1e-6)
    assert by_id[505]["teacher_logit"] is None


def test_a_sink_that_is_stopped_goes_on_in_the_middle_of_an_hour(tmp_path, brokers, topic):
    labelled(tmp_path)
    config = quiet({"bootstrap.servers": brokers})
    told = []

    def encode(row):
        told.append(row["example_id"])
        if len(told) == 38:
            raise KeyboardInterrupt
        return json.dumps(row).encode()

    columns = ["label", "x"]
    with pytest.raises(KeyboardInterrupt):
        KafkaSink(tmp_path, topic, config, rows=10, columns=columns, encode=encode).publish()
    # 25 rows of hour 5 and 10 of hour 6 were committed.
    sink = KafkaSink(tmp_path, topic, config, rows=10, columns=columns)
    with pytest.raises(StreamError, match=r"hour 6 was sent up to row 10 of 25"):
        sink.publish([7])
    assert sink.publish() == {6: 15}
    rows = received(brokers, topic)
    assert sorted(row["example_id"] for _, row in rows) == [
        i + 100 * h for h in (5, 6) for i in range(25)
    ]
    assert set(rows[0][1]) == {"example_id", "label", "x"}


def test_bad_sinks(tmp_path, brokers, topic):
    with pytest.raises(StreamError, match="bootstrap.servers"):
        KafkaSink(tmp_path, topic, {})
    with pytest.raises(StreamError, match="rows"):
        KafkaSink(tmp_path, topic, {"bootstrap.servers": "x"}, rows=0)
    labelled(tmp_path)
    sink = KafkaSink(tmp_path, topic, quiet({"bootstrap.servers": brokers}))
    with pytest.raises(StreamError, match="hour 9 is not committed"):
        sink.publish([9])
