"""Checks of arguments that several files share."""

import numpy as np


def check_range(name, value, low):
    """Returns an integer or `(low, high)` as a pair of `int`."""
    ends = (value, value) if np.ndim(value) == 0 else tuple(value)
    whole = all(isinstance(end, int | np.integer) for end in ends)
    if len(ends) == 2 and whole and low <= ends[0] <= ends[1]:
        return int(ends[0]), int(ends[1])
    raise ValueError(
        f"Expected `{name}` as an integer or (low, high) with {low} <= low "
        f"<= high. Received: {name}={value!r}."
    )


def check_way(name, way, class_sizes):
    """Raises a `ValueError` if there are fewer classes than `way`."""
    if way > len(class_sizes):
        raise ValueError(
            f"Expected `{name}` of at most the number of classes, "
            f"{len(class_sizes)}. Received: {name}={way}."
        )


def check_sizes(class_sizes, class_names, needed, reason):
    """Raises a `ValueError` that names the classes with too few images."""
    short = np.flatnonzero(np.asarray(class_sizes) < needed)
    if short.size:
        named = "; ".join(
            f"class {class_names[c]!r} has {class_sizes[c]} images, "
            f"needs {needed} ({reason})"
            for c in short[:5]
        )
        more = f"; and {short.size - 5} more classes" if short.size > 5 else ""
        raise ValueError(
            f"Expected every class to have at least {needed} images. "
            f"Received: {named}{more}."
        )


def height_width(image_size):
    """Returns an integer or a `(height, width)` pair as a pair of `int`."""
    pair = (image_size,) * 2 if np.ndim(image_size) == 0 else tuple(image_size)
    whole = all(isinstance(side, int | np.integer) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < 1:
        raise ValueError(
            "Expected `image_size` as a positive integer or a pair (height, "
            f"width) of them. Received: image_size={image_size!r}."
        )
    return int(pair[0]), int(pair[1])


def some(values, limit=8):
    """Lists the first `limit` of `values`, for an error."""
    shown = ", ".join(str(value) for value in values[:limit])
    return f"[{shown}{', ...' if len(values) > limit else ''}]"
