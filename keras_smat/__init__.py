"""Sparse meta-tuning of vision backbones in Keras 3."""

from keras_smat import callbacks
from keras_smat import data
from keras_smat import functional
from keras_smat import recipes
from keras_smat._version import __version__
from keras_smat.adapters import Adapter
from keras_smat.adapters import ExpertSearch
from keras_smat.adapters import FullFineTune
from keras_smat.adapters import FullSMATFineTune
from keras_smat.adapters import LayerNormTune
from keras_smat.adapters import LoRAFineTune
from keras_smat.backbones import feature_backbone
from keras_smat.benchmark import evaluate_benchmark
from keras_smat.benchmark_report import BenchmarkReport
from keras_smat.calibration import calibration_error
from keras_smat.evaluation import evaluate_few_shot
from keras_smat.experts import ExpertBank
from keras_smat.layers import HardConcreteMask
from keras_smat.layers import PrototypeHead
from keras_smat.layers import SparseInterpolatedDense
from keras_smat.layers import TaskHypernetwork
from keras_smat.learners import SMAT
from keras_smat.learners import MetaLearner
from keras_smat.learners import ProtoNet
from keras_smat.learners import SoftMerge
from keras_smat.report import FewShotReport
from keras_smat.report import FewShotResult
from keras_smat.selection import select_adapter
from keras_smat.sparsity import SparsityController

__all__ = [
    "Adapter",
    "BenchmarkReport",
    "ExpertBank",
    "ExpertSearch",
    "FewShotReport",
    "FewShotResult",
    "FullFineTune",
    "FullSMATFineTune",
    "HardConcreteMask",
    "LayerNormTune",
    "LoRAFineTune",
    "MetaLearner",
    "ProtoNet",
    "PrototypeHead",
    "SMAT",
    "SoftMerge",
    "SparseInterpolatedDense",
    "SparsityController",
    "TaskHypernetwork",
    "__version__",
    "calibration_error",
    "callbacks",
    "data",
    "evaluate_benchmark",
    "evaluate_few_shot",
    "feature_backbone",
    "functional",
    "recipes",
    "select_adapter",
]
