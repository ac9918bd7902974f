"""ExFM's training step once more, in NumPy float64, gradients written out by hand.

The student is `relu(x W + b)` as representation and a linear serving head (one for each task).
Networks are lists of `[kernel, bias]`, hidden layers ReLU, last layer linear.
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
    """Kernels and biases; running state of the layer is no part of the network."""
    dense = [v for v in layer.weights if v.path.rsplit("/", 1)[-1] in ("kernel", "bias")]
    values = [to_numpy(v).astype("float64") for v in dense]
    return [list(pair) for pair in zip(values[::2], values[1::2])]


def at(value, step):
    """A knob's value at a step; the schedules themselves are Keras's."""
    return value if isinstance(value, float) else float(value(step))


class Gate:
    """Decayed sums of the student's and the teacher's loss."""

    def __init__(self, layer):
        self.half_life, self.margin, self.threshold = layer.half_life, layer.margin, layer.threshold
        self.student = self.teacher = self.rows = self.factor = 0.0

    def observe(self, student, teacher, weight):
        n = weight.sum()
        kept = 0.5 ** (n / self.half_life)
        self.student = kept * self.student + (weight * student).sum()
        self.teacher = kept * self.teacher + (weight * teacher).sum()
        self.rows = kept * self.rows + n
        gain = 1 - self.teacher / self.student - self.threshold if self.student > 0 else 0.0
        full = gain / self.margin if self.margin else np.sign(gain)
        self.factor = float(np.clip(full, 0, 1))


class Moments:
    """Mean and variance of all vectors so far, each weighted by its age."""

    def __init__(self, size, half_life):
        self.half_life = half_life
        self.rows, self.weights = np.zeros((0, size)), np.zeros((0, 1))

    def standardised(self, vectors, weight):
        """Keeps every vector that was ever seen, in place of a recursion."""
        self.weights = self.weights * 0.5 ** (weight.sum() / self.half_life)
        known = np.isfinite(vectors).all(axis=1)
        self.rows = np.concatenate([self.rows, vectors[known]])
        self.weights = np.concatenate([self.weights, weight[known]])
        mean = (self.weights * self.rows).sum(0) / self.weights.sum()
        variance = (self.weights * (self.rows - mean) ** 2).sum(0) / self.weights.sum()
        return np.clip((vectors - mean) / np.sqrt(variance + 1e-8), -5, 5)


class Restatement:
    """The weights of an `ExternalDistillation` model, trained by plain gradient descent."""

    def __init__(self, model):
        student = model.student
        self.networks = {"backbone": network_of(student.get_layer("representation"))}
        self.tasks = list(model.tasks)
        for task in self.tasks:
            self.networks[self.serving(task)] = network_of(student.get_layer(self.serving(task)))
        self.branches = list(model.branches)
        self.gates, self.moments = {}, {}
        for branch in self.branches:
            end = branch.suffix
            for name in ("auxiliary_head", "adapter_head", "representation_head"):
                if getattr(branch, name) is not None:
                    self.networks[name + end] = network_of(getattr(branch, name))
            if branch.student_adapter is not None:
                self.networks[f"adapter{end}"] = network_of(branch.student_adapter)
            if branch.gate is not None:
                self.gates[end] = Gate(branch.gate)
            if branch.representation_head is not None:
                head = branch.representation_head
                self.moments[end] = Moments(head.size, head.half_life)
        self.strict = model.strict
        self.steps = 0

    @staticmethod
    def serving(task):
        return "serving" if task is None else f"serving_{task}"

    def adapt(self, branch, teacher, y):
        adapter = branch.student_adapter
        context = [
            np.arcsinh(np.where(np.isfinite(y[name]), y[name], 0.0) / unit)
            for name, unit in adapter.context.items()
        ]
        network = self.networks[f"adapter{branch.suffix}"]
        logit, inputs = forward(network, np.concatenate([teacher, *context], axis=1))
        return logit + (teacher if adapter.residual else 0), inputs

    def step(self, x, y, weight, targets=None):
        """Loss terms and gradients of one batch; columns `(batch, 1)`, NaN for no teacher.

        `targets` are the standardised vectors by the branch's suffix.
        """
        rows, weight = len(x), weight / len(x)
        self.observed = {}
        x_rep, backbone_inputs = forward(self.networks["backbone"], x)
        rep = np.maximum(x_rep, 0)
        terms = {"label_loss": 0.0}
        gradients, logits, deltas, labels = {}, {}, {}, {}
        for task in self.tasks:
            label = y["label" if task is None else f"label_{task}"]
            counted = weight * np.isfinite(label)
            label = np.where(counted > 0, label, 0.0)
            z, inputs = forward(self.networks[self.serving(task)], rep)
            terms["label_loss"] += (counted * crossentropy(z, label)).sum()
            logits[task], labels[task] = (z, inputs), (label, counted)
            deltas[task] = counted * (sigmoid(z) - label)
        into_rep = np.zeros_like(rep)
        for branch in self.branches:
            end = branch.suffix
            teacher = y[f"teacher_logit{end}"]
            known = np.isfinite(teacher)
            teacher = np.where(known, teacher, 0.0)
            label, counted = labels[branch.task]
            z = logits[branch.task][0]
            taught, labelled = weight * known, counted * known
            gate = self.gates[end].factor if end in self.gates else 1.0
            shared = at(branch.shared_head_weight, self.steps)
            if branch.shares_head:
                soft = sigmoid(teacher)
                if branch.shared_head_source == "adapter":
                    soft = sigmoid(self.adapt(branch, teacher, y)[0])
                terms[f"shared_head_loss{end}"] = (
                    gate * shared * (taught * crossentropy(z, soft)).sum()
                )
                deltas[branch.task] = deltas[branch.task] + gate * shared * taught * (
                    sigmoid(z) - soft
                )
            heads = {"auxiliary": (branch.auxiliary_head, teacher)}
            judged = teacher
            if branch.student_adapter is not None:
                judged, inputs = self.adapt(branch, teacher, y)
                terms[f"adapter_loss{end}"] = (labelled * crossentropy(judged, label)).sum()
                gradients[f"adapter{end}"], _ = backward(
                    self.networks[f"adapter{end}"], inputs, labelled * (sigmoid(judged) - label)
                )
                heads["adapter_head"] = (branch.adapter_head, judged)
            if branch.gate is not None:
                self.observed[end] = (
                    crossentropy(z, label),
                    crossentropy(judged, label),
                    labelled * rows,
                )
            for name, (head, target) in heads.items():
                if head is None:
                    continue
                network = "auxiliary_head" if name == "auxiliary" else name
                target = np.minimum(head.label_scale * sigmoid(target), 1.0)
                logit, inputs = forward(self.networks[network + end], rep)
                w = at(head.loss_weight, self.steps)
                terms[f"{name}_loss{end}"] = w * (taught * crossentropy(logit, target)).sum()
                gradients[network + end], back = backward(
                    self.networks[network + end], inputs, w * taught * (sigmoid(logit) - target)
                )
                into_rep = into_rep + gate * at(head.gradient_scale, self.steps) * back
            if branch.representation_head is not None:
                head, network = branch.representation_head, f"representation_head{end}"
                vectors = y[f"teacher_representation{end}"]
                held = weight * np.isfinite(vectors).all(axis=1, keepdims=True)
                vector, inputs = forward(self.networks[network], rep)
                error = np.where(held > 0, vector - targets[end], 0.0)
                w = at(head.loss_weight, self.steps)
                terms[f"representation_loss{end}"] = (
                    w * (held * (error**2).mean(1, keepdims=True)).sum()
                )
                gradients[network], back = backward(
                    self.networks[network], inputs, w * held * 2 * error / head.size
                )
                into_rep = into_rep + gate * at(head.gradient_scale, self.steps) * back
        for task, (_, inputs) in logits.items():
            name = self.serving(task)
            gradients[name], back = backward(self.networks[name], inputs, deltas[task])
            into_rep = into_rep + back
        gradients["backbone"], _ = backward(
            self.networks["backbone"], backbone_inputs, into_rep * (x_rep > 0)
        )
        return terms, gradients

    def standardise(self, y, weight):
        return {
            end: moments.standardised(
                np.where(weight > 0, y[f"teacher_representation{end}"], np.nan),
                weight * np.isfinite(y[f"teacher_representation{end}"]).all(1, keepdims=True),
            )
            for end, moments in self.moments.items()
        }

    def is_adapter(self, name):
        return name in [f"adapter{branch.suffix}" for branch in self.branches]

    def descend(self, name, gradients, rate):
        for pair, gradient in zip(self.networks[name], gradients):
            pair[0] = pair[0] - rate * gradient[0]
            pair[1] = pair[1] - rate * gradient[1]

    def train(self, batch, rate, adapter_rate=None):
        """One step of descent; returns the loss terms as `fit` reports them."""
        targets = self.standardise(*batch[1:])
        first = None
        if self.strict:
            _, gradients = self.step(*batch, targets)
            first = self.observed
            for name in filter(self.is_adapter, gradients):
                self.descend(name, gradients[name], adapter_rate)
        terms, gradients = self.step(*batch, targets)
        for end, (student, teacher, weight) in self.observed.items():
            # The teacher is judged before its adapter has learned from these rows.
            teacher = teacher if first is None else first[end][1]
            self.gates[end].observe(student, teacher, weight)
        for name in gradients:
            if not (self.strict and self.is_adapter(name)):
                self.descend(name, gradients[name], rate)
        self.steps += 1
        return terms

    def layers_of(self, model):
        """Pairs of a Keras layer and the network that restates it."""
        layers = {"backbone": model.student.get_layer("representation")}
        for task in self.tasks:
            layers[self.serving(task)] = model.student.get_layer(self.serving(task))
        for branch in model.branches:
            for name in ("auxiliary_head", "adapter_head", "representation_head"):
                layers[name + branch.suffix] = getattr(branch, name)
            layers[f"adapter{branch.suffix}"] = branch.student_adapter
        return [(name, layers[name], network) for name, network in self.networks.items()]
