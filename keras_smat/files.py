"""Files that are whole or not there."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path that takes the place of `path` on success.

    An interruption leaves what was there before. The temporary file lies in
    the same folder and has the same suffix.

    Args:
        path: str or path of a file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{os.getpid()}.incomplete.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
