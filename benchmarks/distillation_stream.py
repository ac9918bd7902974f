"""The Globo stream in memory, and what teachers log on it, for `benchmarks/distillation.py`.

A teacher's log is made once and kept. Like the data augmentation service, each hour is scored with
weights that have seen the hours before it only, and is trained on afterwards; unlike it, the
hour's weights are kept in memory rather than in a snapshot store, so that logs of several ages
come from one pass.
"""

import collections
import dataclasses
import json
import time

import numpy as np

# Features that tell who the user is and what the user has read.
PERSONAL = ("user", "past_clicks", "last_article", "history")
REPRESENTATION = 32
# Features whose embeddings in the teacher are logged, for the students' rows.
EMBEDDINGS = ("user", "article", "last_article", "history")


@dataclasses.dataclass
class Rows:
    """All rows of a stream in time order: columns, and where each hour begins."""

    schema: object
    columns: dict
    hours: list
    starts: np.ndarray
    own: np.ndarray
    """Rows of the student: its vertical, and its share of the users."""

    def hour(self, i):
        return slice(self.starts[i], self.starts[i + 1])

    def __len__(self):
        return int(self.starts[-1])


def load(options, fraction, own_fraction, vertical):
    """Prepares the stream if it is not there, and reads it whole.

    Users of a smaller share are also in a larger one, and an example has the same id in both.
    """
    from keras_exfm import streaming
    from keras_exfm.das import DataAugmentationService
    from keras_exfm.datasets import globo

    found = {}
    for share in {fraction, own_fraction}:
        folder = options.out / f"users{share:g}-days{options.days[1]}"
        info = globo.prepare(
            options.data,
            folder / "impressions",
            user_fraction=share,
            days=(1, options.days[1]),
            share_article_table=True,
        )
        DataAugmentationService(
            folder / "impressions",
            folder / "labelled",
            info.schema,
            label_window_hours=info.label_window_hours,
        ).process_pending()
        found[share] = (info, streaming.Stream(folder / "labelled"))
    info, stream = found[fraction]
    parts, hours, starts = [], stream.hours, [0]
    for hour in hours:
        part = streaming.read_hour(
            stream, hour, info.schema, columns=["example_id", "vertical", "group"]
        )
        parts.append(part)
        starts.append(starts[-1] + len(part["label"]))
    columns = {
        name: np.concatenate([part[name] for part in parts])
        for name in (*info.schema.names, "label", "example_id", "vertical", "group")
    }
    kept = np.asarray(columns.pop("vertical")).astype(str) == vertical
    if own_fraction != fraction:
        small = found[own_fraction][1]
        ids = [
            streaming.read_hour(
                small, hour, info.schema.select(["environment"]), columns=["example_id"]
            )
            for hour in small.hours
        ]
        kept &= np.isin(columns["example_id"], np.concatenate([x["example_id"] for x in ids]))
    return info, Rows(info.schema, columns, hours, np.array(starts), kept)


def batches(rows, index, size, names, extra=()):
    """Batches of one size of the rows in `index`; the last one is filled up with weight 0."""
    from keras_exfm.features import PADDING, Numeric

    numbers = {f.name for f in rows.schema if isinstance(f, Numeric)}
    for start in range(0, len(index), size):
        at = index[start : start + size]
        weight = np.zeros(size, np.float32)
        weight[: len(at)] = 1.0
        batch = {}
        for name in (*names, "label"):
            column = rows.columns[name]
            fill = 0 if name in numbers or name == "label" else PADDING
            out = np.full((size, *column.shape[1:]), fill, column.dtype)
            out[: len(at)] = column[at]
            batch[name] = out
        for name, column in extra:
            out = np.full((size, *column.shape[1:]), np.nan, np.float32)
            out[: len(at)] = column[at]
            batch[name] = out
        yield batch, weight, len(at)


def teacher_model(setting, schema):
    import keras

    from keras_exfm import models
    from keras_exfm.optimizers import RowwiseAdagrad

    arguments = dict(setting)
    cls = getattr(models, arguments.pop("class"))
    rate, left_out = arguments.pop("table_learning_rate"), arguments.pop("without", ())
    schema = schema.select([name for name in schema.names if name not in left_out])
    model = cls(schema, optimizer=RowwiseAdagrad(rate), **arguments)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def teacher_log(path, rows, setting, seed, ages, batch, trains_on=None, say=print):
    """Logits of each age, representation and embeddings; makes them if they are not there.

    Args:
        path: File of the log.
        rows: The stream.
        setting: Class, arguments, `table_learning_rate` and `without` of the teacher.
        seed: Of its weights.
        ages: Hours; the weights of age `a` have seen the hours up to `h - 1 - a`. Age 0 is logged
            for all rows, the others for the student's.
        batch: Rows of a batch.
        trains_on: Mask of the rows that the teacher trains on. Defaults to all.
        say: Where progress goes.
    """
    import keras

    if path.exists():
        return dict(np.load(path, allow_pickle=False))
    from keras_exfm.models import flops

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    started = time.monotonic()
    model, scorer = teacher_model(setting, rows.schema), teacher_model(setting, rows.schema)
    names = [tensor.name for tensor in model.inputs]
    full = keras.Model(
        scorer.inputs,
        [
            scorer.output,
            scorer.get_layer("representation").output,
            scorer.get_layer("feature-embedding").output,
        ],
    )
    width, dim = full.outputs[1].shape[-1], full.outputs[2].shape[-1]
    logit = {age: np.full(len(rows), np.nan, np.float32) for age in ages}
    vector = np.full((len(rows), width), np.nan, np.float16)
    # Rows of the stream that the students have, in the log of embeddings.
    place = np.cumsum(rows.own) - 1
    logged = {
        name: (k, np.full((int(rows.own.sum()), dim), np.nan, np.float16))
        for k, name in enumerate(feature.name for feature in model.schema.sparse)
        if name in EMBEDDINGS
    }
    kept = collections.deque(maxlen=max(ages) + 1)
    for i in range(len(rows.hours)):
        here = np.arange(rows.hour(i).start, rows.hour(i).stop)
        for age in ages:
            if len(kept) <= age:
                continue
            scorer.set_weights(kept[-1 - age])
            index = here if age == 0 else here[rows.own[here]]
            for start, (x, _, n) in zip(
                range(0, len(index), batch), batches(rows, index, batch, names)
            ):
                x.pop("label")
                z, r, e = (np.asarray(output)[:n] for output in full.predict_on_batch(x))
                at = index[start : start + n]
                logit[age][at] = z[:, 0]
                if age == 0:
                    vector[at] = r
                    own = rows.own[at]
                    for k, column in logged.values():
                        column[place[at[own]]] = e[own, k]
        train = here if trains_on is None else here[trains_on[here]]
        for x, weight, _ in batches(rows, train, batch, names):
            model.train_on_batch(x, x.pop("label"), weight)
        kept.append(model.get_weights())
        if i % 24 == 23:
            say(f"{path.stem}: hour {i + 1} of {len(rows.hours)}")
    about = {
        "setting": setting,
        "seed": seed,
        "parameters": int(model.count_params()),
        "training_flops": int(flops(model).training),
        "inference_flops": int(flops(model).inference),
        "rows": int(len(rows) if trains_on is None else trains_on.sum()),
        "seconds": round(time.monotonic() - started, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    out = {f"logit_{age}": column for age, column in logit.items()}
    out |= {f"embedding_{name}": column for name, (_, column) in logged.items()}
    out |= {"representation": vector, "about": np.array(json.dumps(about))}
    part = path.with_suffix(".part.npz")
    np.savez(part, **out)
    part.replace(path)
    return out
