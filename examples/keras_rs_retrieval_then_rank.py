"""Two stages: Keras RS retrieves candidates, a model of ours ranks them.

    python examples/keras_rs_retrieval_then_rank.py                     # made-up ratings
    python examples/keras_rs_retrieval_then_rank.py --data ml-100k.zip  # MovieLens, which you have

1. Ratings in order of time, in three parts. A click is a rating of at least 4.
2. On the first part two towers learn which user clicks which item (softmax over the batch,
   corrected for popularity, accidental hits removed), and
   `keras_rs.layers.BruteForceRetrieval` gives each user's candidates.
3. On the second part a DCNv2 learns to tell clicks from what else was retrieved. It sees
   what the towers cannot: the time of the request, user and item together, and the retrieval's
   score, which has not seen these clicks (on its own training clicks it would be too good).
4. On the third part: are clicks nearer to the top in the ranker's order?

Needs keras-rs (`pip install keras-rs`).
"""

import argparse
import importlib.util
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_exfm as kx

CANDIDATES, NEGATIVES, TOP = 100, 4, 10
USER = ("user_id", "age", "gender", "occupation", "zip_code")
ITEM = ("item_id", "genres")
CONTEXT = ("hour_of_day", "weekday")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="MovieLens: folder or archive (default: made up)")
    parser.add_argument(
        "--format",
        default="movielens_100k",
        choices=("movielens_100k", "movielens_1m", "movielens_atomic"),
    )
    return parser.parse_args()


def made_up(folder, users=300, items=300, ratings=40_000):
    """RecBole's atomic files: taste decides what is rated and how, the hour of day how as well."""
    random = np.random.default_rng(0)
    genres = ["Action", "Comedy", "Crime", "Drama", "Horror", "War"]
    job = random.integers(0, 8, users)
    taste = random.normal(size=(8, 6))[job] + 0.5 * random.normal(size=(users, 6))
    genre = random.integers(0, 6, items)
    quality = random.normal(size=items)
    nightly = np.array([[1, -1, 1, -1, 1, -1], [-1, 1, -1, 1, -1, 1]])
    user = random.integers(0, users, ratings)
    liking = taste[:, genre] + 0.5 * quality
    choice = liking[user] + random.gumbel(size=(ratings, items))
    item = choice.argmax(1)
    time = 880_000_000 + np.sort(random.integers(0, 60 * 86_400, ratings))
    hour = time // 3600 % 24
    mood = nightly[(hour < 12).astype(int), genre[item]]
    score = liking[user, item] + 3 * mood + 0.5 * random.normal(size=ratings) - 1
    rating = np.clip(np.round(3 + score), 1, 5).astype(int)
    tables = {
        "made_up.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        + [f"u{u}\ti{i}\t{r}\t{t}" for u, i, r, t in zip(user, item, rating, time)],
        "made_up.user": ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
        + [f"u{u}\t{20 + u % 50}\tF\tjob{job[u]}\t{u % 90:05d}" for u in range(users)],
        "made_up.item": ["item_id:token\tclass:token_seq"]
        + [f"i{i}\t{genres[genre[i]]}" for i in range(items)],
    }
    for name, lines in tables.items():
        (Path(folder) / name).write_text("\n".join(lines) + "\n")
    return folder


