"""What a SavedModel may do when it is loaded and called: compute."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Operations with a state or a side effect that a served model needs. The others with one are
# refused: they run Python, touch files, print, or talk to another machine.
_STATEFUL = {
    "AnonymousHashTable",
    "Assert",
    "AssignVariableOp",
    "DestroyResourceOp",
    "HashTableV2",
    "If",
    "LookupTableFindV2",
    "LookupTableImportV2",
    "LookupTableSizeV2",
    "NoOp",
    "PartitionedCall",
    "Placeholder",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "StatefulPartitionedCall",
    "StatefulRandomBinomial",
    "VarHandleOp",
    "VarIsInitializedOp",
    "VariableShape",
    "While",
    "XlaCallModule",
}
# Without a state by TensorFlow's book, but they read what they name.
_READERS = {
    "DebugIdentity",
    "DebugIdentityV2",
    "DecodeProtoV2",
    "EncodeProto",
    "ImmutableConst",
    "MatchingFiles",
    "MergeV2Checkpoints",
    "PyFuncStateless",
    "ReadFile",
    "RemoteCall",
    "Restore",
    "RestoreSlice",
    "RestoreV2",
    "TextFileLineDataset",
}


def check(folder: Path) -> None:
    """Refuses a SavedModel whose functions hold an operation that is not computation.

    TensorFlow calls SavedModels programs: their graph may read and write files. What saves and
    restores a checkpoint is in every one; it is let through where nothing else can reach it, since
    loading restores variables without it.

    Raises:
        ValueError: Names the function and the operation.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    for graph in proto.meta_graphs:
        functions = {f.signature.name: f for f in graph.graph_def.library.function}
        nodes = {node.name: node for node in graph.graph_def.node}
        saver = {
            name.split(":")[0]
            for name in (graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name)
        }
        # The saver's helper nodes stand beside its two entries.
        entries = _reachable(nodes, saver)
        served = _reachable(
            nodes,
            {
                tensor.name.split(":")[0]
                for signature in graph.signature_def.values()
                for tensor in (*signature.inputs.values(), *signature.outputs.values())
            },
        )
        exempt = _calls((nodes[n] for n in entries - served), functions)
        exempt -= _calls((nodes[n] for n in nodes if n not in entries or n in served), functions)
        exempt -= _calls_of(set(graph.object_graph_def.concrete_functions), functions)
        for name, function in functions.items():
            if name not in exempt:
                _check_nodes(function.node_def, f"function {name}")
        _check_nodes((nodes[n] for n in nodes if n not in entries or n in served), "graph")


def _reachable(nodes: dict[str, Any], start: set[str]) -> set[str]:
    found, waiting = set(), [name for name in start if name in nodes]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        inputs = (i.lstrip("^").split(":")[0] for i in nodes[name].input)
        waiting.extend(i for i in inputs if i in nodes)
    return found


def _calls(nodes: Iterable[Any], functions: dict[str, Any]) -> set[str]:
    """Names of the functions that these nodes call, at any depth."""
    direct: set[str] = set()
    for node in nodes:
        for attribute in node.attr.values():
            names = [attribute.func.name, *(f.name for f in attribute.list.func)]
            direct |= {name for name in names if name}
    return _calls_of(direct, functions)


def _calls_of(names: set[str], functions: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = [name for name in names if name in functions]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in functions[name].node_def:
            for attribute in node.attr.values():
                called = [attribute.func.name, *(f.name for f in attribute.list.func)]
                waiting.extend(c for c in called if c in functions)
    return found


def _check_nodes(nodes: Iterable[Any], where: str) -> None:
    from tensorflow.python.framework import op_def_registry

    for node in nodes:
        definition = op_def_registry.get(node.op)
        stateful = definition is None or definition.is_stateful
        if node.op in _READERS or (stateful and node.op not in _STATEFUL):
            raise ValueError(
                f"its {where} holds the operation {node.op!r} ({node.name}), which is more than "
                "computation: it may touch files, run Python or keep state."
            )
