"""ExFM's training step once more, in NumPy float64, gradients written out by hand.

The student is `relu(x W + b)` as representation and a linear serving head. Networks are lists of
`[kernel, bias]`, hidden layers ReLU, last layer linear.
"""

import numpy as np

from tests.testing import to_numpy


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def crossentropy(logit, target):
    return np.logaddexp(0.0, logit) - target * logit


def forward(network, x):
    """The output, and the input of every layer."""
    inputs = []
    for i, (kernel, bias) in enumerate(network):
        inputs.append(x)
        x = x @ kernel + bias
        if i < len(network) - 1:
            x = np.maximum(x, 0)
    return x, inputs


def backward(network, inputs, delta):
    """Gradients of the weights, and of the network's input."""
    gradients = []
    for i in reversed(range(len(network))):
        gradients.append([inputs[i].T @ delta, delta.sum(0)])
        delta = delta @ network[i][0].T
        if i > 0:
            delta = delta * (inputs[i] > 0)
    return gradients[::-1], delta


def network_of(layer):
    values = [to_numpy(v).astype("float64") for v in layer.weights]
    return [list(pair) for pair in zip(values[::2], values[1::2])]


class Restatement:
    """The weights of an `ExternalDistillation` model, trained by plain gradient descent."""

    def __init__(self, model):
        self.networks = {
            "backbone": network_of(model.student.get_layer("representation")),
            "serving": network_of(model.student.get_layer("serving")),
        }
        self.heads = {}
        for name in ("auxiliary_head", "adapter_head"):
            head = getattr(model, name)
            if head is not None:
                self.networks[name] = network_of(head)
                self.heads[name] = (head.label_scale, head.gradient_scale, head.loss_weight)
        if model.student_adapter is not None:
            self.networks["adapter"] = network_of(model.student_adapter)
            self.residual = model.student_adapter.residual
        self.shared = model.shared_head_weight
        self.strict = model.strict

    def adapt(self, teacher):
        logit, inputs = forward(self.networks["adapter"], teacher)
        return logit + (teacher if self.residual else 0), inputs

    def step(self, x, label, teacher, weight):
        """Loss terms and gradients of one batch; columns `(batch, 1)`, NaN for no teacher."""
        known = np.isfinite(teacher)
        teacher = np.where(known, teacher, 0.0)
        weight = weight / len(x)
        taught = weight * known

        x_rep, backbone_inputs = forward(self.networks["backbone"], x)
        rep = np.maximum(x_rep, 0)
        z, serving_inputs = forward(self.networks["serving"], rep)
        terms = {"label_loss": (weight * crossentropy(z, label)).sum()}
        delta = weight * (sigmoid(z) - label)
        if self.shared > 0:
            soft = sigmoid(teacher)
            terms["shared_head_loss"] = self.shared * (taught * crossentropy(z, soft)).sum()
            delta = delta + self.shared * taught * (sigmoid(z) - soft)
        gradients = {}
        gradients["serving"], into_rep = backward(self.networks["serving"], serving_inputs, delta)
        targets = {"auxiliary_head": teacher}
        if "adapter" in self.networks:
            adapted, inputs = self.adapt(teacher)
            terms["adapter_loss"] = (taught * crossentropy(adapted, label)).sum()
            gradients["adapter"], _ = backward(
                self.networks["adapter"], inputs, taught * (sigmoid(adapted) - label)
            )
            targets["adapter_head"] = adapted
        for name, (alpha, beta, w) in self.heads.items():
            target = np.minimum(alpha * sigmoid(targets[name]), 1.0)
            logit, inputs = forward(self.networks[name], rep)
            terms[
                name.replace("_head", "_loss") if name == "auxiliary_head" else f"{name}_loss"
            ] = w * (taught * crossentropy(logit, target)).sum()
            gradients[name], back = backward(
                self.networks[name], inputs, w * taught * (sigmoid(logit) - target)
            )
            into_rep = into_rep + beta * back
        gradients["backbone"], _ = backward(
            self.networks["backbone"], backbone_inputs, into_rep * (x_rep > 0)
        )
        return terms, gradients

    def descend(self, name, gradients, rate):
        for pair, gradient in zip(self.networks[name], gradients):
            pair[0] = pair[0] - rate * gradient[0]
            pair[1] = pair[1] - rate * gradient[1]

    def train(self, batch, rate, adapter_rate=None):
        """One step of descent; returns the loss terms as `fit` reports them."""
        if self.strict:
            _, gradients = self.step(*batch)
            self.descend("adapter", gradients["adapter"], adapter_rate)
        terms, gradients = self.step(*batch)
        for name in gradients:
            if not (self.strict and name == "adapter"):
                self.descend(name, gradients[name], rate)
        return terms

    def layers_of(self, model):
        """Pairs of a Keras layer and the network that restates it."""
        layers = {
            "backbone": model.student.get_layer("representation"),
            "serving": model.student.get_layer("serving"),
            "auxiliary_head": model.auxiliary_head,
            "adapter_head": model.adapter_head,
            "adapter": model.student_adapter,
        }
        return [(name, layers[name], network) for name, network in self.networks.items()]
