import pickle

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from keras_smat.data import ArraySource
from keras_smat.data import EpisodeDataset
from keras_smat.data import FixedEpisodes
from keras_smat.data import demo
from keras_smat.data import demo_domains
from keras_smat.data import demo_glyphs

IN_DOMAIN = ["glyphs", "doodles", "shapes", "critters", "textures"]
OUT_OF_DOMAIN = ["symbols", "negatives", "sketches", "scenes", "wallpapers"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_sources(split):
    domains = demo_domains(split)
    expected = IN_DOMAIN + (OUT_OF_DOMAIN if split == "test" else [])
    assert list(domains) == expected
    for name, source in domains.items():
        assert isinstance(source, ArraySource)
        assert source.role == ("ID" if name in IN_DOMAIN else "OOD")
        assert source.images.dtype == "uint8"
        assert source.image_shape == (64, 64, 3)
        assert len(source.class_names) >= 20
        assert (source.class_sizes == 20).all()
        assert len({i.tobytes() for i in source.images}) == len(source.images)
        assert source.images.std(axis=(1, 2)).max(-1).min() > 2  # none is flat


def test_splits_share_no_class():
    splits = [demo_domains(s, 16) for s in ("train", "validation", "test")]
    for name in IN_DOMAIN:
        names = [c for split in splits for c in split[name].class_names]
        assert len(set(names)) == len(names)
    shapes = set(splits[2]["shapes"].class_names)
    assert set(splits[2]["sketches"].class_names) == shapes


def test_no_character_is_drawn_like_one_of_another_split():
    drawn = [
        (split, character, np.asarray(demo_glyphs.glyph(character, font)) > 127)
        for split, scripts in demo_glyphs.SPLITS.items()
        for script in scripts
        for character in demo_glyphs.SCRIPTS[script][0]
        for font in ["DejaVuSans"]  # It has all scripts.
    ]
    for split, character, first in drawn:
        for other, alike, second in drawn:
            if split != other:
                shared = (first & second).sum() / (first | second).sum()
                assert shared < 0.82, (character, alike)


def test_pixels_depend_on_the_arguments_alone():
    first = demo_domains("validation", 20, seed=3)
    assert demo_domains("validation", 20, seed=3)["shapes"] is first["shapes"]
    other = demo_domains("validation", 20, seed=4)
    demo_glyphs.glyph.cache_clear()
    for name in reversed(IN_DOMAIN):
        again = demo._source.__wrapped__(name, "validation", 20, 3)
        np.testing.assert_array_equal(first[name].images, again.images)
        assert again.class_names == first[name].class_names
        assert (first[name].images != other[name].images).any()


@pytest.mark.parametrize("name", IN_DOMAIN + OUT_OF_DOMAIN)
def test_raw_pixels_do_not_solve_it(name):
    source = demo_domains("test")[name]
    episodes = EpisodeDataset(source, FixedEpisodes(5, 5, 10), 100)
    accuracies = []
    for i in range(100):
        x, y, _ = episodes[i]
        support = x["support_images"].reshape(5, 5, -1).astype("float32") / 255
        query = x["query_images"].reshape(50, -1).astype("float32") / 255
        prototypes = support.mean(axis=1)
        scores = query @ prototypes.T - (prototypes**2).sum(-1) / 2
        accuracies.append((scores.argmax(-1) == y).mean())
    assert 0.15 < np.mean(accuracies) < 0.85


def test_every_font_has_every_character():
    scripts = [*demo_glyphs.SCRIPTS.values()]
    scripts.append((demo_glyphs.SYMBOLS, demo_glyphs.SYMBOL_FONTS))
    for characters, fonts in scripts:
        assert len(set(characters)) == len(characters)
        for font in fonts:
            path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
            known = FT2Font(path).get_charmap()
            assert not [c for c in characters if ord(c) not in known]


def test_sources_pickle_and_are_read_only():
    source = demo_domains("validation", 16)["doodles"]
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        source.labels[0] = 1
    again = pickle.loads(pickle.dumps(source))
    assert again.role == "ID"
    np.testing.assert_array_equal(again.images, source.images)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("dev",), "Expected `split`.*'dev'"),
        (("test", 8), "Expected `image_size`.*8"),
        (("test", 64, -1), "Expected `seed`.*-1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        demo_domains(*arguments)
