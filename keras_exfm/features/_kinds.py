"""The kinds of features."""

from keras_exfm.features.categorical import Categorical
from keras_exfm.features.multi_hot import MultiHot
from keras_exfm.features.numeric import Numeric

Feature = Categorical | MultiHot | Numeric
"""Any of the three descriptions."""

KINDS: dict[str, type[Categorical] | type[MultiHot] | type[Numeric]] = {
    "categorical": Categorical,
    "multi_hot": MultiHot,
    "numeric": Numeric,
}
