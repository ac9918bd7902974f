"""Writing an ONNX model, its tables inside or beside it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from keras_exfm.export._graph import ServingGraph
from keras_exfm.export._rewrite import rewrite
from keras_exfm.export.errors import ExportError

KEY = "keras_exfm"
# A protocol buffer ends at 2 GiB.
_LARGEST = 1_800_000_000
_ALIGNMENT = 4096


def write(
    graph: ServingGraph,
    path: Path,
    metadata: dict[str, Any],
    opset: int,
    external_data: bool | None,
) -> None:
    """Writes the model, and `<name>.data` beside it if tables are external.

    The tables are inputs of the graph while it is converted and become its initializers then: the
    converter never holds them.
    """
    import onnx
    import tf2onnx

    parts = graph.parts
    total = sum(part.bytes for part in parts)
    if external_data is None:
        external_data = total > _LARGEST
    elif not external_data and total > _LARGEST:
        raise ExportError(
            f"The tables have {total / 1e9:.2f} GB, more than an ONNX file can hold (2 GB): leave "
            "`external_data` out, or pass external_data=True."
        )
    graph.constants()
    function = graph.function([part.name for part in parts])
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=opset
    )
    _tidy(model, graph)
    rewrite(model)
    named = {part.name: part for part in parts}
    for value in [v for v in model.graph.input if v.name in named]:
        model.graph.input.remove(value)
    data = path.with_name(f"{path.name}.data")
    if external_data:
        _write_external(model, parts, data)
    else:
        for part in parts:
            tensor = onnx.numpy_helper.from_array(part.array(), part.name)
            model.graph.initializer.append(tensor)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(metadata)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))


def _tidy(model: Any, graph: ServingGraph) -> None:
    """Names that people see."""
    wanted = set(graph.outputs)
    found = {output.name for output in model.graph.output}
    if found != wanted:
        raise ExportError(f"The converter named the outputs {sorted(found)}, not {sorted(wanted)}.")
    order = list(graph.outputs)
    outputs = sorted(model.graph.output, key=lambda output: order.index(output.name))
    copies = [type(output).FromString(output.SerializeToString()) for output in outputs]
    del model.graph.output[:]
    model.graph.output.extend(copies)
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim
        if first and value.name in {*graph.inputs, *graph.outputs}:
            first[0].ClearField("dim_value")
            first[0].dim_param = "batch"
    model.graph.name = graph.model.name
    model.producer_name = "keras_exfm"


def _write_external(model: Any, parts: list[Any], data: Path) -> None:
    import onnx

    with open(data, "wb") as sink:
        for part in parts:
            sink.write(b"\0" * (-sink.tell() % _ALIGNMENT))
            offset = sink.tell()
            for chunk in part.chunks():
                sink.write(np.ascontiguousarray(chunk).tobytes())
            tensor = model.graph.initializer.add()
            tensor.name = part.name
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(part.dtype)
            tensor.dims.extend(part.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", data.name),
                ("offset", offset),
                ("length", sink.tell() - offset),
            ):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
