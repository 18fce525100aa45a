import os
import pickle

import numpy as np
import pytest
from PIL import Image

from keras_smat.data import FolderSource


def save(path, size=(8, 8), color=(10, 20, 30), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **kwargs)


def test_folder_source(tmp_path):
    root = tmp_path / "фото 图"
    save(root / "żaba" / "b.PNG", color=(255, 0, 0))
    save(root / "żaba" / "a.jpg", size=(20, 10), color=(0, 0, 255))
    save(root / "cat" / "1.webp", mode="L")
    save(root / "cat" / ".hidden.png")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    save(root / "stray.png")
    source = FolderSource(root, image_size=(6, 4))
    assert source.class_names == ["cat", "żaba"]
    assert source.files == ["1.webp", "a.jpg", "b.PNG"]
    np.testing.assert_array_equal(source.labels, [0, 1, 1])
    images = source.load(np.arange(3))
    assert images.shape == (3, 6, 4, 3) and images.dtype == np.uint8
    assert source.image_shape == (6, 4, 3)
    np.testing.assert_array_equal(images[2, 0, 0], [255, 0, 0])
    assert abs(int(images[1, 0, 0, 2]) - 255) < 4
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.load([2, 0]), images[[2, 0]])
    assert again.fingerprint() == source.fingerprint()
    assert FolderSource(root, 8).fingerprint() != source.fingerprint()


def test_classes_in_the_given_order(tmp_path):
    for name in ["a", "b", "c"]:
        save(tmp_path / name / "1.png")
    source = FolderSource(tmp_path, 8, classes=["c", "a"])
    assert source.class_names == ["c", "a"]
    assert source.subset(["a"]).load([0]).shape == (1, 8, 8, 3)


def test_centre_crop(tmp_path):
    image = np.zeros((10, 30, 3), "uint8")
    image[:, 10:20] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.png")
    loaded = FolderSource(tmp_path, 10).load([0])
    np.testing.assert_array_equal(loaded, np.full((1, 10, 10, 3), 200))


def test_antialiased_reduction(tmp_path):
    image = np.zeros((64, 64, 3), "uint8")
    image[::2] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.png")
    loaded = FolderSource(tmp_path, 8).load([0])
    assert abs(loaded[0, 2:-2].astype(int) - 100).max() <= 2


def test_large_jpeg_is_close_to_its_full_decoding(tmp_path):
    ramp = np.linspace(0, 255, 512).astype("uint8")
    image = np.stack([np.tile(ramp, (512, 1))] * 3, axis=-1)
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.jpg", quality=95)
    Image.fromarray(image).save(tmp_path / "a" / "2.png")
    jpeg, png = FolderSource(tmp_path, 32).load([0, 1]).astype(int)
    assert abs(jpeg - png).max() <= 4


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    image = np.zeros((10, 30, 3), "uint8")
    image[:, :15] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.png", exif=exif)
    loaded = FolderSource(tmp_path, (30, 10)).load([0])[0]
    assert loaded[2, 5, 0] == 255 and loaded[-3, 5, 0] == 0


def test_unreadable_files_are_named(tmp_path):
    save(tmp_path / "a" / "ok.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    whole = (tmp_path / "a" / "ok.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    source = FolderSource(tmp_path, 8)
    for i, name in enumerate(["bad.png", "cut.png"]):
        with pytest.raises(ValueError, match=f"Expected an image.*{name}"):
            source.load([i])


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="one folder per class"):
        FolderSource(tmp_path, 8)
    with pytest.raises(ValueError, match="directory=.*nowhere"):
        FolderSource(os.path.join(tmp_path, "nowhere"), 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Expected images.*class 'empty'"):
        FolderSource(tmp_path, 8)
    with pytest.raises(ValueError, match="no folder.*other"):
        FolderSource(tmp_path, 8, classes=["other"])
    with pytest.raises(ValueError, match="image_size=0"):
        FolderSource(tmp_path, 0)
