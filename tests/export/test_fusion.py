"""Several operations of an ONNX graph as one: the same numbers, and nothing else is touched."""

import numpy as np
import pytest

from keras_exfm.export._rewrite import rewrite
from tests.export.test_rewrite import model, operations, run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

FLOAT, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL
HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE
EPSILON = np.float32(1e-3)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def normalization(axis=-1, gamma=True, beta=True, square="c", size=5):
    """As tf2onnx writes what Keras computes."""
    rng = np.random.default_rng(3)
    nodes = [
        node("ReduceMean", "x axes", "m", keepdims=1),
        node("Neg", "m", "n"),
        node("Sub", "x m", "c"),
        node("Mul", f"c {square}", "s"),
        node("ReduceMean", "s axes", "v", keepdims=1),
        node("Add", "v epsilon", "e"),
        node("Sqrt", "e", "q"),
        node("Reciprocal", "q", "r"),
        *([node("Mul", "r gamma", "k")] if gamma else [node("Identity", "r", "k")]),
        node("Mul", "x k", "a"),
        node("Mul", "n k", "b"),
        node("Add", "beta b" if beta else "b zero", "d"),
        node("Add", "a d", "out"),
    ]
    if not gamma:
        nodes = [n for n in nodes if n.op_type != "Identity"]
        for n in nodes:
            n.input[:] = ["r" if name == "k" else name for name in n.input]
    if not beta:
        nodes = [n for n in nodes if "zero" not in n.input]
        nodes[-1].input[:] = ["a", "b"]
    constants = {
        "axes": np.array([axis], np.int64),
        "epsilon": EPSILON,
        "gamma": rng.normal(size=(1, 1, size)).astype(np.float32),
        "beta": rng.normal(size=(1, 1, size)).astype(np.float32),
    }
    used = {name for n in nodes for name in n.input}
    return nodes, {name: value for name, value in constants.items() if name in used}


@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("axis", [-1, 2])
def test_layer_normalization(gamma, beta, axis):
    nodes, constants = normalization(axis, gamma, beta)
    file = model(nodes, [("x", FLOAT, ["n", 4, 5])], ("out", FLOAT, ["n", 4, 5]), constants.items())
    x = np.random.default_rng(0).normal(3, 10, (6, 4, 5)).astype(np.float32)
    x[1, 2] = 7
    x[5, 0, 0] = np.nan
    wide = x.astype(np.float64)
    wanted = wide - wide.mean(-1, keepdims=True)
    wanted /= np.sqrt(wide.var(-1, keepdims=True) + EPSILON)
    wanted = wanted * constants.get("gamma", 1) + constants.get("beta", 0)
    np.testing.assert_allclose(run(file, {"x": x}), wanted, atol=1e-4)
    rewrite(file)
    assert operations(file) == {"LayerNormalization": 1}
    np.testing.assert_allclose(run(file, {"x": x}), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"axis": 1, "size": 4}, {"square": "x", "size": 4}, {"size": 1}],
    ids=["axis", "square", "size"],
)
def test_what_only_looks_like_a_layer_normalization_stays(options):
    nodes, constants = normalization(**options)
    file = model(nodes, [("x", FLOAT, ["n", 4, 4])], ("out", FLOAT, ["n", 4, 4]), constants.items())
    before = operations(file)
    rewrite(file)
    assert operations(file) == before


@pytest.mark.parametrize(("kind", "fused"), [(HALF, True), (DOUBLE, False)])
@pytest.mark.parametrize("gamma", [True, False])
def test_layer_normalization_of_other_floats(kind, fused, gamma):
    """Not of doubles: ONNX computes the moments in float32."""
    nodes, constants = normalization(gamma=gamma)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {n: v if n == "axes" else v.astype(dtype) for n, v in constants.items()}
    file = model(nodes, [("x", kind, ["n", 4, 5])], ("out", kind, ["n", 4, 5]), constants.items())
    x = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(dtype)
    before = run(file, {"x": x})
    rewrite(file)
    assert (operations(file) == {"LayerNormalization": 1}) == fused
    np.testing.assert_allclose(run(file, {"x": x}), before, atol=1e-2 if fused else 0)


