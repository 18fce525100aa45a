"""Checks of constructor arguments that several layers share."""

import numpy as np


def check_positive(name, value):
    """Returns `value` as a positive `int`, or raises a `ValueError`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return int(value)


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices`, or raises a `ValueError`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {choices}. Received: {name}={value!r}"
        )
    return value
