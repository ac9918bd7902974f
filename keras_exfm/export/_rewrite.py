"""What tf2onnx writes in a roundabout way, written plainly.

Each pass replaces a pattern of operations by one that computes the same, or the same exactly where
the converter's form was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_exfm.export import _fusion
from keras_exfm.export._onnx_graph import OnnxGraph


def rewrite(model: Any) -> None:
    """Applies all passes to a model, in place."""
    graph = OnnxGraph(model)
    for change in (
        _fusion.whole_slices,
        _compare_integers,
        _select,
        _join_columns,
        _fusion.wrapped_indices,
        _fusion.negated_comparisons,
        _fusion.rectifiers,
        _fusion.layer_normalizations,
        _fusion.last_axis_products,
        _fusion.flattened_transposes,
        _fusion.dense_layers,
    ):
        change(graph)
        graph.drop_unread()
    graph.finish()


def _compare_integers(graph: OnnxGraph) -> None:
    """`Less(Cast(a), Cast(b))` of integers cast to float32 as `Less(a, b)`.

    The converter compares so. A constant above 2 ** 24 has lost its last digits by then, so
    such a comparison is left as it is; `layers.embedding_table.in_range` makes none.
    """
    from onnx import TensorProto, helper

    for node in list(graph.nodes):
        if node.op_type not in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
            continue
        sources = []
        for name in node.input:
            cast = graph.made_by(name, "Cast")
            # A cast to fewer digits, such as int32, may wrap; that comparison is another one.
            if (
                cast is not None
                and helper.get_node_attr_value(cast, "to") == TensorProto.FLOAT
                and graph.types.get(cast.input[0]) in graph.integers
            ):
                sources.append((cast.input[0], graph.types[cast.input[0]]))
            else:
                sources.append((name, None))
        kinds = {kind for _, kind in sources if kind is not None}
        if len(kinds) != 1:
            continue
        kind = kinds.pop()
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        inputs = []
        for name, known in sources:
            value = None if known is not None else graph.value(name)
            if known is not None:
                inputs.append(name)
            elif value is not None and _exact(value):
                inputs.append(graph.add_constant(f"{name}/{dtype.name}", value.astype(dtype)))
        if len(inputs) == 2:
            graph.replace(node, [helper.make_node(node.op_type, inputs, list(node.output))])


def _exact(value: np.ndarray) -> bool:
    """Whether float32 holds just these integers and no others that round to them."""
    return bool((value == np.rint(value)).all() and (np.abs(value) <= 2**24).all())


def _select(graph: OnnxGraph) -> None:
    """`Cast(c) * a + Cast(not c) * b` as `Where(c, a, b)`: one operation, and exact for NaN."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Add":
            continue
        products = [graph.made_by(name, "Mul") for name in node.input]
        if None in products:
            continue
        found: dict[bool, tuple[str, str]] = {}
        for product in products:
            for mask, other in (tuple(product.input), tuple(product.input)[::-1]):
                cast = graph.made_by(mask, "Cast")
                if cast is None:
                    continue
                negated = graph.made_by(cast.input[0], "Not")
                source = cast.input[0] if negated is None else negated.input[0]
                found.setdefault(negated is None, (source, other))
                break
        if set(found) != {True, False} or found[True][0] != found[False][0]:
            continue
        inputs = [found[True][0], found[True][1], found[False][1]]
        graph.replace(node, [helper.make_node("Where", inputs, list(node.output))])


def _join_columns(graph: OnnxGraph) -> None:
    """Columns `(batch,)` side by side: one concatenation and one transposition for all of them.

    The converter gives each column an axis of its own first, two operations a feature.
    """
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Concat" or [a.i for a in node.attribute if a.name == "axis"] != [1]:
            continue
        # Inputs as they are, and the columns that those of a run are, if it is one of columns.
        runs: list[tuple[list[str], list[str]]] = []
        for name in node.input:
            column = _column(graph, name)
            if not runs or bool(runs[-1][1]) != (column is not None):
                runs.append(([], []))
            runs[-1][0].append(name)
            runs[-1][1].extend([] if column is None else [column])
        if max((len(columns) for _, columns in runs), default=0) < 3:
            continue
        made, parts = [], []
        for number, (names, columns) in enumerate(runs):
            if len(columns) < 3:
                parts += names
                continue
            stem = f"{node.output[0]}/columns_{number}"
            shape = graph.add_constant(f"{stem}/shape", np.array([len(columns), -1], np.int64))
            whole = len(runs) == 1
            end = node.output[0] if whole else stem
            made += [
                helper.make_node("Concat", columns, [f"{stem}/flat"], axis=0),
                helper.make_node("Reshape", [f"{stem}/flat", shape], [f"{stem}/rows"]),
                helper.make_node("Transpose", [f"{stem}/rows"], [end], perm=[1, 0]),
            ]
            parts.append(end)
        if len(runs) > 1:
            made.append(helper.make_node("Concat", parts, list(node.output), axis=1))
        graph.replace(node, made)


def _column(graph: OnnxGraph, name: str) -> str | None:
    """The one-dimensional value that this one is, with an axis added behind."""
    node = graph.maker.get(name)
    if node is None or node.op_type != "Unsqueeze" or len(node.input) != 2:
        return None
    axes = graph.value(node.input[1])
    source = node.input[0]
    if axes is None or axes.tolist() not in ([1], [-1]) or len(graph.shapes.get(source, ())) != 1:
        return None
    return source
