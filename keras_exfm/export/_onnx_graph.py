"""An ONNX graph that passes read and change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class OnnxGraph:
    """Nodes by what they give, constants by name, types and shapes.

    Args:
        model: An `onnx.ModelProto`; `finish` changes it in place.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model)
        self.model = model
        self.nodes = list(model.graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.constants = {
            tensor.name: tensor for tensor in model.graph.initializer if not tensor.external_data
        }
        self.types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        # A free dimension is `None`.
        self.shapes: dict[str, tuple[int | None, ...]] = {
            tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer
        }
        for value in (
            *inferred.graph.value_info,
            *inferred.graph.input,
            *inferred.graph.output,
        ):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self.shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim
                )
        self.integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}

    def made_by(self, name: str, kind: str) -> Any:
        """The node that gives a value, if it is of this kind."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def one_of(self, node: Any, kind: str) -> tuple[Any, str] | None:
        """The node of this kind that gives either input of a node of two, and its other input."""
        for name, other in zip(node.input, reversed(node.input)):
            made = self.made_by(name, kind)
            if made is not None:
                return made, other
        return None

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant."""
        import onnx

        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def number(self, name: str) -> float | int | None:
        """The value of a constant of one number."""
        value = self.value(name)
        return None if value is None or value.size != 1 else value.reshape(()).item()

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """A new constant, or the one of this name."""
        import onnx

        if name not in self.constants:
            tensor = onnx.numpy_helper.from_array(np.asarray(value, order="C"), name)
            self.constants[name] = tensor
            self.types[name] = tensor.data_type
            self.shapes[name] = value.shape
            self.model.graph.initializer.append(tensor)
        return name

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a value, as an input or in a subgraph of theirs."""
        return [node for node in self.nodes if name in reads(node)]

    def is_output(self, name: str) -> bool:
        """Whether a value leaves the graph."""
        return any(output.name == name for output in self.model.graph.output)

    def replace(self, old: Any, new: Iterable[Any]) -> None:
        """Puts nodes where another one stood; the last of them gives its values."""
        new = list(new)
        at = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = new
        self.maker |= {output: node for node in new for output in node.output}

    def bypass(self, old: Any) -> None:
        """Has nodes that take a node's value as an input take its first input instead.

        Subgraphs are left as they are; `drop_unread` keeps the node if one of them reads it.
        """
        for node in self.readers(old.output[0]):
            for i, name in enumerate(node.input):
                if name == old.output[0]:
                    node.input[i] = old.input[0]

    def drop_unread(self) -> None:
        """Drops nodes that nothing reads any more."""
        wanted = {output.name for output in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= reads(node)
        self.nodes = kept[::-1]
        self.maker = {output: node for node in self.nodes for output in node.output}

    def finish(self) -> None:
        """Writes what is read into the model."""
        self.drop_unread()
        graph = self.model.graph
        wanted = {output.name for output in graph.output}
        wanted |= {name for node in self.nodes for name in reads(node)}
        copies = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(copies)
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in wanted]:
            graph.initializer.remove(tensor)
        domains = {"", *(inner.domain for node in self.nodes for inner in _with_inner(node))}
        for entry in [e for e in self.model.opset_import if e.domain not in domains]:
            self.model.opset_import.remove(entry)


def reads(node: Any) -> set[str]:
    """The values that a node reads: its inputs, and what its subgraphs take from around them."""
    found = {name for name in node.input if name}
    for graph in _subgraphs(node):
        inner = {name for one in graph.node for name in reads(one)}
        inner |= {output.name for output in graph.output}
        inner -= {value.name for value in (*graph.input, *graph.initializer)}
        found |= inner - {name for one in graph.node for name in one.output}
    return found


def _subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that an `If`, `Loop` or `Scan` runs."""
    for one in node.attribute:
        if one.HasField("g"):
            yield one.g
        yield from one.graphs


def _with_inner(node: Any) -> Iterator[Any]:
    """A node and those of its subgraphs."""
    yield node
    for graph in _subgraphs(node):
        for one in graph.node:
            yield from _with_inner(one)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    import onnx

    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default
