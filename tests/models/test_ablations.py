"""The benchmark of ablations: it takes out what it says, and the parts count as they should."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from keras_exfm.layers import WukongLayer
from tests.testing import to_numpy

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="ablations", scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("ablations")


def named(layer):
    return {v.path.split("/", 1)[1]: v for v in layer.weights}


@pytest.mark.parametrize("n", [5, 7])
def test_with_nothing_taken_out_it_is_wukongs_layer(ablations, n):
    """With a residual projection, and with the input itself."""
    x = np.random.default_rng(0).normal(size=(6, n, 4)).astype("float32")
    config = {"n_fmb": 3, "n_lcb": 2, "rank": 2, "mlp_units": (8,)}
    layer = WukongLayer(**config)
    expected = to_numpy(layer(x))
    values = {name: to_numpy(v) for name, v in named(layer).items()}
    outputs = {}
    for name, (zero, _) in ablations.ABLATIONS.items():
        ablated = ablations.AblatedWukongLayer(**config, zero=zero)
        ablated.build((None, n, 4))
        own = named(ablated)
        assert own.keys() == values.keys()
        for path, variable in own.items():
            variable.assign(values[path])
        outputs[name] = to_numpy(ablated(x))
    np.testing.assert_allclose(outputs["none"], expected, rtol=1e-4, atol=1e-5)
    # The rows of the FMB come first, those of the LCB last; the norm is on each row.
    for name, same in {"fmb": slice(3, 5), "lcb": slice(0, 3)}.items():
        np.testing.assert_allclose(outputs[name][:, same], expected[:, same], rtol=1e-4, atol=1e-5)
    assert np.abs(outputs["fmb"][:, :3] - expected[:, :3]).max() > 0.1
    assert np.abs(outputs["lcb"][:, 3:] - expected[:, 3:]).max() > 0.1
    assert np.abs(outputs["residual"] - expected).max(axis=(0, 2)).min() > 0.1
    np.testing.assert_array_equal(outputs["lcb+residual"][:, 3:], 0)
    both = np.concatenate([outputs["residual"][:, :3], np.zeros((6, 2, 4))], axis=1)
    np.testing.assert_allclose(outputs["lcb+residual"], both, rtol=1e-4, atol=1e-5)
