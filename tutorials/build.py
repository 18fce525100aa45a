"""Writes `notebooks/` from the sources in this folder.

```bash
python tutorials/build.py              # after every change of a source
pip install -e ".[notebooks]"
python tutorials/build.py --execute    # runs them too, for their outputs
```

A source is Python in the percent format: `# %%` opens a cell of code,
`# %% [markdown]` one of text.
"""

import argparse
import json
import pathlib
import re
import tomllib

SOURCES = pathlib.Path(__file__).resolve().parent
ROOT = SOURCES.parent
NOTEBOOKS = ROOT / "notebooks"
COLAB = "https://colab.research.google.com"


def main(argv=None):
    """Builds the notebooks; an execution that fails leaves its old one."""
    parser = argparse.ArgumentParser("python tutorials/build.py")
    parser.add_argument("names", nargs="*", help="sources (all)")
    parser.add_argument("--execute", action="store_true")
    arguments = parser.parse_args(argv)
    NOTEBOOKS.mkdir(exist_ok=True)
    known = {source.stem: source for source in sources()}
    for name in arguments.names or known:
        if name not in known:
            parser.error(f"Expected a name among {[*known]}. Received: {name}")
        path = NOTEBOOKS / f"{name}.ipynb"
        built = notebook(known[name])
        if arguments.execute:
            print(f"Running {name} ...")
            keep_outputs(built, execute(built))
        elif path.exists():
            keep_outputs(built, json.loads(path.read_text("utf-8")))
        # As nbformat writes it.
        text = json.dumps(built, ensure_ascii=False, indent=1, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(path.relative_to(ROOT))


def sources():
    """Paths of the tutorials, whose names begin with their number."""
    return sorted(SOURCES.glob("[0-9]*.py"))


def notebook(source):
    """The notebook of a source, without outputs.

    Args:
        source: `pathlib.Path` of a tutorial.

    Returns:
        Dict, nbformat 4.5.
    """
    head = (
        f"{badge(source.stem, repository())}\n\n"
        f"<!-- Made by tutorials/build.py: edit tutorials/{source.name}. -->"
    )
    cells = [("markdown", head), *read_cells(source.read_text("utf-8"))]
    return {
        "cells": [
            {
                "cell_type": kind,
                "id": f"cell-{i:02}",
                "metadata": {},
                "source": text.splitlines(keepends=True),
                **(
                    {"execution_count": None, "outputs": []}
                    if kind == "code"
                    else {}
                ),
            }
            for i, (kind, text) in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def read_cells(text):
    """Splits a source into its cells.

    Args:
        text: str, a source.

    Returns:
        List of `(kind, text)`, where kind is `"code"` or `"markdown"`.
    """
    before, *parts = re.split(r"^# %%", text, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(
            f"Expected a cell to open with `# %%`. Received: {before!r}"
        )
    cells = []
    for part in parts:
        header, _, body = part.partition("\n")
        if header.strip() not in ("", "[markdown]"):
            raise ValueError(
                "Expected `# %%` or `# %% [markdown]`. "
                f"Received: {'# %%' + header!r}"
            )
        kind = "markdown" if header.strip() else "code"
        if kind == "markdown":
            body = re.sub("^# ?", "", body, flags=re.MULTILINE)
        cells.append((kind, body.strip("\n")))
    return cells


def repository():
    """The project's address in `pyproject.toml`, `None` if it has none."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return tomllib.loads(text)["project"].get("urls", {}).get("Repository")


def badge(name, address):
    """Markdown that opens a notebook in Colab.

    Args:
        name: str, the notebook's.
        address: str, the repository's. From GitHub alone Colab opens
            notebooks by their address; elsewhere, and for `None`, the badge
            leads to Colab, for the reader to upload the notebook.
    """
    found = re.match(
        r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?$", address or ""
    )
    link, note = COLAB, " (upload this notebook there)"
    if found:
        link, note = f"{COLAB}/github/{found[1]}/blob/main/notebooks", ""
        link += f"/{name}.ipynb"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({link}){note}"


def execute(built):
    """Runs a notebook from beginning to end.

    Args:
        built: dict, a notebook. It is not changed.

    Returns:
        Dict, the notebook with its outputs.
    """
    try:
        import nbclient
        import nbformat
    except ImportError as error:
        raise SystemExit(
            '--execute needs nbclient: pip install -e ".[notebooks]"'
        ) from error
    node = nbformat.reads(json.dumps(built), as_version=4)
    nbclient.NotebookClient(
        node,
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()
    done = json.loads(nbformat.writes(node))
    for cell in done["cells"]:
        # Remarks of libraries on the machine are no part of a tutorial.
        cell["outputs"] = [
            output
            for output in cell.get("outputs", ())
            if output.get("name") != "stderr"
        ]
    return done


def keep_outputs(built, done):
    """Copies outputs into a notebook whose code is the same.

    So a change of text alone does not cost a run; outputs of other code
    would lie.
    """
    built, done = (
        [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
        for nb in (built, done)
    )
    if [cell["source"] for cell in built] == [c["source"] for c in done]:
        for cell, old in zip(built, done):
            cell["outputs"] = old["outputs"]
            cell["execution_count"] = old["execution_count"]


if __name__ == "__main__":
    main()