@pytest.mark.parametrize("name", ["gamma", "beta", "epsilon"])
def test_a_normalization_that_adds_an_axis_stays(name):
    nodes, constants = normalization()
    constants[name] = constants[name].reshape(1, 1, 1, -1)
    file = model(
        nodes, [("x", FLOAT, ["n", 4, 5])], ("out", FLOAT, [1, "n", 4, 5]), constants.items()
    )
    before = operations(file)
    rewrite(file)
    assert operations(file) == before


def test_an_older_opset_has_no_layer_normalization():
    nodes, constants = normalization()
    axes = constants.pop("axes")
    for n in nodes:
        if n.op_type == "ReduceMean":
            del n.input[1]
            n.attribute.append(helper.make_attribute("axes", axes))
    file = model(nodes, [("x", FLOAT, ["n", 4, 5])], ("out", FLOAT, ["n", 4, 5]), constants.items())
    file.opset_import[0].version = 16
    before = operations(file)
    rewrite(file)
    assert operations(file) == before


@pytest.mark.parametrize(("rows", "fused"), [(6, True), (5, False)])
def test_negative_indices_are_those_of_onnx(rows, fused):
    """Unless what is added to them is not the number of rows."""
    nodes = [
        node("Less", "i zero", "t"),
        node("Add", "i rows", "a"),
        node("Where", "t a i", "j"),
        node("Gather", "table j", "out", axis=0),
    ]
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    constants = {"zero": np.int32(0), "rows": np.int32(rows), "table": table}
    file = model(nodes, [("i", INT32, ["n"])], ("out", FLOAT, ["n", 2]), constants.items())
    i = np.array([0, 5, -1, -2, -5], np.int32)
    before = run(file, {"i": i})
    rewrite(file)
    assert (operations(file) == {"Gather": 1}) == fused
    np.testing.assert_array_equal(run(file, {"i": i}), before)


@pytest.mark.parametrize("table", [["rows", 2], [6, 2]])
def test_indices_moved_by_a_computed_number_stay(table):
    nodes = [
        node("Less", "i zero", "t"),
        node("Add", "i k", "a"),
        node("Where", "t a i", "j"),
        node("Gather", "x j", "out", axis=0),
    ]
    inputs = [("x", FLOAT, table), ("i", INT32, ["n"]), ("k", INT32, [1])]
    file = model(nodes, inputs, ("out", FLOAT, ["n", 2]), [("zero", np.int32(0))])
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    feed = {"x": x, "i": np.array([0, -1], np.int32), "k": np.array([2], np.int32)}
    assert run(file, feed).tolist() == [[0, 1], [2, 3]]
    rewrite(file)
    assert operations(file) == {"Less": 1, "Add": 1, "Where": 1, "Gather": 1}
    assert run(file, feed).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", ["zero", "rows"])
def test_indices_that_get_an_axis_stay(name):
    constants = {"zero": np.int32(0), "rows": np.int32(6)}
    constants[name] = constants[name].reshape(1)
    file = model(
        [
            node("Less", "i zero", "t"),
            node("Add", "i rows", "a"),
            node("Where", "t a i", "j"),
            node("Gather", "table j", "out", axis=0),
        ],
        [("i", INT32, [])],
        ("out", FLOAT, [1, 2]),
        [*constants.items(), ("table", np.arange(12, dtype=np.float32).reshape(6, 2))],
    )
    before = operations(file)
    rewrite(file)
    assert operations(file) == before
    assert run(file, {"i": np.array(-2, np.int32)}).tolist() == [[8, 9]]


