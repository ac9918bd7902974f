"""Wukong ranking models and ExFM external distillation for streams, in Keras 3.

Attributes load on first use, so that `import keras_exfm` costs nothing and the Keras backend
can still be chosen after it. Keras itself finds our classes in `.keras` files without custom
code: they register as soon as both `keras` and `keras_exfm` have been imported, in any order.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.1.0"

_SUBPACKAGES = (
    "das",
    "datasets",
    "distillation",
    "distribution",
    "export",
    "features",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "pipeline",
    "report",
    "streaming",
    "tuner",
)
_NAMES = {
    "Categorical": "features",
    "MultiHot": "features",
    "Numeric": "features",
    "Schema": "features",
    "ExternalDistillation": "distillation",
    "keep_freed_memory": "memory",
}
# Packages whose classes can stand in a `.keras` file.
_SERIALIZABLE = ("layers", "losses", "metrics", "models", "optimizers", "distillation")

__all__ = ["__version__", *_NAMES, *_SUBPACKAGES]

if TYPE_CHECKING:
    from keras_exfm import (
        das,
        datasets,
        distillation,
        distribution,
        export,
        features,
        layers,
        losses,
        metrics,
        models,
        optimizers,
        pipeline,
        report,
        streaming,
        tuner,
    )
    from keras_exfm.distillation import ExternalDistillation
    from keras_exfm.features import Categorical, MultiHot, Numeric, Schema
    from keras_exfm.memory import keep_freed_memory


# The packages above whose import has ended.
_imported: set[str] = set()


def _register(module: Any) -> None:
    """Registers our classes with Keras, once Keras and all of ours that were begun are there."""
    _imported.add(module.__name__)
    names = [f"{__name__}.{name}" for name in _SERIALIZABLE]
    if any(name in sys.modules and name not in _imported for name in names):
        # One of ours imported Keras and is not whole yet; its end calls this again.
        return
    for name in names:
        importlib.import_module(name)


for _name in ("keras", *(f"{__name__}.{name}" for name in _SERIALIZABLE)):
    wrapt.register_post_import_hook(_register, _name)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
