import runpy
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from storage import example
from storage import frame
from storage import png
from storage import spec
from storage import write_h5
from storage import write_records
from storage import write_spec

from keras_smat import data
from keras_smat.data import check
from keras_smat.data.formats import tfrecord
from keras_smat.data.formats.detection import find_formats


def check_dataset(path, **kwargs):
    return data.check_dataset(path, image_size=8, verbose=0, **kwargs)


def write_images(folder, classes=("a", "b"), images=2):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (9, 8)).save(folder / name / f"{i}.png")
    return folder


def test_a_root_of_all_formats(tmp_path):
    root = tmp_path / "Größe"
    write_records(root / "aircraft", [3, 2, 4], train=2)
    write_h5(root / "dtd", [2, 2])
    write_images(root / "mnist")
    write_images(root / "own" / "train")
    write_images(root / "own" / "test", ["c"])
    source = data.FolderSource(root / "mnist", 8)
    data.convert(source, root / "fast", verbose=0)
    (root / "notes").mkdir()
    found = check_dataset(root, workers=2)
    assert found.ok and found.problems == []
    cells = [
        [row[c] for c in ("set", "split", "classes", "images", "format")]
        for row in found.rows
    ]
    assert cells == [
        ["aircraft", "train", 2, 5, "tfrecords"],
        ["aircraft", "test", 1, 4, "tfrecords"],
        ["dtd", "train", 2, 4, "h5"],
        ["fast", "all", 2, 4, "memmap"],
        ["mnist", "all", 2, 4, "folder"],
        ["own", "test", 1, 2, "folder"],
        ["own", "train", 2, 4, "folder"],
    ]
    assert found.rows[4]["hash"] == source.fingerprint()
    train = data.RecordSource(root / "aircraft", "train", image_size=8)
    assert found.rows[0]["hash"] == train.fingerprint()
    assert "omniglot" in found.absent and "mnist" not in found.absent
    assert "0 problems in" in str(found) and "tfrecords" in str(found)


def test_a_partial_copy_is_sound(tmp_path):
    root = write_records(tmp_path / "set", [3, 2, 4], train=2)
    (root / "2.tfrecords").unlink()
    found = check_dataset(root)
    assert found.ok
    assert [row["split"] for row in found.rows] == ["train"]
    assert found.absent == ["set (test)"]
    for c in range(2):
        (root / f"{c}.tfrecords").unlink()
    found = check_dataset(root)
    assert found.ok and found.rows == []
    assert found.absent == ["set (train)", "set (test)"]


def problems_after(root, damage, **kwargs):
    assert check_dataset(root).ok
    damage()
    found = check_dataset(root, **kwargs)
    assert not found.ok
    assert found.rows[0]["hash"] == ""
    assert all(p in str(found) for p in found.problems)
    return found.problems


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def test_missing_class_file(tmp_path):
    root = write_records(tmp_path / "set", [3, 2])
    assert problems_after(root, (root / "1.tfrecords").unlink) == [
        "set, train, class 'class 1': no file 1.tfrecords"
    ]


@pytest.mark.parametrize("write", [write_records, write_h5])
def test_wrong_counts(tmp_path, write):
    root = write(tmp_path / "set", [3, 2])
    assert problems_after(root, lambda: write_spec(root, spec([3, 4]))) == [
        "set, train, class 'class 1': 2 images, should be 4"
    ]


def test_empty_class(tmp_path):
    root = write_records(tmp_path / "set", [3, 2])
    (root / "dataset_spec.json").unlink()
    problems = problems_after(
        root, lambda: (root / "1.tfrecords").write_bytes(b"")
    )
    assert problems == ["set, all, class '1': no images"]


@pytest.mark.parametrize("write", [write_records, write_h5])
def test_wrong_labels(tmp_path, write):
    root = write(tmp_path / "set", [9, 2])
    suffix = ".h5" if write is write_h5 else ".tfrecords"
    (root / f"0{suffix}").rename(root / "x")
    (root / f"1{suffix}").rename(root / f"0{suffix}")
    (root / "x").rename(root / f"1{suffix}")
    write_spec(root, spec([2, 9]))
    problems = check_dataset(root).problems
    assert len(problems) == 2 + 5 + 1  # of nine, five are shown
    assert "has the label 1, should have 0" in problems[0]
    assert problems[-1].endswith("4 more")
    assert len(check_dataset(root, sample=1).problems) == 2


