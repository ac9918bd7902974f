"""NumPy float64 restatements of the models and of their training by plain gradient descent.

The gradients are central differences, so nothing of any backend's backward pass is restated.
"""

import numpy as np

from tests.layers import reference as layers
from tests.testing import to_numpy


def weights(model):
    return {v.path: to_numpy(v).astype("float64") for v in model.trainable_variables}


def all_weights(model):
    """Also those that no gradient moves: the row optimizer's table, slots and counters."""
    return {v.path: to_numpy(v) for v in model.weights}


def head(w, x, name):
    i = 0
    while f"{name}-{i}/kernel" in w:
        x = layers.relu(x @ w[f"{name}-{i}/kernel"] + w[f"{name}-{i}/bias"])
        i += 1
    h = layers.relu(x @ w["representation/kernel"] + w["representation/bias"])
    return h @ w["serving/kernel"] + w["serving/bias"]


def wukong(w, batch, schema, num_layers, n_fmb, form, numeric_embeddings=1):
    x = layers.feature_embedding(
        layers.sub(w, "feature-embedding"), batch, schema, numeric_embeddings
    )
    for i in range(num_layers):
        x = layers.wukong_layer(layers.sub(w, f"wukong-layer-{i}"), x, form, n_fmb[i])
    return head(w, x.reshape(len(x), -1), "head")


def dlrm(w, batch, schema, concat_embeddings=True, numeric_embeddings=1):
    x = layers.feature_embedding(
        layers.sub(w, "feature-embedding"), batch, schema, numeric_embeddings
    )
    beside = x
    if not concat_embeddings:
        beside = x[:, sum(f.embeddings for f in schema.sparse) :]
    flat = beside.reshape(len(x), -1)
    return head(w, np.concatenate([flat, layers.triangle_of_dots(x)], axis=1), "top")


def crossentropy(logit, label):
    logit = logit[:, 0]
    return np.mean(np.logaddexp(0, logit) - label * logit)


def descend(forward, w, label, steps, learning_rate, h=1e-6):
    """`steps` of gradient descent on the mean crossentropy; returns the weights."""
    w = {name: value.copy() for name, value in w.items()}
    for _ in range(steps):
        gradient = {name: np.zeros_like(value) for name, value in w.items()}
        for name, value in w.items():
            for index in np.ndindex(value.shape):
                old = value[index]
                value[index] = old + h
                up = crossentropy(forward(w), label)
                value[index] = old - h
                down = crossentropy(forward(w), label)
                value[index] = old
                gradient[name][index] = (up - down) / (2 * h)
        for name in w:
            w[name] -= learning_rate * gradient[name]
    return w
