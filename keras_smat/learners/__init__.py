from keras_smat.learners.meta_learner import MetaLearner
from keras_smat.learners.proto_net import ProtoNet
from keras_smat.learners.smat import SMAT
from keras_smat.learners.soft_merge import SoftMerge

__all__ = ["SMAT", "MetaLearner", "ProtoNet", "SoftMerge"]