@pytest.mark.parametrize(("kind", "fused"), [(INT32, True), (FLOAT, False)])
def test_negated_comparisons(kind, fused):
    file = model(
        [node("GreaterOrEqual", "a b", "t"), node("Not", "t", "out")],
        [("a", kind, ["n"]), ("b", kind, ["n"])],
        ("out", BOOL, ["n"]),
    )
    a, b = np.array([1, 2, 3]), np.array([2, 2, 2])
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    feed = {"a": a.astype(dtype), "b": b.astype(dtype)}
    if not fused:
        feed["a"][2] = np.nan
    before = run(file, feed)
    rewrite(file)
    assert operations(file) == ({"Less": 1} if fused else {"GreaterOrEqual": 1, "Not": 1})
    np.testing.assert_array_equal(run(file, feed), before)
    assert before.tolist() == [True, False, not fused]


@pytest.mark.parametrize(("fill", "fused"), [(0.0, True), (1.0, False)])
def test_rectifiers_keep_nan(fill, fused):
    value = numpy_helper.from_array(np.array([fill], np.float32))
    file = model(
        [
            node("LessOrEqual", "x zero", "t"),
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "z", value=value),
            node("Where", "t z x", "out"),
        ],
        [("x", FLOAT, ["n", 17])],
        ("out", FLOAT, ["n", 17]),
        [("zero", np.float32(0))],
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 17)).astype(np.float32)
    # Wherever it falls in a vector of the processor.
    x[np.arange(5), [0, 3, 8, 15, 16]] = np.nan
    x[0, 1:4] = [np.inf, -np.inf, 0]
    before = run(file, {"x": x})
    rewrite(file)
    assert (operations(file) == {"Max": 1}) == fused
    np.testing.assert_array_equal(run(file, {"x": x}), before)
    assert np.isnan(before).sum() == 5


@pytest.mark.parametrize(
    ("threshold", "zeros", "fused"),
    [((), (), True), ((1, 1), (3,), True), ((), (1, 1, 1), False), ((1, 1, 1), (), False),
     ((), (5, 1), False)],
)  # fmt: skip
def test_rectifiers_that_change_the_shape_stay(threshold, zeros, fused):
    """`Max(x, 0)` has the shape of `x`; a `Where` has that of all three."""
    fill = node("ConstantOfShape", "s", "z")
    constants = {"limit": np.zeros(threshold, np.float32), "s": np.array(zeros, np.int64)}
    shape = np.broadcast_shapes(threshold, zeros, (1, 3))
    file = model(
        [node("LessOrEqual", "x limit", "t"), fill, node("Where", "t z x", "out")],
        [("x", FLOAT, ["n", 3])],
        ("out", FLOAT, [*shape[:-2], "m", 3]),
        constants.items(),
    )
    x = np.array([[-1, 2, 0]], np.float32)
    before = run(file, {"x": x})
    rewrite(file)
    assert (operations(file) == {"Max": 1}) == fused
    after = run(file, {"x": x})
    assert before.shape == after.shape == shape
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("parted", "fused"), [((-1, 3, 2), True), ((-1, 6, 1), False), ((-1, 1, 2), False)]
)
def test_products_of_the_last_axis(parted, fused):
    rng = np.random.default_rng(0)
    constants = {
        "merge": np.array([-1, 4], np.int64),
        "part": np.array(parted, np.int64),
        "w": rng.normal(size=(4, 2)).astype(np.float32),
    }
    file = model(
        [
            node("Reshape", "x merge", "a"),
            node("MatMul", "a w", "b"),
            node("Reshape", "b part", "out"),
        ],
        [("x", FLOAT, ["n", 3, 4])],
        ("out", FLOAT, ["m", *parted[1:]]),
        constants.items(),
    )
    x = rng.normal(size=(5, 3, 4)).astype(np.float32)
    before = run(file, {"x": x})
    rewrite(file)
    assert operations(file) == ({"MatMul": 1} if fused else {"Reshape": 2, "MatMul": 1})
    np.testing.assert_allclose(run(file, {"x": x}), before, rtol=1e-6)
    if fused:
        np.testing.assert_allclose(before, x @ constants["w"], rtol=1e-5)


