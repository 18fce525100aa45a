from keras_smat.layers.hard_concrete_mask import HardConcreteMask
from keras_smat.layers.prototype_head import PrototypeHead
from keras_smat.layers.sparse_interpolated_dense import SparseInterpolatedDense
from keras_smat.layers.task_hypernetwork import TaskHypernetwork

__all__ = [
    "HardConcreteMask",
    "PrototypeHead",
    "SparseInterpolatedDense",
    "TaskHypernetwork",
]
