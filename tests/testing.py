"""Shared checks. `run_layer_test` follows the list of keras-hub's helper of the same name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np


def to_numpy(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def parameter_count(layer: keras.Layer) -> int:
    return sum(int(np.prod(v.shape)) for v in layer.trainable_variables)


def run_layer_test(
    make: Callable[..., keras.Layer],
    inputs: Any,
    *,
    output_shape: tuple[int, ...],
    parameters: int,
    tmp_path: Path,
    reference: Callable[[keras.Layer, Any], np.ndarray] | None = None,
    mixed_precision: bool = True,
    atol: float = 1e-5,
) -> keras.Layer:
    """Checks a layer whose call takes one argument (a tensor or a dict of tensors).

    Config round trip, weights after `build` alone, symbolic and eager shapes, the NumPy
    restatement `reference(layer, inputs)`, one compiled `fit` step that moves every trainable
    weight's gradient path, `.keras` round trip without custom code, and `mixed_bfloat16`.
    """
    shapes = keras.tree.map_structure(lambda x: (None, *x.shape[1:]), inputs)

    layer = make()
    config = layer.get_config()
    json.dumps(config)
    clone = type(layer).from_config(config)
    assert clone.get_config() == config
    assert set(dir(layer)) == set(dir(clone))

    clone.build(shapes)
    assert parameter_count(clone) == parameters
    assert clone.compute_output_shape(shapes) == (None, *output_shape[1:])

    symbolic = keras.tree.map_structure(
        lambda x: keras.Input(x.shape[1:], dtype=keras.backend.standardize_dtype(x.dtype)), inputs
    )
    out = layer(symbolic)
    assert tuple(out.shape) == (None, *output_shape[1:])
    assert parameter_count(layer) == parameters

    eager = layer(inputs)
    assert tuple(eager.shape) == output_shape
    assert keras.backend.standardize_dtype(eager.dtype) == layer.compute_dtype
    if reference is not None:
        np.testing.assert_allclose(to_numpy(eager), reference(layer, inputs), atol=atol, rtol=1e-4)

    model = keras.Model(symbolic, out)
    path = tmp_path / "layer.keras"
    model.save(path)
    reloaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        model.predict(inputs, verbose=0), reloaded.predict(inputs, verbose=0)
    )

    before = [to_numpy(v) for v in layer.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    target = np.random.default_rng(0).normal(size=output_shape).astype("float32")
    history = model.fit(inputs, target, epochs=1, batch_size=len(target), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    if before:
        after = [to_numpy(v) for v in layer.trainable_variables]
        assert any(not np.array_equal(a, b) for a, b in zip(before, after))

    if mixed_precision:
        mixed = make(dtype="mixed_bfloat16")
        low = mixed(inputs)
        assert keras.backend.standardize_dtype(low.dtype) == "bfloat16"
        assert {keras.backend.standardize_dtype(v.dtype) for v in mixed.weights} <= {
            "float32",
            "int32",
            "uint32",
        }
    return layer
