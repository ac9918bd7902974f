"""Criteo's format end to end: text files to a trained model, without loading a file whole.

    python examples/criteo.py                           # a small made-up file in the same format
    python examples/criteo.py --data dac/train.txt      # the Kaggle set, plain or gzipped
    python examples/criteo.py --data days/ --format criteo_terabyte

1. The file is read in blocks, hashed, and written as a stream: so many rows in order are an "hour".
2. A Wukong predicts each hour, then trains on it (progressive validation).
3. A second file (`--valid`) is scored by the trained model; without `--data`, a made-up one.
4. With `--export FILE.onnx` (extra `onnx`) the model is exported and proved against Keras.

The Kaggle set has 45.8 million rows; `--limit` takes the first ones. Nothing is downloaded.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="file or folder in Criteo's format (default: made up)")
    parser.add_argument("--valid", help="a second file in the same format")
    parser.add_argument("--format", default="criteo_kaggle", choices=list(kx.datasets.FORMATS))
    parser.add_argument("--numbers", default="bins", choices=("log", "bins"))
    parser.add_argument("--limit", type=int, help="rows to read (default: all)")
    parser.add_argument("--rows-per-hour", type=int, help="rows that make one hour of the stream")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--stream", help="folder for the stream (default: a temporary one)")
    parser.add_argument("--export", help="write the trained model to this .onnx file")
    return parser.parse_args()


def made_up(file, rows, seed):
    """Criteo's columns and gaps: clicks depend on two numbers, three ids and a pair of ids."""
    truth, random = np.random.default_rng(0), np.random.default_rng(seed)
    sizes = np.linspace(3, 60, 26).astype(int)
    of_id = [truth.normal(size=size) for size in sizes]
    pair = truth.normal(size=(sizes[0], sizes[1]))
    numbers = np.floor(random.lognormal(1.5, 1.5, (rows, 13))).astype(int)
    ids = (random.random((rows, 26)) ** 2 * sizes).astype(int)
    logit = 0.4 * np.log1p(numbers[:, 0]) - 0.3 * np.log1p(numbers[:, 1]) - 1.5
    logit += pair[ids[:, 0], ids[:, 1]] + sum(0.7 * of_id[i][ids[:, i]] for i in (5, 9, 20))
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    gap = random.random((rows, 39)) < 0.1
    with open(file, "w") as target:
        for row in range(rows):
            fields = [str(n) for n in numbers[row]]
            fields += [
                f"{0x9E3779B1 * (64 * i + n + 1) % 2**32:08x}" for i, n in enumerate(ids[row])
            ]
            fields = ["" if missing else text for text, missing in zip(fields, gap[row])]
            print(label[row], *fields, sep="\t", file=target)
    return file


def wukong(schema):
    model = kx.models.Wukong(
        schema,
        dim=16,
        num_layers=2,
        n_fmb=8,
        n_lcb=8,
        rank=8,
        mlp_units=(64,),
        head_units=(64,),
        optimizer=kx.optimizers.RowwiseAdagrad(0.1),
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.BinaryCrossentropy(from_logits=True),
        weighted_metrics=[kx.metrics.NormalizedEntropy(), kx.metrics.AUC()],
    )
    return model


def show(row, logs):
    print(
        f"hour {row['hour']:4d}  {row['examples']:7d} rows  NE {row['ne']:.4f}  "
        f"AUC {row['auc']:.4f}  calibration {row['calibration']:.3f}  loss {logs['loss']:.4f}"
    )


def main():
    options = arguments()
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        data, valid, per_hour = options.data, options.valid, options.rows_per_hour
        if data is None:
            data = made_up(Path(folder) / "train.txt", 24_000, seed=1)
            valid = valid or made_up(Path(folder) / "valid.txt", 4_000, seed=2)
            per_hour = per_hour or 4_000
        table = kx.datasets.PublicTable(
            options.format,
            numbers=options.numbers,
            limit=options.limit,
            rows_per_hour=per_hour or 200_000,
        )
        for checksum in table.checksums(data):
            known = "none is published" if checksum.published is None else checksum.published
            print(f"{Path(checksum.file).name}: MD5 {checksum.md5} (published: {known})")

        stream = Path(options.stream or Path(folder) / "stream")
        for hour, examples in table.hours(data):
            kx.streaming.write_hour(stream, hour, examples, table.schema)

        model = wukong(table.schema)
        # The first hour is predicted by a model that has seen nothing: it does not count.
        result = kx.streaming.progressive_validation(
            model,
            stream,
            batch_size=options.batch_size,
            metrics_from=kx.streaming.hours(stream)[:2][-1],
            on_window=show,
        )
        whole = result.whole
        span = f"hours {whole['first_hour']}-{whole['last_hour']}, {whole['examples']} rows"
        print(f"{span}: NE {whole['ne']:.4f}, AUC {whole['auc']:.4f}")
        if valid is not None:
            # In blocks as well, each batch in the schema's inputs.
            scores = model.evaluate(
                table.dataset(valid, options.batch_size), verbose=0, return_dict=True
            )
            ne, auc = scores["normalized_entropy"], scores["auc"]
            print(f"{Path(valid).name}: NE {ne:.4f}, AUC {auc:.4f}")
    if options.export:
        print(kx.export.onnx(model, options.export, metadata={"ne": whole["ne"]}))


if __name__ == "__main__":
    main()
