import numpy as np
import pytest

from keras_smat.data.episode import bucket_size
from keras_smat.data.episode import check_images
from keras_smat.data.episode import check_labels
from keras_smat.data.episode import check_support
from keras_smat.data.episode import make_episode


def pixels(n, value=9, size=4, channels=3):
    return np.full((n, size, size, channels), value, "uint8")


def test_make_episode_relabels_in_sorted_order():
    x, y, weight = make_episode(pixels(3), [7, -4, 7], pixels(2), [-4, 7])
    np.testing.assert_array_equal(x["support_labels"], [1, 0, 1])
    np.testing.assert_array_equal(y, [0, 1])
    np.testing.assert_array_equal(weight, [1, 1])
    assert x["support_images"].shape == (3, 4, 4, 3)
    assert x["support_images"].dtype == x["query_images"].dtype == np.uint8
    assert x["support_labels"].dtype == y.dtype == np.int32
    assert weight.dtype == np.float32


def test_make_episode_keeps_labels_that_are_right():
    x, y, _ = make_episode(pixels(3), [1, 2, 0], pixels(3), [2, 0, 1])
    np.testing.assert_array_equal(x["support_labels"], [1, 2, 0])
    np.testing.assert_array_equal(y, [2, 0, 1])


def test_make_episode_pads():
    x, y, weight = make_episode(pixels(2), [0, 1], pixels(1), [1], 4, 3)
    np.testing.assert_array_equal(x["support_labels"], [0, 1, -1, -1])
    np.testing.assert_array_equal(y, [1, 0, 0])
    np.testing.assert_array_equal(weight, [1, 0, 0])
    assert x["support_images"][:2].min() == 9
    assert x["support_images"][2:].max() == 0
    assert x["query_images"][1:].max() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((pixels(2), [0, 1], pixels(1, size=5), [0]), "one shape"),
        ((pixels(2), [0, 1], pixels(2), [0, 5]), r"query classes \[5\]"),
        ((pixels(2), [0], pixels(1), [0]), "1 labels for 2 images"),
        ((pixels(2), [0, 1], pixels(1), [0.0]), "`query_labels`.*float64"),
        ((pixels(2), [[0, 1]], pixels(1), [0]), r"shape \(1, 2\)"),
        ((pixels(2), [0, 1], pixels(1), [0], 1), "support_size=1 for 2"),
        ((pixels(2), [0, 1], pixels(2), [0, 0], 2, 1), "query_size=1 for 2"),
    ],
)
def test_make_episode_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        make_episode(*arguments)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 4, 4, 3)), r"float64 with values.*\(255 \* images\)"),
        (np.full((2, 4, 4, 3), 200.0), r"\(images\).round"),
        (np.full((2, 4, 4, 3), -1.0), "normalisation"),
        (np.full((2, 4, 4, 3), np.nan), "96 NaN or infinite"),
        (np.zeros((2, 4, 4, 3), "int64"), "int64 with values"),
        (np.array(["a.png"]), "dtype <U5"),
        (pixels(1)[0], "channel axis"),
        (pixels(2).transpose(0, 3, 1, 2), "channels last"),
        (pixels(2, channels=4), r"shape \(2, 4, 4, 4\)"),
        (pixels(0), "N >= 1"),
    ],
)
def test_check_images_refuses(images, message):
    with pytest.raises(ValueError, match=f"(?s)Expected `photos`.*{message}"):
        check_images(images, name="photos")


def test_check_images_size():
    images = np.zeros((2, 4, 6, 1), "uint8")
    assert check_images(images, (4, 6)) is images
    with pytest.raises(ValueError, match=r"size \(4, 4\).*\(4, 6\)"):
        check_images(images, 4)
    for size in [0, (4,), 2.5, (3, 4, 5)]:
        with pytest.raises(ValueError, match="image_size="):
            check_images(images, size)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, -1, -3], r"negative labels \[-3, -1\]"),
        ([0, 3, 3], r"no image of \[1, 2\]"),
        ([0, 1, 10**15], r"no image of \[2\]"),
        ([True, False, True], "dtype bool"),
        ([0, 1], "2 labels for 3 images"),
    ],
)
def test_check_labels_refuses(labels, message):
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        check_labels(np.array(labels), 3)


def test_check_support():
    images, labels = check_support(pixels(3), np.array([1, 0, 1], "uint64"))
    assert images.shape == (3, 4, 4, 3)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [1, 0, 1])
    with pytest.raises(ValueError, match="`support_labels`"):
        check_support(pixels(2), [0, 2])


def test_bucket_size():
    assert bucket_size(5, [20, 5, 10]) == 5
    assert bucket_size(6, [20, 5, 10]) == 10
    with pytest.raises(ValueError, match=r"21 images.*buckets=\[20, 5\]"):
        bucket_size(21, [20, 5])
