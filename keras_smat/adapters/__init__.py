from keras_smat.adapters.adapter import Adapter
from keras_smat.adapters.expert_search import ExpertSearch
from keras_smat.adapters.fine_tuning import FullFineTune
from keras_smat.adapters.fine_tuning import LayerNormTune
from keras_smat.adapters.full_smat import FullSMATFineTune
from keras_smat.adapters.lora import LoRAFineTune

__all__ = [
    "Adapter",
    "ExpertSearch",
    "FullFineTune",
    "FullSMATFineTune",
    "LayerNormTune",
    "LoRAFineTune",
]
