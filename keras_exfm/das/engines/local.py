"""Teachers in processes of this machine."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection

import pyarrow as pa

from keras_exfm.das.engines.engine import Scored
from keras_exfm.das.scorers import TeacherTimeout
from keras_exfm.streaming import StreamError

_DEATHS = 3
_START_S = 300.0


class LocalEngine:
    """Scores in processes, each of which loads the teacher for itself.

    Each process holds at most two tables: the one it scores and the next. A process that dies (a
    crash of its native code, `kill -9`, the system's killer when memory is short) is started again
    and gets its tables again; so does nothing else, and nothing is committed meanwhile. The third
    death over one table is an error. A process that gives no answer in time is ended.

    Args:
        settings: What `teacher_settings` gave.
        workers: Number of processes. Defaults to `1`.
        start_s: Seconds that a process may take until its first answer, beside the time that the
            teacher has. Defaults to `300.0`.
    """

    def __init__(self, settings: str, workers: int = 1, start_s: float = _START_S) -> None:
        self.settings = settings
        self.workers = workers
        self.start_s = start_s
        self.restarts = 0
        self._processes: list[_Process] = []

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [process.pid for process in self._processes]

    def score(self, chunks: Iterator[pa.Table], where: str) -> Generator[Scored, None, None]:
        """Scores tables in their order."""
        if any(process.asked for process in self._processes):
            # A call before was left and not closed: its answers are nobody's.
            self.close()
        processes = self._processes
        while len(processes) < self.workers:
            processes.append(_Process(self.settings, self.start_s))
        waiting: collections.deque[_Process] = collections.deque()
        turn = 0
        try:
            for chunk in chunks:
                process = processes[turn % self.workers]
                turn += 1
                if len(waiting) == 2 * self.workers:
                    yield self._answer(waiting.popleft(), where)
                process.send(chunk, where)
                waiting.append(process)
            while waiting:
                yield self._answer(waiting.popleft(), where)
        except BaseException:
            # What is still on the way is nobody's. Another call may have processes of its own.
            for process in processes:
                process.end()
            if self._processes is processes:
                self._processes = []
            raise

    def close(self) -> None:
        """Ends the processes."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.end()

    def _answer(self, process: _Process, where: str) -> Scored:
        for _ in range(_DEATHS):
            try:
                return process.receive(where)
            except EOFError:
                self.restarts += 1
                code = process.restart()
        raise StreamError(
            f"{where}: the process that scores died {_DEATHS} times over the same rows, at last "
            f"with exit code {code}."
        )


class _Process:
    def __init__(self, settings: str, start_s: float) -> None:
        self._settings = settings
        self._start_s = start_s
        self._sent: collections.deque[tuple[bytes, int]] = collections.deque()
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def asked(self) -> bool:
        return bool(self._sent)

    def send(self, chunk: pa.Table, where: str) -> None:
        sink = pa.BufferOutputStream()
        kept = chunk.replace_schema_metadata({"where": where})
        with pa.ipc.new_stream(sink, kept.schema) as writer:
            writer.write_table(kept)
        self._sent.append((sink.getvalue().to_pybytes(), len(chunk)))
        # One that is dead shows when its answer is asked for.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(self._sent[-1][0])

    def receive(self, where: str) -> Scored:
        rows = self._sent[0][1]
        begun = time.monotonic()
        try:
            self._wait(rows, begun, where)
            answer = self._connection.recv_bytes()
        except ConnectionError as error:
            raise EOFError from error
        kind, _, content = answer.partition(b"\n")
        if kind != b"rows":
            self.end()
            cls = TeacherTimeout if kind == b"timeout" else StreamError
            raise cls(content.decode())
        self._answered = True
        self._sent.popleft()
        table = pa.ipc.open_stream(content).read_all()
        not_finite = int(table.schema.metadata[b"not_finite"])
        return Scored(table.replace_schema_metadata(None), not_finite)

    def _wait(self, rows: int, begun: float, where: str) -> None:
        """The teacher has its own time limit; this one is for what it cannot interrupt."""
        batches = max(1, -(-rows // self._batch))
        limit = 5 + 2 * self._limit * batches + (0 if self._answered else self._start_s)
        while not self._connection.poll(1.0):
            if time.monotonic() - begun > limit:
                self.end()
                raise TeacherTimeout(
                    f"{where}: the process that scores gave no answer within {limit:.0f} s, for "
                    f"{rows} rows; it was ended."
                )

    def restart(self) -> int | None:
        code = self.end()
        self._start()
        for content, _ in self._sent:
            with contextlib.suppress(OSError):
                self._connection.send_bytes(content)
        return code

    def end(self) -> int | None:
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "keras_exfm.das.engines.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self._answered = False
        teacher = json.loads(self._settings)["teacher"]
        self._limit: float = teacher["timeout"] / 1000
        self._batch: int = teacher["batch_size"]
        with contextlib.suppress(OSError):
            self._connection.send_bytes(self._settings.encode())
