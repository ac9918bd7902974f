"""A search in a process of its own, to be killed, or to share a search with others.

python -m tests.tuner.search_process FOLDER MAX_TRIALS [DIE_IN_TRIAL] [TUNER]
"""

import os
import signal
import sys
import time
from pathlib import Path

import keras_exfm as kx
from keras_exfm.tuner import Budget, objectives
from tests.tuner.scored import Scored, scoring

BUDGET = Budget(training_flops=4_000)


def main(folder, max_trials, die_in=None, tuner="RandomSearch"):
    log = Path(folder) / "log.txt"

    class Watched(Scored):
        def score(self, hp):
            name = os.environ.get("KERASTUNER_TUNER_ID", "one")
            with open(log, "a") as out:
                out.write(f"{name} {hp.values['top_units']} {hp.values['table_learning_rate']}\n")
            if die_in is not None and len(log.read_text().splitlines()) == die_in:
                os.kill(os.getpid(), signal.SIGKILL)
            # Long enough for another worker to take the next trial.
            time.sleep(0.2 if "KERASTUNER_TUNER_ID" in os.environ else 0)
            return super().score(hp)

    Path(folder).mkdir(parents=True, exist_ok=True)
    search = scoring(getattr(kx.tuner, tuner))(
        Watched(),
        objectives.normalized_entropy("progressive"),
        max_trials=max_trials,
        budget=BUDGET,
        seed=0,
        directory=folder,
    )
    search.search(verbose=0)
    if "KERASTUNER_TUNER_ID" not in os.environ:
        for row in search.results():
            print(row["trial"], row["score"], row["cost"].training_flops)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]) if sys.argv[3:] and sys.argv[3] != "-" else None,
        *sys.argv[4:5],
    )
