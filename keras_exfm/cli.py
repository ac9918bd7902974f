"""The `keras-exfm` command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from keras_exfm import __version__
from keras_exfm._cli import das, exporting, tuning
from keras_exfm._cli.doctor import doctor
from keras_exfm._cli.shared import (
    Backend,
    BackendOption,
    console,
    import_keras,
    readable_errors,
    use_backend,
)

app = typer.Typer(
    help=(
        "External distillation of one foundation model into small ranking models, on streams.\n\n"
        "Start with [bold]keras-exfm demo[/bold]: a synthetic ad stream, one teacher, distilled "
        "students and a report, in about two minutes."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.add_typer(das.app, name="das")
app.command()(exporting.export)
app.command()(exporting.score)
app.command()(tuning.tune)
app.command()(doctor)


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one setting, e.g. --set student.table_learning_rate=0.1 (repeatable).",
    ),
]
SeedsOption = Annotated[
    str | None, typer.Option(metavar="1,2,3", help="Seeds: a teacher and students for each.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Discard what is in the run's folder and start over.")
]


class _RichProgress:
    """Shows `pipeline` progress; plain lines where the output is no terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._started = 0.0
        self._said = 0.0

    def __enter__(self) -> _RichProgress:
        if console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self._bars.stop()

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` steps starts."""
        self._started = self._said = time.monotonic()
        if console.is_terminal:
            self._task = self._bars.add_task(escape(label), total=total, note="")
        else:
            console.print(f"{escape(label)} ({total} steps)")
        self._total = total

    def step(self, done: int, note: str = "") -> None:
        """`done` steps of the current stage are through."""
        if console.is_terminal and self._task is not None:
            self._bars.update(self._task, completed=done, note=escape(note))
        elif time.monotonic() - self._said > 5 or done == self._total:
            self._said = time.monotonic()
            console.print(
                f"  {done}/{self._total}  {self._said - self._started:.0f} s  {escape(note)}"
            )

    def say(self, text: str) -> None:
        """A line that stays."""
        console.print(escape(text))


def _overrides(pairs: list[str] | None, seeds: str | None) -> dict[str, Any]:
    import tomllib

    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes KEY=VALUE. Received: {pair!r}")
        try:
            found[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = text
    if seeds:
        try:
            found["seeds"] = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise typer.BadParameter(
                f"--seeds takes whole numbers such as 1,2,3. Received: {seeds!r}"
            ) from None
    return found


def _execute(
    config: str, out: Path | None, backend: Backend | None, overrides: dict[str, Any], fresh: bool
) -> None:
    with readable_errors():
        from keras_exfm.pipeline import config as run_config

        settings = run_config.load(config, overrides)
        use_backend(backend)
        directory = out or Path("runs") / settings.name
        console.print(
            f"[bold]{escape(settings.name)}[/] -> {directory}  "
            f"[dim](keras on {os.environ['KERAS_BACKEND']}; starting)[/]"
        )
        import_keras()
        from keras_exfm.pipeline import Run

        started = time.monotonic()
        with _RichProgress() as progress:
            run = Run(settings, directory, progress=progress, fresh=fresh)
            page = run.execute()
        _show(run.gains())
        console.print(f"[bold]Report[/] {page}  [dim]({time.monotonic() - started:.0f} s)[/]")


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Progressive validation: normalized entropy (lower is better)")
    for column in ("vertical", "model", "NE", "gain %", "AUC", "calibration", "transfer ratio"):
        table.add_column(column, justify="left" if column in ("vertical", "model") else "right")
    for row in rows:
        table.add_row(
            row["vertical"],
            row["model"],
            _number(row, "ne", 4),
            _number(row, "gain", 2, sign=True),
            _number(row, "auc", 4),
            _number(row, "calibration", 3),
            _number(row, "transfer_ratio", 3),
        )
    console.print(table)


def _number(row: dict[str, Any], key: str, digits: int, sign: bool = False) -> str:
    mean, deviation = row.get(f"{key}_mean"), row.get(f"{key}_sd")
    if mean is None or mean != mean:
        return "-"
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return (
        text if deviation is None or deviation != deviation else f"{text} ± {deviation:.{digits}f}"
    )


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        console.print(f"keras-exfm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    backend: BackendOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    fresh: FreshOption = False,
) -> None:
    """The whole job on a synthetic ad stream: teacher, students, report, in about two minutes.

    The stream is made up, so the best possible score is known: the report shows how near the
    teacher and each student come to it.
    """
    _execute("demo", out, backend, _overrides(set_, seeds), fresh)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A TOML file, or a preset: demo, globo.")],
    data: Annotated[
        Path | None, typer.Option(help="The data set's file or folder, where it has one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")
    ] = None,
    backend: BackendOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    fresh: FreshOption = False,
) -> None:
    """Run the whole pipeline of a TOML file or preset.

    Prepares the stream, trains the teacher hour by hour and logs its predictions, distils the
    students under progressive validation and writes the report. The same command continues a run
    that was stopped. Students may be added to the file later: stream and teacher are kept.

    [bold]Examples[/]

      keras-exfm run globo --data clicks/ --backend jax --seeds 1,2,3

      keras-exfm run my.toml --set evaluation.batch_size=512
    """
    overrides = _overrides(set_, seeds)
    if data is not None:
        overrides["data.path"] = str(data)
    _execute(config, out, backend, overrides, fresh)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file (default: RUN_DIR/report.html).")
    ] = None,
) -> None:
    """Write a run's report again: one self-contained HTML file."""
    with readable_errors():
        from keras_exfm import report as html

        console.print(f"[bold]Report[/] {html.write(run_dir, out)}")


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="keras-exfm")


if __name__ == "__main__":
    main()
