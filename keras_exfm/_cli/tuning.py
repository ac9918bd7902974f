"""`keras-exfm tune`."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from keras_exfm._cli.shared import (
    BackendOption,
    console,
    hour_span,
    import_keras,
    readable_errors,
    use_backend,
)


class Method(StrEnum):
    """How the search goes through the space."""

    random = "random"
    grid = "grid"
    bayesian = "bayesian"
    hyperband = "hyperband"


class Goal(StrEnum):
    """What the search looks for."""

    normalized_entropy = "ne"
    log_loss = "logloss"
    auc = "auc"
    calibration_error = "calibration"


class Role(StrEnum):
    """Table of a run's configuration that the result is written for."""

    student = "student"
    teacher = "teacher"


# Exit code of a process that has run its share of trials.
_MORE = 75

_TUNERS = {
    Method.random: "RandomSearch",
    Method.grid: "GridSearch",
    Method.bayesian: "BayesianOptimization",
    Method.hyperband: "Hyperband",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A search, as each of its processes reads it."""

    model: str
    data: str
    out: str
    budget: dict[str, float]
    method: str
    trials: int | None
    goal: str
    hours: tuple[int | None, int | None]
    warmup_hours: int
    vertical: list[str] | None
    batch_size: int
    distill: bool
    fixed: dict[str, Any]
    space: dict[str, Any]
    seed: int
    trials_per_process: int = 0

    def search(self) -> Any:
        """The tuner, with what is there of the search."""
        from keras_exfm import tuner
        from keras_exfm.streaming.stream import as_stream

        names = {name.lower(): name for name in tuner.HYPERMODELS}
        if self.model.lower() not in names:
            raise ValueError(f"No model {self.model!r}. There are: {sorted(names)}")
        kind = tuner.HYPERMODELS[names[self.model.lower()]]
        space = {k: tuple(v["range"]) if isinstance(v, dict) else v for k, v in self.space.items()}
        of_heads = tuner.DistillationHyperModel.defaults if self.distill else {}
        hypermodel: Any = kind(
            as_stream(self.data).schema,
            fixed={k: v for k, v in self.fixed.items() if k not in of_heads},
            space={k: v for k, v in space.items() if k not in of_heads},
        )
        if self.distill:
            hypermodel = tuner.DistillationHyperModel(
                hypermodel,
                fixed={k: v for k, v in self.fixed.items() if k in of_heads},
                space={k: v for k, v in space.items() if k in of_heads},
            )
        options: dict[str, Any] = {}
        if self.method != Method.hyperband:
            options["max_trials"] = self.trials
        return getattr(tuner, _TUNERS[Method(self.method)])(
            hypermodel,
            getattr(tuner.objectives, Goal(self.goal).name)("progressive"),
            budget=tuner.Budget(**self.budget) if self.budget else None,
            seed=self.seed,
            directory=self.out,
            **options,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change while the search goes on."""
        free = ("out", "trials", "trials_per_process")
        found = {k: v for k, v in dataclasses.asdict(self).items() if k not in free}
        if "://" not in self.data:
            found["data"] = str(Path(self.data).resolve())
        return found

    def run(self, search: Any) -> None:
        """Runs trials until there is none left."""
        from keras_exfm.streaming.stream import as_stream

        first = as_stream(self.data).select_hours(self.hours)[0]
        options = {} if self.vertical is None else {"vertical": self.vertical}
        search.search(
            stream=self.data,
            hours=self.hours,
            metrics_from=first + self.warmup_hours,
            batch_size=self.batch_size,
            verbose=0,
            **options,
        )


def tune(
    model: Annotated[str, typer.Option(help="A model of the zoo, such as wukong or dlrm.")],
    data: Annotated[Path, typer.Option(help="A labelled stream, as `keras-exfm run` leaves it.")],
    budget_mflop: Annotated[
        float | None, typer.Option(help="Most training MFLOP an example.")
    ] = None,
    budget_inference_mflop: Annotated[
        float | None, typer.Option(help="Most MFLOP of a prediction.")
    ] = None,
    budget_parameters: Annotated[
        float | None, typer.Option(help="Most weights beside the embedding tables.")
    ] = None,
    method: Annotated[Method, typer.Option(help="Kind of search.")] = Method.random,
    trials: Annotated[
        int | None, typer.Option(help="Trials (default 20; a grid's: all; Hyperband sets its own).")
    ] = None,
    goal: Annotated[Goal, typer.Option(help="What to look for.")] = Goal.normalized_entropy,
    hours: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Hours of the stream (default: all).")
    ] = None,
    warmup_hours: Annotated[
        int, typer.Option(help="Hours at the start that train but do not count.")
    ] = 0,
    vertical: Annotated[list[str] | None, typer.Option(help="Rows of it (repeatable).")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 1024,
    distill: Annotated[
        bool, typer.Option("--distill", help="Search heads and adapter of a distilled student too.")
    ] = False,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Do not search this, e.g. --fix dim=16."),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="Search among these, e.g. --space rank=[8,16] --space num_layers=1..4.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws and the models.")] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that run trials at a time; 0: this one.")
    ] = 0,
    trials_per_process: Annotated[
        int,
        typer.Option(
            min=0, help="Trials until a fresh process goes on: memory grows; 0: no limit."
        ),
    ] = 0,
    role: Annotated[
        Role, typer.Option("--as", help="Table of a run's configuration to write.")
    ] = Role.student,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search (default: runs/tune-MODEL).")
    ] = None,
    backend: BackendOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the search that is in the folder.")
    ] = False,
) -> None:
    """Search for the best widths, depths and rates of a model within a budget.

    Each trial trains on the stream in a single pass; its progressive validation is the score. The
    same command goes on with a search that was stopped, also with more trials; with other settings
    it is refused. Writes the best configuration as TOML, to be put into a file for
    `keras-exfm run`.

    [bold]Example[/]

      keras-exfm tune --model wukong --budget-mflop 20 --data runs/demo/seed-1/labelled --trials 30
    """
    with readable_errors():
        folder = out or Path("runs") / f"tune-{model.lower()}"
        if trials is None and method in (Method.random, Method.bayesian):
            trials = 20
        limits = {
            "training_flops": budget_mflop and budget_mflop * 1e6,
            "inference_flops": budget_inference_mflop and budget_inference_mflop * 1e6,
            "parameters": budget_parameters,
        }
        job = Job(
            model=model,
            data=str(data),
            out=str(folder),
            budget={k: float(v) for k, v in limits.items() if v is not None},
            method=method.value,
            trials=trials,
            goal=goal.value,
            hours=hour_span(hours),
            warmup_hours=warmup_hours,
            vertical=vertical,
            batch_size=batch_size,
            distill=distill,
            fixed=_pairs("--fix", fix),
            space=_pairs("--space", space),
            seed=seed,
            trials_per_process=trials_per_process,
        )
        use_backend(backend)
        if fresh:
            shutil.rmtree(folder / "search", ignore_errors=True)
        import_keras()
        from keras_exfm.tuner._settings import check_settings, write_settings

        kept = folder / "search" / "command.json"
        check_settings(kept, job.settings)
        search = job.search()
        write_settings(kept, job.settings)
        with _Watch(folder, trials) as watch:
            if workers or trials_per_process:
                _in_processes(job, workers, watch)
                search = job.search()
            else:
                search.watcher = lambda trial: watch.look()
                job.run(search)
        rows = search.results()
        if not rows:
            raise ValueError(f"No trial was completed; {folder}/search holds what they said.")
        _show(rows, search.oracle.objective.name)
        file = folder / "best.toml"
        file.write_text(toml(search.hypermodel, rows[0], role.value))
        console.print(f"[bold]Best[/] {escape(str(file))}")


