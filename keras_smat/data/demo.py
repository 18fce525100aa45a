"""Procedural image domains that need neither network nor files."""

import functools
import zlib

import numpy as np

from keras_smat.checks import check_integer
from keras_smat.data import demo_drawings
from keras_smat.data import demo_figures
from keras_smat.data import demo_glyphs
from keras_smat.data import demo_textures
from keras_smat.data.formats.array_source import ArraySource

SPLITS = ("train", "validation", "test")
IMAGES_PER_CLASS = 20

IN_DOMAIN = {
    "glyphs": demo_glyphs.glyphs,
    "doodles": demo_figures.doodles,
    "shapes": demo_drawings.shapes,
    "critters": demo_figures.critters,
    "textures": demo_textures.textures,
}
OUT_OF_DOMAIN = {
    "symbols": demo_glyphs.symbols,
    "negatives": demo_glyphs.negatives,
    "sketches": demo_drawings.sketches,
    "scenes": demo_drawings.scenes,
    "wallpapers": demo_textures.wallpapers,
}
_CLASSES = {
    "train": slice(40),
    "validation": slice(40, 60),
    "test": slice(60, 84),
}


class DemoSource(ArraySource):
    """An `ArraySource` whose `role` is `"ID"` or `"OOD"`."""

    def __init__(self, images, labels, class_names, role):
        super().__init__(images, labels, class_names)
        self.role = role


def demo_domains(split, image_size=64, seed=0):
    """Draws small image domains, in domain and out of domain.

    Everything comes from NumPy, Pillow and the fonts that matplotlib ships:
    neither network nor files are needed. Position, angle, size, colours,
    background, stroke and noise vary within every class.

    In domain are `"glyphs"` (characters; each split has its own scripts),
    `"doodles"` (strokes of a pen), `"shapes"` (outline x style), `"critters"`
    (animals) and `"textures"`. The out-of-domain sets, in `"test"` alone, are
    `"symbols"` (neon signs), `"negatives"` (worn pictures of glyphs),
    `"sketches"` (edges of shapes), `"scenes"` (landscapes with several
    shapes) and `"wallpapers"` (symmetry groups). The splits share no class,
    except that `"negatives"` and `"sketches"` show the test classes of
    `"glyphs"` and `"shapes"`.

    The same arguments give the same pixels, in any order of calls, as long as
    the versions of Pillow and matplotlib stay; the sources are kept in memory
    and shared by all callers.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        image_size: Integer, height and width in pixels, at least 16.
            Defaults to 64.
        seed: Non-negative integer. It also decides which classes there are
            and, but for the glyphs, which split each belongs to. Defaults
            to 0.

    Returns:
        A dict from the domain's name to an `ArraySource` with 20 images per
        class and one more attribute, `role`: `"ID"` or `"OOD"`.

    Raises:
        ValueError: if the split is unknown or a number is out of range.

    Example:

    ```python
    from keras_smat import data

    sampler = data.FixedEpisodes(n_way=5, n_shot=5, n_query=10)
    test = {
        name: data.EpisodeDataset(source, sampler, num_episodes=100)
        for name, source in data.demo_domains("test").items()
        if source.role == "OOD"
    }
    list(test)  # symbols, negatives, sketches, scenes, wallpapers
    ```
    """
    if split not in SPLITS:
        raise ValueError(
            f"Expected `split` as one of {SPLITS}. Received: split={split!r}."
        )
    image_size = check_integer("image_size", image_size, 16)
    seed = check_integer("seed", seed, 0)
    names = [*IN_DOMAIN, *(OUT_OF_DOMAIN if split == "test" else ())]
    return {name: _source(name, split, image_size, seed) for name in names}


@functools.lru_cache(maxsize=64)
def _source(name, split, image_size, seed):
    classes = _classes(name, split, seed)
    images = []
    for i, (_, paint) in enumerate(classes):
        rng = _rng(seed, name, SPLITS.index(split), i)
        images += [paint(rng, image_size) for _ in range(IMAGES_PER_CLASS)]
    images = np.stack(images)
    source = DemoSource(
        images,
        np.repeat(np.arange(len(classes)), IMAGES_PER_CLASS),
        [class_name for class_name, _ in classes],
        "ID" if name in IN_DOMAIN else "OOD",
    )
    for array in (source.images, source.labels):
        array.flags.writeable = False  # All callers share it.
    return source


def _classes(name, split, seed):
    """List of `(name, painter)`; a painter turns (rng, size) to pixels."""
    rng = _rng(seed, name)
    if name == "glyphs":
        return demo_glyphs.glyphs(rng, split)
    if name == "sketches":
        return demo_drawings.sketches(_classes("shapes", split, seed))
    if name in OUT_OF_DOMAIN:
        return OUT_OF_DOMAIN[name](rng)
    classes = IN_DOMAIN[name](rng)
    order = rng.permutation(len(classes))[_CLASSES[split]]
    return [classes[i] for i in order]


def _rng(seed, name, *key):
    key = (zlib.crc32(name.encode()), *key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
