"""Manifests: files that say which images every episode has."""

import hashlib
import json
import os
import pathlib

import numpy as np

from keras_smat.files import write_text

FORMAT = "keras_smat.manifest.1"


def write_manifest(episodes, path):
    """Writes the manifest of `episodes`; see `Episodes.save_manifest`."""
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            "Expected a path in a folder that exists. "
            f"Received: path={str(path)!r}."
        )
    sources = episodes.sources()
    content = {
        "format": FORMAT,
        "epoch": episodes.epoch,
        "seed": episodes.seed,
        "max_way": episodes.max_way,
        "support_buckets": episodes.support_buckets,
        "query_buckets": episodes.query_buckets,
        "sources": {name: describe(*pair) for name, pair in sources.items()},
        "protocol": episodes.protocol(),
    }
    head = _text(content)[:-1]  # without the brace that closes it
    lines = [_text(_pack(episodes.indices(i))) for i in range(len(episodes))]
    body = f'{head},\n"episodes":[\n' + ",\n".join(lines) + "\n]"
    digest = _digest(json.loads(body + "}"))
    write_text(path, f'{body},\n"hash":"{digest}"}}\n')
    return digest


def read_manifest(path):
    """Returns the content of a manifest, its episodes as `indices()` gives
    them, or raises a `ValueError`."""
    path = os.fspath(path)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        content = json.loads(text)
        known = content["format"] == FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise ValueError(
            "Expected a manifest that `save_manifest` wrote. "
            f"Received: {path!r}, which is none or of another version."
        )
    digest = content.pop("hash", None)
    if digest != _digest(content):
        raise ValueError(
            "Expected a manifest as `save_manifest` wrote it. "
            f"Received: {path!r}, which was changed or damaged: its hash is "
            f"{_digest(content)}, not {digest}."
        )
    episodes = [_unpack(packed) for packed in content["episodes"]]
    return {**content, "hash": digest, "episodes": episodes}


def describe(source, query_source=None):
    """Returns what a manifest says of a source, as plain JSON values."""
    described = {
        "fingerprint": source.fingerprint(),
        "images": len(source.labels),
        "classes": len(source.class_names),
        "image_shape": list(source.image_shape),
    }
    if query_source is not None:
        described["queries"] = describe(query_source)
    return described


def _pack(indices):
    """An episode in few characters: labels are runs, so counts do."""
    packed = {"classes": indices["classes"]}
    if "domain" in indices:
        packed["domain"] = indices["domain"]
    way = len(indices["classes"])
    for part in ("support", "query"):
        counts = np.bincount(indices[f"{part}_labels"], minlength=way)
        packed[part] = indices[part]
        packed[f"{part}_counts"] = counts
    return packed


def _unpack(packed):
    indices = {"classes": np.array(packed["classes"], "int64")}
    if "domain" in packed:
        indices["domain"] = packed["domain"]
    labels = np.arange(len(indices["classes"]))
    for part in ("support", "query"):
        counts = packed[f"{part}_counts"]
        indices[part] = np.array(packed[part], "int64")
        indices[f"{part}_labels"] = np.repeat(labels, counts)
    return indices


def _digest(content):
    return hashlib.sha256(_text(content).encode()).hexdigest()[:16]


def _text(content):
    def convert(value):
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        return getattr(value, "__qualname__", type(value).__qualname__)

    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), default=convert
    )
