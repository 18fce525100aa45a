"""The support augmentation of PMF: noise from NumPy, images through Keras."""

import numpy as np
from keras import ops

PROBABILITY = 0.9
SHIFT = 0.125

# ImageNet statistics of pixels: the strengths were chosen for images that
# were normalised with them.
_MEAN = 255.0 * np.array([0.485, 0.456, 0.406])
_STD = 255.0 * np.array([0.229, 0.224, 0.225])


def draw_noise(seed, step, num_images):
    """Random numbers of one step; those of an image do not depend on padding.

    Args:
        seed: int.
        step: int.
        num_images: int, S.

    Returns:
        Dict of float32 arrays: `on` and `flip`, 0 or 1, of the whole batch;
        `brightness`, `saturation`, `contrast`, `down` and `right`, uniform in
        [0, 1), one per image.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    on, flip = rng.random(2)
    names = ("brightness", "saturation", "contrast", "down", "right")
    # Image by image: further rows leave the first ones as they are.
    columns = rng.random((num_images, len(names))).astype("float32").T
    noise = {name: column.copy() for name, column in zip(names, columns)}
    noise["on"] = np.float32(on < PROBABILITY)
    noise["flip"] = np.float32(flip < 0.5)
    return noise


def augment(images, noise):
    """Flip, brightness, saturation, contrast and translation, in this order.

    Args:
        images: tensor of shape (S, H, W, C), values 0..255.
        noise: dict, see `draw_noise`.

    Returns:
        Float tensor of the shape of `images`. It is not clipped to 0..255.

    Reference: Hu et al. (PMF), CVPR 2022, released code; Zhao et al.,
    "Differentiable Augmentation", NeurIPS 2020.
    """
    images = ops.cast(images, "float32")
    mean, std = _MEAN, _STD
    if images.shape[-1] == 1:
        mean, std = _MEAN.mean(keepdims=True), _STD.mean(keepdims=True)
    mean = ops.convert_to_tensor(mean.astype("float32"))
    std = ops.convert_to_tensor(std.astype("float32"))
    x = (images - mean) / std

    def each(name):
        return ops.reshape(noise[name], (-1, 1, 1, 1))

    x = ops.where(noise["flip"] > 0, ops.flip(x, axis=2), x)
    x = x + each("brightness") - 0.5
    grey = ops.mean(x, axis=3, keepdims=True)
    x = (x - grey) * (2.0 * each("saturation")) + grey
    level = ops.mean(x, axis=(1, 2, 3), keepdims=True)
    x = (x - level) * (each("contrast") + 0.5) + level
    _, height, width, _ = images.shape
    # A product with a shifted identity: what enters from outside is zero.
    x = ops.einsum("shk,skwc->shwc", _shift(noise["down"], height), x)
    x = ops.einsum("swk,shkc->shwc", _shift(noise["right"], width), x)
    return ops.where(noise["on"] > 0, x * std + mean, images)


def _shift(uniform, size):
    """Matrices (S, size, size) that move images by whole pixels."""
    most = int(size * SHIFT + 0.5)
    pixels = ops.floor(uniform * (2 * most + 1)) - most  # -most..most
    grid = ops.cast(ops.arange(size), "float32")
    distance = grid[:, None] - grid[None, :]
    return ops.cast(distance[None] == pixels[:, None, None], "float32")
