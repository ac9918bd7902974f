"""FinalMLP's context-aware feature selection."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_exfm.layers import _checks
from keras_exfm.layers._mlp import MLP
from keras_exfm.layers._pairs import pair_shapes
from keras_exfm.layers._trainable import hand_down_trainable


@keras.saving.register_keras_serializable(package="keras_exfm")
class FeatureSelection(keras.layers.Layer):
    """Scales every coordinate of the embeddings by a gate between 0 and 2.

    Formula, with the flat embeddings `e` of `features` numbers and a context `c`:

        FeatureSelection(e, c) = 2 sigmoid(W ReLU(V c + a) + b) * e        (features,)

    The context is the flat embedding of some features, from tables of the gate's own (the paper's
    figure 2), or, with `context_dim`, one learned vector, the same for all examples. It starts at
    random: FuxiCTR's starts at zero and its biases too, which puts every ReLU at its dead point,
    so that nothing but `b` is ever trained there.

    Number of weights, with the context's size `C` and one hidden width `h`:
    `(C + 1) * h + (h + 1) * features`, plus `C` with `context_dim`.

    Args:
        units: Widths of the gate's ReLU layers. Defaults to `(64,)`.
        context_dim: Size of a learned context; `None` if the context is an input. Defaults to
            `None`.
        kernel_initializer: Initializer of the gate's matrices. Defaults to `"glorot_uniform"`.
        **kwargs: `name`, `dtype` and `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: List `[e, c]` of tensors `(batch, features)` and `(batch, context)`; with
            `context_dim` the tensor `e` alone. The output is `(batch, features)`.

    Example:

    >>> import numpy as np
    >>> e = np.ones((2, 12), "float32")
    >>> tuple(FeatureSelection()([e, e[:, :4]]).shape)
    (2, 12)
    >>> tuple(FeatureSelection(context_dim=4)(e).shape)
    (2, 12)

    References:
        - [Mao et al., 2023, FinalMLP](https://arxiv.org/abs/2304.00902), equations 5 and 6.
    """

    def __init__(
        self,
        units: tuple[int, ...] | list[int] = (64,),
        context_dim: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = _checks.unit_counts("units", units)
        self.context_dim = (
            None if context_dim is None else _checks.positive_int("context_dim", context_dim)
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.context: Any = None
        self.gate: keras.layers.Layer | None = None

    def build(self, input_shape: Any) -> None:
        """Creates the gate, and the context if it is learned."""
        if self.context_dim is None:
            (_, features), (_, context) = pair_shapes(
                self, input_shape, "[(batch, features), (batch, context)]"
            )
        else:
            if len(input_shape) != 2 or not isinstance(input_shape[1], int):
                raise ValueError(
                    f"FeatureSelection with context_dim={self.context_dim} expects one input "
                    f"(batch, features). Received: input_shape={input_shape}"
                )
            features, context = input_shape[1], self.context_dim
            self.context = self.add_weight(
                shape=(1, self.context_dim), initializer="uniform", name="context"
            )
        self.gate = MLP(
            self.units,
            features,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="gate",
        )
        self.gate.build((None, context))
        hand_down_trainable(self)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Gates the embeddings."""
        assert self.gate is not None
        if self.context_dim is None:
            e, context = inputs
        else:
            # One row: the gate is computed once for the whole batch.
            e, context = inputs, ops.convert_to_tensor(self.context)
        return 2 * ops.sigmoid(self.gate(context)) * e

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """`(batch, features)`."""
        return tuple(input_shape[0] if self.context_dim is None else input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the layer."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "context_dim": self.context_dim,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
