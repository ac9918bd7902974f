"""Dynamic tables in `FeatureEmbedding`: rows pass from id to id, and begin anew."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_exfm.features import Categorical, MultiHot, Schema, SchemaError
from keras_exfm.layers import EmbeddingTable, FeatureEmbedding
from keras_exfm.models import DeepFM
from keras_exfm.optimizers import RowwiseAdagrad, SparseAdam
from tests.layers.dynamic_reference import DynamicReference
from tests.testing import to_numpy

DIM = 4
SCHEMA = Schema(
    [
        MultiHot("history", 9, length=3, combiner="sum", table="article", admit_after=2),
        Categorical("place", 5),
        Categorical("user", 7, embeddings=2, admit_after=3),
        Categorical("article", 9, admit_after=2),
    ]
)
# history, place, the two of user, article
COEFFICIENTS = np.random.default_rng(0).normal(size=(5, DIM)).astype("float32")


@keras.saving.register_keras_serializable(package="test")
class FixedSum(keras.layers.Layer):
    """`sum(x * COEFFICIENTS)`, so that only the tables train."""

    def call(self, x):
        return ops.sum(x * COEFFICIENTS, axis=(1, 2))[:, None]


def make_model(optimizer, schema=SCHEMA, **options):
    inputs = schema.inputs()
    embedding = FeatureEmbedding(schema, DIM, optimizer=optimizer, name="embedding", **options)
    model = keras.Model(inputs, FixedSum()(embedding(inputs)))
    return model, embedding


def batches(count, size=8, seed=0):
    draw = np.random.default_rng(seed)
    for number in range(count):
        # Ids move on, so that old ones are evicted.
        article = draw.integers(0, 12, (size, 4)) * 7919 + 3 * number * 7919
        article = np.where(draw.random((size, 4)) < 0.2, -1, article)
        features = {
            "history": article[:, :3],
            "place": draw.integers(-1, 5, size),
            "user": draw.integers(0, 9, size) - 5 - number,
            "article": article[:, 3],
        }
        yield (
            {name: column.astype("int32") for name, column in features.items()},
            draw.normal(size=(size, 1)).astype("float32"),
        )


class Restatement:
    """The training step of `make_model` in float64, one row at a time."""

    def __init__(self, embedding, optimizer):
        self.optimizer = optimizer
        self.tables = {
            name: embedding.read_table(name).astype("float64")
            for name in ("article", "place", "user")
        }
        self.state = {
            name: [np.zeros_like(table), np.zeros_like(table)]
            for name, table in self.tables.items()
        }
        self.dynamic = {"article": DynamicReference(9, 2), "user": DynamicReference(7, 3)}
        self.steps = 0

    def reads(self, batch, train):
        """For each example its reads: table, row, index of the coefficients."""
        size = len(batch["place"])
        # The order in which a shared table is asked: example by example, the schema's order.
        ids = np.concatenate([batch["history"], batch["article"][:, None]], axis=1)
        rows = {}
        for name, given in (("article", ids), ("user", batch["user"])):
            reference = self.dynamic[name]
            if not train:
                rows[name] = reference.lookup(given) - 1
                continue
            rows[name], fresh = reference.train(given)
            rows[name] -= 1  # -1 is no row, -2 no id: both read nothing
            copies = 2 if name == "user" else 1
            for row in np.unique(rows[name][fresh]):
                for copy in range(copies):
                    at = row + copy * 7
                    self.tables[name][at] = 0
                    for state in self.state[name]:
                        state[at] = 0
        for example in range(size):
            article = rows["article"][example]
            user, place = rows["user"][example], batch["place"][example]
            reads = [("article", row, 0) for row in article[:3]] + [("place", place, 1)]
            reads += [("user", user, 2), ("user", user + 7 if user >= 0 else -1, 3)]
            yield [read for read in [*reads, ("article", article[3], 4)] if read[1] >= 0]

    def predict(self, batch, train=False):
        reads = list(self.reads(batch, train))
        outputs = [sum(self.tables[t][r] @ COEFFICIENTS[c] for t, r, c in one) for one in reads]
        return np.array(outputs, "float64"), reads

    def train(self, batch, target):
        outputs, reads = self.predict(batch, train=True)
        sums = {}
        for output, one, goal in zip(outputs, reads, target[:, 0]):
            for table, row, c in one:
                gradient = 2 * (output - goal) / len(target) * COEFFICIENTS[c].astype("float64")
                sums[table, row] = sums.get((table, row), 0) + gradient
        for (table, row), gradient in sums.items():
            first, second = (state[row] for state in self.state[table])
            if isinstance(self.optimizer, RowwiseAdagrad):
                first += np.mean(gradient**2)
                update = gradient / (np.sqrt(first) + self.optimizer.epsilon)
            else:
                b1, b2, t = self.optimizer.beta_1, self.optimizer.beta_2, self.steps + 1
                first += (1 - b1) * (gradient - first)
                second += (1 - b2) * (gradient**2 - second)
                corrected = first * np.sqrt(1 - b2**t) / (1 - b1**t)
                update = corrected / (np.sqrt(second) + self.optimizer.epsilon)
            self.tables[table][row] -= self.optimizer.learning_rate * update
        self.steps += 1


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize(
    "make", [lambda: RowwiseAdagrad(0.1), lambda: SparseAdam(0.05)], ids=["adagrad", "adam"]
)
def test_training_equals_the_restatement(make, jit, backend):
    if backend == "jax" and not jit:
        pytest.skip("JAX always compiles")
    optimizer = make()
    model, embedding = make_model(optimizer)
    model.compile("sgd", "mse", jit_compile=jit)
    restated = Restatement(embedding, optimizer)
    for batch, target in batches(8):
        np.testing.assert_allclose(
            model.predict_on_batch(batch)[:, 0], restated.predict(batch)[0], atol=2e-5
        )
        model.train_on_batch(batch, target)
        restated.train(batch, target)
        for name, table in restated.tables.items():
            np.testing.assert_allclose(embedding.read_table(name), table, atol=2e-5, err_msg=name)
    counters = embedding.dynamic_counters()
    assert list(counters) == ["article", "user"]
    for name, reference in restated.dynamic.items():
        assert counters[name] == reference.expected_counters()
        assert counters[name]["evictions"] > 2


def test_eager_steps_equal_compiled_ones(backend):
    if backend == "jax":
        pytest.skip("each eager step traces its loops anew; `DynamicIds` has such a test")
    results = []
    for eager in (False, True):
        keras.utils.set_random_seed(3)
        model, embedding = make_model(RowwiseAdagrad(0.1))
        model.compile("sgd", "mse", run_eagerly=eager)
        for batch, target in batches(5):
            model.train_on_batch(batch, target)
        results.append([embedding.read_table(name) for name in ("article", "user")])
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_bfloat16_rows_begin_anew():
    model, embedding = make_model(RowwiseAdagrad(0.1), storage_dtype="bfloat16")
    model.compile("sgd", "mse")
    restated = Restatement(embedding, embedding.optimizer)
    stream = list(batches(4))
    for batch, target in stream[:3]:
        model.train_on_batch(batch, target)
        restated.train(batch, target)
    for name, table in restated.tables.items():
        np.testing.assert_allclose(embedding.read_table(name), table, atol=0.02, err_msg=name)


def test_a_saved_model_goes_on(tmp_path):
    model, embedding = make_model("rowwise_adagrad")
    model.compile("sgd", "mse")
    stream = list(batches(8))
    for batch, target in stream[:5]:
        model.train_on_batch(batch, target)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.saving.load_model(tmp_path / "model.keras")
    other, _ = make_model("rowwise_adagrad")
    other.compile("sgd", "mse")
    other.load_weights(tmp_path / "model.weights.h5")
    for batch, target in stream[5:]:
        for one in (model, again, other):
            one.train_on_batch(batch, target)
    for one in (again, other):
        copy = one.get_layer("embedding")
        assert copy.dynamic_counters() == embedding.dynamic_counters()
        for name in ("article", "place", "user"):
            np.testing.assert_array_equal(copy.read_table(name), embedding.read_table(name))


def test_nothing_changes_outside_training():
    model, embedding = make_model("rowwise_adagrad")
    model.compile("sgd", "mse")
    batch, target = next(batches(1))
    model.train_on_batch(batch, target)
    before = [to_numpy(v) for v in embedding.weights]
    model.evaluate(batch, target, verbose=0)
    model.predict(batch, verbose=0)
    embedding.trainable = False
    model.compile("sgd", "mse")
    model.train_on_batch(batch, target)
    for value, variable in zip(before, embedding.weights):
        np.testing.assert_array_equal(value, to_numpy(variable))


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_an_empty_batch_changes_nothing(storage):
    _, embedding = make_model("rowwise_adagrad", storage_dtype=storage)
    before = [to_numpy(v) for v in embedding.dynamic_ids["article"].weights[:2]]
    batch = {name: column[:0] for name, column in next(batches(1))[0].items()}
    for training in (False, True):
        assert tuple(embedding(batch, training=training).shape) == (0, 5, DIM)
    for value, variable in zip(before, embedding.dynamic_ids["article"].weights):
        np.testing.assert_array_equal(value, to_numpy(variable))


def test_a_model_of_the_zoo_takes_strings():
    schema = Schema([Categorical("user", 50, admit_after=1), Categorical("place", 24)])
    model = DeepFM(schema, dim=4, dnn_units=(8,), optimizer=RowwiseAdagrad(0.05))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    batch = schema.encode({"user": np.array(["ada", "bob", "ada", "eve"]), "place": [0, 1, 2, 3]})
    assert batch["user"].dtype == np.int32
    model.fit(batch, np.array([1.0, 0.0, 1.0, 0.0]), epochs=2, verbose=0)
    counters = model.get_layer("feature-embedding").dynamic_counters()["user"]
    assert (counters["occupancy"], counters["lookups"]) == (3, 8)
    assert counters["default_share"] == 0
    assert np.isfinite(model.predict(batch, verbose=0)).all()


class TestRefusals:
    def test_tables(self):
        with pytest.raises(ValueError, match="row optimizer"):
            FeatureEmbedding(SCHEMA, 4, optimizer=None)
        with pytest.raises(ValueError, match="do not freeze"):
            FeatureEmbedding(SCHEMA, 4, optimizer="rowwise_adagrad", frozen=["user"])
        with pytest.raises(ValueError, match="not built"):
            FeatureEmbedding(SCHEMA, 4, optimizer="rowwise_adagrad").dynamic_counters()

    def test_fresh(self):
        ids = np.array([1, 2], "int32")
        with pytest.raises(ValueError, match="row optimizer"):
            EmbeddingTable(5, 2, optimizer=None)(ids, fresh=ids > 1)
        table = EmbeddingTable(5, 2, optimizer="rowwise_adagrad")
        for fresh in (ids, ids[:1] > 1):
            with pytest.raises(ValueError, match="`fresh` should be bool of the shape"):
                table(ids, fresh=fresh)

    def test_schema(self):
        for bad in (0, -1, True, 1.5):
            with pytest.raises(SchemaError, match="admit_after"):
                Categorical("user", 10, admit_after=bad)
        with pytest.raises(SchemaError, match="exclude"):
            Categorical("user", 10, hashed=True, admit_after=2)
        with pytest.raises(SchemaError, match="admit_after"):
            Schema([Categorical("a", 5, admit_after=2), Categorical("b", 5, table="a")])
        assert Schema.from_dict(SCHEMA.to_dict()) == SCHEMA