def test_a_vector_that_gets_an_axis_before_a_product_keeps_it():
    constants = {
        "merge": np.array([-1, 4], np.int64),
        "part": np.array([-1, 2], np.int64),
        "w": np.ones((4, 2), np.float32),
    }
    file = model(
        [
            node("Reshape", "x merge", "a"),
            node("MatMul", "a w", "b"),
            node("Reshape", "b part", "out"),
        ],
        [("x", FLOAT, [4])],
        ("out", FLOAT, ["n", 2]),
        constants.items(),
    )
    rewrite(file)
    assert run(file, {"x": np.arange(4, dtype=np.float32)}).tolist() == [[6, 6]]


def flattened(extra=(), perm=(0, 2, 1)):
    rng = np.random.default_rng(0)
    constants = {
        "flat": np.array([-1, 12], np.int64),
        "w": rng.normal(size=(12, 2)).astype(np.float32),
        "u": rng.normal(size=(12, 2)).astype(np.float32),
    }
    nodes = [
        node("Transpose", "x", "t", perm=perm),
        node("Reshape", "t flat", "f"),
        node("MatMul", "f w", "a"),
        *(extra or [node("MatMul", "f u", "b")]),
        node("Sub", "a b", "out"),
    ]
    file = model(nodes, [("x", FLOAT, ["n", 3, 4])], ("out", FLOAT, ["n", 2]), constants.items())
    return file, constants, rng.normal(size=(5, 3, 4)).astype(np.float32)


def test_a_transposition_moves_into_the_kernels():
    file, constants, x = flattened()
    wanted = x.transpose(0, 2, 1).reshape(5, 12) @ (constants["w"] - constants["u"])
    np.testing.assert_allclose(run(file, {"x": x}), wanted, atol=1e-5)
    rewrite(file)
    assert operations(file) == {"Reshape": 1, "MatMul": 2, "Sub": 1}
    np.testing.assert_allclose(run(file, {"x": x}), wanted, atol=1e-5)


def test_a_transposition_stays_where_its_result_is_an_output():
    file, _, _ = flattened()
    file.graph.output.append(helper.make_tensor_value_info("f", FLOAT, ["n", 12]))
    rewrite(file)
    assert operations(file)["Transpose"] == 1


def test_a_transposition_stays_where_others_read_it():
    extra = [node("Slice", "f zero two one", "b")]
    file, _, x = flattened(extra)
    for name, value in (("zero", 0), ("two", 2), ("one", 1)):
        file.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    before = run(file, {"x": x})
    rewrite(file)
    assert operations(file)["Transpose"] == 1
    np.testing.assert_array_equal(run(file, {"x": x}), before)


def branch(kind, value, width):
    out = f"{kind}/out"
    return helper.make_graph(
        [node(kind, value, out)],
        kind,
        [],
        [helper.make_tensor_value_info(out, FLOAT, ["n", width])],
    )


def test_a_transposition_stays_where_a_subgraph_reads_its_result():
    choice = helper.make_node(
        "If",
        ["c"],
        ["chosen"],
        then_branch=branch("Identity", "f", 12),
        else_branch=branch("Neg", "f", 12),
    )
    file, _, x = flattened([choice, node("MatMul", "chosen u", "b")])
    file.graph.input.append(helper.make_tensor_value_info("c", BOOL, []))
    feed = {"x": x, "c": np.array(True)}
    before = run(file, feed)
    rewrite(file)
    assert operations(file)["Transpose"] == 1
    np.testing.assert_array_equal(run(file, feed), before)


def test_a_transposition_before_many_matrices_stays():
    kernels = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)
    file = model(
        [
            node("Transpose", "x", "t", perm=[0, 2, 1]),
            node("Reshape", "t flat", "f"),
            node("MatMul", "f w", "out"),
        ],
        [("x", FLOAT, ["n", 3, 4])],
        ("out", FLOAT, [2, "n", 5]),
        [("flat", np.array([-1, 12], np.int64)), ("w", kernels)],
    )
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    before = run(file, {"x": x})
    rewrite(file)
    np.testing.assert_array_equal(run(file, {"x": x}), before)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("bias", "fused"), [((3,), True), ((1,), False)])
