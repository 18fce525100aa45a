import json
import os

import keras
import numpy as np
import pytest

from keras_smat import data


def noise(seed=0, classes=8, names=None, size=6):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (classes * 20, size, size, 3), "uint8")
    labels = rng.permutation(np.repeat(np.arange(classes), 20))
    return data.ArraySource(images, labels, names)


def make(source=None, num_episodes=12, sampler=None, **kwargs):
    sampler = sampler or data.MetaDatasetEpisodes(way=(3, 6), n_query=4)
    return data.EpisodeDataset(
        source or noise(), sampler, num_episodes, **kwargs
    )


def mixed(**kwargs):
    return data.mix({"a": make(noise(1)), "b": make(noise(2))}, **kwargs)


def assert_same(a, b):
    """The same episodes, from the first index to the last image."""
    assert len(a) == len(b) > 1
    for i in range(len(a)):
        one, other = a.indices(i), b.indices(i)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        one, other = keras.tree.flatten(a[i]), keras.tree.flatten(b[i])
        for x, y in zip(one, other, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_replay(tmp_path, workers):
    episodes = make(seed=3)
    digest = episodes.save_manifest(tmp_path / "m.json")
    again = data.EpisodeDataset.from_manifest(
        tmp_path / "m.json", noise(), workers=workers
    )
    assert_same(again, episodes)
    assert again.manifest == digest
    assert again.max_way == 6 and again.seed == 3
    assert again.image_shape == (6, 6, 3)
    again.set_epoch(5)
    assert_same(again, episodes)


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="a process takes long to start: one backend is enough",
)
def test_replay_in_processes(tmp_path):
    episodes = make()
    episodes.save_manifest(tmp_path / "m.json")
    again = data.EpisodeDataset.from_manifest(
        tmp_path / "m.json", noise(), workers=1, use_multiprocessing=True
    )
    assert_same(again, episodes)


def test_mixture(tmp_path):
    episodes = mixed(num_episodes=15, seed=4)
    episodes.set_epoch(2)
    episodes.save_manifest(tmp_path / "m.json")
    sources = {"b": noise(2), "a": noise(1), "unused": noise(3)}
    again = data.EpisodeDataset.from_manifest(tmp_path / "m.json", sources)
    assert_same(again, episodes)
    assert {again.indices(i)["domain"] for i in range(15)} == {"a", "b"}
    assert again.protocol()["epoch"] == 2


def test_queries_from_another_source(tmp_path):
    names = list("abcdefgh")
    photos, drawings = noise(1, names=names), noise(2, names=names[::-1])
    episodes = make(photos, query_source=drawings)
    episodes.save_manifest(tmp_path / "m.json")
    load = data.EpisodeDataset.from_manifest
    assert_same(load(tmp_path / "m.json", photos, drawings), episodes)
    with pytest.raises(ValueError, match="'queries'.*Received: "):
        load(tmp_path / "m.json", photos)
    with pytest.raises(ValueError, match="Expected the images"):
        load(tmp_path / "m.json", photos, photos)


def test_augmentation_is_replayed(tmp_path):
    augment = data.MetaTrainAugmentation(image_size=4)
    episodes = make(augment=augment)
    episodes.set_epoch(3)
    episodes.save_manifest(tmp_path / "m.json")
    load = data.EpisodeDataset.from_manifest
    again = load(tmp_path / "m.json", noise(), augment=augment, workers=2)
    assert again.image_shape == (4, 4, 3)
    assert_same(again, episodes)
    first = again[0][0]["support_images"]
    again.set_epoch(1)
    assert not np.array_equal(again[0][0]["support_images"], first)
    assert load(tmp_path / "m.json", noise()).image_shape == (6, 6, 3)


def test_the_protocol_carries_the_hash(tmp_path):
    episodes = make(augment=data.MetaTrainAugmentation())
    digest = episodes.save_manifest(tmp_path / "m.json")
    again = data.EpisodeDataset.from_manifest(tmp_path / "m.json", noise())
    assert again.protocol()["manifest"] == digest
    assert again.protocol()["augment"] is None
    assert again.protocol()["source"] == noise().fingerprint()
    assert again.protocol()["sampler"]["name"] == "MetaDatasetEpisodes"
    json.dumps(again.protocol())
    # The replay has a manifest of its own, which replays the same.
    again.save_manifest(tmp_path / "n.json")
    third = data.EpisodeDataset.from_manifest(tmp_path / "n.json", noise())
    assert_same(third, again)


