"""What a user needs to see before trusting a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exfm.distillation._gradient import gradient
from keras_exfm.distillation.external_distillation import ExternalDistillation
from keras_exfm.distillation.teacher_branch import TeacherBranch
from keras_exfm.metrics import functional


def diagnose(
    model: ExternalDistillation, x: Any, y: Any, sample_weight: Any = None
) -> dict[str, float]:
    """Judges each teacher on a sample of the student's own traffic; changes nothing.

    All figures but the coverage are over the rows that have a teacher and a label, so that teacher,
    adapter and student are compared on the same rows. The figures of a teacher with a name end in
    `_<name>`:

    - `teacher_coverage`: share of the rows that have a teacher.
    - `teacher_ne`, `teacher_calibration`: normalized entropy and mean prediction over mean label.
    - `adapter_ne`, `adapter_calibration`: the same of the adapter's logit.
    - `student_ne`, `student_calibration`: the same of the serving logit.
    - `teacher_age_s`: mean age of the predictions, if `y` has the key `teacher_age_s`.
    - `clipped_labels`: share of scaled labels that hit 1, if there is an auxiliary head.
    - `teacher_gate`: factor of the gate, if there is one.
    - `gradient_ratio`: `|g_T| / |g_y|`, the Euclidean norms over the sample of the gradients in the
      representation `x` of the teacher's terms (weights, gradient scale and gate included) and of
      the label's crossentropy. Far below 1 the teacher hardly acts, far above 1 it drowns the
      labels. What reaches the tables through a head on `embeddings` does not count.
    - `gradient_cosine`: the cosine between the two; near 0 the teacher teaches something else,
      below 0 it works against the labels.

    Args:
        model: The student.
        x: Features of the sample; some thousand rows are enough.
        y: As in training. Keys that the model does not read are left aside, but for ages.
        sample_weight: As in training. Defaults to `None`.

    Returns:
        Name -> figure; NaN where it is not defined, such as an NE without a click.

    Example:

    >>> import keras, numpy as np
    >>> from keras_exfm.layers import AuxiliaryHead
    >>> inputs = keras.Input((4,))
    >>> h = keras.layers.Dense(8, activation="relu")(inputs)
    >>> student = ExternalDistillation(
    ...     inputs, keras.layers.Dense(1)(h), representation=h, auxiliary_head=AuxiliaryHead())
    >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    >>> y = {"label": (x[:, 0] > 0).astype("float32"), "teacher_logit": 3 * x[:, 0]}
    >>> figures = diagnose(student, x, y)
    >>> figures["teacher_ne"] < 0.5 < figures["student_ne"], figures["teacher_coverage"]
    (True, 1.0)
    """
    if not isinstance(model, ExternalDistillation):
        raise ValueError(
            f"`model` should be an ExternalDistillation. Received: {type(model).__name__}"
        )
    ages: dict[str, Any] = {}
    if isinstance(y, Mapping):
        ages = {key: y[key] for key in y if key.startswith("teacher_age_s")}
        y = {key: value for key, value in y.items() if key in model.target_columns}
    student = model.student
    if isinstance(student.input, Mapping) and isinstance(x, Mapping):
        x = {name: x[name] for name in student.input}
    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    targets = model.unpack_targets((x, y, sample_weight))
    outputs = student(x, training=False)
    figures: dict[str, float] = {}
    for branch in model.branches:
        end = branch.suffix
        found = _figures(branch, targets, outputs[model.output_name("logit", branch.task)])
        if f"teacher_age_s{end}" in ages:
            known = _rows(branch, targets)[1]
            age = np.ravel(ops.convert_to_numpy(ages[f"teacher_age_s{end}"])).astype("float64")
            age = age[known & np.isfinite(age)]
            found["teacher_age_s"] = float(age.mean()) if len(age) else float("nan")
        if branch.heads or branch.shares_head:
            found |= _gradients(model, branch, targets, x, outputs)
        figures |= {name + end: value for name, value in found.items()}
    return figures


def _rows(branch: TeacherBranch, targets: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight of each row, and which rows have a teacher, and a label as well."""
    label = targets.labels[branch.task]
    teacher = ops.convert_to_numpy(targets.teachers[branch.logit_column])[:, 0]
    weight = np.ones(len(teacher)) if label.weight is None else ops.convert_to_numpy(label.weight)
    known = np.isfinite(teacher)
    return weight, known, known & (weight > 0)


def _figures(branch: TeacherBranch, targets: Any, logit: Any) -> dict[str, float]:
    label = targets.labels[branch.task]
    weight, known, both = _rows(branch, targets)
    used = weight > 0 if label.row_weight is None else ops.convert_to_numpy(label.row_weight) > 0
    teacher = targets.teachers[branch.logit_column]
    judged = {"teacher": teacher}
    if branch.student_adapter is not None:
        judged["adapter"] = branch.adapt(targets)
    judged["student"] = logit
    figures = {"teacher_coverage": float(known[used].mean()) if used.any() else float("nan")}
    value = ops.convert_to_numpy(label.value)[:, 0][both]
    for name, z in judged.items():
        z = ops.convert_to_numpy(ops.cast(z, "float32"))[:, 0][both]
        if len(z):
            figures[f"{name}_ne"] = functional.normalized_entropy(value, z, weight[both])
            figures[f"{name}_calibration"] = functional.calibration(value, z, weight[both])
        else:
            figures |= {f"{name}_ne": float("nan"), f"{name}_calibration": float("nan")}
    if branch.auxiliary_head is not None:
        clipped = ops.convert_to_numpy(branch.auxiliary_head.clipped(teacher))[:, 0][known]
        figures["clipped_labels"] = float(clipped.mean()) if len(clipped) else float("nan")
    if branch.gate is not None:
        figures["teacher_gate"] = float(branch.gate.factor)
    return figures


def _gradients(
    model: ExternalDistillation, branch: TeacherBranch, targets: Any, x: Any, outputs: Any
) -> dict[str, float]:
    key = model.representation_name(branch)
    if key is None:
        return {}
    student = model.student
    # From the representation on; what does not pass through it, as DeepFM's wide part, stays.
    inputs = [student.output[key], *student.inputs]
    rest = keras.Model(inputs, student.output[model.output_name("logit", branch.task)])
    features = keras.tree.flatten(x)
    label = targets.labels[branch.task]
    crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def label_loss(representation: Any) -> Any:
        logit = rest([representation, *features], training=False)
        return crossentropy(label.value, logit, sample_weight=label.weight)

    def teacher_loss(representation: Any) -> Any:
        logit = rest([representation, *features], training=False)
        heads = {}
        if branch.heads:
            heads = branch(representation, model.step, outputs.get("embeddings"))
        terms = branch.compute_terms(heads, logit, targets, model.step)
        return sum(terms.values())

    # The gate and the running moments take the sample in as well; the scope forgets it.
    with keras.StatelessScope():
        norms = [
            np.ravel(ops.convert_to_numpy(ops.cast(gradient(f, outputs[key]), "float32")))
            for f in (label_loss, teacher_loss)
        ]
    of_label, of_teacher = (float(np.linalg.norm(g.astype("float64"))) for g in norms)
    if of_label == 0:
        return {"gradient_ratio": float("nan"), "gradient_cosine": float("nan")}
    product = float(norms[0].astype("float64") @ norms[1].astype("float64"))
    cosine = product / (of_label * of_teacher) if of_teacher > 0 else float("nan")
    return {"gradient_ratio": of_teacher / of_label, "gradient_cosine": cosine}
