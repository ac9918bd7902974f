"""`keras-exfm export` and `keras-exfm score`."""

from __future__ import annotations

import importlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_exfm._cli.shared import (
    BackendOption,
    console,
    hour_span,
    import_keras,
    readable_errors,
    use_backend,
)


class Format(StrEnum):
    """Formats of an export."""

    onnx = "onnx"
    litert = "litert"
    saved_model = "saved_model"


class Tables(StrEnum):
    """Numbers that tables are stored in."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


_SUFFIX = {Format.onnx: ".onnx", Format.litert: ".tflite", Format.saved_model: ""}


def export(
    model: Annotated[Path, typer.Argument(help="A .keras file: a student or a serving model.")],
    out: Annotated[Path, typer.Argument(help="A folder, or the file of a single format.")],
    format: Annotated[list[Format] | None, typer.Option(help="Repeatable. Left out: onnx.")] = None,
    tables: Annotated[
        Tables, typer.Option(help="Numbers that embedding tables are stored in.")
    ] = Tables.float32,
    probability: Annotated[
        bool, typer.Option("--probability", help="Output the probability, not the logit.")
    ] = False,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 18,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="ONNX tables beside the file.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="A labelled stream: measures the normalized entropy before and after."),
    ] = None,
    hours: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Hours of --data.")
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Travels inside the file (repeatable)."),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", help="Module that registers the model's own classes."),
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Export a model to ONNX, LiteRT or SavedModel, and prove the file.

    Each file is run by its own runtime and compared with the Keras model before the command
    reports success; a file that differs is not kept.

    [bold]Examples[/]

      keras-exfm export student.keras served/ --format onnx --format litert

      keras-exfm export student.keras student.onnx --tables int8 --data labelled/
    """
    formats = format or [Format.onnx]
    named = out.suffix in (".onnx", ".tflite")
    if named and (len(formats) > 1 or out.suffix != _SUFFIX[formats[0]]):
        raise typer.BadParameter(
            f"{out} is the name of one file of another format than {[str(f) for f in formats]}: "
            "give a folder."
        )
    notes, span = _notes(note), hour_span(hours)
    with readable_errors():
        use_backend(backend)
        import_keras()
        import keras

        from keras_exfm import export as exporting
        from keras_exfm import streaming
        from keras_exfm.export.exporting import find_schema, serving_model

        for name in imports or []:
            importlib.import_module(name)
        loaded = serving_model(keras.saving.load_model(model, compile=False, safe_mode=True))
        places = {str(f): out if named else out / f"{model.stem}{_SUFFIX[f]}" for f in formats}
        labelled = None
        if data is not None:
            labelled = streaming.read(data, find_schema(loaded), batch_size=4096, hours=span)
        reports = exporting.export_model(
            loaded,
            places,
            output="probability" if probability else "logit",
            tables=tables.value,
            opset=opset,
            external_data=external_data or None,
            metadata=notes,
            data=labelled,
            imports=imports or (),
        )
        for report in reports:
            console.print(str(report), markup=False, soft_wrap=True)


def score(
    model: Annotated[Path, typer.Argument(help="An .onnx file that `export` wrote.")],
    source: Annotated[str, typer.Argument(help="A Parquet file or a folder of them.")],
    target: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    column: Annotated[
        list[str] | None,
        typer.Option(help="Column to keep (repeatable). Left out: all but the features."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.")] = 8192,
    threads: Annotated[
        int | None, typer.Option(help="Threads of ONNX Runtime. Left out: its own choice.")
    ] = None,
) -> None:
    """Score Parquet files with an exported ONNX model, batch by batch.

    [bold]Example[/]

      keras-exfm score student.onnx impressions/hour=480000 scores.parquet
    """
    with readable_errors():
        use_backend(None)
        from keras_exfm.export.scoring import score as run

        report = run(model, source, target, columns=column, batch_size=batch_size, threads=threads)
        console.print(str(report), markup=False, soft_wrap=True)


def _notes(pairs: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--note takes KEY=VALUE. Received: {pair!r}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
