import os

import pytest

from keras_smat import FewShotReport
from keras_smat import quickstart

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
    assert "on the spot" in text and "on the spot" in printed
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line in printed for line in table)
    assert len(table) == 2 + 10 + 2
    assert all(name in table[0] for name in NAMES)


def test_interruption_keeps_what_there_is(tmp_path, monkeypatch, capsys):
    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart.ProtoNet, "fit", interrupted)
    monkeypatch.setattr(quickstart, "pretrain", lambda *args, **kwargs: None)
    reports = quickstart.main(["--out", str(tmp_path), "--smoke"])
    assert list(reports) == ["Frozen"]
    assert "Interrupted: 1 of 3" in capsys.readouterr().out
    found = sorted(os.listdir(tmp_path))
    assert found == ["report.md", "report_frozen.json"]


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--steps", "0"], "Expected --steps >= 1. Received: 0"),
        (["--seed", "-1"], "Expected --seed >= 0. Received: -1"),
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
