"""Figures of a progressive validation, hour by hour, for TensorBoard."""

from __future__ import annotations

import math
import os
from typing import Any


class TensorBoardWindows:
    """Writes each window's figures as scalars: an `on_window` of `progressive_validation`.

    Keras' own `keras.callbacks.TensorBoard` logs `fit`, on either backend. Progressive validation
    trains batch by batch and runs no callbacks; its figures go to TensorBoard by this class.

    Scalars are `window/<figure>` (`ne`, `auc`, `calibration`, `logloss`, `examples`, ...) and
    `training/<log>` (`loss` and the model's metrics over the hour last trained on). The step is the
    hour, the wall time its end: the axis "wall" is the stream's time. Figures that are not defined
    are left out. Give each model a folder of its own under one `logdir`, and TensorBoard lays
    their curves over one another.

    Args:
        log_dir: Folder of the event files.
        figures: Names of figures and logs to write. Defaults to `None`: all.

    Raises:
        ImportError: If TensorBoard is not installed; names the extra.

    Example:

    >>> with TensorBoardWindows("logs/student") as log:
    ...     log({"hour": 480_000, "ne": 0.91, "auc": 0.7, "group_auc": None}, {"loss": 0.3})
    >>> import os
    >>> len(os.listdir("logs/student"))
    1
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], figures: list[str] | tuple[str, ...] | None = None
    ) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ImportError(
                "TensorBoardWindows needs TensorBoard: pip install 'keras-exfm[tensorboard]'"
            ) from error
        self.log_dir = os.fspath(log_dir)
        self.figures = None if figures is None else tuple(figures)
        self._writer = Writer(self.log_dir)

    def __call__(self, row: dict[str, Any], logs: dict[str, float]) -> None:
        """Writes one window.

        Args:
            row: A row of `ValidationResult.rows`.
            logs: Means of the model's training logs.
        """
        hour = int(row["hour"])
        figures = {name: value for name, value in row.items() if name != "hour"}
        for group, values in (("window", figures), ("training", logs)):
            for name, value in values.items():
                wanted = self.figures is None or name in self.figures
                if wanted and value is not None and math.isfinite(value):
                    self._writer.add_scalar(
                        f"{group}/{name}", float(value), hour, wall_time=3600.0 * (hour + 1)
                    )
        # A window is minutes apart from the next: what is there should be seen.
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()

    def __enter__(self) -> TensorBoardWindows:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