def test_flipped_bit_and_truncation(tmp_path):
    root = write_records(tmp_path / "set", [3, 2])
    path = root / "0.tfrecords"
    size = path.stat().st_size
    (problem,) = problems_after(root, lambda: flip(path, size // 2))
    assert problem.startswith("set, train, class 'class 0'")
    offset = tfrecord.scan(str(path))[1]
    assert f"at byte {offset} of" in problem and "0.tfrecords" in problem
    assert "checksum of its content" in problem
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = check_dataset(root).problems
    assert "of which the file has" in problem


@pytest.mark.parametrize(
    "payload, message",
    [
        (example(b"no image", 1), "Expected an image"),
        (b"\x0a\xff", "Expected a tf.train.Example"),
        (example(png(1)[:50], 1), "cannot be read"),
        (b"", "the feature 'image'"),
    ],
)
def test_unreadable_records(tmp_path, payload, message):
    root = write_records(tmp_path / "set", [3, 1])
    write = (root / "1.tfrecords").write_bytes
    (problem,) = problems_after(root, lambda: write(frame(payload)))
    assert message in problem and "byte 0 of" in problem


def test_damaged_h5(tmp_path):
    import h5py

    root = write_h5(tmp_path / "set", [3, 2])

    def damage():
        with h5py.File(root / "0.h5", "a") as file:
            del file["1/image"]

    (problem,) = problems_after(root, damage)
    assert "the image 1 of" in problem and "0.h5" in problem
    (root / "1.h5").write_bytes(b"nothing")
    assert "an HDF5 file" in check_dataset(root).problems[1]


def test_damaged_images(tmp_path):
    root = write_images(tmp_path / "photos", images=3)

    def damage():
        (root / "a" / "1.png").write_bytes(b"no image")
        shutil.rmtree(root / "b")
        (root / "b").mkdir()

    first, second = problems_after(root, damage)
    assert first.startswith("photos, all, class 'a': ") and "1.png" in first
    assert "Expected images" in second


def test_damaged_memmap(tmp_path):
    source = data.ArraySource(np.zeros((4, 8, 8, 3), "uint8"), [0, 0, 1, 1])
    root = tmp_path / "fast"
    data.convert(source, root, verbose=0)
    (problem,) = problems_after(root, lambda: flip(root / "images.npy", 300))
    assert "have the checksum" in problem
    (root / "about.json").write_text("{}")
    (problem,) = check_dataset(root).problems
    assert "a folder that `convert` wrote" in problem


def test_a_malformed_specification(tmp_path):
    root = write_records(tmp_path / "root" / "set", [3, 2])
    write_images(root.parent / "photos")
    (root / "dataset_spec.json").write_text("{")
    found = check_dataset(root.parent)
    assert len(found.problems) == 1 and "dataset_spec.json" in str(found)
    assert [row["set"] for row in found.rows] == ["photos"]


def test_nothing_to_check(tmp_path):
    with pytest.raises(ValueError, match="Expected a data set"):
        check_dataset(tmp_path)
    with pytest.raises(ValueError, match="Expected a folder.*nowhere"):
        check_dataset(tmp_path / "nowhere")


def test_episodes_of_pmf_are_no_class(tmp_path):
    root = write_records(tmp_path, [1])
    (root / "val_ep120_img128.h5").write_bytes(b"")
    assert find_formats(str(root)) == ["tfrecords"]


def test_command(tmp_path, capsys):
    root = write_records(tmp_path / "set", [3, 2])
    command = [str(root), "--quiet", "--workers", "2"]
    assert check.main(command) == 0
    assert "0 problems" in capsys.readouterr().out
    (root / "0.tfrecords").unlink()
    assert check.main(command) == 1
    assert "no file 0.tfrecords" in capsys.readouterr().out
    assert check.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_run_as_a_module(tmp_path, capsys, monkeypatch):
    root = write_images(tmp_path / "photos")
    (root / "a" / "0.png").write_bytes(b"no image")
    monkeypatch.delitem(sys.modules, "keras_smat.data.check")
    monkeypatch.setattr(sys, "argv", ["check", str(root), "--quiet"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("keras_smat.data.check", run_name="__main__")
    assert exit.value.code == 1
    assert "0.png" in capsys.readouterr().out
