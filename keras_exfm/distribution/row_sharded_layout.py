"""A layout that splits embedding tables by rows."""

from __future__ import annotations

import keras


def row_sharded_layout(
    device_mesh: keras.distribution.DeviceMesh, axis: str | None = None
) -> keras.distribution.LayoutMap:
    """Layout map that splits every `EmbeddingTable` by rows and replicates all other weights.

    Device `k` of the `n` along `axis` holds the rows `k * rows / n .. (k + 1) * rows / n - 1` of
    each table and of its row optimizer's state. Give the map to `keras.distribution.ModelParallel`
    and set that distribution before the model is built. More weights may be split by further
    entries of the map.

    With one axis for both, the batch and the rows, every device trains the dense part on its share
    of the batch, as under `DataParallel`, and holds one n-th of the tables.

    Args:
        device_mesh: The devices.
        axis: Axis of the mesh over which rows are split. Defaults to `None`, the last axis.

    Returns:
        A `keras.distribution.LayoutMap`, to which you may add.

    Raises:
        ValueError: If the mesh has no such axis.
        NotImplementedError: For several devices on another backend than JAX, where Keras leaves
            distributions aside.

    Example:

    >>> import keras
    >>> import keras_exfm as kx
    >>> mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    >>> layout = kx.distribution.row_sharded_layout(mesh)
    >>> layout["feature_embedding/embeddings/table"].axes
    ('batch', None)
    >>> distribution = keras.distribution.ModelParallel(layout_map=layout)

    `docs/scaling.md` goes on from here.
    """
    names = list(device_mesh.axis_names)
    if axis is None:
        axis = names[-1]
    if axis not in names:
        raise ValueError(
            f"`axis` should be one of the mesh's axes {names}, or None. Received: axis={axis!r}"
        )
    backend = keras.backend.backend()
    if device_mesh.devices.size > 1 and backend != "jax":
        raise NotImplementedError(
            "Splitting tables over devices needs the JAX backend: Keras would leave the layout "
            f"aside and train on one device. Received: backend={backend!r}, "
            f"{device_mesh.devices.size} devices"
        )
    layout_map = keras.distribution.LayoutMap(device_mesh)
    # The row optimizer's state follows its table.
    layout_map[r".*/table"] = (axis, None)
    return layout_map
