"""NumPy float64 restatements of the baselines' interaction layers: `f(layer, inputs)`."""

import keras
import numpy as np

from tests.layers import reference
from tests.testing import to_numpy


def initialize_with_numpy(monkeypatch):
    """JAX compiles a random generator for every new shape, which would take most of the time."""
    rng = np.random.default_rng(3)

    def normal(self, shape, dtype=None, **kwargs):
        value = rng.normal(scale=0.3, size=shape).astype(dtype or "float32")
        return keras.ops.convert_to_tensor(value)

    for cls in (keras.initializers.GlorotUniform, keras.initializers.RandomNormal):
        monkeypatch.setattr(cls, "__call__", normal)


def weights(layer):
    """Path below the layer -> value."""
    return {
        v.path.removeprefix(f"{layer.path}/"): to_numpy(v).astype("float64") for v in layer.weights
    }


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, gamma, beta, epsilon=1e-5):
    mean = x.mean(-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(x.var(-1, keepdims=True) + epsilon) + beta


def batch_norm(w, name, x):
    rows = (None, slice(None), None)
    mean, variance = (w[f"{name}/moving_{what}"][rows] for what in ("mean", "variance"))
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return w[f"{name}/gamma"][rows] * x + w[f"{name}/beta"][rows]


def mlp(w, prefix, x):
    hidden = relu(x @ w[f"{prefix}/hidden_0/kernel"] + w[f"{prefix}/hidden_0/bias"])
    return hidden @ w[f"{prefix}/output/kernel"] + w[f"{prefix}/output/bias"]


def cross(layer, inputs):
    w = weights(layer)
    matrix = w["kernel/kernel"]
    if layer.rank is not None:
        matrix = w["compression/kernel"] @ matrix
    out = np.empty(inputs[0].shape)
    for row, (x0, x) in enumerate(zip(*inputs)):
        for i in range(len(x0)):
            out[row, i] = x0[i] * (x @ matrix[:, i] + w["kernel/bias"][i]) + x[i]
    return out


def attention(layer, x):
    w = weights(layer)
    size = layer.units // layer.num_heads
    out = np.zeros((*x.shape[:2], layer.units))
    for row, example in enumerate(x):
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            query, key, value = (
                example @ w[f"{name}/kernel"][:, part] for name in ("query", "key", "value")
            )
            for i in range(len(example)):
                scores = np.array([query[i] @ key[j] for j in range(len(example))])
                scores = np.exp(scores / (np.sqrt(size) if layer.scale else 1))
                out[row, i, part] = (scores / scores.sum()) @ value
    if layer.residual:
        out += x @ w["residual/kernel"] if "residual/kernel" in w else x
    if layer.layer_norm:
        out = layer_norm(out, w["norm/gamma"], w["norm/beta"])
    return relu(out)


def powers(layer, x):
    w = weights(layer)
    logs = np.log(np.maximum(np.abs(x.astype("float64")), layer.minimum))
    if layer.batch_norm:
        logs = batch_norm(w, "log_norm", logs)
    out = np.stack(
        [np.prod(np.exp(logs) ** column[None, :, None], axis=1) for column in w["kernel"].T], axis=1
    )
    return batch_norm(w, "exp_norm", out) if layer.batch_norm else out


def cin(layer, x):
    w = weights(layer)
    n, dim = x.shape[1:]
    out = []
    for example in x.astype("float64"):
        previous, pooled = example, []
        for k, units in enumerate(layer.units):
            kernel = w[f"kernel_{k}"].reshape(n, len(previous), units)
            maps = np.zeros((units, dim))
            for u in range(units):
                for i in range(n):
                    for j in range(len(previous)):
                        maps[u] += kernel[i, j, u] * example[i] * previous[j]
                maps[u] += w[f"bias_{k}"][u]
            pooled += [m.sum() for m in maps]
            previous = maps
        out.append(pooled)
    return np.array(out)


def mask_block(layer, inputs):
    w = weights(layer)
    v, h = inputs
    out = (mlp(w, "mask", v) * h) @ w["hidden/kernel"]
    if layer.layer_norm:
        out = layer_norm(out, w["norm/gamma"], w["norm/beta"])
    return relu(out)


def feature_selection(layer, inputs):
    w = weights(layer)
    e, context = inputs if layer.context_dim is None else (inputs, w["context"])
    return 2 * sigmoid(mlp(w, "gate", context)) * e


def bilinear(layer, inputs):
    w = weights(layer)
    out = []
    for row in inputs.astype("float64"):
        xs = np.split(row[: layer.first], layer.num_heads)
        ys = np.split(row[layer.first :], layer.num_heads)
        logit = row @ w["linear/kernel"][:, 0] + w["linear/bias"][0]
        out.append([logit + sum(x @ m @ y for x, m, y in zip(xs, w["bilinear"], ys))])
    return np.array(out)


def pairs(_, x):
    n = x.shape[1]
    return np.array([[sum(e[i] @ e[j] for i in range(n) for j in range(i))] for e in x])


def fieldwise(layer, x):
    w = weights(layer)
    rows = [
        layer_norm(x[:, i].astype("float64"), w["gamma"][i], w["beta"][i])
        for i in range(x.shape[1])
    ]
    return np.stack(rows, 1)


def first_order(layer, inputs):
    w = weights(layer)
    logit = w["bias"] if layer.use_bias else 0.0
    sparse = layer.schema.select([f.name for f in layer.schema.sparse])
    logit = logit + reference.feature_embedding(reference.sub(w, "embedding"), inputs, sparse).sum(
        1
    )
    numbers = [
        np.asarray(inputs[f.name], "float64").reshape(len(logit), -1) for f in layer.schema.numeric
    ]
    return logit + np.concatenate(numbers, axis=1) @ w["numeric/kernel"]