class TwoTowers(keras.Model):
    """A vector for a user, one for an item; a click should score above the batch's other items."""

    def __init__(self, schema, dim=32, **kwargs):
        import keras_rs

        super().__init__(**kwargs)
        self.query = self._tower(schema.select(USER), dim)
        self.candidate = self._tower(schema.select(ITEM), dim)
        self.remove_accidental_hits = keras_rs.layers.RemoveAccidentalHits()
        self.correct = keras_rs.layers.SamplingProbabilityCorrection()

    @staticmethod
    def _tower(schema, dim):
        inputs = schema.inputs()
        table = kx.optimizers.RowwiseAdagrad(0.1)
        x = kx.layers.FeatureEmbedding(schema, dim=dim, optimizer=table)(inputs)
        x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
        return keras.Model(inputs, keras.layers.Dense(dim)(x))

    def call(self, features):
        """Scores of each of the batch's users with each of its items."""
        users, items = (
            tower({name: features[name] for name in names})
            for tower, names in ((self.query, USER), (self.candidate, ITEM))
        )
        scores = keras.ops.matmul(users, keras.ops.transpose(items))
        scores = self.correct(scores, features["share"])
        labels = keras.ops.eye(keras.ops.shape(scores)[0])
        return self.remove_accidental_hits(scores, labels, features["number"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Softmax over the batch's items: a user's own click is the right one."""
        labels = keras.ops.eye(keras.ops.shape(y_pred)[0])
        losses = keras.losses.categorical_crossentropy(labels, y_pred, from_logits=True)
        return keras.ops.mean(losses)


def take(features, names, rows):
    return {name: features[name][rows] for name in names}


def retrieve(schema, features, clicks, number, users, items):
    """Trains the towers on the clicks; each user's candidates, and all users' and items' scores."""
    import keras_rs

    share = np.bincount(number[clicks], minlength=len(items)) / len(clicks)
    batch = take(features, (*USER, *ITEM), clicks)
    batch["number"] = number[clicks].astype("int32")
    batch["share"] = share[number[clicks]].astype("float32")
    towers = TwoTowers(schema)
    towers.compile(keras.optimizers.Adam(1e-3))
    size = min(256, len(clicks))
    random = np.random.default_rng(1)
    for _ in range(6):
        # Whole batches: each is a softmax over its own items.
        order = random.permutation(len(clicks))[: len(clicks) // size * size]
        loss = towers.fit(take(batch, batch, order), batch_size=size, verbose=0).history["loss"]
    print(f"two towers: loss {loss[-1]:.3f} in batches of {size}")

    vectors = towers.candidate.predict(take(features, ITEM, items), batch_size=512, verbose=0)
    queries = towers.query.predict(take(features, USER, users), batch_size=512, verbose=0)
    search = keras_rs.layers.BruteForceRetrieval(vectors, k=min(CANDIDATES, len(items)))
    _, found = search(queries)
    return keras.ops.convert_to_numpy(found), queries @ vectors.T


def ranker_of(schema):
    model = kx.models.DCNv2(
        schema, dim=16, parallel_units=(64, 64), optimizer=kx.optimizers.RowwiseAdagrad(0.1)
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.BinaryCrossentropy(from_logits=True),
        weighted_metrics=[kx.metrics.NormalizedEntropy(), kx.metrics.AUC()],
    )
    return model


def judge(order, clicked, known):
    """NDCG and hits of the clicked items, one a list, at the top of an order of candidates."""
    import keras_rs

    metric = keras_rs.metrics.NDCG(k=TOP)
    # What the user clicked before is not offered again.
    order = np.where(known, order.min() - 1, order)
    metric.update_state(clicked.astype("float32"), order.astype("float32"))
    rank = (order > (order * clicked).sum(1, keepdims=True)).sum(1)
    hit = (rank < TOP) & clicked.any(1)
    return f"NDCG@{TOP} {float(metric.result()):.4f}, hit rate@{TOP} {hit.mean():.4f}"


def main():
    options = arguments()
    keras.utils.set_random_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        table = kx.datasets.PublicTable(options.format if options.data else "movielens_atomic")
        # In order of time.
        features, label = table.arrays(options.data or made_up(folder))

    # `users` and `items`: a row of each. `user` and `number`: which one each rating is of.
    _, users, user = np.unique(features["user_id"], return_index=True, return_inverse=True)
    _, items, number = np.unique(features["item_id"], return_index=True, return_inverse=True)
    first, second = int(0.5 * len(label)), int(0.8 * len(label))
    clicks = np.flatnonzero(label == 1)
    taken = np.zeros((len(users), len(items)), bool)
    taken[user[clicks[clicks < first]], number[clicks[clicks < first]]] = True
    found, scores = retrieve(table.schema, features, clicks[clicks < first], number, users, items)
    # Later clicks of users and items that the towers know, which repeat none of the first part.
    known = taken.any(1)[user[clicks]] & taken.any(0)[number[clicks]]
    later = clicks[known & ~taken[user[clicks], number[clicks]]]
    training, held_out = later[later < second], later[later >= second]
    # The ranker learns to order what is retrieved: a click that was not would teach it the reverse.
    offered = (found[user[training]] == number[training][:, None]).any(1)
    training = training[offered]

    def requests(rows, candidates):
        """A row a candidate: user and time of the request, the candidate, its retrieval score."""
        repeated, flat = np.repeat(rows, candidates.shape[1]), candidates.ravel()
        batch = take(features, (*USER, *CONTEXT), repeated)
        batch |= take(features, ITEM, items[flat])
        batch["retrieval_score"] = scores[user[repeated], flat].astype("float32")
        return batch

    # Beside each click some candidates of its user; what the user has clicked weighs nothing.
    at = np.random.default_rng(2).integers(0, found.shape[1], (len(training), NEGATIVES))
    drawn = np.take_along_axis(found[user[training]], at, 1)
    candidates = np.concatenate([number[training][:, None], drawn], 1)
    taken[user[training], number[training]] = True
    label = np.zeros(candidates.shape, "float32")
    label[:, 0] = 1
    weight = np.where(label == 1, 1, ~taken[user[training][:, None], candidates])
    ranker = ranker_of(kx.Schema([*table.schema, kx.Numeric("retrieval_score")]))
    logs = ranker.fit(
        requests(training, candidates),
        label.ravel(),
        sample_weight=weight.ravel().astype("float32"),
        batch_size=256,
        epochs=3,
        verbose=0,
    ).history
    print(f"ranker, training: NE {logs['normalized_entropy'][-1]:.4f}, AUC {logs['auc'][-1]:.4f}")

    candidates = found[user[held_out]]
    clicked = candidates == number[held_out][:, None]
    known = taken[user[held_out][:, None], candidates]
    print(f"{len(held_out)} held-out clicks, {clicked.any(1).mean():.1%} among the candidates")
    logits = ranker.predict(requests(held_out, candidates), batch_size=4096, verbose=0)
    retrieved = scores[user[held_out][:, None], candidates]
    print(f"order of retrieval: {judge(retrieved, clicked, known)}")
    print(f"order of the ranker: {judge(logits.reshape(clicked.shape), clicked, known)}")


if __name__ == "__main__":
    if importlib.util.find_spec("keras_rs") is None:
        print("This example needs keras_rs: pip install keras-rs")
        sys.exit(2)
    main()
