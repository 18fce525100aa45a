"""Experts without their backbone, in one `.npz` file."""

import hashlib
import json
import pathlib
import zipfile

import numpy as np
from keras import ops

from keras_smat.files import replacing

_FORMAT = "keras_smat experts 1"


def save(path, backbone, variables, arguments):
    """Writes variables and a description of the backbone, atomically.

    Args:
        path: str or path that ends in `.npz`.
        backbone: `keras.Model` that the experts belong to.
        variables: dict of names to `keras.Variable`.
        arguments: JSON-serialisable dict, kept for the reader.
    """
    path = _npz(path)
    header = {
        "format": _FORMAT,
        "arguments": arguments,
        "backbone": _describe(backbone),
    }
    arrays = {k: ops.convert_to_numpy(v) for k, v in variables.items()}
    with replacing(path) as temporary:
        np.savez(temporary, header=np.array(json.dumps(header)), **arrays)


def load(path, backbone, variables):
    """Reads variables back; assigns nothing unless everything fits.

    Raises:
        ValueError: if the file is no expert file, or was made on another
            backbone or with other arguments; names the first mismatch.
    """
    path = _npz(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            "`path` must be a file that `save_experts` wrote. Received: "
            f"{path}, which is damaged or something else"
        ) from error
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"The file must have the format {_FORMAT!r}. Received: {path} "
            f"with {header.get('format')!r}"
        )
    _check_backbone(path, header["backbone"], _describe(backbone))
    for name, variable in variables.items():
        shape = arrays[name].shape if name in arrays else None
        if shape != tuple(variable.shape):
            raise ValueError(
                f"The experts in {path} were made with other arguments: "
                f"expected {name!r} of shape {tuple(variable.shape)}. "
                f"Received: {shape}. The file's learner had "
                f"{header['arguments']}"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _npz(path):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in '.npz'. Received: {path}")
    return path


def _describe(backbone):
    """Name, shape and content hash of every weight."""
    rows = []
    for weight in backbone.weights:
        value = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:16]
        rows.append([weight.path, list(value.shape), digest])
    return rows


def _check_backbone(path, saved, present):
    for theirs, ours in zip(saved, present):
        # Names carry counters that differ between runs: shape and content
        # decide.
        if theirs[1:] != ours[1:]:
            what = "shape" if theirs[1] != ours[1] else "values"
            raise ValueError(
                f"The experts in {path} belong to another backbone: weight "
                f"{ours[0]!r} (saved as {theirs[0]!r}) has other {what}. "
                f"Expected shape {theirs[1]} and hash {theirs[2]}. Received: "
                f"shape {ours[1]} and hash {ours[2]}"
            )
    if len(saved) != len(present):
        longer = max(saved, present, key=len)
        first = longer[min(len(saved), len(present))][0]
        raise ValueError(
            f"The experts in {path} belong to a backbone with {len(saved)} "
            f"weights. Received: a backbone with {len(present)} weights; the "
            f"first that only one of them has is {first!r}"
        )
