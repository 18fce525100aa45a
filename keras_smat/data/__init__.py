"""Episodes from images: sources, samplers and datasets."""

from keras_smat.data.augmentation import MetaTrainAugmentation
from keras_smat.data.base import Episodes
from keras_smat.data.checking import DatasetCheck
from keras_smat.data.checking import check_dataset
from keras_smat.data.dataset import EpisodeDataset
from keras_smat.data.demo import demo_domains
from keras_smat.data.episode import make_episode
from keras_smat.data.formats.array_source import ArraySource
from keras_smat.data.formats.folder import FolderSource
from keras_smat.data.formats.h5_source import H5Source
from keras_smat.data.formats.hugging_face_source import HuggingFaceSource
from keras_smat.data.formats.memmap_source import MemmapSource
from keras_smat.data.formats.memmap_source import convert
from keras_smat.data.formats.record_source import RecordSource
from keras_smat.data.formats.tfds_source import TFDSSource
from keras_smat.data.hierarchy import ClassHierarchy
from keras_smat.data.meta_dataset_benchmark import meta_dataset
from keras_smat.data.meta_dataset_episodes import MetaDatasetEpisodes
from keras_smat.data.mixture import mix
from keras_smat.data.samplers import EpisodeSampler
from keras_smat.data.samplers import FixedEpisodes
from keras_smat.data.samplers import VariableEpisodes
from keras_smat.data.sources import ImageSource
from keras_smat.data.spec_fields import DatasetSpecError

__all__ = [
    "ArraySource",
    "ClassHierarchy",
    "DatasetCheck",
    "DatasetSpecError",
    "EpisodeDataset",
    "EpisodeSampler",
    "Episodes",
    "FixedEpisodes",
    "FolderSource",
    "H5Source",
    "HuggingFaceSource",
    "ImageSource",
    "MemmapSource",
    "MetaDatasetEpisodes",
    "MetaTrainAugmentation",
    "RecordSource",
    "TFDSSource",
    "VariableEpisodes",
    "check_dataset",
    "convert",
    "demo_domains",
    "make_episode",
    "meta_dataset",
    "mix",
]
