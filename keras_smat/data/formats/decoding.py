"""From any stored image to RGB pixels of one size; all sources share it."""

import io
import os

import numpy as np
from PIL import Image
from PIL import ImageOps

from keras_smat.data.arguments import height_width


class Decoder:
    """Turns stored images into uint8 RGB pixels of one size.

    An image is turned upright as its EXIF tag says, cropped around the
    centre to the aspect ratio of the target, resized (bicubic, antialiased)
    and converted to RGB: transparency is dropped, and of 16 bits per pixel
    the upper 8 are kept. An RGB image that has the size already keeps its
    pixels.

    Args:
        image_size: Integer or `(height, width)` in pixels.
        crop: Float in `(0, 1]`, the share of the largest such crop that is
            kept, or `None` to stretch the whole image instead. Defaults to
            1.0.
    """

    def __init__(self, image_size, crop=1.0):
        number = isinstance(crop, int | float) and not isinstance(crop, bool)
        if crop is not None and not (number and 0 < crop <= 1):
            raise ValueError(
                "Expected `crop` as a number in (0, 1] or None. "
                f"Received: crop={crop!r}."
            )
        self.height, self.width = height_width(image_size)
        self.crop = crop

    @property
    def shape(self):
        """Tuple `(H, W, 3)`."""
        return self.height, self.width, 3

    def __call__(self, image, name):
        """Decodes one image.

        Args:
            image: A path, the bytes of an image file, a PIL image, or a
                uint8 or uint16 array of shape `(H, W)` or `(H, W, C)`.
            name: String, how an error calls the image.

        Returns:
            PIL image of the size, mode RGB.

        Raises:
            ValueError: if it cannot be read as an image.
        """
        try:
            with _open(image) as opened:
                return self._resize(self._rgb(opened))
        except Exception as error:  # Pillow's decoders raise many types.
            raise ValueError(
                f"Expected an image. Received: {name}, which cannot be read: "
                f"{error}"
            ) from error

    def _rgb(self, image):
        # JPEG decodes several times faster at a fraction of its size; twice
        # the target leaves the resizing to the bicubic filter.
        share = self.crop or 1.0
        side = round(2 * max(self.height, self.width) / share)
        image.draft("RGB", (side, side))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # Pillow would clip at 255.
            pixels = np.clip(np.asarray(image), 0, 65535) >> 8
            image = Image.fromarray(pixels.astype("uint8"))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")

    def _resize(self, image):
        size, bicubic = (self.width, self.height), Image.Resampling.BICUBIC
        if self.crop is None:
            return image.resize(size, bicubic)
        bleed = (1 - self.crop) / 2
        return ImageOps.fit(image, size, method=bicubic, bleed=bleed)


def _open(image):
    if isinstance(image, str | os.PathLike):
        return Image.open(image)
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, Image.Image):
        return image.copy()
    image = np.asarray(image)
    if image.ndim not in (2, 3):
        raise ValueError(f"an array of shape {image.shape}")
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(image)
