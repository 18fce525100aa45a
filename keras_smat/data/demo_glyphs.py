"""Characters of many scripts, and symbols, from the fonts of matplotlib."""

import functools
import pathlib

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFilter
from PIL import ImageFont

from keras_smat.data.demo_textures import background
from keras_smat.data.demo_textures import color
from keras_smat.data.demo_textures import color_pair
from keras_smat.data.demo_textures import finish
from keras_smat.data.demo_textures import smooth_noise

_SANS = ["DejaVuSans", "DejaVuSans-Bold"]
_SLANTED = [*_SANS, "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"]
_ALL = [
    *_SLANTED,
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic")),
]
_STIX = ["STIXGeneral", "STIXGeneralBol"]
SYMBOL_FONTS = ["STIXGeneral"]
_LATIN = [*_ALL, *_STIX, "cmr10", "cmss10", "cmtt10", "cmti10", "cmb10"]

# Characters that look alike in two scripts, or upside down, are left out: a
# test class that was trained on under another name would be no new class.
SCRIPTS = {
    "Latin": ("ABCDEFGHJKLMQRSTUVWXYabdefghkrt", _LATIN),
    "Greek": ("ΓΔΘΛΞΠΣΦΨΩαβγδζλμξπσφψω", [*_ALL, *_STIX]),
    "Cyrillic": ("БДЖИЛФЦЧЭЮЯЪбдйлъэюя", [*_ALL, *_STIX]),
    "Hebrew": ("אבגדהטכלמנסעפצקרשת", _SLANTED),
    "Armenian": ("ԱԲԳԴԵԶԷԸԺԽԾԿՀՁՃՄՅՇՉՊՋՎՏՑ", _ALL),
    "Georgian": ("აბგდევზთიკლმოპრსტფქღ", _ALL),
    "Tifinagh": ("ⴰⴱⴳⴻⴼⴽⵀⵃⵅⵇⵎⵕⵖⵚⵛⵣⵥ", _SANS),
}
SPLITS = {
    "train": ("Latin", "Greek", "Cyrillic", "Hebrew"),
    "validation": ("Armenian",),
    "test": ("Georgian", "Tifinagh"),
}
SYMBOLS = "∀∂∃∇∈∏∑√∝∞∠∧∩∪∫∮∴≈≠≡≤⊂⊕⊗⊥⊿⋈⋔←↑↔↗↩↯↶↺⇒⇔⇝⇶"


@functools.cache
def glyph(character, font, side=96, heavy=False):
    """The character, white on black, centered and as large as fits."""
    if heavy:
        image = glyph(character, font, side)
        return image.filter(ImageFilter.MaxFilter(5))
    import matplotlib

    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    path = path / f"{font}.ttf"
    if not path.is_file():  # Pillow would take another font of that name.
        raise FileNotFoundError(
            f"Expected the font that matplotlib ships. Received: {str(path)!r} "
            "is missing; reinstall matplotlib from PyPI."
        )
    size = side
    for _ in range(2):
        face = ImageFont.truetype(str(path), size)
        left, top, right, bottom = face.getbbox(character)
        size = round(size * 0.8 * side / max(right - left, bottom - top, 1))
    image = Image.new("L", (side, side))
    corner = (side - left - right) / 2, (side - top - bottom) / 2
    ImageDraw.Draw(image).text(corner, character, 255, face)
    return image


def placed(rng, image, size, turn=0.4, scale=(0.6, 1.05)):
    """Shares (size, size, 1) of a glyph, turned, sheared, scaled, moved."""
    angle, zoom = rng.uniform(-turn, turn), rng.uniform(*scale)
    shear, aspect = rng.uniform(-0.25, 0.25), rng.uniform(0.8, 1.2)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    side = image.width
    step = side / (2 * size)
    a, b = step * cos * aspect, step * (sin + shear * cos)
    c, d = -step * sin * aspect, step * (cos - shear * sin)
    shift = rng.uniform(-0.3, 0.3, 2) * (1.15 - zoom) * 2 * size
    x, y = size + shift[0], size + shift[1]
    matrix = (a, b, side / 2 - a * x - b * y, c, d, side / 2 - c * x - d * y)
    canvas = image.transform(
        (2 * size, 2 * size),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
    )
    return np.asarray(canvas.reduce(2), "f4")[..., None] / 255


def _characters(split):
    return [
        (script, character, SCRIPTS[script][1])
        for script in SPLITS[split]
        for character in SCRIPTS[script][0]
    ]


def glyphs(rng, split):
    """Classes are characters; each split has its own scripts."""

    def painter(character, fonts):
        def paint(rng, size):
            font = fonts[rng.integers(len(fonts))]
            image = glyph(character, font, heavy=rng.random() < 0.3)
            paper, ink = color_pair(rng)
            canvas = background(rng, size, paper)
            ink = background(rng, size, ink)
            share = placed(rng, image, size)
            return finish(rng, canvas + share * (ink - canvas), noise=0.1)

        return paint

    return [
        (f"{script} {character}", painter(character, fonts))
        for script, character, fonts in _characters(split)
    ]


def symbols(rng):
    """Arrows and mathematical symbols as neon signs in the dark."""

    def painter(character):
        def paint(rng, size):
            image = glyph(character, SYMBOL_FONTS[0])
            share = placed(rng, image, size, turn=0.3)
            halo = Image.fromarray((255 * share[..., 0]).astype("uint8"))
            halo = halo.filter(ImageFilter.GaussianBlur(size / 16))
            halo = np.asarray(halo, "f4")[..., None] / 255
            wall = background(rng, size, color(rng, rng.uniform(0.05, 0.25)))
            light = color(rng, 0.5)
            canvas = wall + rng.uniform(0.6, 1.4) * halo * light
            core = 0.4 * light + 0.6
            return finish(rng, canvas + share * (core - canvas))

        return paint

    return [(character, painter(character)) for character in SYMBOLS]


def negatives(rng):
    """The test characters as worn negatives: coarse noise and scratches."""

    def painter(character, fonts):
        def paint(rng, size):
            image = glyph(character, fonts[rng.integers(len(fonts))])
            share = placed(rng, image, size, scale=(0.75, 1.05))
            dark, bright = color(rng, 0.15), color(rng, 0.75)
            field = 0.25 * smooth_noise(rng, size, max(2, size // 3))
            field += 0.15 * rng.standard_normal((size, size))
            canvas = dark + share * (bright - dark) + field[..., None]
            scratches = Image.new("L", (size, size))
            pen = ImageDraw.Draw(scratches)
            for _ in range(rng.integers(2, 6)):
                ends = rng.uniform(0, size, 4).tolist()
                pen.line(ends, 255, width=max(1, size // 48))
            cut = np.asarray(scratches)[..., None] / 255
            return finish(rng, canvas + cut * (bright - canvas))

        return paint

    return [
        (f"{script} {character}", painter(character, fonts))
        for script, character, fonts in _characters("test")
    ]
