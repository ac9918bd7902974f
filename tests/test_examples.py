import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_exfm as kx

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# What an example needs beyond `keras-exfm`, and what it tells the user to install: without it, it
# ends with code 2. The extra `parity` is not part of `dev`.
NEEDED = {
    "tfrs_teacher": (
        ("tensorflow_recommenders", "tf_keras"),
        'pip install "keras-exfm[parity]"',
    ),
    "serve_http": (("litserve", "onnxruntime"), 'pip install "keras-exfm[serve]"'),
    "keras_rs_retrieval_then_rank": (("keras_rs",), "pip install keras-rs"),
}


def run(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, capsys, monkeypatch):
    for name in NEEDED.get(script.stem, ((), ""))[0]:
        pytest.importorskip(name)
    run(script, monkeypatch)
    output = capsys.readouterr().out
    assert "NE " in output or "predictions are the same" in output


@pytest.mark.parametrize("name", list(NEEDED))
def test_example_names_what_it_needs(name, capsys, monkeypatch):
    found = importlib.util.find_spec
    (hidden, *_), install = NEEDED[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == hidden else found(n, *a)
    )
    script = next(path for path in EXAMPLES if path.stem == name)
    with pytest.raises(SystemExit) as stopped:
        run(script, monkeypatch)
    assert stopped.value.code == 2
    output = capsys.readouterr().out
    assert hidden in output
    assert install in output


def test_requests_served_together_are_answered_apart(tmp_path):
    """The server's steps in its order, without the server, on a graph made by hand."""
    pytest.importorskip("litserve")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    schema = kx.Schema([kx.Numeric("age")])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Unsqueeze", ["age", "axis"], ["logit"])],
        "doubles",
        [onnx.helper.make_tensor_value_info("age", onnx.TensorProto.FLOAT, ["batch"])],
        [onnx.helper.make_tensor_value_info("logit", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.helper.set_model_props(model, {"keras_exfm": json.dumps({"schema": schema.to_dict()})})
    onnx.save(model, tmp_path / "model.onnx")

    script = next(path for path in EXAMPLES if path.stem == "serve_http")
    api = runpy.run_path(str(script))["Ranking"](str(tmp_path / "model.onnx"))
    api.setup("cpu")
    requests = [{"inputs": {"age": ages}} for ages in ([1.0, 2.0], [3.0], [4.0, 5.0, 6.0])]
    answers = api.unbatch(api.predict(api.batch([api.decode_request(r) for r in requests])))
    assert [api.encode_response(answer)["logit"] for answer in answers] == [
        request["inputs"]["age"] for request in requests
    ]
    for wrong in ({"inputs": {"age": ["old"]}}, {"inputs": {}}, {"rows": []}, {"inputs": 3}):
        with pytest.raises(Exception) as refused:
            api.decode_request(wrong)
        assert refused.value.status_code == 400, wrong