def test_equal_episodes_have_equal_manifests(tmp_path):
    digests = [
        episodes.save_manifest(tmp_path / f"{i}.json")
        for i, episodes in enumerate([make(), make(), make(seed=1)])
    ]
    assert digests[0] == digests[1] != digests[2]
    first, second = (tmp_path / f"{i}.json" for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_drawn_episodes_stay_as_they_are(tmp_path):
    """On every backend."""
    make(num_episodes=3).save_manifest(tmp_path / "m.json")
    episodes = json.loads((tmp_path / "m.json").read_text())["episodes"]
    assert episodes[2]["classes"] == [3, 7, 0, 5, 1, 4]
    assert episodes[2]["support_counts"] == [13, 10, 16, 14, 11, 12]
    assert episodes[2]["query"][:5] == [13, 71, 78, 20, 2]


def test_size(tmp_path):
    """600 of the largest episodes of fifty million images: some megabytes."""
    source = noise(classes=60)
    sampler = data.FixedEpisodes(n_way=50, n_shot=9, n_query=9)
    make(source, 20, sampler).save_manifest(tmp_path / "m.json")
    assert (tmp_path / "m.json").stat().st_size < 20 * 900 * 6


@pytest.mark.parametrize(
    "other",
    [
        noise(1),
        noise(0, size=7),
        noise(0, classes=9),
        noise(0).subset(range(7)),
    ],
    ids=["images", "size", "classes", "subset"],
)
def test_other_images_are_refused(tmp_path, other):
    make().save_manifest(tmp_path / "m.json")
    with pytest.raises(ValueError, match="that the manifest was made with: "):
        data.EpisodeDataset.from_manifest(tmp_path / "m.json", other)


def test_sources_are_checked(tmp_path):
    single, mixture = tmp_path / "s.json", tmp_path / "m.json"
    make().save_manifest(single)
    mixed().save_manifest(mixture)
    load = data.EpisodeDataset.from_manifest
    with pytest.raises(ValueError, match=r"dict.*\[a, b\]. .*sources=<"):
        load(mixture, noise(1))
    with pytest.raises(ValueError, match="`sources` as a dict.*'a': 3"):
        load(mixture, {"a": 3, "b": noise(2)})
    with pytest.raises(ValueError, match="episodes of domain 'b'"):
        load(mixture, {"a": noise(1)})
    with pytest.raises(ValueError, match="made with of domain 'b'"):
        load(mixture, {"a": noise(1), "b": noise(1)})
    with pytest.raises(ValueError, match="`sources` as an `ImageSource`"):
        load(single, {"a": noise()})
    with pytest.raises(ValueError, match="for the episodes. .*sources=None"):
        load(single, None)
    with pytest.raises(ValueError, match="`query_sources`.*sources=3"):
        load(single, noise(), 3)


def test_changed_files_are_refused(tmp_path):
    path = tmp_path / "m.json"
    make().save_manifest(path)
    text = path.read_text()
    load = data.EpisodeDataset.from_manifest
    path.write_text(text.replace('"seed":0', '"seed":1', 1))
    with pytest.raises(ValueError, match="changed or damaged: its hash is"):
        load(path, noise())
    for broken in ["", "[]", "{}", text[:-9], '{"format":"x"}', "[" * 10**5]:
        path.write_text(broken)
        with pytest.raises(ValueError, match="m.json', which is none or of"):
            load(path, noise())
    # Written elsewhere with other spaces, it still is the same manifest.
    path.write_text(json.dumps(json.loads(text), indent=1))
    assert len(load(path, noise())) == 12
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json", noise())


def test_no_half_written_file(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    path.write_text("before")

    def broken(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        make().save_manifest(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["m.json"]
    with pytest.raises(ValueError, match="folder that exists"):
        make().save_manifest(tmp_path / "nowhere" / "m.json")
