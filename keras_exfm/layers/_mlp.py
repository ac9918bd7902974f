"""The multilayer perceptron inside the layers."""

from __future__ import annotations

from typing import Any

import keras

from keras_exfm.layers._initializers import clone_initializer
from keras_exfm.layers._trainable import hand_down_trainable


class MLP(keras.layers.Layer):
    """Dense hidden layers with an activation and dropout, then a linear dense layer.

    Private: its owner keeps the arguments and their config.
    """

    def __init__(
        self,
        hidden_units: tuple[int, ...],
        output_units: int,
        activation: Any = "relu",
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        output_bias: bool = True,
        output_initializer: Any = None,
        output_bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_units = hidden_units
        self.output_units = output_units
        self.activation = activation
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_bias = output_bias
        self.output_initializer = (
            self.kernel_initializer
            if output_initializer is None
            else keras.initializers.get(output_initializer)
        )
        self.output_bias_initializer = keras.initializers.get(output_bias_initializer)
        self.hidden: list[keras.layers.Layer] = []
        self.dropouts: list[keras.layers.Layer] = []
        self.out: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        shape = tuple(input_shape)
        for i, units in enumerate(self.hidden_units):
            dense = keras.layers.Dense(
                units,
                activation=self.activation,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name=f"hidden_{i}",
            )
            dense.build(shape)
            self.hidden.append(dense)
            shape = (*shape[:-1], units)
            # Without dropout no layer is made: a Dropout carries random state into every file.
            if self.dropout:
                layer = keras.layers.Dropout(
                    self.dropout, dtype=self.dtype_policy, name=f"dropout_{i}"
                )
                layer.build(shape)
                self.dropouts.append(layer)
        self.out = keras.layers.Dense(
            self.output_units,
            use_bias=self.output_bias,
            kernel_initializer=clone_initializer(self.output_initializer),
            bias_initializer=clone_initializer(self.output_bias_initializer),
            dtype=self.dtype_policy,
            name="output",
        )
        self.out.build(shape)
        hand_down_trainable(self)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        for i, dense in enumerate(self.hidden):
            x = dense(x)
            if self.dropouts:
                x = self.dropouts[i](x, training=training)
        assert self.out is not None
        return self.out(x)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (*tuple(input_shape)[:-1], self.output_units)
