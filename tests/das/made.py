"""Streams for the service's tests, made without the code under test, and plain restatements."""

import errno

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import keras_exfm as kx
from keras_exfm.das import Job
from keras_exfm.streaming import MS_PER_HOUR, partitions

SCHEMA = kx.Schema([kx.Categorical("ad", 10), kx.MultiHot("seen", 10, length=2), kx.Numeric("x")])
FEATURES = [
    {"kind": "categorical", "name": "ad", "vocabulary_size": 10},
    {"kind": "multi_hot", "name": "seen", "vocabulary_size": 10, "length": 2},
    {"kind": "numeric", "name": "x"},
]
WINDOWS = {"click": MS_PER_HOUR // 2, "conversion": 2 * MS_PER_HOUR + MS_PER_HOUR // 2}
FOLDERS = {"click": "labels", "conversion": "conversions"}
VERTICALS = {
    "feed": {"tasks": ["click"], "verticals": ["feed"]},
    "shop": {"tasks": ["conversion", "click"], "where": "x > 0"},
    "all": {"tasks": ["click"]},
}


def impressions(hour, rows, rng):
    seen = [rng.integers(0, 10, n).tolist() for n in rng.integers(0, 3, rows)]
    return pa.table(
        {
            "example_id": pa.array(hour * 100_000 + rng.permutation(rows)),
            "timestamp": pa.array(hour * MS_PER_HOUR + rng.integers(0, MS_PER_HOUR, rows)),
            "vertical": rng.choice(["feed", "search"], rows),
            "group": pa.array(rng.integers(0, 9, rows)),
            "ad": pa.array(rng.integers(-1, 10, rows).astype(np.int32)),
            "seen": pa.array(seen, pa.list_(pa.int32())),
            "x": pa.array(rng.normal(size=rows).astype(np.float32)),
        }
    )


def source(root, hours, rows=40, seed=0, storage_options=None):
    """Impressions, and events of all kinds for two tasks; returns them as lists of dicts."""
    rng = np.random.default_rng(seed)
    shown, events = [], {name: [] for name in WINDOWS}
    for hour in hours:
        table = impressions(hour, rows, rng)
        partitions.write_impressions(root, hour, table, storage_options)
        shown += table.to_pylist()
    last = max(hours)
    for name, window in WINDOWS.items():
        for row in shown:
            for _ in range(rng.integers(0, 3)):
                delay = int(rng.integers(-MS_PER_HOUR // 4, window + 2 * MS_PER_HOUR))
                events[name].append(
                    (row["example_id"], max(0, row["timestamp"] + delay), int(rng.integers(0, 2)))
                )
        events[name] += [
            (int(rng.integers(0, 50)), int(t), 1)
            for t in rng.integers(min(hours) * MS_PER_HOUR, (last + 1) * MS_PER_HOUR, 10)
        ]
        write_events(root, FOLDERS[name], events[name], storage_options)
    return shown, events


def in_row_groups(root, rows):
    """Writes the impressions anew, in row groups of a few rows."""
    for file in (root / "impressions").rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read(), file, row_group_size=rows)


def write_events(root, folder, events, storage_options=None):
    by_hour = {}
    for event in events:
        by_hour.setdefault(event[1] // MS_PER_HOUR, []).append(event)
    for hour, rows in by_hour.items():
        ids, times, labels = zip(*rows)
        table = pa.table(
            {
                "example_id": pa.array(ids, pa.int64()),
                "timestamp": pa.array(times, pa.int64()),
                "label": pa.array(labels, pa.float32()),
            }
        )
        partitions.write_labels(root, hour, table, storage_options, folder)


def values(root, **changes):
    return {
        "name": "ads",
        "source": str(root / "data"),
        "output": str(root / "out"),
        "features": FEATURES,
        "tasks": {
            "click": {"window": "30m"},
            "conversion": {"labels": "conversions", "window": "2.5h"},
        },
        "verticals": VERTICALS,
        "teacher": {"entry_point": "tests.das.teachers:linear", "workers": 0},
        "join": {"memory_limit": "200MB", "temp_directory": str(root / "spill"), "threads": 1},
        **changes,
    }


def job(root, **changes):
    return Job.parse(values(root, **changes))


def teacher(row):
    """What `teachers.linear` says of an impression."""
    return np.float32(0.5) * np.float32(row["x"]) + np.float32(row["ad"])


def plain(shown, events, vertical):
    """What a vertical's stream should hold, row by row as a person would: id -> columns."""
    settings = VERTICALS[vertical]
    found = {}
    by_id = {name: {} for name in events}
    for name, some in events.items():
        for who, when, value in some:
            by_id[name].setdefault(who, []).append((when, value))
    for row in shown:
        if vertical == "feed" and row["vertical"] != "feed":
            continue
        if vertical == "shop" and not row["x"] > 0:
            continue
        labels = {}
        for number, name in enumerate(settings["tasks"]):
            used = [
                value
                for when, value in by_id[name].get(row["example_id"], [])
                if 0 <= when - row["timestamp"] <= WINDOWS[name]
            ]
            labels["label" if number == 0 else f"label_{name}"] = float(max(used, default=0))
        found[row["example_id"]] = {
            **labels,
            "teacher_logit": teacher(row),
            "timestamp": row["timestamp"],
        }
    return found


def plain_audit(shown, events, name, hours):
    """Reason -> sorted (id, time, value) of the events that made no label."""
    window = WINDOWS[name]
    reach = -(-window // MS_PER_HOUR) + 1
    times = {row["example_id"]: row["timestamp"] for row in shown}
    found = {"late": [], "early": [], "duplicate": [], "orphan": []}
    used = {}
    for who, when, value in events[name]:
        hour = when // MS_PER_HOUR
        shown_at = times.get(who)
        if shown_at is None or not 0 <= hour - shown_at // MS_PER_HOUR <= reach:
            found["orphan"].append((who, when, value))
        elif when < shown_at:
            found["early"].append((who, when, value))
        elif when - shown_at > window:
            found["late"].append((who, when, value))
        else:
            used.setdefault(who, []).append((-value, when))
    for who, some in used.items():
        found["duplicate"] += [(who, when, -value) for value, when in sorted(some)[1:]]
    return {reason: sorted(some) for reason, some in found.items()}


def side(root, task):
    """What the side output holds, by reason."""
    found = {}
    for file in sorted((root / "out" / "side").glob(f"reason=*/hour=*/{task}.parquet")):
        reason = file.parts[-3].split("=")[1]
        rows = pq.read_table(file, partitioning=None).to_pylist()
        found.setdefault(reason, []).extend(
            (row["example_id"], row["timestamp"], int(row["label"])) for row in rows
        )
    return {reason: sorted(rows) for reason, rows in found.items()}


def contents(path):
    """All rows of a stream or of predictions, by example id, whatever files hold them."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(path)).to_pyarrow_table().to_pylist()
    found = {row["example_id"]: row for row in rows}
    assert len(found) == len(rows), "an example id is there twice"
    return found


def failing_write(monkeypatch):
    """The first rows that anybody writes meet a full disk; the next find room."""
    from keras_exfm.das import _predictions

    real, calls = _predictions.HourWriter.write, []

    def write(self, rows):
        calls.append(len(rows))
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, rows)

    monkeypatch.setattr(_predictions.HourWriter, "write", write)
    return calls


def everything(root):
    """All that a job left: streams, predictions, side output."""
    out = root / "out"
    tables = {
        name: contents(out / name)
        for name in sorted(folder.parent.name for folder in out.glob("*/_delta_log"))
    }
    sides = {
        str(file.relative_to(out)): file.read_text()
        if file.suffix == ".json"
        else sorted(map(str, pq.read_table(file, partitioning=None).to_pylist()))
        for file in sorted((out / "side").rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }
    return {"tables": tables, "side": sides}
