"""What a `.keras` file may name: nothing that a ranking model does not need."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}

# Modules whose classes and functions compute and no more. Everything else of Keras, such as
# `keras.utils`, which reads files and the network, has no place in a model's description.
_KERAS = {
    "keras",
    "keras.activations",
    "keras.constraints",
    "keras.dtype_policies",
    "keras.initializers",
    "keras.layers",
    "keras.losses",
    "keras.metrics",
    "keras.models",
    "keras.ops",
    "keras.optimizers",
    "keras.optimizers.schedules",
    "keras.quantizers",
    "keras.random",
    "keras.regularizers",
    "keras.src.models.functional",
    "keras.src.models.sequential",
}
_OPERATIONS = "keras.src.ops."
# Layers that hold code, or that read a file that the description names.
_REFUSED = {
    "FlaxLayer",
    "IntegerLookup",
    "JaxLayer",
    "Lambda",
    "StringLookup",
    "TFSMLayer",
    "TextVectorization",
    "TorchModuleWrapper",
    "__lambda__",
    "__typespec__",
}
_DATA = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}


def read_config(path: Path) -> dict[str, Any]:
    """The model's description, `config.json`.

    Raises:
        ValueError: If the archive holds anything but a Keras model.
    """
    with zipfile.ZipFile(path) as archive:
        strange = sorted(set(archive.namelist()) - _MEMBERS)
        if strange:
            raise ValueError(f"a Keras model has the parts {sorted(_MEMBERS)}. Received: {strange}")
        config = json.loads(archive.read("config.json"))
    if not isinstance(config, dict):
        raise ValueError("`config.json` should hold an object.")
    return config


def check(path: Path, packages: Iterable[str]) -> None:
    """Refuses a file that names more than Keras's modelling parts and the packages' classes.

    Keras's own safe mode refuses pickled functions; it lets a file name anything that is
    registered in the process, and layers that read files.

    Args:
        path: The `.keras` file.
        packages: Packages of `keras.saving.register_keras_serializable` that are trusted.

    Raises:
        ValueError: Says what the file names.
    """
    import keras

    trusted = tuple(f"{package}>" for package in packages)
    registered = keras.saving.get_custom_objects()
    for node in _nodes(read_config(path)):
        if isinstance(node, str):
            # A bare string, as in `activation="..."`, also finds a registered function.
            if node in registered and not node.startswith(trusted):
                raise ValueError(_refusal(node, packages))
            continue
        name = node["class_name"]
        if name in _DATA:
            continue
        if not isinstance(name, str) or name in _REFUSED:
            raise ValueError(
                f"it holds {name!r}, which runs code or reads files. Snapshots are data: build "
                "the network from layers, or use an entry point of the configuration."
            )
        module = node.get("module")
        function = name == "function"
        full = node.get("config") if function else node.get("registered_name")
        if isinstance(full, str) and ">" in full:
            if not full.startswith(trusted):
                raise ValueError(_refusal(full, packages))
            if full not in registered:
                raise ValueError(f"it holds {full!r}, which no class of this process is.")
            continue
        if function and module == "builtins":
            _check_function(full)
        elif not (isinstance(module, str) and (module in _KERAS or module.startswith(_OPERATIONS))):
            raise ValueError(_refusal(f"{module}.{full if function else name}", packages))


def _check_function(name: Any) -> None:
    """A function without a module is one of these collections', or nobody's."""
    import keras

    homes = (keras.activations, keras.losses, keras.metrics)
    if not isinstance(name, str) or not any(callable(getattr(home, name, None)) for home in homes):
        raise ValueError(f"it holds the function {name!r}, which is none of Keras's.")


def _refusal(name: str, packages: Iterable[str]) -> str:
    return (
        f"it holds {name!r}, which is neither a modelling part of Keras nor of the trusted "
        f"packages {list(packages)}. Name its package in `trusted_packages` if it is yours."
    )


def _nodes(value: Any) -> Iterator[Any]:
    """Every description of an object, and every string, at any depth."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, str):
        yield value
