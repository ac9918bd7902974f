"""How each model grows: configurations by what they cost."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_exfm.features import Schema
from keras_exfm.tuner.scaling.configuration import Configuration

# The widths at scale 1; the layers of Wukong before its widths grow (the paper's table 5 stops at
# 8, where a further doubling of the widths is worth more). The head is wide and has two layers: a
# narrow one was measured to cost more than anything else that was tried.
_LAYERS, _COUNT, _RANK, _UNITS = 8, 8, 8, 64
_SMALLEST, _LARGEST = 1 / 32, 1024.0


def _wide(base: int, scale: float, multiple: int = 1) -> int:
    return multiple * max(1, round(base * scale / multiple))


def _wukong(scale: float, num_layers: int) -> dict[str, Any]:
    count = _wide(_COUNT, scale)
    return {
        "num_layers": num_layers,
        "n_fmb": count,
        "n_lcb": count,
        "rank": _wide(_RANK, scale),
        "mlp_units": [_wide(_UNITS, scale)],
        "head_units": [_wide(2 * _UNITS, scale)] * 2,
    }


_WIDTHS: dict[str, Callable[[float], dict[str, Any]]] = {
    "AFN": lambda s: {
        "neurons": _wide(32, s),
        "afn_units": [_wide(64, s)] * 2,
        "dnn_units": [_wide(64, s)] * 3,
    },
    "AutoInt": lambda s: {
        "num_layers": 3,
        "num_heads": 2,
        "attention_units": _wide(16, s, 2),
        "dnn_units": [_wide(64, s)] * 3,
    },
    "DCNv2": lambda s: {
        "num_cross_layers": 2,
        "rank": _wide(16, s),
        "parallel_units": [_wide(64, s)] * 3,
    },
    "DLRM": lambda s: {"top_units": [_wide(64, s)] * 3},
    "DeepFM": lambda s: {"dnn_units": [_wide(64, s)] * 3},
    "FinalMLP": lambda s: {
        "mlp1_units": [_wide(64, s)] * 3,
        "mlp2_units": [_wide(16, s)] * 2,
        "fs_units": [_wide(32, s)],
    },
    "MaskNet": lambda s: {
        "structure": "parallel",
        "block_units": [_wide(16, s)] * 4,
        "reduction_ratio": 0.02 * s,
        "dnn_units": [_wide(64, s)] * 3,
    },
    "XDeepFM": lambda s: {"cin_units": [_wide(8, s)] * 2, "dnn_units": [_wide(64, s)] * 3},
}

MODELS = ("Wukong", *sorted(_WIDTHS))
"""Models that have a path."""


def configurations(
    model: str,
    schema: Schema,
    targets: Sequence[float],
    fixed: Mapping[str, Any] | None = None,
) -> Iterator[Configuration]:
    """The model at each cost.

    Wukong grows as its paper says (section 3.8): first `num_layers`, 1 to 8, then `n_fmb`, `n_lcb`,
    `rank` and `mlp_units` together; between two numbers of layers the widths grow as far as the
    next layer costs, so that every target is met. The other models grow in all their widths at
    once, as the rows of the paper's table 5 do, at constant depth. The embeddings' size stays.

    Args:
        model: One of `MODELS`.
        schema: The features.
        targets: Training FLOPs per example.
        fixed: Arguments that replace the path's, such as `dim`, or `num_layers` of a Wukong that
            is to grow in width alone. Defaults to `None`: `dim` 16.

    Yields:
        A `Configuration` for each target, as near to it as whole widths allow.

    Raises:
        ValueError: For a model without a path, or a target below the path's cheapest model.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> schema = Schema([Categorical(f"field{i}", 100) for i in range(8)])
    >>> for each in configurations("Wukong", schema, [1e5, 1e6, 1e7]):
    ...     print(each.options["num_layers"], each.options["n_fmb"], each.cost.training_flops)
    1 4 99855
    5 8 997659
    8 19 10192563

    References:
        - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), section 3.8, table 5.
    """
    if model not in MODELS:
        raise ValueError(f"`model` should be one of {list(MODELS)}. Received: model={model!r}")
    beside = {"dim": 16, **(fixed or {})}

    @functools.cache
    def counted(text: str) -> Configuration:
        return Configuration.of(model, schema, json.loads(text))

    def at(scale: float, num_layers: int = 1) -> Configuration:
        own = _wukong(scale, num_layers) if model == "Wukong" else _WIDTHS[model](scale)
        return counted(json.dumps({**own, **beside}))

    for target in targets:
        layers = 1
        if model == "Wukong":
            while layers < _LAYERS and at(1.0, layers + 1).cost.training_flops <= target:
                layers += 1
        if at(_SMALLEST, layers).cost.training_flops > target:
            smallest = at(_SMALLEST, layers).cost.training_flops
            raise ValueError(
                f"The cheapest {model} of the path costs {smallest:,} training FLOPs an example "
                f"with these features. Received: target={target:,.0f}"
            )
        low, high = _SMALLEST, _LARGEST
        for _ in range(16):
            middle = math.sqrt(low * high)
            if at(middle, layers).cost.training_flops <= target:
                low = middle
            else:
                high = middle
        near = [at(low, layers), at(high, layers)]
        yield min(near, key=lambda c: abs(math.log(c.cost.training_flops / target)))


_KNOBS: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_layers",),
    "n_fmb": ("n_fmb",),
    "n_lcb": ("n_lcb",),
    "rank": ("rank",),
    "mlp_units": ("mlp_units",),
    "n_fmb, n_lcb and rank": ("n_fmb", "n_lcb", "rank"),
}


def knobs(schema: Schema, base: Mapping[str, Any], doublings: int = 3) -> Iterator[Configuration]:
    """Wukong with one knob after the other doubled, the rest as in `base` (the paper's Figure 5).

    Args:
        schema: The features.
        base: Arguments of Wukong with `num_layers`, `n_fmb`, `n_lcb`, `rank` and `mlp_units`.
        doublings: How often each is doubled. Defaults to `3`.

    Yields:
        `base` itself, then each knob's configurations, whose `label` is the knob.
    """
    yield Configuration.of("Wukong", schema, base, "base")
    for label, names in _KNOBS.items():
        for doubling in range(1, doublings + 1):
            changed = {name: _times(base[name], 2**doubling) for name in names}
            yield Configuration.of("Wukong", schema, {**base, **changed}, label)


def _times(value: Any, factor: int) -> Any:
    return [v * factor for v in value] if isinstance(value, (list, tuple)) else value * factor
