"""Images in a folder per class."""

import os

import numpy as np

from keras_smat.data.formats.decoding import Decoder
from keras_smat.data.sources import ImageSource

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
)


class FolderSource(ImageSource):
    """Image files in one folder per class: `directory/class_name/*.jpg`.

    Files are read when an episode needs them: turned upright as their EXIF
    tag says, cropped to the target's aspect ratio around the centre, resized
    (bicubic, antialiased), converted to RGB (the upper 8 of 16 bits). Other
    files are left out, as are names that start with a dot.

    Args:
        directory: String or path of the folder that holds the class folders.
        image_size: Integer or `(height, width)` of the images, in pixels.
        classes: List of strings, the class folders to use, in this order.
            Defaults to `None`: all of them, sorted by name.
        crop: Float in `(0, 1]`, the share of the centre crop that is kept;
            the evaluation of the paper keeps 0.875. `None` stretches the
            whole image instead. Defaults to 1.0.

    Raises:
        ValueError: if the directory or a class folder does not exist, there
            is no class folder, or one holds no image; in `load`, if a file
            cannot be read as an image.

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
    source = data.FolderSource(directory, image_size=32)
    source.class_names  # ["cat", "dog"]
    source.load([0, 1]).shape  # (2, 32, 32, 3)
    ```
    """

    def __init__(self, directory, image_size, classes=None, crop=1.0):
        self.directory = os.fspath(directory)
        self.decoder = Decoder(image_size, crop)
        self.image_shape = self.decoder.shape
        if not os.path.isdir(self.directory):
            raise ValueError(
                "Expected `directory` to be a folder of class folders. "
                f"Received: directory={self.directory!r}."
            )
        if classes is None:
            classes = sorted(_names(self.directory, os.DirEntry.is_dir))
        self.class_names = list(classes)
        if not self.class_names:
            raise ValueError(
                "Expected one folder per class in `directory`. "
                f"Received: directory={self.directory!r} without folders."
            )
        files = [self._files(name) for name in self.class_names]
        self.files = [file for names in files for file in names]
        sizes = [len(names) for names in files]
        self.labels = np.repeat(np.arange(len(sizes)), sizes)

    def load(self, indices):
        images = np.empty((len(indices), *self.image_shape), "uint8")
        for image, i in zip(images, indices):
            path = self._path(i)
            image[:] = self.decoder(path, repr(path))
        return images

    def content(self, indices):
        # File bytes: decoded pixels differ between versions of libjpeg.
        chunks = []
        for i in indices:
            with open(self._path(i), "rb") as file:
                chunks.append(file.read())
        return b"".join(chunks)

    def _path(self, i):
        name = self.class_names[self.labels[i]]
        return os.path.join(self.directory, name, self.files[i])

    def _files(self, name):
        folder = os.path.join(self.directory, name)
        if not os.path.isdir(folder):
            raise ValueError(
                f"Expected a folder for class {name!r}. "
                f"Received: no folder {folder!r}."
            )
        files = _names(folder, os.DirEntry.is_file)
        files = [f for f in files if f.lower().endswith(SUFFIXES)]
        if not files:
            raise ValueError(
                f"Expected images ({', '.join(SUFFIXES)}) for class {name!r}. "
                f"Received: no such file in {folder!r}."
            )
        return sorted(files)


def _names(folder, keep):
    """Names of the entries of `folder` that `keep` accepts."""
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if keep(entry) and not entry.name.startswith(".")
        ]
