"""AUC within groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import keras
from keras import ops

from keras_exfm.metrics._sums import SumsMetric, ratio
from keras_exfm.metrics._windowed import changes, used_rows, weight_below


@keras.saving.register_keras_serializable(package="keras_exfm")
class GroupedAUC(SumsMetric):
    """Mean of the AUCs within groups, such as the candidates of one request.

    Two definitions are in use. `"weighted"` weights each group by the weight of its rows (FuxiCTR's
    `gAUC`), `"mean"` counts groups alike (torchrec's `GAUC`). Groups that have one class only are
    left out. Ties count half.

    The group comes along with the label: `y_true` is a dict `{"label", "group"}`, or a
    `(batch, 2)` array of label and group, the form that passes through `fit` (with a loss that
    reads `y_true[:, :1]`). Group ids are compared as int32; in a float array they are exact up to
    2**24. **A group should be whole within its batch**: its parts in two batches are two groups.
    For groups that are cut, `keras_exfm.metrics.functional.grouped_auc` is exact over all rows.

    Give it to `compile` in `weighted_metrics`: Keras passes no weights to those in `metrics`.

    Args:
        definition: `"weighted"` or `"mean"`. Defaults to `"weighted"`.
        window: Number of updates that `window_result` looks back on. Defaults to `None`.
        name: Defaults to `"grouped_auc"`.
        dtype: Defaults to `None`, the Keras float type.

    Example:

    >>> metric = GroupedAUC(definition="mean")
    >>> y = {"label": [0.0, 1.0, 0.0, 1.0, 1.0], "group": [1, 1, 2, 2, 2]}
    >>> metric.update_state(y, [0.1, 0.3, 0.3, 0.2, 0.9])
    >>> float(metric.result())
    0.75

    References:
        - `fuxictr/metrics.py` of FuxiCTR and `torchrec/metrics/gauc.py` of torchrec.
    """

    def __init__(
        self,
        definition: Literal["weighted", "mean"] = "weighted",
        window: int | None = None,
        name: str = "grouped_auc",
        dtype: Any = None,
    ) -> None:
        if definition not in ("weighted", "mean"):
            raise ValueError(
                f"`definition` should be 'weighted' or 'mean'. Received: definition={definition!r}"
            )
        super().__init__(name, dtype, True, window, sums=2)
        self.definition = definition

    def _rows(self, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        if isinstance(y_true, Mapping):
            if not {"label", "group"} <= set(y_true):
                raise ValueError(
                    "`y_true` should be a dict with 'label' and 'group'. "
                    f"Received: keys={sorted(y_true)}"
                )
            label, group = y_true["label"], ops.convert_to_tensor(y_true["group"])
        else:
            both = ops.convert_to_tensor(y_true)
            if len(both.shape) != 2 or both.shape[1] != 2:
                raise ValueError(
                    "`y_true` should be a dict with 'label' and 'group', or (batch, 2). "
                    f"Received: shape={tuple(both.shape)}"
                )
            label, group = both[:, 0], both[:, 1]
        group = ops.reshape(ops.cast(group, "int32"), (-1,))
        return [*used_rows(self, label, y_pred, sample_weight), group]

    def _summarize(self, rows: Any) -> Any:
        y, z, w, group = rows
        unknown = ops.isnan(z)
        z = ops.where(unknown, ops.zeros_like(z), z)
        # Sorted by score first and then, stably, by group.
        order = ops.argsort(z)
        order = ops.take(order, ops.argsort(ops.take(group, order)))
        y, z, w, group, unknown = (ops.take(x, order) for x in (y, z, w, group, unknown))
        # A NaN score makes its group, and so the metric, NaN.
        positive = ops.where(unknown, ops.full_like(y, float("nan")), w * y)
        negative = w * (1 - y)
        new_group = changes(group)
        ids = ops.cumsum(ops.cast(new_group, "int32"))
        segments = ops.shape(z)[0] + 1
        others = ops.segment_sum(negative, ids, num_segments=segments)
        start = ops.take(ops.cumsum(others) - others, ids)
        below = weight_below(ops.logical_or(new_group, changes(z)), negative) - start
        sums = ops.stack([positive, positive * below], axis=1)
        sums = ops.segment_sum(sums, ids, num_segments=segments)
        clicks, credit = sums[:, 0], sums[:, 1]
        one_class = ops.logical_or(ops.equal(clicks, 0), ops.equal(others, 0))
        pairs = ops.where(one_class, ops.ones_like(clicks), clicks * others)
        weight = clicks + others if self.definition == "weighted" else ops.ones_like(clicks)
        weight = ops.where(one_class, ops.zeros_like(weight), weight)
        areas = ops.where(one_class, ops.zeros_like(credit), credit / pairs)
        return ops.stack([ops.sum(weight), ops.sum(weight * areas)])

    def _figure(self, sums: Any) -> Any:
        return ratio(sums[1], sums[0])

    def get_config(self) -> dict[str, Any]:
        """Arguments of the metric."""
        config = {**super().get_config(), "definition": self.definition}
        del config["from_logits"]
        return config
