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

    Example:

    ```python
    with files.replacing("report.json") as temporary:
        temporary.write_text(text)
    ```
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{os.getpid()}.incomplete.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
