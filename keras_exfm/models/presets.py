"""Hyper-parameters of the models, as the Wukong paper prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """Hyper-parameters of one model.

    Args:
        model: Name of the model's class.
        config: Arguments of the model, all but the schema.
        gflops: What the source prints for a training step, in 1e9 operations an example; its
            number of features is not the caller's, see `PRESETS`.
        source: Where the figures are printed.
    """

    model: str
    config: Mapping[str, Any]
    gflops: float
    source: str


_SIZES = ("small", "medium", "large", "xlarge", "2xlarge", "3xlarge", "4xlarge")
_TABLE_5 = "Wukong paper, table 5"

# Table 5 does not say whether `Y` was attentive, nor what the head was. See `PRESETS`.
_NOT_PRINTED = {
    "form": "attentive",
    "attention_compression": 64,
    "attention_units": (512, 512),
    "head_units": (1024, 1024),
}


def _wukong(num_layers: int, count: int, rank: int, units: int) -> dict[str, Any]:
    return {
        "dim": 160,
        "num_layers": num_layers,
        "n_fmb": count,
        "n_lcb": count,
        "rank": rank,
        "mlp_units": (units,) * 3,
        **_NOT_PRINTED,
    }


def _dlrm(layers: int, units: int) -> dict[str, Any]:
    return {"dim": 160, "top_units": (units,) * layers, "concat_embeddings": False}


def _dcnv2(units: int) -> dict[str, Any]:
    return {"dim": 160, "num_cross_layers": 2, "rank": 512, "parallel_units": (units,) * 4}


def _afn(neurons: int, afn_units: int, dnn_units: int) -> dict[str, Any]:
    return {
        "dim": 160,
        "neurons": neurons,
        "afn_units": (afn_units,) * 4,
        "dnn_units": (dnn_units,) * 4,
    }


def _autoint(units: int, heads: int, dnn_units: tuple[int, ...]) -> dict[str, Any]:
    return {
        "dim": 160,
        "num_layers": 3,
        "attention_units": units,
        "num_heads": heads,
        "dnn_units": dnn_units,
    }


def _finalmlp(
    mlp1: tuple[int, ...], mlp2: tuple[int, ...], gates: tuple[int, ...] | None
) -> dict[str, Any]:
    config = {"dim": 160, "mlp1_units": mlp1, "mlp2_units": mlp2, "num_heads": 64}
    if gates is None:
        return {**config, "feature_selection": False}
    return {**config, "fs_units": gates}


def _masknet(dnn_units: tuple[int, ...], blocks: int, reduction_ratio: float) -> dict[str, Any]:
    return {
        "dim": 160,
        "structure": "parallel",
        "block_units": (128,) * blocks,
        "reduction_ratio": reduction_ratio,
        "dnn_units": dnn_units,
    }


_ROWS: dict[str, list[tuple[dict[str, Any], float]]] = {
    "Wukong": [
        (_wukong(2, 8, 24, 2048), 0.53),
        (_wukong(4, 32, 24, 2048), 1.25),
        (_wukong(8, 32, 24, 2048), 2.12),
        (_wukong(8, 48, 48, 4096), 5.6),
        (_wukong(8, 96, 96, 8192), 22.23),
        (_wukong(8, 96, 96, 16384), 61.0),
        (_wukong(8, 192, 192, 16384), 108.0),
    ],
    "DLRM": [
        (_dlrm(2, 512), 1.37),
        (_dlrm(4, 512), 1.37),
        (_dlrm(4, 2048), 3.85),
        (_dlrm(4, 4096), 7.29),
        (_dlrm(4, 8192), 14.61),
        (_dlrm(4, 16384), 31.0),
        (_dlrm(4, 32768), 71.23),
    ],
    "DCNv2": [
        (_dcnv2(2048), 3.0),
        (_dcnv2(4096), 4.67),
        (_dcnv2(16384), 17.85),
        (_dcnv2(32768), 43.88),
        (_dcnv2(51200), 84.71),
    ],
    "AFN": [
        (_afn(1024, 2048, 2048), 4.41),
        (_afn(1024, 2048, 4096), 7.65),
        (_afn(2048, 4096, 4096), 13.08),
        (_afn(4096, 8192, 8192), 43.4),
    ],
    "AutoInt": [
        (_autoint(256, 4, (256,) * 2), 7.72),
        (_autoint(512, 4, (256,) * 2), 18.58),
        (_autoint(512, 8, (8192,) * 3), 42.53),
        (_autoint(512, 16, (10240,) * 3), 49.58),
        (_autoint(512, 16, (16384,) * 3), 68.83),
    ],
    "FinalMLP": [
        (_finalmlp((4096,) * 4, (1024,) * 2, None), 3.93),
        (_finalmlp((4096,) * 4, (1024,) * 2, (2048,)), 8.17),
        (_finalmlp((8192,) * 4, (2048,) * 2, (4096,)), 16.9),
        (_finalmlp((8192,) * 8, (2048,) * 4, (4096,) * 2), 18.77),
        (_finalmlp((16384,) * 4, (4096,) * 2, (8192,)), 36.26),
        (_finalmlp((24576,) * 4, (6144,) * 2, (12288,)), 58.12),
    ],
    "MaskNet": [
        (_masknet((512,), 1, 0.01), 1.76),
        (_masknet((512,), 4, 0.01), 6.8),
        (_masknet((2048,) * 3, 4, 0.01), 6.88),
        (_masknet((2048,) * 3, 4, 0.05), 32.36),
        (_masknet((2048,) * 3, 4, 0.1), 64.21),
    ],
}

_CRITEO = Preset(
    "Wukong",
    {
        "dim": 128,
        "num_layers": 2,
        "n_fmb": 16,
        "n_lcb": 16,
        "rank": 24,
        "mlp_units": (2048,) * 2,
        "head_units": (2048,),
        "numeric_units": (512, 256),
    },
    0.17373,
    "Wukong paper, table 3 (Criteo) and appendix A",
)

PRESETS: dict[str, Preset] = {
    **{
        f"{model.lower()}_{size}": Preset(model, config, gflops, _TABLE_5)
        for model, rows in _ROWS.items()
        for size, (config, gflops) in zip(_SIZES, rows)
    },
    "wukong_criteo": _CRITEO,
}
"""Presets by name, for `from_preset` of the models: `Wukong.from_preset("wukong_small", schema)`.

