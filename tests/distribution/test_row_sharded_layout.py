import keras
import numpy as np
import pytest

import keras_exfm as kx


def mesh(shape, names):
    return keras.distribution.DeviceMesh(shape, names, ["cpu:0"] * int(np.prod(shape)))


def test_paths():
    layout = kx.distribution.row_sharded_layout(mesh((1, 1), ["batch", "model"]))
    for path in ("embedding/embeddings/table", "a/b/c/table", "wide/table"):
        assert layout[path].axes == ("model", None)
    for path in ("dense/kernel", "table/kernel", "adam/wide_table_momentum", "wide/step"):
        assert layout[path] is None
    layout[".*/kernel"] = (None, "model")
    assert layout["dense/kernel"].axes == (None, "model")


def test_axis():
    layout = kx.distribution.row_sharded_layout(mesh((1, 1), ["batch", "model"]), "batch")
    assert layout["wide/table"].axes == ("batch", None)
    with pytest.raises(ValueError, match=r"\['batch'\], or None. Received: axis='rows'"):
        kx.distribution.row_sharded_layout(mesh((1,), ["batch"]), "rows")


def test_several_devices_need_jax(backend):
    if backend == "jax":
        kx.distribution.row_sharded_layout(mesh((2,), ["batch"]))
        return
    with pytest.raises(NotImplementedError, match="Received: backend='tensorflow', 2 devices"):
        kx.distribution.row_sharded_layout(mesh((2,), ["batch"]))
