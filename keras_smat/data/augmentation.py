"""The training augmentation."""

import math

import numpy as np
from PIL import Image
from PIL import ImageEnhance

from keras_smat.data.arguments import height_width

ENHANCERS = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
)


class MetaTrainAugmentation:
    """Random crop, colour jitter and flip, as in SMAT's meta-training.

    For each image: a crop of random area and aspect ratio, resized
    (bilinear, antialiased); brightness, contrast and colour enhancement in
    this order, each by a factor `1 + color * U(-1, 1)`; a horizontal flip.
    Support and query images are treated alike.

    Args:
        image_size: Integer or `(height, width)` of the result, in pixels.
            Defaults to `None`, the size of the images.
        scale: Pair of floats, range of the crop's share of the image's area.
            Defaults to `(0.08, 1.0)`.
        ratio: Pair of floats, range of the crop's width over its height,
            drawn log-uniformly. Defaults to `(3 / 4, 4 / 3)`.
        color: Float in [0, 1], the enhancement's strength. Defaults to 0.4.
        flip: Float in [0, 1], probability of the flip. Defaults to 0.5.

    Raises:
        ValueError: if an argument is outside its range.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    augment = data.MetaTrainAugmentation(image_size=32)
    images = np.zeros((2, 40, 40, 3), "uint8")
    augment(images, np.random.default_rng(0)).shape  # (2, 32, 32, 3)
    ```

    Reference:
        - Hu et al., "Pushing the Limits of Simple Pipelines for Few-Shot
          Learning", CVPR 2022, whose input pipeline SMAT keeps.
    """

    def __init__(
        self,
        image_size=None,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color=0.4,
        flip=0.5,
    ):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                "Expected `scale` and `ratio` as (low, high) with 0 < low <= "
                f"high, scale at most 1. Received: scale={scale}, "
                f"ratio={ratio}."
            )
        if not 0 <= color <= 1 or not 0 <= flip <= 1:
            raise ValueError(
                "Expected `color` and `flip` in [0, 1]. "
                f"Received: color={color}, flip={flip}."
            )
        if image_size is not None:
            image_size = height_width(image_size)
        self.image_size = image_size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.color = color
        self.flip = flip

    def __call__(self, images, rng):
        """Augments images.

        Args:
            images: uint8 array of shape `(N, H, W, C)`, `C` 1 or 3.
            rng: `numpy.random.Generator`.

        Returns:
            uint8 array of shape `(N, height, width, C)`.
        """
        size = self.image_size or images.shape[1:3]
        result = np.empty((len(images), *size, images.shape[-1]), "uint8")
        for i, image in enumerate(images):
            box = self._crop(rng, *image.shape[:2])
            factors = 1 + self.color * rng.uniform(-1, 1, len(ENHANCERS))
            mirrored = rng.random() < self.flip
            # Pillow knows grey images without a channel axis only.
            image = Image.fromarray(
                image if image.shape[-1] == 3 else image[..., 0]
            )
            image = image.crop(box).resize(
                size[::-1], Image.Resampling.BILINEAR
            )
            for enhancer, factor in zip(ENHANCERS, factors):
                image = enhancer(image).enhance(factor)
            pixels = np.asarray(image).reshape(result.shape[1:])
            result[i] = pixels[:, ::-1] if mirrored else pixels
        return result

    def protocol(self):
        """Returns the settings as a dict, for the stamp on a report."""
        return {"name": type(self).__name__, **vars(self)}

    def _crop(self, rng, height, width):
        """Returns the crop's box `(left, upper, right, lower)`."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = (
                round(math.sqrt(area * ratio)),
                round(math.sqrt(area / ratio)),
            )
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w, endpoint=True))
                upper = int(rng.integers(height - h, endpoint=True))
                return left, upper, left + w, upper + h
        # Ten misses: the largest centred crop whose ratio is in the range.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, round(height * ratio))
        h = min(height, round(width / ratio))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


def augmented_shape(source, augment):
    """Returns `(H, W, C)` of the images in an episode."""
    height, width, channels = source.image_shape
    size = getattr(augment, "image_size", None) or (height, width)
    return (*size, channels)


def describe_augmentation(augment):
    if augment is None or hasattr(augment, "protocol"):
        return augment and augment.protocol()
    # A plain repr holds an address, which differs from run to run.
    return getattr(augment, "__qualname__", type(augment).__qualname__)
