"""Floating-point operations and sizes of the zoo's models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from keras_exfm import layers
from keras_exfm.features import MultiHot, Schema


@dataclasses.dataclass(frozen=True)
class LayerFlops:
    """What one layer costs for one example.

    Args:
        kind: Name of the layer's class.
        inference: Operations of a forward pass.
        training: Operations of a forward and a backward pass.
    """

    kind: str
    inference: int
    training: int


@dataclasses.dataclass(frozen=True)
class Flops:
    """What a model costs for one example.

    Args:
        layers: Layer name -> `LayerFlops`, in the order of computation.
    """

    layers: dict[str, LayerFlops]

    @property
    def inference(self) -> int:
        """Operations of a forward pass."""
        return sum(layer.inference for layer in self.layers.values())

    @property
    def training(self) -> int:
        """Operations of a forward and a backward pass."""
        return sum(layer.training for layer in self.layers.values())


class _Counter:
    """Adds up the operations of one layer.

    `differentiated` says of a product whether its input wants a gradient: the inputs of a model do
    not, so the first layer behind them saves one of three products.
    """

    def __init__(self, trainable: bool) -> None:
        self.trainable = trainable
        self.inference = 0
        self.training = 0

    def weight_product(self, multiplications: int, differentiated: bool = True) -> None:
        """A matrix product of the input with a weight: 2 operations a multiplication."""
        self.inference += 2 * multiplications
        self.training += 2 * multiplications * (1 + self.trainable + differentiated)

    def product(self, multiplications: int, differentiated: bool = True) -> None:
        """A matrix product of two things computed from the input."""
        self.inference += 2 * multiplications
        self.training += 2 * multiplications * (1 + 2 * differentiated)

    def elements(self, count: int) -> None:
        """Operations on single elements; backward they cost about twice as much."""
        self.inference += count
        self.training += 3 * count


_Shape = tuple[int, ...]
_Rule = Callable[[_Counter, Any, Any, bool], None]
# Operations an element of a LayerNorm (mean, variance, scale and shift) and a BatchNorm.
_LAYER_NORM = 8
_BATCH_NORM = 4


def _free(count: _Counter, layer: Any, shape: Any, differentiated: bool) -> None:
    """Moves data or does nothing."""


def _is_linear(activation: Any) -> bool:
    return activation is keras.activations.linear


def _dense(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    positions = math.prod(shape[:-1])
    count.weight_product(positions * shape[-1] * layer.units, differentiated)
    count.elements(positions * layer.units * (layer.use_bias + (not _is_linear(layer.activation))))


def _activation(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    count.elements(math.prod(shape))


def _add(count: _Counter, layer: Any, shapes: list[_Shape], differentiated: bool) -> None:
    count.elements((len(shapes) - 1) * math.prod(shapes[0]))


def _batch_norm(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    count.elements(_BATCH_NORM * math.prod(shape))


def _layer_norm(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    count.elements(_LAYER_NORM * math.prod(shape))


def _mlp(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    """The layers' private MLP."""
    width = shape[-1]
    for units in layer.hidden_units:
        count.weight_product(width * units, differentiated)
        count.elements(2 * units)
        width, differentiated = units, True
    count.weight_product(width * layer.output_units, differentiated)
    count.elements(layer.output_units * layer.output_bias)


def _lookups(schema: Schema) -> tuple[int, int]:
    """Rows read, and rows left after pooling."""
    read = sum(f.embeddings * math.prod(f.shape) for f in schema.sparse)
    return read, sum(f.embeddings for f in schema.sparse)


def _feature_embedding(
    count: _Counter, layer: layers.FeatureEmbedding, shape: Any, differentiated: bool
) -> None:
    small = 0
    for feature in layer.schema.sparse:
        dim = min(layer.dim, feature.dim or layer.dim)
        small += feature.embeddings * dim if dim < layer.dim else 0
        mean = isinstance(feature, MultiHot) and feature.combiner == "mean"
        pooling = math.prod(feature.shape) - 1 + mean
        count.elements(feature.embeddings * pooling * dim)
    if layer.small_mlp is not None:
        _mlp(count, layer.small_mlp, (small,), True)
    if layer.numeric_mlp is not None:
        _mlp(count, layer.numeric_mlp, (sum(f.size for f in layer.schema.numeric),), False)


