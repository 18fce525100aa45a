"""The episode contract: what one few-shot task looks like as arrays."""

import numpy as np

from keras_smat.data.arguments import height_width
from keras_smat.data.arguments import some


def make_episode(
    support_images,
    support_labels,
    query_images,
    query_labels,
    support_size=None,
    query_size=None,
):
    """Checks, relabels and pads one few-shot task.

    Class ids may be any integers. The classes of the support become
    `0..way-1` in sorted order, so labels that already are `0..way-1` stay as
    they are. A padded support image is zero and has label -1; a padded query
    image is zero and has label 0 and weight 0.

    Args:
        support_images: uint8 array of shape `(S, H, W, C)`, pixels in
            `[0, 255]`, `C` 1 or 3.
        support_labels: Integer array of shape `(S,)`, class ids.
        query_images: uint8 array of shape `(Q, H, W, C)`.
        query_labels: Integer array of shape `(Q,)`, class ids that all occur
            in the support.
        support_size: Integer, number of support images after padding.
            Defaults to `None`, no padding.
        query_size: Integer, number of query images after padding. Defaults
            to `None`, no padding.

    Returns:
        A tuple `(x, y, sample_weight)`: `x` a dict of `support_images`,
        `support_labels` (int32) and `query_images`, `y` int32 of shape
        `(Q,)`, `sample_weight` float32 of shape `(Q,)`.

    Raises:
        ValueError: if images are not uint8 `(N, H, W, C)`, support and query
            images differ in shape, labels are not one integer per image, a
            query's class is missing from the support, or a size is smaller
            than the number of images.

    Example:

    ```python
    import numpy as np
    from keras_smat import data

    images = np.zeros((3, 32, 32, 3), "uint8")
    x, y, sample_weight = data.make_episode(
        images, [7, 4, 7], images, [4, 4, 7], query_size=4
    )
    x["support_labels"]  # [1, 0, 1]
    y, sample_weight  # [0, 0, 1, 0], [1., 1., 1., 0.]
    ```
    """
    support_images = check_images(support_images, name="support_images")
    query_images = check_images(query_images, name="query_images")
    if support_images.shape[1:] != query_images.shape[1:]:
        raise ValueError(
            "Expected support and query images of one shape (H, W, C). "
            f"Received: support {support_images.shape[1:]}, "
            f"query {query_images.shape[1:]}."
        )
    num_support, num_query = len(support_images), len(query_images)
    support_labels = _integers(support_labels, num_support, "support_labels")
    query_labels = _integers(query_labels, num_query, "query_labels")
    support_labels, query_labels = _relabel(support_labels, query_labels)
    x = {
        "support_images": _pad(support_images, support_size, 0, "support"),
        "support_labels": _pad(support_labels, support_size, -1, "support"),
        "query_images": _pad(query_images, query_size, 0, "query"),
    }
    weights = np.ones(num_query, "float32")
    return (
        x,
        _pad(query_labels, query_size, 0, "query"),
        _pad(weights, query_size, 0, "query"),
    )


