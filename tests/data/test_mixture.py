import json
import pickle

import keras
import numpy as np
import pytest

from keras_smat import data


def domain(value, n_shot, size=6, **kwargs):
    images = np.full((60, size, size, 3), value, "uint8")
    source = data.ArraySource(images, np.repeat(np.arange(6), 10))
    sampler = data.FixedEpisodes(4, n_shot, 3)
    return data.EpisodeDataset(source, sampler, num_episodes=10, **kwargs)


def make(**kwargs):
    domains = {"a": domain(1, 1), "b": domain(2, 5), "c": domain(3, 2)}
    return data.mix(domains, **kwargs)


def test_episodes_come_from_their_domain():
    episodes = make()
    assert len(episodes) == 30
    assert episodes.support_buckets == (4, 8, 20)
    assert episodes.query_buckets == (12,)
    assert episodes.max_way == 4 and episodes.image_size == (6, 6)
    seen = set()
    for i in range(30):
        x, _, _ = episodes[i]
        name = episodes.domain(i)
        seen.add(name)
        assert x["support_images"][0, 0, 0, 0] == " abc".index(name)
        assert len(x["support_images"]) == {"a": 4, "b": 20, "c": 8}[name]
        drawn = episodes.indices(i)
        assert drawn["domain"] == name
        reloaded = episodes.load_episode(drawn)[0]
        np.testing.assert_array_equal(
            reloaded["support_images"], x["support_images"]
        )
    assert seen == {"a", "b", "c"}


def test_the_domains_are_not_changed():
    one = domain(1, 1)
    data.mix({"a": one, "b": domain(2, 5)})
    assert one.support_buckets == (4,)


def test_weights():
    episodes = make(weights={"b": 3, "a": 1, "c": 0}, num_episodes=2000)
    names = [episodes.domain(i) for i in range(2000)]
    assert abs(names.count("b") / 2000 - 0.75) < 0.03
    assert "c" not in names
    names = [make(num_episodes=2000).domain(i) for i in range(2000)]
    assert abs(names.count("b") / 2000 - 1 / 3) < 0.03


def test_determinism():
    def names(episodes):
        return [episodes.domain(i) for i in range(30)]

    episodes, again = make(seed=3), pickle.loads(pickle.dumps(make(seed=3)))
    assert names(episodes) == names(again)
    again.set_epoch(1)
    assert names(episodes) != names(again)
    assert names(episodes) != names(make(seed=4))
    threads = make(seed=3, workers=2)
    for i in range(30):
        one, other = episodes[i], threads[i]
        for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other)):
            np.testing.assert_array_equal(a, b)


def test_protocol():
    protocol = make(weights={"a": 1, "b": 1, "c": 2}).protocol()
    assert protocol["probabilities"] == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert protocol["domains"]["b"]["sampler"]["n_shot"] == 5
    json.dumps(protocol)


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"a": 1}, r"\[a, b, c\].*weights for \[a\]"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, r"weights for \[a, b, c, d\]"),
        ({"a": 1, "b": -1, "c": 1}, "at least 0"),
        ({"a": 0, "b": 0, "c": 0}, "not all zero"),
        ({"a": 1, "b": float("nan"), "c": 1}, "Received: weights="),
    ],
)
def test_weights_are_checked(weights, message):
    with pytest.raises(ValueError, match=message):
        make(weights=weights)


def test_domains_are_checked():
    for datasets in [{}, [domain(1, 1)], {"a": None}, {"m": make()}]:
        with pytest.raises(ValueError, match="dict from names"):
            data.mix(datasets)
    with pytest.raises(ValueError, match=r"'b': \(8, 8, 3\)"):
        data.mix({"a": domain(1, 1), "b": domain(1, 1, size=8)})
