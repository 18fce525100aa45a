import os
import pickle
import tracemalloc

import numpy as np
import pytest
from storage import example
from storage import field
from storage import frame
from storage import png
from storage import spec
from storage import values
from storage import write_records
from storage import write_spec

from keras_smat import data
from keras_smat.data.formats import record_files
from keras_smat.data.formats.cache import stamp
from keras_smat.data.formats.record_files import RecordFiles

try:
    import tensorflow as tf
except ImportError:
    tf = None


def test_classes_and_images(tmp_path):
    root = write_records(tmp_path / "Größe 大", [3, 2, 4], train=2)
    source = data.RecordSource(root, image_size=4)
    assert source.class_names == ["class 0", "class 1", "class 2"]
    assert source.class_sizes.tolist() == [3, 2, 4]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert values(source) == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    assert values(source, [8, 0, 4, 0, 5]) == [23, 0, 11, 0, 20]
    assert source.load([]).shape == (0, 4, 4, 3)
    assert source.image_shape == (4, 4, 3)
    test = data.RecordSource(root, "test", image_size=(8, 6))
    assert test.class_names == ["class 2"]
    assert test.load([1]).shape == (1, 8, 6, 3)
    assert values(test) == [20, 21, 22, 23]
    with pytest.raises(ValueError, match="classes in the split 'validation'"):
        data.RecordSource(root, "validation")
    with pytest.raises(ValueError, match="split='valid'"):
        data.RecordSource(root, "valid")


def test_episodes(tmp_path):
    source = data.RecordSource(write_records(tmp_path, [6] * 4), image_size=4)
    sampler = data.FixedEpisodes(n_way=3, n_shot=2, n_query=2)
    episodes = data.EpisodeDataset(source, sampler, num_episodes=2)
    x, y, _ = episodes[1]
    drawn = episodes.indices(1)
    assert x["support_images"][:, 0, 0, 0].tolist() == [
        10 * source.labels[i] + i % 6 for i in drawn["support"]
    ]


@pytest.mark.skipif(tf is None, reason="TensorFlow is the independent writer")
def test_tensorflow_writer(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 3, 9, 7, 3), "uint8")
    write_spec(tmp_path, spec([3, 3]))
    for c in range(2):
        path = str(tmp_path / f"{c}.tfrecords")
        with tf.io.TFRecordWriter(path) as writer:
            for image in pixels[c]:
                message = tf.train.Example()
                feature = message.features.feature
                encoded = tf.io.encode_png(image).numpy()
                feature["image"].bytes_list.value.append(encoded)
                feature["label"].int64_list.value.append(c)
                writer.write(message.SerializeToString())
    source = data.RecordSource(tmp_path, "train", image_size=(9, 7))
    np.testing.assert_array_equal(
        source.load(np.arange(6)), pixels.reshape(6, 9, 7, 3)
    )


