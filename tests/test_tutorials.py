"""What the tutorials compute, and the notebooks that are made of them."""

import dataclasses
import json
import pathlib
import runpy

import keras
import matplotlib
import numpy as np
import pytest
from tools import arrays
from tools import assert_same

from keras_smat import quickstart

ROOT = pathlib.Path(__file__).resolve().parents[1]
build = runpy.run_path(str(ROOT / "tutorials" / "build.py"))


def without_outputs(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    return notebook


def test_every_notebook_has_a_source():
    made = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert made == {source.stem for source in build["sources"]()} != set()


@pytest.mark.parametrize("source", build["sources"](), ids=lambda s: s.stem)
def test_notebooks_are_what_their_sources_say(source):
    path = ROOT / "notebooks" / f"{source.stem}.ipynb"
    notebook = without_outputs(json.loads(path.read_text("utf-8")))
    message = "Run `python tutorials/build.py`."
    assert notebook == build["notebook"](source), message


def test_cells_are_read():
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # %% no\n"
    assert build["read_cells"](text) == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1  # %% no"),
    ]
    for wrong in ("x = 1\n# %%\n", "# %% [raw]\n# text\n"):
        with pytest.raises(ValueError, match="Expected"):
            build["read_cells"](wrong)


@pytest.mark.parametrize(
    "address, path",
    [
        ("https://github.com/a/b", "/github/a/b/blob/main/notebooks/n.ipynb"),
        ("https://github.com/a/b.git", "/github/a/b/blob/main/notebooks/n"),
        ("https://example.org/a/b", ") (upload"),
        (None, ") (upload"),
    ],
)
def test_badge_leads_to_colab(address, path):
    badge = build["badge"]("n", address)
    assert f"(https://colab.research.google.com{path}" in badge


def test_outputs_stay_with_their_code():
    def notebook(code, outputs):
        cell = {"cell_type": "code", "source": [code], "outputs": outputs}
        return {"cells": [{**cell, "execution_count": len(outputs) or None}]}

    for code, kept in (("1 + 1", ["2"]), ("1 + 2", [])):
        built = notebook(code, [])
        build["keep_outputs"](built, notebook("1 + 1", ["2"]))
        assert built == notebook(code, kept)


@pytest.mark.slow
def test_quickstart_is_the_command(tmp_path, monkeypatch):
    steps, make_learners, learners = 2, quickstart.make_learners, {}

    def keep_learners(*args):
        learners.update(make_learners(*args))
        return learners

    monkeypatch.setattr(quickstart, "make_learners", keep_learners)
    expected = quickstart.main(
        ["--out", str(tmp_path), "--smoke", "--steps", str(steps)]
    )
    training = json.loads((tmp_path / "training.json").read_text())
    keras.backend.clear_session(free_memory=False)
    monkeypatch.setattr(
        quickstart,
        "Settings",
        lambda: dataclasses.replace(quickstart.SMOKE, steps=steps),
    )
    matplotlib.use("agg")  # Figures need no screen.
    tutorial = runpy.run_path(str(ROOT / "tutorials" / "01_quickstart.py"))
    assert list(tutorial["reports"]) == list(expected)
    for name, report in tutorial["reports"].items():
        # Accuracies of every episode, and what determined them.
        assert report == expected[name], name
    # Two steps hardly move accuracies, but they do move weights.
    for name in ("PMF", "SMAT"):
        weights = arrays(tutorial[name.lower()].weights)
        assert_same(weights, arrays(learners[name].weights))
    assert np.array_equal(tutorial["shares"], training["sparsity"]["shares"])
    assert tutorial["steps"].tolist() == training["sparsity"]["steps"]
    for name, weights in tutorial["merging"].items():
        assert weights.tolist() == training["merging_weights"][name]
