r"""An exported model behind HTTP, on a server that exists: LitServe with ONNX Runtime.

    pip install "keras-exfm[serve]"
    python examples/serve_http.py                          # makes a model, serves it, asks it, ends
    python examples/serve_http.py --serve student.onnx     # serves a file until it is stopped

    curl localhost:8000/predict -H 'Content-Type: application/json' \
        -d '{"inputs": {"user": [7, 7], "ad": [1, 2], "age": [0.5, 0.1]}}'

A request is columns by feature name, a row a candidate; the answer is a logit a row. The server
puts requests that come at one time into one batch. It checks what it gets against the schema that
travels in the file, and needs neither Keras nor TensorFlow: NumPy and ONNX Runtime do.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import numpy as np

try:
    from litserve import LitAPI
except ImportError:  # said below, with the command that installs it
    LitAPI = object

NEEDED = ("litserve", "onnxruntime", "tf2onnx", "onnx")


class Ranking(LitAPI):
    """Columns in, logits out, from an .onnx file that `keras_exfm.export` wrote."""

    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        self.path = path

    def setup(self, device):
        """Runs once in each worker."""
        import onnxruntime

        from keras_exfm.features import Schema

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # more workers gain more than more threads
        self.session = onnxruntime.InferenceSession(self.path, options)
        notes = self.session.get_modelmeta().custom_metadata_map["keras_exfm"]
        self.schema = Schema.from_dict(json.loads(notes)["schema"])

    def decode_request(self, request):
        """Checks the columns; what does not fit is the client's fault, and said."""
        from fastapi import HTTPException

        try:
            return self.schema.encode(request["inputs"])
        except (KeyError, TypeError, ValueError) as error:
            raise HTTPException(status_code=400, detail=str(error)) from error

    def batch(self, inputs):
        """Requests that came at one time, one below the other."""
        joined = {n: np.concatenate([x[n] for x in inputs]) for n in self.schema.names}
        return joined, np.cumsum([len(x[self.schema.names[0]]) for x in inputs])[:-1]

    def predict(self, x):
        """One run for all of them."""
        joined, cuts = x
        (logits,) = self.session.run(["logit"], joined)
        return np.split(logits[:, 0], cuts)

    def unbatch(self, output):
        """To each request its own rows."""
        return output

    def encode_response(self, output):
        """JSON."""
        return {"logit": output.tolist()}


def serve(path, port, workers):
    from litserve import LitServer

    # At most 16 requests in one batch, and at most 2 ms until there are so many.
    api = Ranking(path, max_batch_size=16, batch_timeout=0.002)
    server = LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def ask(port, path, body=None):
    """Status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def wait_for(server, port, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None:
            sys.exit(f"The server ended with code {server.returncode}.")
        try:
            if ask(port, "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"The server did not answer within {seconds} s.")


def stop(server):
    """As Ctrl-C does: on a SIGTERM to the first process alone, LitServe's workers stay."""
    server.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def show(port):
    """A model, its server in a process of its own, requests, and the same from Keras."""
    import keras

    import keras_exfm as kx

    keras.utils.set_random_seed(1)
    schema = kx.Schema(
        [
            kx.Categorical("user", 1000),
            kx.Categorical("ad", 500, hashed=True),
            kx.MultiHot("history", 500, length=3, hashed=True, table="ad"),
            kx.Numeric("age"),
        ]
    )
    model = kx.models.DCNv2(schema, dim=8, parallel_units=(32,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        print(kx.export.onnx(model, path))
        command = [sys.executable, __file__, "--serve", str(path), "--port", str(port)]
        server = subprocess.Popen(command, start_new_session=True)
        try:
            wait_for(server, port)
            inputs = {
                "user": [7, 7, 7],
                "ad": [12, 345678901234, 3],
                "history": [[12, 3, -1]] * 3,
                "age": [0.5, 0.1, 2.0],
            }
            status, text = ask(port, "/predict", {"inputs": inputs})
            print(status, text)
            expected = model.predict(schema.encode(inputs), verbose=0)[:, 0]
            same = np.allclose(json.loads(text)["logit"], expected, atol=1e-5)
            print(f"Keras and the server: predictions {'are the same' if same else 'DIFFER'}")
            print(*ask(port, "/predict", {"inputs": {**inputs, "user": [7, 7, 1000]}}))
        finally:
            stop(server)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--serve", metavar="FILE", help="serve this .onnx file")
    parser.add_argument("--port", type=int, help="default: 8000, or a free one for the show")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f'{missing} not installed: pip install "keras-exfm[serve]"')
        sys.exit(2)
    if options.serve:
        serve(options.serve, options.port or 8000, options.workers)
    else:
        show(options.port or free_port())


if __name__ == "__main__":
    main()
