"""What is on disk, and what is wrong with it."""

import collections
import concurrent.futures
import dataclasses
import os

import keras

from keras_smat.checks import check_integer
from keras_smat.data.arguments import height_width
from keras_smat.data.formats.detection import find_formats
from keras_smat.data.formats.detection import subfolders
from keras_smat.data.formats.parts import find_parts
from keras_smat.data.meta_dataset_sets import SETS

SHOWN = 5  # problems per class
COLUMNS = ("set", "split", "classes", "images", "format", "hash")


@dataclasses.dataclass(frozen=True)
class DatasetCheck:
    """What `check_dataset` found.

    Attributes:
        path: String.
        rows: List of dicts, one per set and split: `set`, `split` (or "all"),
            `classes`, `images`, `format`, and `hash`, the `fingerprint()` of
            the source at the image size of the check, which is also what
            reports hold; "" where it cannot be opened.
        absent: List of strings, sets of Meta-Dataset and splits of a set that
            are not there. That is no problem.
        problems: List of strings.
    """

    path: str
    rows: list
    absent: list
    problems: list

    @property
    def ok(self):
        """Whether all that is there is sound."""
        return not self.problems

    def __str__(self):
        table = [COLUMNS, *([str(r[c]) for c in COLUMNS] for r in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
            for row in table
        ]
        if self.absent:
            lines += ["", f"not there: {', '.join(self.absent)}"]
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines += ["", f"{count} {noun} in {self.path}"]
        return "\n".join([*lines, *(f"- {p}" for p in self.problems)])


def check_dataset(path, image_size=224, sample=None, workers=0, verbose=1):
    """Reads and decodes every image of a folder and says what is wrong.

    Finds missing and cut off files, flipped bits (TFRecords have checksums,
    HDF5 files of PMF do not), images that cannot be decoded, and other labels
    or numbers of images than `dataset_spec.json` says. A partial copy is
    sound: sets and splits without any file are listed as absent.

    Args:
        path: String or path: a folder of sets as for `meta_dataset`, the
            folder of one set, or an image folder (one folder per class).
        image_size: Integer or `(height, width)` in pixels, for the hash.
            Defaults to 224.
        sample: Integer, how many images of each class are read. Defaults to
            `None`: all.
        workers: Integer, threads that read. Defaults to 0: none beside the
            calling one.
        verbose: 0 or 1, whether to show a progress bar. Defaults to 1.

    Returns:
        A `DatasetCheck`: `ok`, `rows`, `absent`, `problems`; `print` shows a
        table.

    Raises:
        ValueError: if nothing in the folder is a data set.

    Example:

    ```python
    import os
    import tempfile

    from PIL import Image
    from keras_smat import data

    directory = tempfile.mkdtemp()
    for name in ["cat", "dog"]:
        os.mkdir(os.path.join(directory, name))
        Image.new("RGB", (50, 40)).save(f"{directory}/{name}/1.png")
    check = data.check_dataset(directory, verbose=0)
    check.ok, check.rows[0]["images"]  # True, 2
    ```
    """
    path = os.fspath(path)
    image_size = height_width(image_size)
    if sample is not None:
        check_integer("sample", sample, 1)
    check_integer("workers", workers, 0)
    found = _sets(path)
    parts, problems, absent = [], [], _absent_sets(found)
    for name, folder, kind in found:
        try:
            here, missing = find_parts(name, folder, kind, image_size, sample)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        else:
            parts += here
            absent += missing
    rows = []
    for part, (images, wrong) in zip(parts, _run(parts, workers, verbose)):
        digest = ""
        if not wrong:
            try:
                digest = part.open().fingerprint()
            except (OSError, ValueError) as error:
                wrong = [f"{part.name}, {part.split}: {error}"]
        values = part.name, part.split, part.num_classes, images, part.kind
        rows.append(dict(zip(COLUMNS, (*values, digest))))
        problems += wrong
    return DatasetCheck(path, rows, absent, problems)


def _run(parts, workers, verbose):
    """Returns images and problems of each part."""
    tasks = [
        (i, name, task)
        for i, part in enumerate(parts)
        for name, task in part.tasks.items()
    ]
    images = collections.Counter()
    problems = collections.defaultdict(list)
    bar = keras.utils.Progbar(len(tasks), verbose=verbose, unit_name="class")
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda task: task[2](), tasks)
        for done, ((i, name, _), result) in enumerate(zip(tasks, results)):
            count, found = result
            images[i] += count or 0
            where = f"{parts[i].name}, {parts[i].split}, {name}"
            problems[i] += [f"{where}: {text}" for text in found[:SHOWN]]
            if len(found) > SHOWN:
                problems[i].append(f"{where}: {len(found) - SHOWN} more")
            bar.update(done + 1)
    return [(images[i], problems[i]) for i in range(len(parts))]


def _sets(path):
    """Returns triples of name, folder and format."""
    if not os.path.isdir(path):
        raise ValueError(f"Expected a folder. Received: path={path!r}.")
    name = os.path.basename(os.path.abspath(path))
    found = [(name, path, kind) for kind in find_formats(path)]
    if found:
        return found
    for name in subfolders(path):
        folder = os.path.join(path, name)
        found += [(name, folder, kind) for kind in find_formats(folder)]
    if not found:
        raise ValueError(
            "Expected a data set: TFRecords, HDF5 files, a folder per class, "
            "what `convert` wrote, or folders of these. "
            f"Received: path={path!r}."
        )
    return found


def _absent_sets(found):
    """Names of Meta-Dataset's sets that are not there, if others are."""
    names = [one.name for one in SETS]
    held = {name for name, _, _ in found}
    if len(found) < 2 or held.isdisjoint(names):
        return []
    return [name for name in names if name not in held]
