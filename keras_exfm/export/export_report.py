"""What came of an export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """An exported file that was run by its own runtime and compared with the model.

    Attributes:
        path: The file, or the folder of a SavedModel.
        format: `"onnx"`, `"litert"` or `"saved_model"`.
        bytes: Size on disk, with external data.
        inputs: Names of the inputs, the schema's.
        outputs: Names of the outputs.
        rows: Rows that were compared.
        max_difference: Largest difference from the Keras model's outputs. With `tables="float16"`
            or `"int8"`, what the smaller tables cost is in it.
        graph_difference: Largest difference from the same computation, with the same tables, in
            TensorFlow: what the format itself costs.
        tables: `"float32"`, `"float16"` or `"int8"`.
        metadata: What travels inside.
        seconds: Time that it took.
        normalized_entropy: With `data`: `{"model": ..., "export": ..., "cost_percent": ...}`.
            Defaults to `None`.
    """

    path: Path
    format: str
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: int
    max_difference: float
    graph_difference: float
    tables: str
    metadata: dict[str, Any]
    seconds: float
    normalized_entropy: dict[str, float] | None = None

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.format}, {self.bytes / 1e6:.2f} MB, {len(self.inputs)} inputs, "
            f"tables in {self.tables}; largest difference from the model over {self.rows} rows: "
            f"{self.max_difference:.3g}"
        )
        # Other tables are meant to differ.
        if self.tables == "float32":
            text += ", all within the tolerance, which grows with the logit"
        if self.normalized_entropy is not None:
            cost = self.normalized_entropy
            text += (
                f"; NE {cost['model']:.5f} -> {cost['export']:.5f} ({cost['cost_percent']:+.4f} %)"
            )
        return text
