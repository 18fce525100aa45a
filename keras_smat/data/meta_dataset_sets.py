"""The data sets of Meta-Dataset, and those the paper adds for testing."""

import dataclasses

from keras_smat.data.dataset_spec import SPLITS


@dataclasses.dataclass(frozen=True)
class MetaDatasetSet:
    """One of the sets.

    Attributes:
        name: String, its folder.
        role: `"ID"` if the training mixture has it, else `"OOD"`.
        classes: Three integers: the classes for training, validation, test.
        origin: String, where it comes from.
        fixed: Boolean, whether its test episodes have one size.
        at_least: Integer, images to which a class is filled up by repetition.
    """

    name: str
    role: str
    classes: tuple
    origin: str
    fixed: bool = False
    at_least: int = 0

    @property
    def alone(self):
        """Whether all classes belong to one split."""
        return sum(count > 0 for count in self.classes) == 1


_CONVERT = "converted to TFRecords by Meta-Dataset's `dataset_conversion`"
_CNAPS = "its images of all classes, or the folder that CNAPs' converter writes"
_DOMAINNET = (
    "DomainNet, one folder of images per class, and a `splits.json` of the "
    "classes"
)
_TEST = "its test images, one folder per class"

SETS = (
    MetaDatasetSet(
        "ilsvrc_2012", "ID", (712, 158, 130), f"ILSVRC 2012, {_CONVERT}"
    ),
    MetaDatasetSet("omniglot", "ID", (883, 81, 659), f"Omniglot, {_CONVERT}"),
    MetaDatasetSet(
        "aircraft", "ID", (70, 15, 15), f"FGVC-Aircraft 2013b, {_CONVERT}"
    ),
    MetaDatasetSet(
        "cu_birds", "ID", (140, 30, 30), f"CUB-200-2011, {_CONVERT}"
    ),
    MetaDatasetSet(
        "dtd", "ID", (33, 7, 7), f"Describable Textures, {_CONVERT}"
    ),
    MetaDatasetSet(
        "quickdraw", "ID", (241, 52, 52), f"Quick, Draw! bitmaps, {_CONVERT}"
    ),
    MetaDatasetSet(
        "fungi", "ID", (994, 200, 200), f"FGVCx Fungi 2018, {_CONVERT}"
    ),
    MetaDatasetSet(
        "vgg_flower", "ID", (71, 15, 16), f"VGG Flower 102, {_CONVERT}"
    ),
    MetaDatasetSet("traffic_sign", "OOD", (0, 0, 43), f"GTSRB, {_CONVERT}"),
    MetaDatasetSet("mscoco", "OOD", (0, 40, 40), f"MSCOCO 2017, {_CONVERT}"),
    MetaDatasetSet("cifar10", "OOD", (0, 0, 10), f"CIFAR-10, {_CNAPS}"),
    MetaDatasetSet("cifar100", "OOD", (0, 0, 100), f"CIFAR-100, {_CNAPS}"),
    MetaDatasetSet("mnist", "OOD", (0, 0, 10), f"MNIST, {_CNAPS}"),
    MetaDatasetSet("sketch", "OOD", (207, 51, 87), _DOMAINNET, True, 20),
    MetaDatasetSet("clipart", "OOD", (207, 51, 87), _DOMAINNET, True, 20),
    MetaDatasetSet("food101", "OOD", (0, 0, 101), f"Food-101, {_TEST}", True),
    MetaDatasetSet("pets", "OOD", (0, 0, 37), f"Oxford Pets, {_TEST}", True),
    MetaDatasetSet("cars", "OOD", (0, 0, 196), f"Stanford Cars, {_TEST}", True),
)


def sets_of(split):
    """Returns the sets that take part in a split, by name.

    Training and validation are for the sets of the training mixture, and
    validation for MSCOCO, whose classes are split in two.
    """
    position = list(SPLITS).index(split)
    return {
        s.name: s
        for s in SETS
        if s.classes[position] and (split == "test" or not s.fixed)
    }
