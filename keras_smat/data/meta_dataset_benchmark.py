"""Meta-Dataset: one folder for each of its sets."""

import copy
import os
import warnings

from keras_smat.data.arguments import height_width
from keras_smat.data.arguments import some
from keras_smat.data.augmentation import MetaTrainAugmentation
from keras_smat.data.dataset import EpisodeDataset
from keras_smat.data.dataset_spec import SPLITS
from keras_smat.data.meta_dataset_episodes import MetaDatasetEpisodes
from keras_smat.data.meta_dataset_folder import open_folder
from keras_smat.data.meta_dataset_sets import sets_of
from keras_smat.data.mixture import mix
from keras_smat.data.samplers import FixedEpisodes
from keras_smat.data.sources import repeat_images

# What the published studies draw: 2000 training episodes per epoch from all
# sets together, 120 for validation and 600 for the test of each set.
NUM_EPISODES = {"train": 2000, "validation": 120, "test": 600}
# Meta-training crops at random from images of this size, in pixels.
STORED_SIZE = 224
# The share of the centre crop that is kept without augmentation.
CROP = 224 / 256


def meta_dataset(
    root,
    split="train",
    image_size=128,
    names=None,
    sources=None,
    sampler=None,
    fixed_sampler=None,
    num_episodes=None,
    seed=0,
    augment="default",
    check_classes=True,
    **kwargs,
):
    """Meta-Dataset from a folder with one folder for each of its sets.

    A set is read in whatever form its folder has it:

    - Meta-Dataset's TFRecords or PMF's HDF5 files, and `dataset_spec.json`;
    - folders `train`, `validation` and `test`, each with a folder of images
      per class, or as `convert` wrote it;
    - a folder of images per class, and a `splits.json` with the list of class
      names of each split; without one if the set has but one split.

    Sets that are not there are left out, with a warning that says where they
    come from; `names` chooses some without a warning.

    | Folder | Role | Classes (train, validation, test) |
    |---|---|---|
    | `ilsvrc_2012` | ID | 712, 158, 130 |
    | `omniglot` | ID | 883, 81, 659 |
    | `aircraft` | ID | 70, 15, 15 |
    | `cu_birds` | ID | 140, 30, 30 |
    | `dtd` | ID | 33, 7, 7 |
    | `quickdraw` | ID | 241, 52, 52 |
    | `fungi` | ID | 994, 200, 200 |
    | `vgg_flower` | ID | 71, 15, 16 |
    | `traffic_sign` | OOD | 0, 0, 43 |
    | `mscoco` | OOD | 0, 40, 40 |
    | `cifar10`, `cifar100`, `mnist` | OOD | 0, 0, 10 or 100 |
    | `sketch`, `clipart` | OOD | 207, 51, 87; for testing alone |
    | `food101`, `pets`, `cars` | OOD | 0, 0, 101, 37 or 196 |

    The last two rows have test episodes of one size. Classes of `sketch` and
    `clipart` with fewer than 20 images repeat them, as in the paper's code,
    so that an image can be support and query at once. That code takes the
    last two rows at 224 pixels, the others at 128.

    Args:
        root: String or path.
        split: `"train"`, `"validation"` or `"test"`. Defaults to `"train"`.
        image_size: Integer or `(height, width)` in pixels. Defaults to 128.
        names: List of strings, the sets to use, all of which must be there.
            Defaults to `None`: those that are there.
        sources: Dict from names of sets to an `ImageSource` of the classes of
            the split, such as a `TFDSSource`, to use instead of the folder.
            Defaults to `None`.
        sampler: `EpisodeSampler`. Defaults to `None`: `MetaDatasetEpisodes()`.
        fixed_sampler: `EpisodeSampler` for the test sets of the last two
            rows. Defaults to `None`: `FixedEpisodes(5, 5, 15)`; the paper
            states 15 queries, but neither way nor shot.
        num_episodes: Integer, episodes per epoch: of the mixture in training,
            of each set otherwise. Defaults to `None`: 2000 for training, 120
            for validation, 600 for test.
        seed: Non-negative integer. Defaults to 0.
        augment: As in `EpisodeDataset`, for training only. Defaults to
            `"default"`: `MetaTrainAugmentation`, which crops from images
            stretched to 224 pixels as those of PMF. Without augmentation,
            images are resized to 8/7 of their size and cropped around the
            centre.
        check_classes: Boolean, whether a set with other numbers of classes
            than in the table is refused: its accuracies would not compare
            with published ones. Defaults to `True`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size`, as in
            `EpisodeDataset`.

    Returns:
        For training the mixture of all sets, each drawn as often. Otherwise a
        dict from the name of each set to its `EpisodeDataset`, whose `role`
        is `"ID"` or `"OOD"`, for `evaluate_few_shot`.

    Raises:
        ValueError: if no set is there, a set in `names` is unknown or not
            there, or a set is malformed or has other numbers of classes.

    Example:

    ```python
    import os
    import tempfile

    from PIL import Image
    from keras_smat import data

    root = tempfile.mkdtemp()
    for digit in "0123456789":
        os.makedirs(f"{root}/mnist/{digit}")
        for i in range(20):
            image = Image.new("L", (28, 28))
            image.save(f"{root}/mnist/{digit}/{i}.png")
    test = data.meta_dataset(root, "test", image_size=32, names=["mnist"])
    test["mnist"].role, len(test["mnist"])  # "OOD", 600
    ```

    Reference:
        - Triantafillou et al., "Meta-Dataset", ICLR 2020.
        - Chen et al., "Sparse Meta-Tuning", ICML 2024, whose further test
          sets these are.
    """
    found = _find(root, split, names, sources or {})
    if num_episodes is None:
        num_episodes = NUM_EPISODES[split]
    size, crop = image_size, CROP
    if split != "train":
        augment = None
    elif augment == "default":
        augment = MetaTrainAugmentation(image_size=image_size)
    if augment is not None:
        size, crop = STORED_SIZE, None
    datasets = {}
    for one, place in found:
        source = copy.copy(place)
        if isinstance(place, str):
            source = open_folder(place, split, one.alone, size, crop)
        if check_classes:
            _check_classes(one, split, source)
        if augment is None and source.image_size != height_width(size):
            raise ValueError(
                f"Expected images of {one.name!r} of size {image_size}. "
                f"Received: converted to {source.image_size}."
            )
        if one.at_least:
            source = repeat_images(source, one.at_least)
        source.role = one.role
        drawn = sampler or MetaDatasetEpisodes()
        if one.fixed:
            drawn = fixed_sampler or FixedEpisodes(5, 5, 15)
        datasets[one.name] = EpisodeDataset(
            source, drawn, num_episodes, seed, augment=augment, **kwargs
        )
    if split == "train":
        return mix(datasets, None, num_episodes, seed, **kwargs)
    return datasets


