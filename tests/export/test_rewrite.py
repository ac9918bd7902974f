"""The ONNX graph after our passes: fewer operations, the same numbers."""

from collections import Counter

import keras
import numpy as np
import pytest

import keras_exfm as kx
from keras_exfm import export
from keras_exfm.export._rewrite import rewrite
from tests.export.test_formats import compare, targets, tensorflow_only

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def model(nodes, inputs, output, constants=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(file, feed):
    return ort.InferenceSession(file.SerializeToString()).run(None, feed)[0]


def operations(file):
    return Counter(node.op_type for node in file.graph.node)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sum_of_masked_products_is_a_selection(swapped):
    def pair(a, b):
        return [b, a] if swapped else [a, b]

    file = model(
        [
            helper.make_node("Cast", ["c"], ["yes"], to=TensorProto.FLOAT),
            helper.make_node("Not", ["c"], ["n"]),
            helper.make_node("Cast", ["n"], ["no"], to=TensorProto.FLOAT),
            helper.make_node("Mul", pair("yes", "a"), ["p"]),
            helper.make_node("Mul", pair("b", "no"), ["q"]),
            helper.make_node("Add", pair("p", "q"), ["out"]),
        ],
        [("c", TensorProto.BOOL, ["n"]), ("a", 1, ["n"]), ("b", 1, ["n"])],
        ("out", 1, ["n"]),
    )
    feed = {
        "c": np.array([True, False, True]),
        "a": np.array([1, np.nan, 3], np.float32),
        "b": np.array([np.nan, 5, 6], np.float32),
    }
    assert np.isnan(run(file, feed)).tolist() == [True, True, False]
    rewrite(file)
    assert operations(file) == {"Where": 1}
    assert run(file, feed).tolist() == [1, 5, 3]


def test_a_sum_of_other_products_stays():
    file = model(
        [
            helper.make_node("Cast", ["c"], ["one"], to=TensorProto.FLOAT),
            helper.make_node("Not", ["d"], ["n"]),
            helper.make_node("Cast", ["n"], ["two"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["one", "a"], ["p"]),
            helper.make_node("Mul", ["two", "a"], ["q"]),
            helper.make_node("Add", ["p", "q"], ["out"]),
        ],
        [("c", TensorProto.BOOL, ["n"]), ("d", TensorProto.BOOL, ["n"]), ("a", 1, ["n"])],
        ("out", 1, ["n"]),
    )
    before = operations(file)
    rewrite(file)
    assert operations(file) == before


@pytest.mark.parametrize(
    ("limit", "rewritten"), [(0.0, True), (2.0**24, True), (2.0**24 + 2, False), (2.5, False)]
)
def test_integers_are_compared_as_such(limit, rewritten):
    """Unless the constant is a fraction, or may be another integer that was rounded to it."""
    file = model(
        [
            helper.make_node("Cast", ["ids"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Less", ["real", "limit"], ["out"]),
        ],
        [("ids", TensorProto.INT32, ["n"])],
        ("out", TensorProto.BOOL, ["n"]),
        [("limit", np.float32(limit))],
    )
    ids = np.array([int(limit) - 2, int(limit) - 1, int(limit), int(limit) + 1, -5], np.int32)
    before = run(file, {"ids": ids})
    rewrite(file)
    assert operations(file) == ({"Less": 1} if rewritten else {"Cast": 1, "Less": 1})
    np.testing.assert_array_equal(run(file, {"ids": ids}), before)


def test_integers_cast_to_smaller_ones_are_compared_as_those():
    file = model(
        [helper.make_node("Cast", [n], [f"{n}32"], to=TensorProto.INT32) for n in ("a", "b")]
        + [helper.make_node("Less", ["a32", "b32"], ["out"])],
        [(n, TensorProto.INT64, ["n"]) for n in ("a", "b")],
        ("out", TensorProto.BOOL, ["n"]),
    )
    feed = {"a": np.array([2**32, 3], np.int64), "b": np.array([1, 4], np.int64)}
    assert run(file, feed).tolist() == [True, True]
    rewrite(file)
    assert run(file, feed).tolist() == [True, True]


def test_one_constant_beside_integers_of_two_sizes():
    inputs = [("a", TensorProto.INT32, ["n"]), ("b", TensorProto.INT64, ["n"])]
    file = model(
        [
            helper.make_node("Cast", ["a"], ["p"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["b"], ["q"], to=TensorProto.FLOAT),
            helper.make_node("Less", ["p", "limit"], ["x"]),
            helper.make_node("Less", ["q", "limit"], ["y"]),
            helper.make_node("And", ["x", "y"], ["out"]),
        ],
        inputs,
        ("out", TensorProto.BOOL, ["n"]),
        [("limit", np.float32(3))],
    )
    rewrite(file)
    assert operations(file) == {"Less": 2, "And": 1}
    feed = {"a": np.array([1, 5, 2], np.int32), "b": np.array([1, 2, 5], np.int64)}
    assert run(file, feed).tolist() == [True, False, False]


@pytest.mark.parametrize("order", ["AMABC", "ABCMABC", "AAAM", "AMBMAB"])
def test_columns_that_come_twice_are_joined_twice(order):
    file = model(
        [
            *(helper.make_node("Unsqueeze", [n.lower(), "one"], [n]) for n in "ABC"),
            helper.make_node("Concat", list(order), ["out"], axis=1),
        ],
        [*((n, 1, ["n"]) for n in "abc"), ("M", 1, ["n", 1])],
        ("out", 1, ["n", len(order)]),
        [("one", np.array([1], np.int64))],
    )
    feed = {n: np.array([i, -i], np.float32) for i, n in enumerate("abc", 1)}
    feed["M"] = np.array([[9], [-9]], np.float32)
    first = [feed[n.lower() if n != "M" else n].reshape(-1) for n in order]
    rewrite(file)
    np.testing.assert_array_equal(run(file, feed), np.stack(first, 1))
    assert (operations(file)["Transpose"] > 0) == (order != "AMBMAB")


def branch(nodes, name):
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, ["n"])]
    )


def test_what_a_subgraph_reads_stays():
    """Nodes, constants and the versions of operators, however deep the subgraph is."""
    inner = helper.make_node(
        "If",
        ["d"],
        ["inner"],
        then_branch=branch([helper.make_node("Add", ["y", "three"], ["deep"])], "deeper"),
        else_branch=branch(
            [helper.make_node("Gelu", ["y"], ["gelu"], domain="com.microsoft")], "other"
        ),
    )
    outer = helper.make_node(
        "If",
        ["c"],
        ["out"],
        then_branch=branch([inner, helper.make_node("Neg", ["inner"], ["negated"])], "then"),
        else_branch=branch([helper.make_node("Identity", ["y"], ["same"])], "else"),
    )
    file = model(
        [
            helper.make_node("Mul", ["x", "two"], ["y"]),
            helper.make_node("Mul", ["x", "unread"], ["z"]),
            outer,
        ],
        [("x", 1, ["n"]), ("c", TensorProto.BOOL, []), ("d", TensorProto.BOOL, [])],
        ("out", 1, ["n"]),
        [("two", np.float32(2)), ("three", np.float32(3)), ("unread", np.float32(4))],
    )
    file.opset_import.extend(
        [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    )
    rewrite(file)
    assert operations(file) == {"Mul": 1, "If": 1}
    assert [tensor.name for tensor in file.graph.initializer] == ["two", "three"]
    assert {i.domain for i in file.opset_import} == {"", "com.microsoft"}
    feed = {"x": np.array([1, 2], np.float32), "c": np.array(True), "d": np.array(True)}
    assert run(file, feed).tolist() == [-5, -7]
    assert run(file, feed | {"c": np.array(False)}).tolist() == [2, 4]


@tensorflow_only
@pytest.mark.parametrize("recurrent", ["GRU", "SimpleRNN"])
def test_recurrent_layers(tmp_path, recurrent):
    """Their loop is a subgraph that reads the embeddings and the weights from around it."""
    seen = keras.Input((6,), dtype="int32", name="seen")
    embedded = kx.layers.EmbeddingTable(20, 4)(seen)
    output = keras.layers.Dense(1)(getattr(keras.layers, recurrent)(5)(embedded))
    made = keras.Model({"seen": seen}, output)
    batch = {"seen": np.random.default_rng(0).integers(-1, 20, (3, 6)).astype("int32")}
    report = export.onnx(made, tmp_path / "m.onnx", check=batch)
    assert operations(onnx.load(report.path))["Loop"] == 1
    (got,) = export.load(report.path)(batch).values()
    np.testing.assert_allclose(got, made.predict_on_batch(batch), atol=1e-6)


@tensorflow_only
@pytest.mark.parametrize("singles", [(5, 0), (4, 1), (4, 3), (2, 2)])
def test_columns_are_joined(tmp_path, singles):
    before, after = singles
    features = [kx.Categorical(f"a{i}", 9) for i in range(before)]
    if after:
        features.append(kx.MultiHot("many", 9, length=3))
    features += [kx.Categorical(f"b{i}", 9) for i in range(after)]
    schema = kx.Schema(features)
    made = kx.models.FM(schema, dim=4)
    for layer in made.layers:
        if isinstance(layer, kx.layers.FeatureEmbedding):
            for name in schema.tables():
                layer.write_table(name, np.random.default_rng(0).normal(size=(9, 4)))
    report = export.onnx(made, tmp_path / "m.onnx")
    rng = np.random.default_rng(1)
    batch = schema.encode(
        {f.name: rng.integers(-1, 9, (50, *f.shape)) for f in schema},
    )
    compare(made, report.path, batch)
    found = operations(onnx.load(report.path))
    long = sum(count for count in singles if count >= 3)
    assert found["Transpose"] >= (1 if long else 0)
    assert found["Slice"] <= 2 * (before + after - long) + 8


@pytest.mark.slow
@tensorflow_only
def test_the_ends_of_a_table_of_more_than_2_to_the_24_rows(tmp_path):
    size = 2**24 + 3
    schema = kx.Schema([kx.Categorical("id", size)])
    made = kx.models.LogisticRegression(schema, optimizer=None)
    last = np.array([[1.5], [2.5], [3.5], [4.5]], np.float32)
    layer = next(x for x in made.layers if isinstance(x, kx.layers.FirstOrder)).embedding
    layer.tables[0].write_rows(last, size - 4)
    ids = np.array([size - 4, size - 3, size - 2, size - 1, size, size + 1, 0, -1], np.int32)
    for report in export.export_model(made, targets(tmp_path), check={"id": ids}):
        got = export.load(report.path)({"id": ids})["logit"][:, 0]
        np.testing.assert_array_equal(got, [1.5, 2.5, 3.5, 4.5, np.nan, np.nan, 0, 0])


@tensorflow_only
def test_whole_graph_is_short(tmp_path):
    schema = kx.Schema([kx.Categorical(f"f{i}", 50) for i in range(30)])
    made = kx.models.Wukong(
        schema, dim=4, num_layers=2, n_fmb=3, n_lcb=3, rank=4, mlp_units=(8,), head_units=(8,)
    )
    rng = np.random.default_rng(0)
    for weight in made.trainable_variables:
        # Zeros and ones would be left out by the converter.
        weight.assign(weight + rng.normal(size=weight.shape) / 10)
    report = export.onnx(made, tmp_path / "m.onnx")
    file = onnx.load(report.path)
    found = operations(file)
    # Nothing that only one runtime knows.
    assert [(i.domain, i.version) for i in file.opset_import] == [("", 18)]
    assert {node.domain for node in file.graph.node} == {""}
    # 3 for the inputs side by side, 9 from ids to rows, the lookup, 1 to columns; a layer has 12,
    # and 10 for the norm over its columns; the head has 4.
    assert sum(found.values()) <= 14 + 2 * 22 + 4
    assert (found["Gather"], found["Gemm"], found["LayerNormalization"]) == (1, 6, 2)
    assert not {"Slice", "Unsqueeze", "Cast", "Neg", "Shape"} & set(found)
    ids = {f.name: np.array([3, -1, 50, -2, 49], np.int32) for f in schema}
    got = export.load(report.path)(ids)["logit"]
    np.testing.assert_allclose(got, made.predict_on_batch(ids), atol=1e-5)
    assert np.isnan(got[:, 0]).tolist() == [False, False, True, True, False]