def test_dense_layers(swapped, bias, fused):
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3)).astype(np.float32),
        "bias": rng.normal(size=bias).astype(np.float32),
    }
    file = model(
        [node("MatMul", "x w", "p"), node("Add", "bias p" if swapped else "p bias", "out")],
        [("x", FLOAT, ["n", 4])],
        ("out", FLOAT, ["n", 3]),
        constants.items(),
    )
    x = rng.normal(size=(5, 4)).astype(np.float32)
    rewrite(file)
    assert operations(file) == ({"Gemm": 1} if fused else {"MatMul": 1, "Add": 1})
    np.testing.assert_allclose(
        run(file, {"x": x}), x @ constants["w"] + constants["bias"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("kind", "fused"), [(HALF, True), (DOUBLE, True), (INT32, False)])
def test_dense_layers_of_other_numbers(kind, fused):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    file = model(
        [node("MatMul", "x w", "p"), node("Add", "p bias", "out")],
        [("x", kind, ["n", 4])],
        ("out", kind, ["n", 3]),
        [("w", np.ones((4, 3), dtype)), ("bias", np.arange(3).astype(dtype))],
    )
    rewrite(file)
    assert operations(file) == ({"Gemm": 1} if fused else {"MatMul": 1, "Add": 1})
    assert run(file, {"x": np.ones((2, 4), dtype)}).tolist() == [[4, 5, 6]] * 2


def test_a_product_that_others_read_is_no_dense_layer():
    file = model(
        [node("MatMul", "x w", "p"), node("Add", "p bias", "q"), node("Mul", "p q", "out")],
        [("x", FLOAT, ["n", 4])],
        ("out", FLOAT, ["n", 3]),
        [("w", np.ones((4, 3), np.float32)), ("bias", np.ones(3, np.float32))],
    )
    rewrite(file)
    assert operations(file) == {"MatMul": 1, "Add": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("start", "end", "step", "dropped"),
    [(0, 2**31 - 1, 1, True), (0, 3, 1, False), (1, 2**31 - 1, 1, False), (0, 2**31 - 1, 2, False)],
)
def test_slices_that_take_everything(start, end, step, dropped):
    constants = {
        name: np.array([value], np.int64)
        for name, value in (("a", start), ("b", end), ("axes", 0), ("c", step))
    }
    file = model(
        [node("Slice", "x a b axes c", "s"), node("Neg", "s", "out")],
        [("x", FLOAT, ["n"])],
        ("out", FLOAT, ["m"]),
        constants.items(),
    )
    x = np.arange(4, dtype=np.float32)
    before = run(file, {"x": x})
    rewrite(file)
    assert operations(file) == ({"Neg": 1} if dropped else {"Slice": 1, "Neg": 1})
    np.testing.assert_array_equal(run(file, {"x": x}), before)


def test_a_slice_that_takes_everything_stays_where_a_subgraph_reads_it():
    constants = {
        name: np.array([value], np.int64)
        for name, value in (("a", 0), ("b", 2**31 - 1), ("axes", 0), ("c", 1))
    }
    choice = helper.make_node(
        "If", ["yes"], ["i"], then_branch=branch("Abs", "s", 2), else_branch=branch("Neg", "s", 2)
    )
    file = model(
        [node("Slice", "x a b axes c", "s"), choice, node("Add", "s i", "out")],
        [("x", FLOAT, ["n", 2]), ("yes", BOOL, [])],
        ("out", FLOAT, ["n", 2]),
        constants.items(),
    )
    rewrite(file)
    assert file.graph.node[-1].input[0] == "x"
    feed = {"x": np.array([[1, -2]], np.float32), "yes": np.array(False)}
    assert run(file, feed).tolist() == [[0, 0]]
