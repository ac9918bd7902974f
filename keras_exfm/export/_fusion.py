"""Several operations of an ONNX graph as one that computes the same.

The patterns are those that tf2onnx leaves of Keras' layers and ours. What a pass does not recognize
with certainty, it leaves as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_exfm.export._onnx_graph import OnnxGraph, attribute

# What the converter takes for the end of any axis.
_END = 1_000_000_000
# The first opset with `LayerNormalization`.
_LAYER_NORM = 17


def whole_slices(graph: OnnxGraph) -> None:
    """Drops slices that take everything, as the converter writes `ids[:, None]`."""
    for node in graph.nodes:
        if node.op_type != "Slice" or graph.is_output(node.output[0]):
            continue
        starts, ends = (graph.value(name) for name in node.input[1:3])
        steps = graph.value(node.input[4]) if len(node.input) > 4 else np.ones(1)
        if (
            starts is not None
            and ends is not None
            and steps is not None
            and not starts.any()
            and (ends >= _END).all()
            and (steps == 1).all()
        ):
            graph.bypass(node)


def wrapped_indices(graph: OnnxGraph) -> None:
    """`Gather(x, Where(i < 0, i + n, i))` as `Gather(x, i)`, `x` of `n` rows.

    ONNX counts a negative index from the end, as `keras.ops.take` does.
    """
    for node in graph.nodes:
        if node.op_type != "Gather":
            continue
        rows = graph.shapes.get(node.input[0])
        where = graph.made_by(node.input[1], "Where")
        if where is None or not rows:
            continue
        test, moved, index = where.input
        less, add = graph.made_by(test, "Less"), graph.made_by(moved, "Add")
        if less is None or add is None or less.input[0] != index or index not in add.input:
            continue
        size = next((graph.number(name) for name in add.input if name != index), None)
        if (
            size is not None
            and size == rows[attribute(node, "axis", 0)]
            and graph.number(less.input[1]) == 0
            and all(_keeps_shape(graph, name, index) for name in (*add.input, less.input[1]))
        ):
            node.input[1] = index


def negated_comparisons(graph: OnnxGraph) -> None:
    """`Not(a >= b)` of integers as `a < b`; of other numbers NaN makes them differ."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Not":
            continue
        compared = graph.made_by(node.input[0], "GreaterOrEqual")
        if compared is not None and graph.types.get(compared.input[0]) in graph.integers:
            graph.replace(node, [helper.make_node("Less", compared.input, list(node.output))])


