"""What tf2onnx writes in a roundabout way, written plainly.

Each pass replaces a pattern of operations by one that computes the same, or the same exactly where
the converter's form was not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# What the converter takes for the end of any axis.
_END = 1_000_000_000


def rewrite(model: Any) -> None:
    """Applies all passes to a model, in place."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    graph = _Graph(model, inferred)
    _compare_integers(graph)
    _select(graph)
    _join_columns(graph)
    graph.finish()


class _Graph:
    """Nodes by what they give, constants by name."""

    def __init__(self, model: Any, inferred: Any) -> None:
        import onnx

        self.model = model
        self.nodes = list(model.graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.constants = {
            tensor.name: tensor for tensor in model.graph.initializer if not tensor.external_data
        }
        self.types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.ranks: dict[str, int] = {}
        for value in (
            *inferred.graph.value_info,
            *inferred.graph.input,
            *inferred.graph.output,
        ):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self.ranks[value.name] = len(kind.shape.dim)
        self.integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}

    def made_by(self, name: str, kind: str) -> Any:
        """The node that gives a value, if it is of this kind."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant."""
        import onnx

        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """A new constant, or the one of this name."""
        import onnx

        if name not in self.constants:
            tensor = onnx.numpy_helper.from_array(value, name)
            self.constants[name] = tensor
            self.types[name] = tensor.data_type
            self.model.graph.initializer.append(tensor)
        return name

    def replace(self, old: Any, new: Iterable[Any]) -> None:
        """Puts nodes where another one stood; the last of them gives its values."""
        new = list(new)
        at = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = new
        self.maker |= {output: node for node in new for output in node.output}

    def finish(self) -> None:
        """Drops what nothing reads any more, and writes the rest into the model."""
        graph = self.model.graph
        wanted = {output.name for output in graph.output}
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= {name for name in node.input if name}
        copies = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)
        unused = [tensor for tensor in graph.initializer if tensor.name not in wanted]
        for tensor in unused:
            graph.initializer.remove(tensor)


def _compare_integers(graph: _Graph) -> None:
    """`Less(Cast(a), Cast(b))` of integers as `Less(a, b)`.

    The converter compares in float32. A constant above 2 ** 24 has lost its last digits by then, so
    such a comparison is left as it is; `layers.embedding_table.in_range` makes none.
    """
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type not in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
            continue
        sources = []
        for name in node.input:
            cast = graph.made_by(name, "Cast")
            if cast is not None and graph.types.get(cast.input[0]) in graph.integers:
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
                inputs.append(graph.add_constant(f"{name}/whole", value.astype(dtype)))
        if len(inputs) == 2:
            graph.replace(node, [helper.make_node(node.op_type, inputs, list(node.output))])


def _exact(value: np.ndarray) -> bool:
    """Whether float32 holds just these integers and no others that round to them."""
    return bool((value == np.rint(value)).all() and (np.abs(value) <= 2**24).all())


def _select(graph: _Graph) -> None:
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


def _join_columns(graph: _Graph) -> None:
    """Columns `(batch,)` side by side: one concatenation and one transposition for all of them.

    The converter gives each column an axis of its own first, two operations a feature.
    """
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Concat" or [a.i for a in node.attribute if a.name == "axis"] != [1]:
            continue
        plain = [_column(graph, name) for name in node.input]
        runs: list[tuple[bool, list[str]]] = []
        for name, column in zip(node.input, plain):
            single = column is not None
            if not runs or runs[-1][0] != single:
                runs.append((single, []))
            runs[-1][1].append(column or name)
        if max((len(names) for single, names in runs if single), default=0) < 3:
            continue
        made, parts = [], []
        for number, (single, names) in enumerate(runs):
            if not single or len(names) < 3:
                if single:
                    names = [n for n, c in zip(node.input, plain) if c in names]
                parts += names
                continue
            stem = f"{node.output[0]}/columns_{number}"
            shape = graph.add_constant(f"{stem}/shape", np.array([len(names), -1], np.int64))
            whole = len(runs) == 1
            end = node.output[0] if whole else stem
            made += [
                helper.make_node("Concat", names, [f"{stem}/flat"], axis=0),
                helper.make_node("Reshape", [f"{stem}/flat", shape], [f"{stem}/rows"]),
                helper.make_node("Transpose", [f"{stem}/rows"], [end], perm=[1, 0]),
            ]
            parts.append(end)
        if len(runs) > 1:
            made.append(helper.make_node("Concat", parts, list(node.output), axis=1))
        graph.replace(node, made)


def _column(graph: _Graph, name: str) -> str | None:
    """The one-dimensional value that this one is, with an axis added behind."""
    node = graph.maker.get(name)
    if node is not None and node.op_type == "Slice":
        # All of it, as the converter writes `ids[:, None]`.
        starts, ends = (graph.value(i) for i in node.input[1:3])
        if starts is None or ends is None or starts.any() or (ends < _END).any():
            return None
        node = graph.maker.get(node.input[0])
    if node is None or node.op_type != "Unsqueeze" or len(node.input) != 2:
        return None
    axes = graph.value(node.input[1])
    source = node.input[0]
    if axes is None or axes.tolist() not in ([1], [-1]) or graph.ranks.get(source) != 1:
        return None
    return source
