"""What a model of a search costs."""

from __future__ import annotations

import dataclasses

import keras

from keras_exfm.models import flops, non_embedding_parameters


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs, whatever the size of its tables.

    Args:
        training_flops: Floating-point operations of a training step for one example, as
            `keras_exfm.models.flops` counts them.
        inference_flops: The same of a prediction.
        parameters: Trained weights that are not rows of an embedding table.

    Example:

    >>> from keras_exfm import Categorical, Schema
    >>> from keras_exfm.models import DCNv2
    >>> model = DCNv2(Schema([Categorical("ad", 9)]), dim=4, num_cross_layers=1, parallel_units=())
    >>> Cost.of(model)
    Cost(training_flops=159, inference_flops=53, parameters=25)
    """

    training_flops: int
    inference_flops: int
    parameters: int

    @classmethod
    def of(cls, model: keras.Model) -> Cost:
        """The cost of a functional model; one from `keras_exfm.models.shapes_only` will do."""
        count = flops(model)
        return cls(count.training, count.inference, non_embedding_parameters(model))