def check_images(images, image_size=None, name="images"):
    """Returns `images` as an array, or says what is wrong with them.

    Args:
        images: uint8 array of shape `(N, H, W, C)`, pixels in `[0, 255]`,
            `N` at least 1 and `C` 1 or 3.
        image_size: Integer or `(height, width)`, the size the images must
            have, in pixels. Defaults to `None`, any size.
        name: String, how errors call it. Defaults to `"images"`.

    Returns:
        A uint8 array of shape `(N, H, W, C)`.

    Raises:
        ValueError: if dtype, rank, channels or size differ from the above.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"Expected `{name}` as uint8 pixels in [0, 255]. "
            f"Received: dtype {images.dtype}{_how_to_convert(images)}"
        )
    shape = images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or shape[0] < 1:
        hint = ""
        if len(shape) == 3:
            hint = (
                f" Grey images need a channel axis (`{name}[..., None]`), a "
                f"single image a batch axis (`{name}[None]`)."
            )
        elif len(shape) == 4 and shape[1] in (1, 3):
            hint = f" Move the channels last: `{name}.transpose(0, 2, 3, 1)`."
        raise ValueError(
            f"Expected `{name}` of shape (N, H, W, C) with N >= 1 and C 1 "
            f"or 3. Received: shape {shape}.{hint}"
        )
    if image_size is not None and shape[1:3] != height_width(image_size):
        raise ValueError(
            f"Expected `{name}` of size {height_width(image_size)} "
            f"(height, width). Received: {shape[1:3]}."
        )
    return images


def check_labels(labels, num_images, name="labels"):
    """Returns `labels` as an integer array that uses every class `0..way-1`.

    Args:
        labels: Integers of shape `(num_images,)`.
        num_images: Integer, how many labels there must be.
        name: String, how errors call it. Defaults to `"labels"`.

    Returns:
        An integer array of shape `(num_images,)`, not copied if it is one.

    Raises:
        ValueError: if there is not one integer per image, or a label is
            negative, or a class below the largest label has no image.
    """
    labels = _integers(labels, num_images, name)
    if len(labels) and labels.min() < 0:
        negative = np.unique(labels[labels < 0])
        problem = f"negative labels {some(negative)}"
    else:
        way = int(labels.max()) + 1 if len(labels) else 0
        if way > num_images:  # so some class is missing: do not count to it
            missing = np.setdiff1d(np.arange(num_images), labels)
        else:
            missing = np.flatnonzero(np.bincount(labels, minlength=way) == 0)
        if not missing.size:
            return labels
        problem = f"a largest label {way - 1} and no image of {some(missing)}"
    raise ValueError(
        f"Expected `{name}` to use every class 0..way-1. Received: {problem}. "
        f"`np.unique({name}, return_inverse=True)[1]` renumbers them."
    )


def check_support(images, labels, image_size=None):
    """Checks a support set that a user supplies.

    Args:
        images: uint8 array of shape `(S, H, W, C)`.
        labels: Integers of shape `(S,)` that use every class `0..way-1`.
        image_size: Integer or `(height, width)` in pixels. Defaults to
            `None`, any size.

    Returns:
        A tuple `(images, labels)`: uint8 `(S, H, W, C)` and int32 `(S,)`.

    """
    images = check_images(images, image_size, "support_images")
    labels = check_labels(labels, len(images), "support_labels")
    return images, labels.astype("int32")


def bucket_size(n, buckets):
    """Returns the smallest of `buckets` that holds `n` images."""
    fitting = [size for size in buckets if size >= n]
    if not fitting:
        raise ValueError(
            f"Expected a bucket for {n} images. "
            f"Received: buckets={list(buckets)}."
        )
    return min(fitting)


def _integers(labels, num_images, name):
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected `{name}` as a one-dimensional array of integers. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}."
        )
    if len(labels) != num_images:
        raise ValueError(
            f"Expected one label per image in `{name}`. "
            f"Received: {len(labels)} labels for {num_images} images."
        )
    # NumPy can neither count nor negate 64-bit unsigned integers.
    return labels.astype("int64") if labels.dtype == np.uint64 else labels


def _relabel(support_labels, query_labels):
    classes, support_labels = np.unique(support_labels, return_inverse=True)
    unknown = np.setdiff1d(query_labels, classes)
    if unknown.size:
        raise ValueError(
            "Expected every class of `query_labels` in `support_labels`. "
            f"Received: query classes {some(unknown)} that the support "
            f"lacks; its classes are {some(classes)}."
        )
    query_labels = np.searchsorted(classes, query_labels)
    return support_labels.astype("int32"), query_labels.astype("int32")


def _how_to_convert(images):
    if not np.issubdtype(images.dtype, np.number) or not images.size:
        return "."
    bad = images.size - np.count_nonzero(np.isfinite(images))
    if bad:
        return (
            f" with {bad} NaN or infinite values: the images were damaged "
            "before this point, find out where instead of converting them."
        )
    low, high = images.min(), images.max()
    scale = "255 * images" if 0 <= low and high <= 1 else "images"
    return (
        f" with values from {low:.4g} to {high:.4g}. If `images` are pixels, "
        f"`({scale}).round().clip(0, 255).astype('uint8')` converts them; "
        "undo any normalisation first, the backbone has its own."
    )


def _pad(array, size, value, name):
    if size is None or size == len(array):
        return array
    if size < len(array):
        raise ValueError(
            f"Expected `{name}_size` of at least the number of {name} images. "
            f"Received: {name}_size={size} for {len(array)} images."
        )
    padded = np.full((size, *array.shape[1:]), value, array.dtype)
    padded[: len(array)] = array
    return padded