def test_positions_are_kept(tmp_path, monkeypatch):
    scanned = []
    scan = record_files.tfrecord.scan
    monkeypatch.setattr(
        record_files.tfrecord,
        "scan",
        lambda path: (scanned.append(os.path.basename(path)), scan(path))[1],
    )
    root = write_records(tmp_path / "set", [2, 3, 2], train=2)
    data.RecordSource(root, "train")
    assert scanned == ["0.tfrecords", "1.tfrecords"]
    data.RecordSource(root)
    assert scanned[2:] == ["2.tfrecords"]
    assert (root / "set.record_index.npz").exists()
    assert not list(root.glob("*.tmp"))
    moved = root.rename(tmp_path / "moved")
    os.rename(moved / "set.record_index.npz", moved / "moved.record_index.npz")
    assert values(data.RecordSource(moved))[-1] == 21
    assert len(scanned) == 3
    records = [frame(example(png(200 + i), 1)) for i in range(3)]
    (moved / "1.tfrecords").write_bytes(b"".join(records))
    os.utime(moved / "1.tfrecords", ns=(1, 1))
    assert values(data.RecordSource(moved)) == [0, 1, 200, 201, 202, 20, 21]
    assert scanned[3:] == ["1.tfrecords"]
    data.RecordSource(moved)
    assert len(scanned) == 4
    elsewhere = tmp_path / "cache"
    elsewhere.mkdir()
    data.RecordSource(moved, cache=elsewhere)
    assert (elsewhere / "moved.record_index.npz").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_damaged_positions_are_found_again(tmp_path, damage):
    root = write_records(tmp_path / "set", [2, 3])
    expected = values(data.RecordSource(root))
    cache = root / "set.record_index.npz"
    content = bytearray(cache.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 255
    else:
        content = b"text" if damage == "text" else b""
    cache.write_bytes(content)
    assert values(data.RecordSource(root)) == expected
    assert len(cache.read_bytes()) > len(b"text")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    root = write_records(tmp_path / "set", [2, 3])
    with pytest.warns(UserWarning, match="could not be kept.*Give `cache`"):
        source = data.RecordSource(root, cache=tmp_path / "nowhere")
    assert values(source) == [0, 1, 10, 11, 12]


def write_text_index(root, c, shift=0):
    size = (root / f"{c}.tfrecords").stat().st_size
    offsets = record_files.tfrecord.scan(str(root / f"{c}.tfrecords")).tolist()
    ends = [*offsets[1:], size + shift]
    lines = [f"{start} {end - start}\n" for start, end in zip(offsets, ends)]
    (root / f"{c}.index").write_text("".join(lines))


def test_text_index(tmp_path, monkeypatch):
    root = write_records(tmp_path, [2, 3])
    for c in range(2):
        write_text_index(root, c)
    with monkeypatch.context() as patch:
        patch.setattr(record_files.tfrecord, "scan", None)
        assert values(data.RecordSource(root)) == [0, 1, 10, 11, 12]


@pytest.mark.parametrize("text", [None, "", "0 x", "0 5\n5", "7 1", "9" * 40])
def test_a_text_index_that_does_not_fit_is_not_used(tmp_path, text):
    root = write_records(tmp_path, [2])
    if text is None:
        write_text_index(root, 0, shift=1)
    else:
        (root / "0.index").write_text(text)
    assert values(data.RecordSource(root)) == [0, 1]


def test_shards(tmp_path):
    content = spec([3, 2])
    content["file_pattern"] = "{}_{}.tfrecords"
    write_spec(tmp_path, content)
    for name, pixels in {"0_0": [7, 8], "0_1": [9], "1_0": [5, 6]}.items():
        records = [frame(example(png(p), int(name[0]))) for p in pixels]
        (tmp_path / f"{name}.tfrecords").write_bytes(b"".join(records))
    source = data.RecordSource(tmp_path)
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(source) == [7, 8, 9, 5, 6]


def test_without_a_specification(tmp_path):
    root = write_records(tmp_path, [1] * 11)
    (root / "dataset_spec.json").unlink()
    source = data.RecordSource(root)
    assert source.class_names == [str(i) for i in range(11)]
    assert source.hierarchy is None
    with pytest.raises(ValueError, match="dataset_spec.json"):
        data.RecordSource(root, "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="files that end in .tfrecords"):
        data.RecordSource(tmp_path / "none")
    with pytest.raises(ValueError, match="to be a folder.*nowhere"):
        data.RecordSource(tmp_path / "nowhere")


def test_missing_files(tmp_path):
    root = write_records(tmp_path, [1] * 3)
    (root / "1.tfrecords").unlink()
    with pytest.raises(ValueError, match=r"without \[1.tfrecords\], 1 in all"):
        data.RecordSource(root)


@pytest.mark.parametrize("has, should", [(2, 3), (3, 2), (0, 2), (0, 0)])
def test_wrong_counts(tmp_path, has, should):
    root = write_records(tmp_path, [2, has])
    write_spec(root, spec([2, should]))
    message = f"class 'class 1' has {has} images, should have {should}"
    with pytest.raises(ValueError, match=message):
        data.RecordSource(root)


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path):
    root = write_records(tmp_path, [3])
    path = root / "0.tfrecords"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    source = data.RecordSource(root)
    assert values(source, [0, 2]) == [0, 2]
    offset = record_files.tfrecord.scan(str(path))[1]
    with pytest.raises(ValueError, match=f"byte {offset} of.*checksum"):
        source.load([0, 1])


def test_a_file_that_shrinks_later(tmp_path):
    root = write_records(tmp_path, [3])
    source = data.RecordSource(root)
    path = root / "0.tfrecords"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="sound record at byte"):
        source.load([2])


@pytest.mark.parametrize(
    "payload, message",
    [
        (b"\x0a\xff", "Expected a tf.train.Example.*byte 0 of"),
        (b"", "the feature 'image'.*byte 0 of"),
        (example(b"no image", 0), "Expected an image.*byte 0 of"),
        (field(1, field(1, field(1, b"\xff"))), "Expected a tf.train.Example"),
    ],
)
def test_records_without_an_image(tmp_path, payload, message):
    write_spec(tmp_path, spec([1]))
    (tmp_path / "0.tfrecords").write_bytes(frame(payload))
    with pytest.raises(ValueError, match=message):
        data.RecordSource(tmp_path).load([0])


def test_pickles_without_open_files(tmp_path):
    source = data.RecordSource(write_records(tmp_path, [3, 2]), image_size=4)
    before = source.load([4, 1])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.load([4, 1]), before)
    assert again.fingerprint() == source.fingerprint()
    larger = data.RecordSource(tmp_path, image_size=8)
    assert larger.fingerprint() != source.fingerprint()


def test_memory_of_a_large_source(tmp_path):
    """As many classes as QuickDraw has, with fewer images: files of the right
    size without content, whose positions were kept."""
    classes, per_class, length = 345, 2_900, 700
    write_spec(tmp_path, spec([per_class] * classes))
    offsets = np.arange(per_class, dtype="int64") * length
    known = {}
    for c in range(classes):
        path = tmp_path / f"{c}.tfrecords"
        with open(path, "wb") as file:
            file.truncate(per_class * length)
        known[path.name] = stamp(path), offsets
    cache = str(tmp_path / f"{tmp_path.name}.record_index.npz")
    record_files.write_positions(cache, known)
    del known
    images = classes * per_class
    tracemalloc.start()
    source = data.RecordSource(tmp_path, image_size=84)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.labels) == images
    assert used < 13 * images
    assert peak < 26 * images
    assert source.records.offsets[-1] == (per_class - 1) * length


def test_order_of_reading(tmp_path):
    root = write_records(tmp_path, [2, 2])
    paths = [str(root / f"{c}.tfrecords") for c in range(2)]
    files = RecordFiles(paths, str(root / "cache.npz"))
    order = [k for k, _, _ in files.read([3, 0, 2, 1])]
    assert order == [1, 3, 2, 0]
