"""Checked access to a JSON file, with errors that name file and field."""

import json
import os
import reprlib

FILE = "dataset_spec.json"
# Far above any data set, and far below an overflow of sums.
MOST = 2**40
KINDS = {str: "a string", dict: "an object", list: "a list"}


class DatasetSpecError(ValueError):
    """A `dataset_spec.json` is missing or malformed."""


def open_fields(folder):
    """Reads `<folder>/dataset_spec.json`.

    Args:
        folder: String.

    Returns:
        `Fields`.

    Raises:
        DatasetSpecError: if the file is missing, a pickle, or no JSON.
    """
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        problem = "no such file"
        if os.path.exists(os.path.join(folder, "dataset_spec.pkl")):
            problem = (
                "a pickle, `dataset_spec.pkl`. Pickles can run any code, so "
                "they are refused: the JSON files are part of Meta-Dataset's "
                "code, in its folder `dataset_specs`"
            )
        raise DatasetSpecError(
            f"Expected the specification of a data set, {path!r}. "
            f"Received: {problem}."
        )
    try:
        with open(path, encoding="utf-8") as file:
            return Fields(json.load(file), path)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetSpecError(
            f"Expected a JSON object in {path!r}. "
            f"Received: a file that cannot be read: {error}"
        ) from error


class Fields:
    """The fields of a JSON object.

    Args:
        values: What the file holds.
        path: String, the file, for errors.
    """

    def __init__(self, values, path):
        self.values, self.path = values, path

    def fail(self, keys, expected, received):
        field = ".".join(map(str, keys))
        raise DatasetSpecError(
            f"Expected {expected} in field `{field}` of {self.path!r}. "
            f"Received: {reprlib.repr(received)}."
        )

    def get(self, kind, *keys):
        """Returns the value below some keys and list indices.

        Args:
            kind: Type: `str`, `dict`, `list`, `object` for any, or `int`,
                a count.
            *keys: Strings and integers.
        """
        value = self.values
        for depth, key in enumerate(keys):
            inside = isinstance(key, int) or (
                isinstance(value, dict) and key in value
            )
            if not inside:
                self.fail(keys[: depth + 1], "a value", value)
            value = value[key]
        if kind is int:
            if type(value) is not int or not 0 <= value <= MOST:
                self.fail(keys, f"an integer in 0..{MOST}", value)
        elif not isinstance(value, kind):
            self.fail(keys, KINDS[kind], value)
        if kind is str:
            try:
                value.encode()
            except UnicodeEncodeError:
                self.fail(keys, "text without lone surrogates", ascii(value))
        return value

    def by_id(self, kind, key):
        """Returns the list of an object whose keys are "0", "1", ..."""
        keys = self.get(dict, key).keys()
        wanted = [str(i) for i in range(len(keys))]
        if keys != set(wanted):
            strange = sorted(keys - set(wanted), key=ascii)
            self.fail([key], f"the keys 0..{len(keys) - 1}", strange)
        return [self.get(kind, key, i) for i in wanted]