def _find(root, split, names, sources):
    """Returns a list of pairs of a set and its source or folder."""
    root = os.fspath(root)
    if split not in SPLITS:
        raise ValueError(
            f"Expected `split` as one of {list(SPLITS)}. "
            f"Received: split={split!r}."
        )
    if not os.path.isdir(root):
        raise ValueError(
            "Expected `root` to be a folder with a folder for each set. "
            f"Received: root={root!r}."
        )
    sets = sets_of(split)
    wanted = list(sets) if names is None else list(names)
    unknown = [name for name in [*wanted, *sources] if name not in sets]
    if unknown:
        raise ValueError(
            f"Expected names of sets with a {split} split, {list(sets)}. "
            f"Received: {some(unknown)}."
        )
    places = {n: sources.get(n, os.path.join(root, n)) for n in wanted}
    missing = [
        name
        for name, place in places.items()
        if isinstance(place, str) and not os.path.isdir(place)
    ]
    advice = "".join(f"\n- {name}: {sets[name].origin}" for name in missing)
    if missing and (names is not None or len(missing) == len(wanted)):
        raise ValueError(
            f"Expected a folder for each set in {root!r}. "
            f"Received: a root without these:{advice}"
        )
    if missing:
        warnings.warn(
            f"{len(missing)} of the {len(wanted)} sets with a {split} split "
            f"are not in {root!r} and are left out:{advice}\n"
            "`names` chooses sets without this warning.",
            stacklevel=3,
        )
    return [(sets[n], p) for n, p in places.items() if n not in missing]


def _check_classes(one, split, source):
    expected = one.classes[list(SPLITS).index(split)]
    if len(source.class_names) != expected:
        raise ValueError(
            f"Expected {expected} classes in the {split} split of "
            f"{one.name!r}. Received: {len(source.class_names)} classes, "
            f"{some(source.class_names, 3)}. `check_classes=False` uses them "
            "all the same."
        )
