"""Gradients on either backend, by the path that training takes."""

import keras
import numpy as np

from tests.testing import to_numpy


def gradient_of(function, value):
    """Gradient of a scalar function of one array."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(jax.numpy.asarray(value)))
    import tensorflow as tf

    value = tf.constant(value)
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = function(value)
    gradient = tape.gradient(result, value)
    return np.zeros(value.shape) if gradient is None else gradient.numpy()


def layer_gradients(layer, inputs, function):
    """Gradients of `function(layer(inputs))` in the inputs and in every trainable variable."""
    variables = layer.trainable_variables
    if keras.backend.backend() == "jax":
        import jax

        def total(values, inputs):
            outputs, _ = layer.stateless_call(
                values, [v.value for v in layer.non_trainable_variables], inputs
            )
            return function(outputs)

        own, back = jax.grad(total, argnums=(0, 1))(
            [v.value for v in variables], jax.numpy.asarray(inputs)
        )
        return to_numpy(back), [to_numpy(g) for g in own]
    import tensorflow as tf

    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = function(layer(inputs))
    back, own = tape.gradient(result, (inputs, [v.value for v in variables]))
    return back.numpy(), [g.numpy() for g in own]


def training_gradients(model, x, y, sample_weight=None):
    """Gradient of the training loss in each trainable variable, by variable path."""
    variables = model.trainable_variables
    convert = keras.ops.convert_to_tensor
    x, y = keras.tree.map_structure(convert, (x, y))
    sample_weight = None if sample_weight is None else convert(sample_weight)
    if keras.backend.backend() == "jax":
        import jax

        def loss(values):
            return model.compute_loss_and_updates(
                values,
                [v.value for v in model.non_trainable_variables],
                [v.value for v in model.metrics_variables],
                x,
                y,
                sample_weight,
                training=True,
                optimizer_variables=[v.value for v in model.optimizer.variables],
            )[0]

        gradients = jax.grad(loss)([v.value for v in variables])
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), sample_weight, training=True)
        gradients = tape.gradient(loss, [v.value for v in variables])
    return {
        v.path: np.zeros(v.shape) if g is None else to_numpy(g)
        for v, g in zip(variables, gradients)
    }
