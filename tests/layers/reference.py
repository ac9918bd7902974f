"""NumPy float64 restatements of the layers, from the papers' equations and the documented order
of rows. They share no code with the package and read weights by their variable paths."""

import numpy as np

from tests.testing import to_numpy


def weights(layer):
    """Variable path below the layer -> float64 array."""
    return {
        v.path.split("/", 1)[1] if "/" in v.path else v.path: to_numpy(v).astype("float64")
        for v in layer.weights
    }


def sub(tree, prefix):
    return {k[len(prefix) + 1 :]: v for k, v in tree.items() if k.startswith(prefix + "/")}


def relu(x):
    return np.maximum(x, 0.0)


def mlp(w, x):
    for i in range(sum(k.endswith("kernel") for k in w) - 1):
        x = relu(x @ w[f"hidden_{i}/kernel"] + w[f"hidden_{i}/bias"])
    return x @ w["output/kernel"] + w.get("output/bias", 0.0)


def layer_norm(w, x, epsilon):
    centered = x - x.mean(-1, keepdims=True)
    return (
        centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * w["gamma"] + w["beta"]
    )


def lcb(w, x):
    return np.einsum("mn,bnd->bmd", w["kernel"].T, x)


def fm(w, x, form):
    """One example at a time, with the pair matrix written out: `(X Xᵀ) Y`."""
    rows = []
    for example in x:
        pairs = example @ example.T
        if form == "dot":
            rows.append(pairs)
            continue
        y = w["projection"]
        if form == "attentive":
            compressed = w["compression"].T @ example
            flat = mlp(sub(w, "attention_mlp"), compressed.T.reshape(1, -1))
            y = y + flat.reshape(y.shape)
        rows.append(pairs @ y)
    return np.stack(rows)


def fmb(w, x, form, n_out, epsilon=1e-5):
    flat = fm(w, x, form).transpose(0, 2, 1).reshape(len(x), -1)
    out = mlp(sub(w, "mlp"), layer_norm(sub(w, "norm"), flat, epsilon))
    return out.reshape(len(x), x.shape[2], n_out).transpose(0, 2, 1)


def wukong_layer(w, x, form, n_fmb, epsilon=1e-5):
    residual = lcb(sub(w, "residual"), x) if "residual/kernel" in w else x
    blocks = [fmb(sub(w, "fmb"), x, form, n_fmb, epsilon), lcb(sub(w, "lcb"), x)]
    return layer_norm(sub(w, "norm"), np.concatenate(blocks, axis=1) + residual, epsilon)


def hash_row(i, size):
    """MurmurHash3's 32-bit finalizer on Python integers."""
    x = i & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (x ^ (x >> 16)) % size


def feature_embedding(w, batch, schema, numeric_embeddings=1, small_embeddings=1, frozen=()):
    """Looks every id of every feature up on its own, row by row."""
    tables, starts, ends = {}, {}, {}
    for feature in schema.sparse:
        if feature.table_name not in starts:
            name = "frozen_embeddings" if feature.table_name in frozen else "embeddings"
            name += f"_{feature.dim}" if feature.dim else ""
            tables[feature.table_name] = w[f"{name}/table"]
            starts[feature.table_name] = ends.get(name, 0)
            ends[name] = starts[feature.table_name] + feature.vocabulary_size * feature.embeddings
    count = len(next(iter(batch.values())))
    out = []
    for b in range(count):
        vectors, small = [], []
        for feature in schema.sparse:
            table = tables[feature.table_name]
            ids = np.atleast_1d(np.asarray(batch[feature.name])[b]).tolist()
            for e in range(feature.embeddings):
                total, present = np.zeros(table.shape[1]), 0
                for i in ids:
                    if i == -1:
                        continue
                    present += 1
                    if feature.hashed:
                        i = hash_row(i, feature.vocabulary_size)
                    if not 0 <= i < feature.vocabulary_size:
                        total = total + np.nan
                        continue
                    total = (
                        total + table[starts[feature.table_name] + e * feature.vocabulary_size + i]
                    )
                if getattr(feature, "combiner", "sum") == "mean" and present:
                    total = total / present
                (small if feature.dim else vectors).append(total)
        if small:
            tokens = mlp(sub(w, "small_mlp"), np.concatenate(small)[None])
            vectors += list(tokens.reshape(small_embeddings, -1))
        if schema.numeric:
            numbers = np.concatenate(
                [np.atleast_1d(np.asarray(batch[f.name], "float64")[b]) for f in schema.numeric]
            )
            tokens = mlp(sub(w, "numeric_mlp"), numbers[None])
            vectors += list(tokens.reshape(numeric_embeddings, -1))
        out.append(np.stack(vectors))
    return np.stack(out)


def triangle_of_dots(x):
    n = x.shape[1]
    return np.stack(
        [(x[:, i] * x[:, j]).sum(-1) for i in range(n) for j in range(i + 1, n)], axis=1
    )