def rectifiers(graph: OnnxGraph) -> None:
    """`Where(x <= 0, 0, x)` as `Max(x, 0)`: both keep NaN."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Where":
            continue
        test, zeros, x = node.input
        compared = graph.made_by(test, "LessOrEqual")
        if compared is None or compared.input[0] != x or graph.number(compared.input[1]) != 0:
            continue
        if _keeps_shape(graph, compared.input[1], x) and _is_zero(graph, zeros, x):
            scalar = graph.add_constant(
                f"{node.output[0]}/zero",
                np.zeros((), helper.tensor_dtype_to_np_dtype(graph.types[x])),
            )
            graph.replace(node, [helper.make_node("Max", [x, scalar], list(node.output))])


def _is_zero(graph: OnnxGraph, name: str, x: str) -> bool:
    """Whether a value is a zero, or zeros, that `x` keeps its shape beside."""
    made = graph.made_by(name, "ConstantOfShape")
    if made is None:
        return graph.number(name) == 0 and _keeps_shape(graph, name, x)
    import onnx

    shape, value = graph.made_by(made.input[0], "Shape"), attribute(made, "value")
    of_x = shape is not None and list(shape.input) == [x] and not shape.attribute
    return (value is None or not onnx.numpy_helper.to_array(value).any()) and (
        of_x or _keeps_shape(graph, name, x)
    )


def _keeps_shape(graph: OnnxGraph, name: str, x: str) -> bool:
    """Whether `x` has its own shape when it is broadcast against another value."""
    shape, own = graph.shapes.get(name), graph.shapes.get(x, ())
    if name == x or shape == ():
        return True
    return (
        shape is not None
        and len(shape) <= len(own)
        and all(
            size == 1 or (size is not None and size == kept)
            for size, kept in zip(shape[::-1], own[::-1])
        )
    )


def layer_normalizations(graph: OnnxGraph) -> None:
    """Keras' layer normalization of the last axis as `LayerNormalization`.

    Keras computes `x * s + (beta - mean * s)` with `s = gamma / sqrt(variance + epsilon)`. No beta,
    or zeros, and no gamma, or ones, are not in the graph.
    """
    from onnx import helper

    if not any(i.domain == "" and i.version >= _LAYER_NORM for i in graph.model.opset_import):
        return
    for node in list(graph.nodes):
        if node.op_type != "Add":
            continue
        found = _layer_norm(graph, node)
        if found is not None:
            x, gamma, beta, epsilon = found
            inputs = [x, graph.add_constant(f"{node.output[0]}/gamma", gamma)]
            if beta is not None:
                inputs.append(graph.add_constant(f"{node.output[0]}/beta", beta))
            made = helper.make_node(
                "LayerNormalization", inputs, list(node.output), axis=-1, epsilon=epsilon
            )
            graph.replace(node, [made])


def _layer_norm(graph: OnnxGraph, node: Any) -> tuple[str, Any, Any, float] | None:
    """Input, gamma, beta and epsilon of the normalization that ends in a node."""
    from onnx import TensorProto, helper

    for scaled_name, shift_name in (tuple(node.input), tuple(node.input)[::-1]):
        scaled, beta, product = graph.made_by(scaled_name, "Mul"), None, None
        shift = graph.made_by(shift_name, "Add")
        if shift is None:
            product = graph.made_by(shift_name, "Mul")
        elif (found := graph.one_of(shift, "Mul")) is not None:
            product, beta = found[0], graph.value(found[1])
        negated = None if product is None else graph.one_of(product, "Neg")
        if scaled is None or negated is None or (shift is not None and beta is None):
            continue
        mean, scale = graph.made_by(negated[0].input[0], "ReduceMean"), negated[1]
        if mean is None or sorted(scaled.input) != sorted([mean.input[0], scale]):
            continue
        x = mean.input[0]
        shape = graph.shapes.get(x) or (None,)
        rank, size = len(shape), shape[-1]
        deviation = _inverse_deviation(graph, scale, x, mean)
        if size is None or deviation is None:
            continue
        kind = graph.types.get(x)
        # The moments of `LayerNormalization` are float32, of doubles too.
        if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        gamma, epsilon = deviation
        gamma = np.ones(size, dtype) if gamma is None else gamma
        if all(
            w is None or (w.dtype == dtype and 0 < w.ndim <= rank and w.size == w.shape[-1] == size)
            for w in (gamma, beta)
        ):
            return x, gamma.reshape(-1), None if beta is None else beta.reshape(-1), epsilon
    return None


def _inverse_deviation(
    graph: OnnxGraph, scale: str, x: str, mean: Any
) -> tuple[np.ndarray | None, float] | None:
    """Gamma and epsilon, if `scale` is `gamma / sqrt(variance + epsilon)`, along the last axis."""
    inverse, gamma = graph.made_by(scale, "Reciprocal"), None
    if inverse is None:
        weighted = graph.made_by(scale, "Mul")
        found = None if weighted is None else graph.one_of(weighted, "Reciprocal")
        if found is None or (gamma := graph.value(found[1])) is None:
            return None
        inverse = found[0]
    root = graph.made_by(inverse.input[0], "Sqrt")
    padded = None if root is None else graph.made_by(root.input[0], "Add")
    variance = None if padded is None else graph.one_of(padded, "ReduceMean")
    if variance is None or (epsilon := graph.number(variance[1])) is None:
        return None
    square = graph.made_by(variance[0].input[0], "Mul")
    centred = None if square is None else graph.made_by(square.input[0], "Sub")
    if (
        centred is None
        or not _keeps_shape(graph, variance[1], x)
        or square.input[0] != square.input[1]
        or list(centred.input) != [x, mean.output[0]]
        or not all(_over_last_axis(graph, node, x) for node in (mean, variance[0]))
    ):
        return None
    return gamma, float(epsilon)


def _over_last_axis(graph: OnnxGraph, node: Any, x: str) -> bool:
    axes = graph.value(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    last = len(graph.shapes.get(x, ())) - 1
    return axes is not None and list(axes) in ([-1], [last]) and attribute(node, "keepdims", 1) == 1


def last_axis_products(graph: OnnxGraph) -> None:
    """A matrix product between two reshapes that only merge and part its leading axes, alone."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Reshape":
            continue
        product = graph.made_by(node.input[0], "MatMul")
        merged = None if product is None else graph.made_by(product.input[0], "Reshape")
        if merged is None:
            continue
        x, kernel, target = merged.input[0], product.input[1], graph.value(node.input[1])
        source, weight = graph.shapes.get(x), graph.shapes.get(kernel)
        flat = graph.value(merged.input[1])
        if not source or len(source) < 2 or not weight or len(weight) != 2:
            continue
        if target is None or flat is None:
            continue
        inner = source[1:]
        if (
            len(flat) == 2
            and flat[1] == source[-1]
            and None not in inner
            and target.tolist() == [-1, *inner[:-1], weight[1]]
        ):
            graph.replace(node, [helper.make_node("MatMul", [x, kernel], list(node.output))])


