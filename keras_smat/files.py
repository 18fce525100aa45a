"""Files that are written whole or not at all."""

import os
import pathlib


def save_as(path, writers):
    """Writes what the writer of the path's suffix gives; returns the path.

    Args:
        path: str or path in a folder that exists.
        writers: dict from suffixes to functions that return a str.
    """
    path = pathlib.Path(path)
    if path.suffix not in writers:
        raise ValueError(
            f"Expected a path that ends in one of {list(writers)}. "
            f"Received: path={str(path)!r}"
        )
    if not path.parent.is_dir():
        raise ValueError(
            "Expected a path in a folder that exists. "
            f"Received: path={str(path)!r}"
        )
    write_text(path, writers[path.suffix]())
    return path


def write_text(path, text):
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