def _first_order(
    count: _Counter, layer: layers.FirstOrder, shape: Any, differentiated: bool
) -> None:
    if layer.embedding is not None:
        _feature_embedding(count, layer.embedding, shape, False)
        count.elements(layer.embedding.num_embeddings)
    count.weight_product(sum(f.size for f in layer.schema.numeric), False)
    count.elements(int(layer.use_bias))


def _linear_compression(count: _Counter, layer: Any, shape: _Shape, differentiated: bool) -> None:
    n, dim = shape
    count.weight_product(n * layer.n_out * dim, differentiated)


def _factorization_machine_block(
    count: _Counter, layer: layers.FactorizationMachineBlock, shape: _Shape, differentiated: bool
) -> None:
    n, dim = shape
    if layer.rank is None or layer.form == "dot":
        width = n * n
        count.product(n * n * dim, differentiated)
    else:
        width = n * layer.rank
        if layer.form == "static":
            count.weight_product(width * dim, differentiated)
        else:
            compression = layer.attention_compression
            count.weight_product(n * compression * dim, differentiated)
            _mlp(count, layer.attention_mlp, (compression * dim,), True)
            count.elements(width)
            count.product(width * dim)
        count.product(width * dim, differentiated)
    count.elements(_LAYER_NORM * width)
    _mlp(count, layer.mlp, (width,), True)


def _wukong(
    count: _Counter, layer: layers.WukongLayer, shape: _Shape, differentiated: bool
) -> None:
    size = (layer.n_fmb + layer.n_lcb) * shape[1]
    _factorization_machine_block(count, layer.fmb, shape, differentiated)
    _linear_compression(count, layer.lcb, shape, differentiated)
    if layer.residual is not None:
        _linear_compression(count, layer.residual, shape, differentiated)
    count.elements((1 + _LAYER_NORM) * size)


def _dot_interaction(
    count: _Counter, layer: layers.DotInteraction, shape: _Shape, differentiated: bool
) -> None:
    # All n * n products are computed, as one matrix, though fewer than half are kept.
    n, dim = shape
    count.product(n * n * dim, differentiated)


def _cross(
    count: _Counter, layer: layers.CrossLayer, shapes: list[_Shape], differentiated: bool
) -> None:
    (features,) = shapes[1]
    if layer.rank is None:
        count.weight_product(features * features, differentiated)
    else:
        count.weight_product(features * layer.rank, differentiated)
        count.weight_product(layer.rank * features)
    count.elements(3 * features)


def _attention(
    count: _Counter, layer: layers.InteractingAttention, shape: _Shape, differentiated: bool
) -> None:
    n, dim = shape
    projections = 3 + (layer.residual and dim != layer.units)
    count.weight_product(projections * n * dim * layer.units, differentiated)
    count.product(n * n * layer.units)
    # Maximum, difference, exponential, sum and quotient of the softmax.
    count.elements((5 + layer.scale) * n * n * layer.num_heads)
    count.product(n * n * layer.units)
    count.elements((layer.residual + _LAYER_NORM * layer.layer_norm + 1) * n * layer.units)


def _logarithmic(
    count: _Counter, layer: layers.LogarithmicTransformation, shape: _Shape, differentiated: bool
) -> None:
    n, dim = shape
    norm = _BATCH_NORM * layer.batch_norm
    count.elements((3 + norm) * n * dim)
    count.weight_product(n * layer.neurons * dim, differentiated or layer.batch_norm)
    count.elements((1 + norm) * layer.neurons * dim)


def _compressed_interaction(
    count: _Counter,
    layer: layers.CompressedInteractionNetwork,
    shape: _Shape,
    differentiated: bool,
) -> None:
    n, dim = shape
    previous = n
    for units in layer.units:
        count.elements(n * previous * dim)
        count.weight_product(n * previous * units * dim, differentiated)
        count.elements(2 * units * dim)
        previous, differentiated = units, True


