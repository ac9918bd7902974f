"""Take the parts out of Wukong's layers one by one, as figure 4 of the paper does.

    python benchmarks/ablations.py --model deep --seeds 2,3,4
    python benchmarks/ablations.py --model shallow --seeds 1,2,3

Trains a small Wukong in one pass over synthetic clicks with planted main effects and interactions
of the orders 2 and 3, whole and with the output of a part replaced by zeros in every layer: the
factorization machine block ("fmb"), the linear compression block ("lcb"), the residual, and the
last two together. Writes benchmarks/results/ablations/<model>: `runs.csv` (every seed),
`summary.csv` (mean and standard deviation of the loss in percent of the whole model's, over seeds,
beside the paper's figures) and `run.json` (command, settings, checksum of the data, versions,
machine). What came out, and what it says: README.md there. The same on real clicks:
`benchmarks/ablations_stream.py`.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _processes import keras_versions, machine
from _records import write_csv
from keras import ops

from keras_exfm import Categorical, Schema
from keras_exfm.layers import FactorizationMachineBlock, FeatureEmbedding, LinearCompressionBlock
from keras_exfm.metrics import functional

RESULTS = Path(__file__).parent / "results" / "ablations"
# What is zero in each run, and the loss in percent above the whole model's, read off figure 4.
ABLATIONS = {
    "none": ((), 0.0),
    "lcb": (("lcb",), 0.03),
    "residual": (("residual",), 0.08),
    "fmb": (("fmb",), 0.80),
    "lcb+residual": (("lcb", "residual"), 1.84),
}
DATA = {
    "fields": 12,
    "vocabulary": 10,
    "latent": 2,
    "main": 1.5,
    "interactions": {2: 1.0, 3: 0.5},
    "terms": 6,
    "bias": -1.5,
    "train": 300_000,
    "test": 100_000,
}
BLOCKS = {"dim": 8, "n_fmb": 8, "n_lcb": 8, "rank": 8, "mlp_units": (64,)}
MODELS = {
    # A head that finds some of the interactions by itself, as the paper's wide ones can.
    "deep": {**BLOCKS, "num_layers": 6, "head_units": (128, 64)},
    # A head too narrow for that.
    "shallow": {**BLOCKS, "num_layers": 3, "head_units": (16,)},
}
TRAINING = {"batch": 512, "learning_rate": 3e-3}


class AblatedWukongLayer(keras.layers.Layer):
    """`WukongLayer` with the outputs of some of its parts replaced by zeros."""

    def __init__(self, n_fmb, n_lcb, rank, mlp_units, zero=(), **kwargs):
        super().__init__(**kwargs)
        self.n_fmb = n_fmb
        self.n_lcb = n_lcb
        self.zero = tuple(zero)
        self.fmb = FactorizationMachineBlock(n_fmb, rank=rank, mlp_units=mlp_units, name="fmb")
        self.lcb = LinearCompressionBlock(n_lcb, name="lcb")
        self.residual = None
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm")

    def build(self, input_shape):
        _, n, dim = input_shape
        count = self.n_fmb + self.n_lcb
        self.fmb.build(input_shape)
        self.lcb.build(input_shape)
        if n != count:
            self.residual = LinearCompressionBlock(count, name="residual")
            self.residual.build(input_shape)
        self.norm.build((None, count, dim))
        self.built = True

    def call(self, inputs):
        def part(name, output):
            return ops.zeros_like(output) if name in self.zero else output

        residual = inputs if self.residual is None else self.residual(inputs)
        blocks = [part("fmb", self.fmb(inputs)), part("lcb", self.lcb(inputs))]
        return self.norm(ops.concatenate(blocks, axis=1) + part("residual", residual))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.n_fmb + self.n_lcb, input_shape[2])


def network(
    schema, zero, dim, num_layers, n_fmb, n_lcb, rank, mlp_units, head_units, optimizer=None
):
    """Wukong from ablated layers. Without `optimizer` the tables are plain weights."""
    inputs = schema.inputs()
    x = FeatureEmbedding(schema, dim, optimizer=optimizer, name="embedding")(inputs)
    for i in range(num_layers):
        x = AblatedWukongLayer(n_fmb, n_lcb, rank, mlp_units, zero=zero, name=f"layer-{i}")(x)
    x = keras.layers.Flatten(name="flat")(x)
    for i, units in enumerate(head_units):
        x = keras.layers.Dense(units, activation="relu", name=f"head-{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="serving")(x))


def clicks(seed, fields, vocabulary, latent, main, interactions, terms, bias, train, test):
    """Ids, and labels from a logit of main effects and products of hidden vectors.

    Every id has a hidden number (its main effect) and a hidden vector. A term of order `o` takes
    `o` fields by chance and adds the sum over coordinates of the product of their ids' vectors.
    `main` and `interactions` are the variances of the logit's parts.
    """
    rng = np.random.default_rng(seed)
    size = train + test
    ids = rng.integers(0, vocabulary, (size, fields))
    column = np.arange(fields)

    def scaled(values, variance):
        return values * np.sqrt(variance / values.var())

    logit = scaled(rng.normal(size=(fields, vocabulary))[column, ids].sum(1), main)
    vectors = rng.normal(size=(fields, vocabulary, latent)).astype("float32")
    hidden = vectors[column, ids]
    for order, variance in interactions.items():
        part = np.zeros(size)
        for _ in range(terms):
            chosen = rng.choice(fields, int(order), replace=False)
            part += hidden[:, chosen].prod(1).sum(1)
        logit = logit + scaled(part, variance)
    logit = logit + bias
    labels = (rng.random(size) < 1 / (1 + np.exp(-logit))).astype("float32")
    features = {f"f{i}": ids[:, i].astype("int32") for i in range(fields)}
    first = {name: values[:train] for name, values in features.items()}
    last = {name: values[train:] for name, values in features.items()}
    return (first, labels[:train]), (last, labels[train:]), logit[train:]


def run(seed, zero, data, model, training):
    """One pass of training; the logloss on the test examples."""
    (features, labels), (test, test_labels), _ = data
    keras.utils.set_random_seed(seed)
    schema = Schema([Categorical(name, DATA["vocabulary"]) for name in features])
    net = network(schema, zero, **model)
    steps = -(-len(labels) // training["batch"])
    # Warm-up and decay to zero: without them the noise of the last steps hides small differences.
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=training["learning_rate"], warmup_steps=steps // 10
    )
    net.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    net.fit(features, labels, batch_size=training["batch"], epochs=1, shuffle=False, verbose=0)
    logits = net.predict(test, batch_size=8192, verbose=0)[:, 0]
    return functional.log_loss(test_labels, logits)


def checksum(data):
    digest = hashlib.sha256()
    for features, labels in data[:2]:
        for values in (*features.values(), labels):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def summarize(rows):
    """Loss above the whole model's in percent, mean and standard deviation over seeds."""
    whole = {row["seed"]: row["log_loss"] for row in rows if row["zero"] == "none"}
    summary = []
    for name, (_, paper) in ABLATIONS.items():
        found = [
            100 * (row["log_loss"] / whole[row["seed"]] - 1) for row in rows if row["zero"] == name
        ]
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        summary.append(
            {
                "zero": name,
                "loss_percent": statistics.mean(found),
                "deviation": deviation,
                "seeds": len(found),
                "paper_percent": paper,
            }
        )
    return summary


