import json
import os

import numpy as np
import pytest
from test_html_page import assert_self_contained

from keras_smat import FewShotReport
from keras_smat import FewShotResult
from keras_smat import quickstart
from keras_smat import quickstart_page

NAMES = ["Frozen", "PMF", "SMAT"]


@pytest.mark.slow
def test_whole_run(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    reports = quickstart.main(["--out", str(out), "--steps", "2", "--smoke"])
    assert list(reports) == NAMES
    for name in NAMES:
        saved = FewShotReport.load(out / f"report_{name.lower()}.json")
        assert saved == reports[name]
        assert set(saved.averages) == {"in_domain", "out_of_domain"}
    stamps = {r.protocol["episodes_sha256"] for r in reports.values()}
    assert len(stamps) == 1
    text = (out / "report.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "vit_mini" in text and "vit_mini" in printed
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line in printed for line in table)
    assert len(table) == 2 + 10 + 2
    assert all(name in table[0] for name in NAMES)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    # Differences, bars, four episodes, curves, sparsity, merging weights.
    assert page.count("<svg") == 9
    for heading in ("Accuracy", "Episodes", "Meta-tuning", "experts", "run"):
        assert any(heading in h for h in page.split("<h2>")[1:]), heading
    training = json.loads((out / "training.json").read_text())
    assert training["curves"]["SMAT"]["steps"] == [1, 2]
    assert training["sparsity"]["steps"] == [0, 1, 2]
    assert np.shape(training["sparsity"]["shares"]) == (3, 8)
    sums = [sum(w) for w in training["merging_weights"].values()]
    np.testing.assert_allclose(sums, np.ones(10), rtol=1e-5)


def test_steps_are_a_multiple_of_epochs():
    with pytest.raises(ValueError, match="steps=7, epochs=4"):
        quickstart.Settings(steps=7)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_interruption_in_training_keeps_what_there_is(
    tmp_path, monkeypatch, capsys
):
    def ends_in_second_epoch(monitor, epoch, logs=None):
        if epoch:
            interrupt()

    monkeypatch.setattr(
        quickstart.Monitor, "on_epoch_begin", ends_in_second_epoch
    )
    stale = tmp_path / "report_smat.json"
    stale.write_text("of an earlier run")
    arguments = ["--out", str(tmp_path), "--smoke", "--steps", "3"]
    reports = quickstart.main(arguments)
    assert list(reports) == ["Frozen"]
    printed = capsys.readouterr().out
    assert "Interrupted: 1 of 3" in printed and "What was planned:" in printed
    assert "meta-tuned on 2 episodes" in printed
    found = sorted(os.listdir(tmp_path))
    assert found == [
        "report.html", "report.md", "report_frozen.json", "training.json",
    ]  # fmt: skip
    curves = json.loads((tmp_path / "training.json").read_text())["curves"]
    assert curves["PMF"]["steps"] == [1]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert page.count("<svg") == 2  # Bars of one learner, and the curves.
    assert "Interrupted: 1 of 3" in page


def test_interruption_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart.data, "demo_domains", interrupt)
    assert quickstart.main(["--out", str(tmp_path), "--smoke"]) == {}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Interrupted: 0 of 3" in page and "<svg" not in page


def test_verdicts_are_honest():
    def report(*values):
        return FewShotReport({"a": FewShotResult(values)}, {}, ["a"])

    reports = {
        "Frozen": report(0.1, 0.2, 0.1),
        "PMF": report(0.5, 0.8, 0.5),
        "SMAT": report(0.6, 0.7, 0.6),
    }
    (apart, *_), (close, *_) = sorted(
        quickstart_page.verdicts(reports), key=lambda v: "PMF" in v[0]
    )
    assert apart.startswith("In domain, SMAT is 50.0 points above Frozen")
    assert "contains zero" not in apart
    assert "SMAT is 3.3 points above PMF" in close
    assert "interval -9.7 to +16.4" in close and "contains zero" in close
    reports["SMAT"] = report(0.5003, 0.8003, 0.5002)
    printed = " ".join(v[0] for v in quickstart_page.verdicts(reports))
    assert "interval +0.0 to +0.0); that contains zero" in printed


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--steps", "0"], "Expected --steps >= 1 and below 2^32. Received: 0"),
        (["--seed", "-1"], "Expected --seed >= 0 and below 2^32. Received: -1"),
        (["--seed", str(2**32)], "below 2^32. Received: 4294967296"),
        (["--out", ""], "Expected --out as a directory. Received: ''"),
    ],
)
def test_refuses_numbers(extra, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        quickstart.main(["--out", str(tmp_path), *extra])
    assert message in capsys.readouterr().err


def test_refuses_a_path_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    for out in (path, path / "below"):
        with pytest.raises(SystemExit):
            quickstart.main(["--out", str(out)])
        error = capsys.readouterr().err
        assert "Expected --out as a directory" in error and str(out) in error
