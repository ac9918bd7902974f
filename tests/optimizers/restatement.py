"""Row-sparse training restated in float64 NumPy, one row after the other."""

import numpy as np


def rate(config: dict, step: int) -> float:
    base = config["learning_rate"]
    if callable(base):
        base = base(step)
    warmup = config.get("warmup_steps", 0)
    return base * (min(1.0, (step + 1) / warmup) if warmup else 1.0)


def new_state(kind: str, rows: int, dim: int, config: dict) -> dict:
    if kind == "RowwiseAdagrad":
        return {"accumulator": np.full(rows, config.get("initial_accumulator_value", 0.0))}
    if kind == "SparseAdagrad":
        return {"accumulator": np.full((rows, dim), config.get("initial_accumulator_value", 0.1))}
    if kind == "SparseAdam":
        return {"momentum": np.zeros((rows, dim)), "velocity": np.zeros((rows, dim))}
    return {}


def train_step(
    kind: str, table: np.ndarray, state: dict, ids: np.ndarray, grads: np.ndarray, config, step
) -> None:
    """One step in place: `ids` (n,), `grads` (n, dim); ids that are no row are left out."""
    lr = rate(config, step)
    for row in {int(i) for i in ids if 0 <= i < len(table)}:
        g = grads[ids == row].sum(axis=0)
        if config.get("clip_row_norm"):
            norm = np.sqrt((g * g).sum())
            if norm > config["clip_row_norm"]:
                g = g * config["clip_row_norm"] / norm
        if kind == "RowwiseAdagrad":
            state["accumulator"][row] += (g * g).mean()
            d = g / (np.sqrt(state["accumulator"][row]) + config.get("epsilon", 1e-8))
        elif kind == "SparseSGD":
            d = g
        elif kind == "SparseAdagrad":
            state["accumulator"][row] += g * g
            d = g / np.sqrt(state["accumulator"][row] + config.get("epsilon", 1e-7))
        elif kind == "SparseAdam":
            b1, b2 = config.get("beta_1", 0.9), config.get("beta_2", 0.999)
            m = state["momentum"][row] = b1 * state["momentum"][row] + (1 - b1) * g
            v = state["velocity"][row] = b2 * state["velocity"][row] + (1 - b2) * g * g
            m_hat, v_hat_root = m / (1 - b1 ** (step + 1)), np.sqrt(v / (1 - b2 ** (step + 1)))
            # Epsilon stands beside the uncorrected root, as in the paper's section 2.
            epsilon = config.get("epsilon", 1e-7) / np.sqrt(1 - b2 ** (step + 1))
            d = m_hat / (v_hat_root + epsilon)
        else:
            raise AssertionError(kind)
        table[row] = table[row] - lr * (d + config.get("weight_decay", 0.0) * table[row])
