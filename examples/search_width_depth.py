"""Search widths and depths of Wukong within a budget of FLOPs, then predict what more would give.

    python examples/search_width_depth.py

1. A synthetic ad stream is written, and its labels joined.
2. A random search draws Wukongs that cost at most 0.5 training MFLOP an example. Each trains on the
   stream in a single pass and is scored by progressive validation.
3. DLRM at four sizes gives a scaling law, which says what a fifth size should reach.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras_exfm as kx
from keras_exfm.tuner import scaling

BUDGET = kx.tuner.Budget(training_flops=0.5e6)


def prepare(root):
    stream = kx.datasets.SyntheticAds(hours=12, examples_per_hour=1500, users=100, ads=40)
    info = stream.write(root / "data")
    kx.das.DataAugmentationService(
        root / "data", root / "labelled", info.schema, label_window_hours=info.label_window_hours
    ).process_pending()
    return info


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        info = prepare(root)
        space = kx.tuner.WukongHyperModel(
            info.schema,
            fixed={"dim": 8, "form": "static", "shape": "uniform", "dropout": 0.0},
            space={"num_layers": (1, 3), "n_fmb": [2, 4, 8], "mlp_units": [16, 32, 64]},
        )
        search = kx.tuner.RandomSearch(
            space,
            kx.tuner.objectives.normalized_entropy("progressive"),
            max_trials=3,
            budget=BUDGET,
            seed=1,
            directory=root,
        )
        search.search(
            stream=root / "labelled", metrics_from=info.first_hour + 4, batch_size=512, verbose=0
        )
        for row in search.results():
            values = row["hyperparameters"]
            print(
                f"NE {row['score']:.4f}  {row['cost'].training_flops / 1e6:.2f} MFLOP  "
                f"layers {values['num_layers']}, n_fmb {values['n_fmb']}, "
                f"MLP {values['mlp_units']}, table rate {values['table_learning_rate']:.2f}"
            )

        sizes = [0.03e6, 0.06e6, 0.12e6, 0.25e6]
        sweep = scaling.Sweep(
            root / "sweep",
            root / "labelled",
            table_learning_rates=(0.2,),
            batch_size=512,
            metrics_from=info.first_hour + 4,
        )
        sweep.run(scaling.configurations("DLRM", info.schema, sizes, {"dim": 8}))
        law, _ = scaling.laws(sweep.records())["DLRM"]
        prediction = law.predict(0.5e6)
        print(
            f"DLRM at 0.5 MFLOP should be {prediction.expected:.4f} above the best possible NE, "
            f"between {prediction.low:.4f} and {prediction.high:.4f}"
        )


if __name__ == "__main__":
    main()
