import io

import numpy as np
import pytest
from PIL import Image

from keras_smat.data.formats.decoding import Decoder

RAMP = np.arange(48, dtype="uint8").reshape(6, 8) * 5


def file_of(image, kind="png", **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def decode(image, size=(6, 8), **kwargs):
    return np.asarray(Decoder(size, **kwargs)(image, "it"))


def grey(pixels):
    return np.repeat(pixels[..., None], 3, axis=-1)


def palette():
    image = Image.fromarray(RAMP).quantize(48)
    image.info["transparency"] = bytes(range(48))
    return image


def rgba():
    alpha = np.full_like(RAMP, 7)
    return Image.fromarray(np.dstack([grey(RAMP), alpha]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: file_of(Image.fromarray(RAMP)),
        lambda: file_of(Image.fromarray(RAMP.astype("uint16") * 256)),
        lambda: file_of(Image.fromarray(RAMP * np.uint16(256) + 255), "tiff"),
        lambda: Image.fromarray(RAMP.astype("int32") * 256),
        lambda: RAMP.astype("uint16") * 256,
        lambda: RAMP,
        lambda: RAMP[..., None],
        lambda: grey(RAMP),
        lambda: file_of(rgba()),
        lambda: rgba(),
        lambda: file_of(Image.fromarray(RAMP).convert("LA")),
        lambda: file_of(palette(), transparency=bytes(range(48))),
        lambda: file_of(Image.fromarray(RAMP).quantize(48), "gif"),
        lambda: file_of(Image.fromarray(grey(RAMP)).convert("CMYK"), "tiff"),
    ],
)
def test_any_image_becomes_rgb(make):
    np.testing.assert_array_equal(decode(make()), grey(RAMP))


def test_one_bit():
    pixels = RAMP > 100
    image = file_of(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode(image), grey(pixels * np.uint8(255)))


def test_a_path_and_a_given_image_that_stays_open(tmp_path):
    image = Image.fromarray(grey(RAMP))
    path = tmp_path / "żółw 大.png"
    image.save(path)
    np.testing.assert_array_equal(decode(path), grey(RAMP))
    decode(image)
    assert np.asarray(image).shape == (6, 8, 3)


def test_crop_and_stretch():
    pixels = np.zeros((16, 32, 3), "uint8")
    pixels[:, 8:24] = 100
    pixels[6:10, 14:18] = 200
    whole = decode(pixels, 16)
    np.testing.assert_array_equal(whole, pixels[:, 8:24])
    inner = decode(pixels, 4, crop=0.25)
    np.testing.assert_array_equal(inner, np.full((4, 4, 3), 200))
    stretched = decode(pixels, (16, 16), crop=None)
    assert stretched[0, 0, 0] == 0 and stretched[0, 8, 0] == 100
    large = decode(file_of(Image.new("RGB", (900, 900), (9, 9, 9)), "jpeg"), 8)
    assert abs(large.astype(int) - 9).max() <= 1


@pytest.mark.parametrize("crop", [0, 1.5, -1, True, "all"])
def test_crop_is_checked(crop):
    with pytest.raises(ValueError, match="`crop` as a number in"):
        Decoder(8, crop)


@pytest.mark.parametrize(
    "image",
    [b"", b"\x89PNG\r\n", np.zeros(3, "uint8"), np.zeros((2, 2, 7), "uint8")],
)
def test_unreadable_images_are_named(image):
    with pytest.raises(ValueError, match="Expected an image. Received: it,"):
        Decoder(8)(image, "it")


def test_a_cut_off_file():
    whole = file_of(Image.fromarray(grey(RAMP)))
    with pytest.raises(ValueError, match="Received: it"):
        decode(whole[: len(whole) // 2])
