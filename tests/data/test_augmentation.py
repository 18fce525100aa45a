import pickle

import numpy as np
import pytest
from PIL import Image
from PIL import ImageEnhance

from keras_smat.data import MetaTrainAugmentation

OFF = dict(scale=(1, 1), ratio=(1, 1), color=0, flip=0)


def noise(n=3, height=20, width=24, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, height, width, channels), "uint8")


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_determinism(channels):
    images = noise(channels=channels)
    before = images.copy()
    augment = MetaTrainAugmentation()
    first = augment(images, np.random.default_rng(1))
    assert first.shape == images.shape and first.dtype == np.uint8
    again = pickle.loads(pickle.dumps(augment))
    np.testing.assert_array_equal(
        first, again(images, np.random.default_rng(1))
    )
    assert (first != augment(images, np.random.default_rng(2))).any()
    np.testing.assert_array_equal(images, before)
    resized = MetaTrainAugmentation((8, 10))(images, np.random.default_rng(1))
    assert resized.shape == (3, 8, 10, channels)


def test_identity_and_flip():
    images = noise(width=20)
    rng = np.random.default_rng(0)
    same = MetaTrainAugmentation(**OFF)(images, rng)
    np.testing.assert_array_equal(same, images)
    flipped = MetaTrainAugmentation(**{**OFF, "flip": 1})(images, rng)
    np.testing.assert_array_equal(flipped, images[:, :, ::-1])


def test_colour_matches_pillow_in_the_papers_order():
    images = noise(n=1, width=20)
    augment = MetaTrainAugmentation(**{**OFF, "color": 0.4})
    result = augment(images, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.uniform(1, 1), rng.uniform(0, 0)  # the crop's area and ratio
    rng.integers(0, endpoint=True), rng.integers(0, endpoint=True)
    image = Image.fromarray(images[0])
    for name, u in zip(
        ["Brightness", "Contrast", "Color"], rng.uniform(-1, 1, 3)
    ):
        image = getattr(ImageEnhance, name)(image).enhance(1 + 0.4 * u)
    np.testing.assert_array_equal(result[0], np.asarray(image))


def test_crop_statistics():
    augment = MetaTrainAugmentation()
    rng = np.random.default_rng(0)
    boxes = np.array([augment._crop(rng, 200, 200) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 200
    assert 0.07 < (width * height).min() / 200**2 < 0.1
    assert 0.74 < (width / height).min() < 0.77
    assert 1.30 < (width / height).max() < 1.35
    # Left and upper margins use all of the room there is.
    room = 200 - width
    share = boxes[room > 0, 0] / room[room > 0]
    assert abs(share.mean() - 0.5) < 0.03


def test_crop_of_an_extreme_image_is_centred():
    augment = MetaTrainAugmentation(scale=(1, 1))
    box = augment._crop(np.random.default_rng(0), 10, 100)
    assert box == (43, 0, 56, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(scale=(0, 1)),
        dict(scale=(0.5, 2)),
        dict(ratio=(2, 1)),
        dict(color=1.5),
        dict(flip=-0.1),
        dict(image_size=0),
    ],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="Received"):
        MetaTrainAugmentation(**arguments)


def test_protocol():
    assert MetaTrainAugmentation(32, flip=0).protocol() == {
        "name": "MetaTrainAugmentation",
        "image_size": (32, 32),
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "color": 0.4,
        "flip": 0,
    }