`<model>_small`, `_medium`, `_large`, `_xlarge`, `_2xlarge`, `_3xlarge` and `_4xlarge` are the rows
of table 5 of the Wukong paper in its order, models trained on 146 billion examples of 720 features;
there are as many sizes as rows: Wukong from 0.53 to 108 GFLOP, DLRM, DCNv2, AFN, AutoInt, FinalMLP
and MaskNet.

What the paper does not print is inferred from its own GFLOP column:

* **720 embeddings**, one for each feature: two rows of DLRM, solved for the number, give 721, and
  720 reproduces all rows of DLRM, DCNv2 and MaskNet within 6 %, the expensive ones within 1 %.
* **Attentive `Y`.** With 720 embeddings, layers with a static `Y` miss the rows "large" and
  "medium" of Wukong by 28 % and 21 %, whatever the head; the four layers between these two rows
  cost 0.87 GFLOP, and static ones 0.55. `form="attentive"` with `attention_compression=64`,
  `attention_units=(512, 512)` and `head_units=(1024, 1024)` reproduces all seven within 12 %.
  Other sizes do so nearly as well: these are consistent with the paper, not known from it.
* **FinalMLP**: gates whose contexts are all features for one stream and a single feature for the
  other reproduce its rows within 1 %. The names depend on the schema, so give them:
  `fs1_context=schema.names, fs2_context=schema.names[:1]`.
* **AutoInt**: the rows fit an MLP that reads the attention's output and the embeddings, within
  2 %. `AutoInt`, as FuxiCTR's, has it on the embeddings alone, so "large" and above cost about
  half of what is printed.
* **AFN**: "medium" is printed with 7.65 GFLOP, its printed sizes give 5.9; the others agree.

`"wukong_criteo"` is the point of appendix A's grid for Criteo Terabyte (13 numbers, 26 ids) with a
static `Y` whose cost and size come nearest to table 3: 173 of 173.73 MFLOP, 28.3 of 28.0 million
weights beside the tables. The paper prints the grid, not the winner.

References:
    - [Zhang et al., 2024, Wukong](https://arxiv.org/abs/2403.02545), sections 6.2 and 7, tables 3
      and 5, appendix A.
"""
