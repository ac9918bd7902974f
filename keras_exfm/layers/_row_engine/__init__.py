"""Row-sparse training of an embedding table inside an unmodified Keras training step.

A stock Keras step gives every trainable variable's gradient to the model's optimizer, which then
walks over the whole table. Here the table's variables are flagged `overwrite_with_gradient`
(a public attribute of `keras.Variable`): the optimizer hands the "gradient" to
`variable.assign` and does nothing else. The two backends differ in what that gradient is:

* JAX (`_jax.py`): the vector-Jacobian product of the lookup returns the already updated table,
  slots and step counter. With the donated state of Keras' jitted step, the update is in place.
* TensorFlow (`_tensorflow.py`): the gradient is `tf.IndexedSlices`, and the table's `assign`
  updates the rows that it names.
"""

from __future__ import annotations

from typing import Any

import keras


def make_engine(layer: Any) -> Any:
    """The engine of the current backend for an `EmbeddingTable` with a row optimizer."""
    backend = keras.backend.backend()
    if backend == "jax":
        from keras_exfm.layers._row_engine._jax import JaxRowEngine

        return JaxRowEngine(layer)
    if backend == "tensorflow":
        from keras_exfm.layers._row_engine._tensorflow import TensorFlowRowEngine

        return TensorFlowRowEngine(layer)
    raise NotImplementedError(
        "Row-sparse embedding training needs the TensorFlow or the JAX backend. Received backend: "
        f"{backend!r}. Use `optimizer=None` to train the table densely."
    )
