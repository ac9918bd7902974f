"""`keras-exfm export` and `keras-exfm score`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

Readable = Callable[[], AbstractContextManager[None]]


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


def register(app: typer.Typer, readable_errors: Readable, prepare: Callable[[], None]) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
        readable_errors: Context in which errors about input read as one message.
        prepare: Chooses the backend and imports Keras; called before a command needs it.
    """

    @app.command()
    def export(
        model: Annotated[Path, typer.Argument(help="A .keras file: a student or a serving model.")],
        out: Annotated[Path, typer.Argument(help="Folder, or file for a single format.")],
        format: Annotated[
            list[Format] | None, typer.Option(help="Repeatable. Left out: onnx.")
        ] = None,
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
            typer.Option(help="A labelled stream: measures the normalized entropy before/after."),
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
    ) -> None:
        """Export a model to ONNX, LiteRT or SavedModel, and prove the file.

        Each file is run by its own runtime and compared with the Keras model before the command
        reports success; a file that differs is not kept.

        [bold]Examples[/]

          keras-exfm export student.keras served/ --format onnx --format litert

          keras-exfm export student.keras student.onnx --tables int8 --data labelled/
        """
        with readable_errors():
            prepare()
            import importlib

            import keras

            import keras_exfm.export as exporting
            from keras_exfm import streaming

            for name in imports or []:
                importlib.import_module(name)
            formats = format or [Format.onnx]
            loaded = keras.saving.load_model(model, compile=False, safe_mode=True)
            named = out.suffix in (".onnx", ".tflite")
            if named and (len(formats) > 1 or out.suffix != _SUFFIX[formats[0]]):
                raise typer.BadParameter(
                    f"{out} is the name of one file of another format than {[*map(str, formats)]}: "
                    "give a folder."
                )
            targets = {str(f): out if named else out / f"{model.stem}{_SUFFIX[f]}" for f in formats}
            labelled = None
            if data is not None:
                schema = exporting.exporting.find_schema(
                    loaded.serving_model() if hasattr(loaded, "serving_model") else loaded
                )
                labelled = streaming.read(data, schema, batch_size=4096, hours=_hours(hours))
            reports = exporting.export_model(
                loaded,
                targets,
                output="probability" if probability else "logit",
                tables=str(tables),  # type: ignore[arg-type]
                opset=opset,
                external_data=external_data or None,
                metadata=_notes(note),
                data=labelled,
                imports=imports or (),
            )
            for report in reports:
                typer.echo(str(report))

    @app.command()
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
        """Score Parquet files with an exported ONNX model, streaming.

        [bold]Example[/]

          keras-exfm score student.onnx impressions/hour=480000 scores.parquet
        """
        with readable_errors():
            from keras_exfm.export.scoring import score as run

            typer.echo(
                str(
                    run(
                        model,
                        source,
                        target,
                        columns=column,
                        batch_size=batch_size,
                        threads=threads,
                    )
                )
            )


def _hours(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first) if first else None, int(last) if last else None
    except ValueError:
        raise typer.BadParameter(f"--hours takes FIRST:LAST. Received: {text!r}") from None


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
