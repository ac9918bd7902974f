"""Row-sparse optimizers of embedding tables: their cost does not grow with the table."""

from keras_exfm.optimizers._registry import get
from keras_exfm.optimizers.row_optimizer import RowOptimizer, Slot
from keras_exfm.optimizers.rowwise_adagrad import RowwiseAdagrad
from keras_exfm.optimizers.sparse_adagrad import SparseAdagrad
from keras_exfm.optimizers.sparse_adam import SparseAdam
from keras_exfm.optimizers.sparse_sgd import SparseSGD

__all__ = [
    "RowOptimizer",
    "RowwiseAdagrad",
    "Slot",
    "SparseAdagrad",
    "SparseAdam",
    "SparseSGD",
    "get",
]