def record(out, rows, about):
    """Writes the files of a record, and prints its summary."""
    out.mkdir(parents=True, exist_ok=True)
    summary = summarize(rows)
    write_csv(out / "runs.csv", rows)
    write_csv(out / "summary.csv", summary)
    (out / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    for row in summary:
        print(
            f"{row['zero']:14} {row['loss_percent']:+7.3f} % (sd {row['deviation']:.3f}), "
            f"paper {row['paper_percent']:+.2f} %"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deep", choices=tuple(MODELS))
    parser.add_argument("--seeds", default="2,3,4", help="of the data and of the weights")
    parser.add_argument("--out", default=str(RESULTS), help="folder of the records")
    arguments = parser.parse_args()
    options = ["--model", arguments.model, "--seeds", arguments.seeds]
    rows, sums, log = [], {}, []
    started = time.monotonic()
    for seed in map(int, arguments.seeds.split(",")):
        data = clicks(seed, **DATA)
        sums[seed] = checksum(data)
        labels, logits = data[1][1], data[2]
        rate = float(labels.mean())
        floor = functional.log_loss(labels, logits)
        for name, (zero, _) in ABLATIONS.items():
            loss = run(seed, zero, data, MODELS[arguments.model], TRAINING)
            rows.append(
                {
                    "seed": seed,
                    "zero": name,
                    "log_loss": loss,
                    "normalized_entropy": loss / float(functional.entropy(rate)),
                    "log_loss_of_the_truth": floor,
                }
            )
            said = f"{time.monotonic() - started:5.0f} s  seed {seed}  {name:14} {loss:.5f}"
            log.append(said)
            print(said, flush=True)
    about = {
        "command": shlex.join(["python", "benchmarks/ablations.py", *options]),
        "data": DATA,
        "data_sha256": sums,
        "model": MODELS[arguments.model],
        "training": TRAINING,
        "backend": keras.backend.backend(),
        "versions": keras_versions(),
        "machine": machine(),
    }
    out = Path(arguments.out) / arguments.model
    record(out, rows, about)
    (out / "log.txt").write_text("\n".join(log) + "\n")


if __name__ == "__main__":
    main()
