"""A process that scores: `python -m keras_exfm.das.engines.process DESCRIPTOR`.

It takes the settings and then tables from a socket, answers each in order, and ends when the other
side does, however that ended.
"""

from __future__ import annotations

import queue
import sys
import threading
from multiprocessing.connection import Connection

import pyarrow as pa


def main(descriptor: int) -> None:
    """Serves one parent until it is gone."""
    connection = Connection(descriptor)
    try:
        settings = connection.recv_bytes().decode()
        runner = None
        arrived: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
        while (content := arrived.get()) is not None:
            table = pa.ipc.open_stream(content).read_all()
            try:
                if runner is None:
                    # Imports Keras: not before there is something to score.
                    from keras_exfm.das.engines.engine import TeacherRunner

                    runner = TeacherRunner(settings)
                where = table.schema.metadata[b"where"].decode()
                scored = runner.score(table.replace_schema_metadata(None), where)
            except Exception as error:
                kind = b"timeout" if type(error).__name__ == "TeacherTimeout" else b"error"
                connection.send_bytes(kind + b"\n" + _text(error).encode())
                continue
            sink = pa.BufferOutputStream()
            rows = scored.rows.replace_schema_metadata({"not_finite": str(scored.not_finite)})
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
            connection.send_bytes(b"rows\n" + sink.getvalue().to_pybytes())
    except (EOFError, ConnectionError):
        return


def _receive(connection: Connection, arrived: queue.SimpleQueue[bytes | None]) -> None:
    """Takes in the next table while the last one is scored and answered.

    If nobody did, both sides could wait for each other, each with more to send than a socket holds.
    """
    try:
        while True:
            arrived.put(connection.recv_bytes())
    except (EOFError, OSError):
        arrived.put(None)


def _text(error: Exception) -> str:
    from keras_exfm.das.snapshots import SnapshotError
    from keras_exfm.streaming import StreamError

    known = isinstance(error, (StreamError, SnapshotError))
    return str(error) if known else f"The teacher failed: {type(error).__name__}: {error}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