def _mask_block(
    count: _Counter, layer: layers.MaskBlock, shapes: list[_Shape], differentiated: bool
) -> None:
    v, (width,) = shapes
    _mlp(count, layer.mask, v, differentiated)
    count.elements(width)
    count.weight_product(width * layer.units)
    count.elements((_LAYER_NORM * layer.layer_norm + 1) * layer.units)


def _feature_selection(
    count: _Counter, layer: layers.FeatureSelection, shapes: Any, differentiated: bool
) -> None:
    if layer.context_dim is not None:
        # The gate is one for the whole batch, so for an example it costs nothing.
        count.elements(math.prod(shapes))
        return
    (features,), context = shapes
    _mlp(count, layer.gate, context, differentiated)
    # The logistic function's three operations, the factor 2 and the product.
    count.elements(5 * features)


def _bilinear(
    count: _Counter, layer: layers.BilinearFusion, shape: _Shape, differentiated: bool
) -> None:
    second = shape[0] - layer.first
    count.weight_product(shape[0] + layer.first * second // layer.num_heads, differentiated)
    count.elements(2 * second + 2)


def _factorization_machine(
    count: _Counter, layer: layers.FactorizationMachine, shape: _Shape, differentiated: bool
) -> None:
    n, dim = shape
    count.elements(3 * n * dim + 3 * dim)


_RULES: dict[type, _Rule] = {
    keras.layers.InputLayer: _free,
    keras.layers.Flatten: _free,
    keras.layers.Reshape: _free,
    keras.layers.Concatenate: _free,
    keras.layers.Cropping1D: _free,
    keras.layers.Dropout: _free,
    keras.layers.Dense: _dense,
    keras.layers.Activation: _activation,
    keras.layers.Add: _add,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.LayerNormalization: _layer_norm,
    layers.FieldwiseLayerNormalization: _layer_norm,
    layers.FeatureEmbedding: _feature_embedding,
    layers.FirstOrder: _first_order,
    layers.LinearCompressionBlock: _linear_compression,
    layers.FactorizationMachineBlock: _factorization_machine_block,
    layers.WukongLayer: _wukong,
    layers.DotInteraction: _dot_interaction,
    layers.CrossLayer: _cross,
    layers.InteractingAttention: _attention,
    layers.LogarithmicTransformation: _logarithmic,
    layers.CompressedInteractionNetwork: _compressed_interaction,
    layers.MaskBlock: _mask_block,
    layers.FeatureSelection: _feature_selection,
    layers.BilinearFusion: _bilinear,
    layers.FactorizationMachine: _factorization_machine,
}


def flops(model: keras.Model) -> Flops:
    """Counts a functional model's floating-point operations for one example.

    A multiplication and an addition of a matrix product are two operations; everything done to
    single elements counts about one each (8 an element for a LayerNorm). Training is the forward
    pass, the gradient of each weight and the gradient of each layer's input: three times
    inference, but for products whose input wants no gradient (the model's numbers) and for frozen
    layers. Not counted: reading and updating embedding rows, dropout's random numbers, the loss
    and the optimizer. The model needs no values: `shapes_only` builds one of any size without
    memory.

    Args:
        model: A functional model from the layers of `keras_exfm.layers` and Keras' `Dense`,
            `Activation`, `Add`, `Concatenate`, `Flatten`, `Reshape`, `Cropping1D`, `Dropout`,
            `BatchNormalization` and `LayerNormalization`.

    Returns:
        `Flops` with `inference`, `training` and `layers`.

    Raises:
        ValueError: If the model is not functional.
        TypeError: For a layer of a type that has no rule; it names the layer and the type.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.models import DCNv2
    >>> model = DCNv2(Schema([Categorical("ad", 9)]), dim=4, num_cross_layers=1, parallel_units=())
    >>> count = flops(model)
    >>> count.inference, count.training
    (53, 159)
    >>> count.layers["representation"]
    LayerFlops(kind='CrossLayer', inference=44, training=132)
    """
    outputs = getattr(model, "outputs", None)
    if not outputs:
        raise ValueError(
            f"`flops` counts functional models. Received: {model!r}, which has no outputs yet."
        )
    found: dict[str, LayerFlops] = {}
    differentiated: dict[int, bool] = {}

    def visit(tensor: Any) -> bool:
        """Counts what leads to `tensor`; tells whether a weight stands on the way."""
        layer, node_index, _ = tensor._keras_history
        node = layer._inbound_nodes[node_index]
        if id(node) in differentiated:
            return differentiated[id(node)]
        parents = [visit(parent) for parent in node.input_tensors]
        wanted = any(parents)
        differentiated[id(node)] = wanted or bool(getattr(layer, "trainable_variables", ()))
        rule = _RULES.get(type(layer))
        if rule is None:
            raise TypeError(
                f"`flops` has no rule for the layer {layer.name!r} of the type "
                f"{type(layer).__name__}. Known: {sorted(kind.__name__ for kind in _RULES)}"
            )
        counter = _Counter(bool(getattr(layer, "trainable", True)))
        rule(counter, layer, _shapes(node), wanted)
        before = found.get(layer.name, LayerFlops("", 0, 0))
        found[layer.name] = LayerFlops(
            type(layer).__name__,
            before.inference + counter.inference,
            before.training + counter.training,
        )
        return differentiated[id(node)]

    for output in outputs:
        visit(output)
    return Flops(found)


def shapes_only(make: Callable[..., keras.Model], *args: Any, **kwargs: Any) -> keras.Model:
    """Builds a model whose weights have shapes but no values, to count what it costs.

    No memory is taken for weights, so a model may be larger than the machine. It is for `flops`,
    `non_embedding_parameters`, `count_params` and `summary`; it cannot be called on data or saved.

    Args:
        make: A model's class, its `from_preset`, or another function that returns a model.
        *args: Of `make`.
        **kwargs: Of `make`.

    Returns:
        The model.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.models import Wukong
    >>> schema = Schema([Categorical("ids", 1_000_000, embeddings=720)])
    >>> model = shapes_only(Wukong.from_preset, "wukong_4xlarge", schema)
    >>> f"{flops(model).training / 1e9:.0f} GFLOP an example"
    '119 GFLOP an example'
    >>> f"{non_embedding_parameters(model) / 1e9:.1f} billion weights beside the tables"
    '19.5 billion weights beside the tables'
    """
    policy = keras.config.dtype_policy()

    def build() -> keras.Model:
        keras.config.set_dtype_policy(policy)
        with keras.StatelessScope(initialize_variables=False):
            return make(*args, **kwargs)

    # Keras keeps a list, one for each thread, of variables that wait for their values, and gives
    # them at the end of the thread's next stateless scope. This thread's list goes with it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()


def _shapes(node: Any) -> Any:
    """Shapes of the inputs of one example: a tuple, or a list of them."""
    shapes = [tuple(tensor.shape[1:]) for tensor in node.input_tensors]
    return shapes[0] if len(shapes) == 1 else shapes


def non_embedding_parameters(model: keras.Model) -> int:
    """Number of trained weights that are not rows of an embedding table.

    Args:
        model: A model of the zoo, or another functional model of `keras_exfm.layers`.

    Returns:
        The number. Frozen layers and moving statistics do not count.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.models import DCNv2
    >>> model = DCNv2(Schema([Categorical("ad", 9)]), dim=4, num_cross_layers=1, parallel_units=())
    >>> non_embedding_parameters(model)
    25
    """
    rows: set[int] = set()
    for layer in model.layers:
        embedding = layer.embedding if isinstance(layer, layers.FirstOrder) else layer
        if isinstance(embedding, layers.FeatureEmbedding):
            rows |= {id(variable) for table in embedding.tables for variable in table.variables}
    return sum(
        math.prod(variable.shape)
        for variable in model.trainable_variables
        if id(variable) not in rows
    )