def _pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE with TOML values; LOW..HIGH is a range, other text a string."""
    found: dict[str, Any] = {}
    for pair in given or []:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise typer.BadParameter(f"{option} takes KEY=VALUE. Received: {pair!r}")
        low, dots, high = text.partition("..")
        try:
            if dots and option == "--space":
                found[key] = {"range": [tomllib.loads(f"v = {end}")["v"] for end in (low, high)]}
            else:
                found[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


class _Watch:
    """Shows how far the search is, from the files of its trials: any process may write them."""

    def __init__(self, folder: Path, total: int | None) -> None:
        self._folder, self._total, self._done = folder, total, -1
        self._bars = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._task = self._bars.add_task("", total=total, note="")

    def __enter__(self) -> _Watch:
        if console.is_terminal:
            self._bars.start()
        self.look()
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self._bars.stop()

    def look(self) -> None:
        """Reads the trials' files."""
        trials = []
        for file in self._folder.glob("search/trial_*/trial.json"):
            try:
                trials.append(json.loads(file.read_text()))
            except ValueError:  # Being written.
                continue
        done = [t for t in trials if t["status"] in ("COMPLETED", "FAILED")]
        scores = [t["score"] for t in done if t["score"] is not None]
        running = len(trials) - len(done)
        note = f"{running} running" + (
            f", scores {min(scores):.4f}..{max(scores):.4f}" if scores else ""
        )
        if console.is_terminal:
            self._bars.update(self._task, completed=len(done), note=note)
        elif len(done) > self._done and done:
            of = "" if self._total is None else f"/{self._total}"
            console.print(f"  {len(done)}{of} trials  {note}")
        self._done = max(self._done, len(done))


