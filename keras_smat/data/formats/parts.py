"""What there is to check in a folder of one data set: split by split."""

import dataclasses
import functools
import os
from collections.abc import Callable

from keras_smat.data.dataset_spec import SPLITS
from keras_smat.data.dataset_spec import read_dataset_spec
from keras_smat.data.formats import inspection
from keras_smat.data.formats.class_files import find_class_files
from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.formats.detection import find_formats
from keras_smat.data.formats.detection import subfolders
from keras_smat.data.formats.folder import FolderSource
from keras_smat.data.formats.h5_source import H5Source
from keras_smat.data.formats.memmap_source import MemmapSource
from keras_smat.data.formats.record_source import RecordSource
from keras_smat.data.spec_fields import FILE

CLASS_FILES = {
    "tfrecords": (RecordSource, inspection.inspect_records, ".tfrecords"),
    "h5": (H5Source, inspection.inspect_h5, ".h5"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of one data set.

    Attributes:
        name, split, kind: Strings; the split may be "all".
        num_classes: Integer.
        tasks: Dict from what is looked at to a function without arguments,
            which returns the number of images and a list of problems.
        open: Function without arguments that returns the `ImageSource`.
    """

    name: str
    split: str
    kind: str
    num_classes: int
    tasks: dict
    open: Callable


def find_parts(name, folder, kind, image_size, sample):
    """Returns the parts of a folder, and the names of those not there.

    Args:
        name, folder: Strings.
        kind: String, as `find_formats` returns it.
        image_size: Pair of integers.
        sample: Integer or `None`, how many images of a class are looked at.
    """
    if kind in CLASS_FILES:
        return _class_files(name, folder, kind, image_size, sample)
    if kind == "memmap":
        return [_memmap(name, None, folder)], []
    splits = {"all": folder}
    if kind == "split folders":
        splits = {s: os.path.join(folder, s) for s in subfolders(folder)}
    parts = [
        _memmap(name, split, path)
        if find_formats(path) == ["memmap"]
        else _image_folder(name, split, path, image_size, sample)
        for split, path in splits.items()
    ]
    return parts, []


def _class_files(name, folder, kind, image_size, sample):
    source, inspect, suffix = CLASS_FILES[kind]
    splits = [None]
    if os.path.exists(os.path.join(folder, FILE)):
        spec = read_dataset_spec(folder)
        splits = [split for split in SPLITS if len(spec.splits[split])]
    parts, absent = [], []
    look = functools.partial(
        inspect, decoder=Decoder(image_size), sample=sample
    )
    for split in splits:
        files = find_class_files(folder, split, suffix)
        paths = [path for paths in files.paths for path in paths]
        if not any(map(os.path.isfile, paths)):
            absent.append(f"{name} ({split})")
            continue
        tasks = {
            f"class {class_name!r}": functools.partial(_class, look, files, i)
            for i, class_name in enumerate(files.names)
        }
        opened = functools.partial(source, folder, split, image_size)
        parts.append(
            Part(name, split or "all", kind, len(tasks), tasks, opened)
        )
    return parts, absent


def _class(look, files, i):
    paths = files.paths[i]
    missing = [os.path.basename(p) for p in paths if not os.path.isfile(p)]
    if missing or not paths:
        return None, [f"no file {', '.join(missing) or 'at all'}"]
    count, problems = look(paths, files.ids[i])
    expected = count if files.sizes is None else files.sizes[i]
    if count is not None and count != expected:
        problems = [f"{count} images, should be {expected}", *problems]
    elif count == 0:
        problems = ["no images", *problems]
    return count, problems


def _image_folder(name, split, folder, image_size, sample):
    tasks = {
        f"class {class_name!r}": functools.partial(
            inspection.inspect_folder, folder, class_name, image_size, sample
        )
        for class_name in subfolders(folder)
    }
    opened = functools.partial(FolderSource, folder, image_size)
    return Part(name, split, "folder", len(tasks), tasks, opened)


def _memmap(name, split, folder):
    source = MemmapSource(folder)
    split = split or source.split or "all"
    tasks = {"images": functools.partial(inspection.inspect_memmap, folder)}
    opened = functools.partial(MemmapSource, folder)
    number = len(source.class_names)
    return Part(name, split, "memmap", number, tasks, opened)
