"""Step 1 of ExFM's Algorithm 1: the student adapters' own update.

It must know the backend: Keras gives a model one optimizer, and its `train_step` has another
signature on JAX, where the state goes in and out by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from keras_exfm.distillation.external_distillation import ExternalDistillation


def tensorflow_step(model: ExternalDistillation, data: Any) -> None:
    """Updates the adapters' variables in place."""
    import tensorflow as tf

    variables = model.adapter_variables
    targets = model.unpack_targets(data)
    model.observe_adapters(targets)
    # The variables are frozen for the main optimizer, hence watched by hand.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for variable in variables:
            tape.watch(variable.value)
        loss = model.adapter_optimizer.scale_loss(model.adapter_loss(targets))
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    model.adapter_optimizer.apply(gradients, variables)


def jax_step(model: ExternalDistillation, state: tuple[list, ...], data: Any) -> tuple[list, ...]:
    """The training state with the adapters' variables and their optimizer's updated."""
    import jax

    trainable, non_trainable, *rest = state
    optimizer = model.adapter_optimizer
    targets = model.unpack_targets(data)
    state_of = model.non_trainable_variables
    with keras.StatelessScope(state_mapping=list(zip(state_of, non_trainable))) as scope:
        model.observe_adapters(targets)
    non_trainable = [scope.get_current_value(v) for v in state_of]

    position = {id(v): i for i, v in enumerate(state_of)}
    own = [position[id(v)] for v in model.adapter_variables]
    slots = [position[id(v)] for v in optimizer.variables]
    slot_values = [non_trainable[i] for i in slots]

    def loss(values: list) -> Any:
        mapping = [
            *zip(model.adapter_variables, values),
            *zip(optimizer.variables, slot_values),
        ]
        with keras.StatelessScope(state_mapping=mapping):
            return optimizer.scale_loss(model.adapter_loss(targets))

    values = [non_trainable[i] for i in own]
    values, slot_values = optimizer.stateless_apply(slot_values, jax.grad(loss)(values), values)
    for i, value in zip([*own, *slots], [*values, *slot_values]):
        non_trainable[i] = value
    return (trainable, non_trainable, *rest)