def _in_processes(job: Job, workers: int, watch: _Watch) -> None:
    """Runs the search in other processes: one, or workers to which a chief hands trials over gRPC.

    A worker that has run its share of trials ends, and a new one takes its name and its place.
    """
    folder = Path(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps(dataclasses.asdict(job)))
    environment = dict(os.environ)
    if workers:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
        }
    others = [f"worker{i}" for i in range(workers)] or ["tuner0"]
    names = ["chief", *others] if workers else others
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        with open(folder / f"{name}.log", "ab") as log:
            started[name] = subprocess.Popen(
                [sys.executable, "-m", "keras_exfm._cli.tuning", str(file)],
                env={**environment, "KERASTUNER_TUNER_ID": name},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    try:
        for name in names:
            (folder / f"{name}.log").unlink(missing_ok=True)
            start(name)
        while any(started[name].poll() in (None, _MORE) for name in others):
            for name in others:
                if started[name].poll() == _MORE:
                    start(name)
            watch.look()
            if workers and started["chief"].poll() not in (None, 0):
                break
            time.sleep(0.5)
        failed = [name for name in names if started[name].poll() not in (None, 0)]
        if failed:
            logs = ", ".join(f"{folder}/{name}.log" for name in failed)
            raise ValueError(f"{', '.join(failed)} ended early; see {logs}")
        watch.look()
    finally:
        # The chief has nothing to do once its workers are gone; it looks every 20 seconds.
        for each in started.values():
            if each.poll() is None:
                each.terminate()
        for each in started.values():
            each.wait()


def _show(rows: list[dict[str, Any]], objective: str) -> None:
    """A column a trial, the best first, as many as the terminal is wide; what differs in rows."""
    best = rows[:10]
    names = list(dict.fromkeys(n for row in best for n in row["hyperparameters"]))
    names = [n for n in names if not n.startswith("tuner/")]
    names = [n for n in names if len({str(r["hyperparameters"].get(n)) for r in best}) > 1]
    columns = []
    for row in best:
        values = [row["hyperparameters"].get(name, "") for name in names]
        columns.append(
            [
                row["trial"],
                f"{row['score']:.5f}",
                f"{row['cost'].training_flops / 1e6:.3g}",
                f"{row['cost'].parameters:,}",
                *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values),
            ]
        )
    labels = ["trial", "score", "training MFLOP", "weights", *names]
    # Two spaces and a line beside each cell.
    room = console.width - max(map(len, labels)) - 4
    shown = 0
    for column in columns:
        room -= max(map(len, column)) + 3
        shown += shown == 0 or room >= 0
    console.print(f"{objective}: the best {shown} of {len(rows)} trials", soft_wrap=True)
    table = Table(show_header=False)
    table.add_column(justify="left", no_wrap=True)
    for _ in range(shown):
        table.add_column(justify="right", no_wrap=True)
    for label, *cells in zip(labels, *columns[:shown]):
        table.add_row(label, *cells)
    console.print(table)


def toml(hypermodel: Any, row: dict[str, Any], role: str = "student") -> str:
    """A completed trial as the `[student]` or `[teacher]` of a run's configuration."""
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    hp.values = dict(row["hyperparameters"])
    settings = hypermodel.settings(hp)
    options = settings.pop("options")
    cost = row["cost"]
    lines = [
        f"# Trial {row['trial']}: {cost.training_flops:,} training FLOPs an example, "
        f"{cost.parameters:,} weights beside the tables.",
        f"[{role}]",
        *(f"{key} = {_toml_value(value)}" for key, value in settings.items()),
        "",
        f"[{role}.options]",
        *(f"{key} = {_toml_value(value)}" for key, value in options.items()),
    ]
    if hasattr(hypermodel, "parts"):
        parts = {"name": "tuned", **hypermodel.parts(hp)}
        lines += ["", "[[students]]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in parts.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    # JSON writes numbers, strings and booleans as TOML does.
    return json.dumps(value)


if __name__ == "__main__":
    _tree = json.loads(Path(sys.argv[1]).read_text())
    _job = Job(**{**_tree, "hours": tuple(_tree["hours"])})
    _search = _job.search()
    _search.trials_here = _job.trials_per_process or None
    _job.run(_search)
    sys.exit(_MORE if _search.enough else 0)
