"""Checks of arguments, with one wording for all of the library."""

import math

import numpy as np


def check_integer(name, value, low):
    """Returns `value` as an `int` of at least `low`, or a `ValueError`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low:
        raise ValueError(
            f"Expected `{name}` as an integer of at least {low}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def check_number(name, value, low=0.0, high=math.inf):
    """Returns `value` as a finite `float` in [low, high]."""
    if not _is_number(value) or not low <= value <= high:
        bounds = (
            f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        )
        raise ValueError(
            f"Expected `{name}` as a finite number {bounds}. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_positive(name, value):
    """Returns `value` as a finite `float` above 0."""
    if not _is_number(value) or not value > 0:
        raise ValueError(
            f"Expected `{name}` as a finite number > 0. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices`, or a `ValueError`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {choices}. Received: {name}={value!r}"
        )
    return value


def _is_number(value):
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and math.isfinite(value)
