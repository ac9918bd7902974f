"""What teachers log on a stream, and batches of it, for `benchmarks/distillation.py`.

A teacher's log is made once and kept. Like the data augmentation service, each hour is scored with
weights that have seen the hours before it only, and is trained on afterwards; unlike it, the
hour's weights are kept in memory rather than in a snapshot store, so that logs of several ages
come from one pass.
"""

import collections
import json
import time

import numpy as np


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


def teacher_log(path, rows, setting, seed, ages, batch, embeddings, trains_on=None, say=print):
    """Logits of each age, representation and embeddings; makes them if they are not there.

    Args:
        path: File of the log.
        rows: The stream.
        setting: Class, arguments, `table_learning_rate` and `without` of the teacher.
        seed: Of its weights.
        ages: Hours; the weights of age `a` have seen the hours up to `h - 1 - a`. Age 0 is logged
            for all rows, the others for the student's.
        batch: Rows of a batch.
        embeddings: Features whose embeddings are logged, for the student's rows.
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
    # A feature may have several embeddings: the first is logged.
    sparse = model.schema.sparse
    first = np.cumsum([0, *(feature.embeddings for feature in sparse)])
    logged = {
        feature.name: (int(k), np.full((int(rows.own.sum()), dim), np.nan, np.float16))
        for k, feature in zip(first, sparse)
        if feature.name in embeddings
    }
    kept = collections.deque(maxlen=max(ages) + 1)
    for i in range(len(rows.starts) - 1):
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
            say(f"{path.stem}: hour {i + 1} of {len(rows.starts) - 1}")
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