def flattened_transposes(graph: OnnxGraph) -> None:
    """A transposition before a dense layer on the flattened input, done to its kernel instead."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Reshape":
            continue
        swap, flat = graph.made_by(node.input[0], "Transpose"), node.output[0]
        target = graph.value(node.input[1])
        if swap is None or target is None or attribute(swap, "perm") != [0, 2, 1]:
            continue
        _, rows, columns = graph.shapes.get(swap.input[0], (None,) * 3)
        if rows is None or columns is None or target.tolist() != [-1, rows * columns]:
            continue
        readers = graph.readers(flat)
        if graph.is_output(flat) or not all(
            r.op_type == "MatMul"
            and r.input[0] == flat
            and (kernel := graph.value(r.input[1])) is not None
            and kernel.ndim == 2
            for r in readers
        ):
            continue
        for reader in readers:
            kernel = graph.value(reader.input[1])
            assert kernel is not None
            moved = kernel.reshape(columns, rows, -1).transpose(1, 0, 2).reshape(kernel.shape)
            name = graph.add_constant(f"{reader.input[1]}/rows_{rows}x{columns}", moved)
            made = helper.make_node("MatMul", [flat, name], list(reader.output))
            graph.replace(reader, [made])
        made = helper.make_node("Reshape", [swap.input[0], node.input[1]], [flat])
        graph.replace(node, [made])


def dense_layers(graph: OnnxGraph) -> None:
    """A product of matrices and the bias that is added to it as `Gemm`.

    Runtimes have it for real numbers only.
    """
    from onnx import TensorProto, helper

    real = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
    for node in list(graph.nodes):
        if node.op_type != "Add":
            continue
        found = graph.one_of(node, "MatMul")
        if found is None:
            continue
        product, bias = found
        shapes = [graph.shapes.get(name, ()) for name in product.input]
        value = graph.value(bias)
        if (
            [len(shape) for shape in shapes] == [2, 2]
            and graph.types.get(product.input[0]) in real
            and value is not None
            and value.shape == shapes[1][1:]
            and len(graph.readers(product.output[0])) == 1
            and not graph.is_output(product.output[0])
        ):
            made = helper.make_node("Gemm", [*product.input, bias], list(node.output))
            graph.replace(node, [made])
