import json
import pickle
import re
import time

import keras
import numpy as np
import pytest

from keras_smat import data

SAMPLER = data.FixedEpisodes(n_way=3, n_shot=2, n_query=4)


def numbered(labels, class_names=None, offset=0):
    """A source whose pixels are the index of the image plus an offset."""
    images = np.empty((len(labels), 6, 6, 3), "uint8")
    images[:] = offset + np.arange(len(labels)).reshape(-1, 1, 1, 1)
    return data.ArraySource(images, np.asarray(labels), class_names)


def make(sampler=SAMPLER, num_episodes=8, **kwargs):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 20))
    return data.EpisodeDataset(
        numbered(labels), sampler, num_episodes=num_episodes, **kwargs
    )


def assert_same(a, b):
    a, b = keras.tree.flatten(a), keras.tree.flatten(b)
    assert len(a) == len(b)
    for one, other in zip(a, b):
        np.testing.assert_array_equal(one, other)


def ids(batch):
    """The numbers in the images of an episode, support then query."""
    x = batch[0]
    pairs = x["support_images"], x["query_images"]
    return np.concatenate([images[:, 0, 0, 0] for images in pairs]).tolist()


def test_one_episode():
    episodes = make()
    x, y, weight = episodes[3]
    assert len(episodes) == episodes.num_batches == 8
    assert x["support_images"].shape == (6, 6, 6, 3)
    assert x["query_images"].shape == (12, 6, 6, 3)
    np.testing.assert_array_equal(x["support_labels"], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(y, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(weight, np.ones(12))
    drawn = episodes.indices(3)
    both = np.concatenate([drawn["support"], drawn["query"]])
    assert len(set(both)) == 18
    assert ids(episodes[3]) == both.tolist()
    # The source's labels, seen through `classes`, are the episode's.
    labels = np.concatenate([drawn["support_labels"], drawn["query_labels"]])
    np.testing.assert_array_equal(
        episodes.source.labels[both], drawn["classes"][labels]
    )
    assert episodes.max_way == 3
    assert episodes.image_size == (6, 6)


def test_an_episode_depends_on_seed_epoch_and_index_only():
    episodes = make(seed=5)
    first = [ids(episodes[i]) for i in range(8)]
    assert len({tuple(e) for e in first}) == 8
    backwards = make(seed=5)
    assert [ids(backwards[i]) for i in range(7, -1, -1)][::-1] == first
    assert ids(make(seed=6)[0]) != first[0]
    episodes.set_epoch(1)
    assert episodes.epoch == 1
    assert ids(episodes[0]) not in first
    episodes.set_epoch(0)
    assert ids(episodes[0]) == first[0]
    assert_same(episodes.episode(0, 2), episodes[2])
    episodes.on_epoch_end()  # Keras calls it before the first epoch, too
    assert ids(episodes[1]) == first[1]


def test_large_seeds_do_not_collide():
    a, b = make(seed=2**32), make(seed=0)
    b.set_epoch(1)
    assert ids(a[0]) != ids(b[0])


def test_drawn_episodes_stay_as_they_are():
    drawn = make(seed=1).indices(0)
    assert drawn["classes"].tolist() == [3, 2, 0]
    assert drawn["support"].tolist() == [31, 73, 37, 44, 61, 29]


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_change_nothing(workers):
    episodes, plain = make(workers=workers, max_queue_size=3), make()
    for epoch in [0, 1]:
        episodes.set_epoch(epoch)
        plain.set_epoch(epoch)
        for i in [*range(8), 2, 7]:
            assert_same(episodes[i], plain[i])


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_sees_every_episode_of_its_epoch_once(workers):
    """Keras's own enqueuer repeats episodes and mixes epochs here."""
    episodes, seen = make(num_episodes=20, workers=workers), []

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            images = keras.ops.cast(x["query_images"][:, 0, 0, 0], "float32")
            return images * self.scale

    class SetEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            episodes.set_epoch(epoch)

        def on_epoch_end(self, epoch, logs=None):
            expected = [episodes[i] for i in range(len(episodes))]
            means = [e[0]["query_images"].mean() for e in expected]
            seen.append((logs["mean"], np.mean(means)))

    def mean(y_true, y_pred):
        return y_pred

    model = Recorder()
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[mean])
    model.fit(
        episodes, epochs=3, verbose=0, callbacks=[SetEpoch()], shuffle=False
    )
    assert len({expected for _, expected in seen}) == 3
    for found, expected in seen:
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_processes_change_nothing():
    episodes = make(
        workers=1,
        use_multiprocessing=True,
        augment=data.MetaTrainAugmentation(),
    )
    plain = make(augment=data.MetaTrainAugmentation())
    for epoch in [0, 1]:
        episodes.set_epoch(epoch)
        plain.set_epoch(epoch)
        for i in range(3):
            assert_same(episodes[i], plain[i])


def test_errors_in_a_worker_surface_at_their_episode():
    episodes = make(workers=2)
    episodes.augment = broken
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad image"):
            episodes[0]


def broken(images, rng):
    raise ValueError("a bad image")


def test_pickling():
    episodes = make(workers=2)
    episodes.set_epoch(2)
    before = episodes[1]
    assert_same(pickle.loads(pickle.dumps(episodes))[1], before)


def test_variable_episodes_are_padded_to_buckets():
    sampler = data.VariableEpisodes(way=(2, 5), shot=(1, 4), n_query=4)
    episodes = make(sampler, num_episodes=40)
    assert episodes.support_buckets == (5, 10, 20)
    assert episodes.query_buckets == (5, 10, 20)
    sizes = set()
    for i in range(40):
        x, y, weight = episodes[i]
        drawn = episodes.indices(i)
        labels, num_queries = x["support_labels"], int(weight.sum())
        sizes.add((len(labels), len(y)))
        assert (labels >= 0).sum() == len(drawn["support"])
        assert num_queries == len(drawn["query"])
        assert not x["support_images"][labels < 0].any()
        assert not y[num_queries:].any()
        assert not weight[num_queries:].any()
    assert sizes <= {(s, q) for s in (5, 10, 20) for q in (5, 10, 20)}
    assert len(sizes) > 2


def test_bounds_are_those_of_the_source():
    episodes = make(data.VariableEpisodes())
    assert episodes.max_way == 5
    assert episodes.support_buckets == episodes.query_buckets == (13, 25, 50)
    # What is drawn stays: the sampler alone has the larger bounds.
    for sampler in (data.VariableEpisodes(), data.MetaDatasetEpisodes()):
        episodes = make(sampler, num_episodes=20)
        for i in range(20):
            drawn = episodes.indices(i)
            rng = episodes._rng(0, i)
            free = sampler.sample(rng, episodes.source.class_sizes)
            np.testing.assert_array_equal(drawn["classes"], free.classes)
            shots = np.bincount(drawn["support_labels"])
            assert shots.tolist() == [len(s) for s in free.support]


def test_buckets_of_ones_own():
    episodes = make(support_buckets=[40, 8], query_buckets=[20])
    assert episodes.support_buckets == (8, 40)
    x, y, _ = episodes[0]
    assert len(x["support_labels"]) == 8 and len(y) == 20
    assert make().support_buckets == (6,) and make().query_buckets == (12,)


def test_augmentation_belongs_to_the_episode():
    augment = data.MetaTrainAugmentation(image_size=4)
    episodes = make(augment=augment)
    assert episodes.image_shape == (4, 4, 3)
    assert episodes[0][0]["support_images"].shape == (6, 4, 4, 3)
    assert_same(episodes[0], make(augment=augment)[0])
    # The same images are drawn, and a replay loads them unaugmented.
    drawn = episodes.indices(0)
    assert_same(drawn, make().indices(0))
    assert_same(episodes.load_episode(drawn), make()[0])


def test_queries_from_another_source():
    labels = np.repeat(np.arange(4), 5)
    photos = numbered(labels, ["a", "b", "c", "d"])
    drawings = numbered(labels, ["e", "c", "b", "a"], offset=100)
    photos = photos.subset(["a", "b", "c"])
    episodes = data.EpisodeDataset(
        photos, SAMPLER, num_episodes=5, query_source=drawings
    )
    for i in range(5):
        x, y, _ = episodes[i]
        support = {int(v) // 5 for v in x["support_images"][:, 0, 0, 0]}
        assert support == {0, 1, 2}
        names = [photos.class_names[c] for c in episodes.indices(i)["classes"]]
        for image, label in zip(x["query_images"], y):
            number = int(image[0, 0, 0]) - 100
            assert "ecba"[number // 5] == names[label]
    assert episodes.protocol()["query_source"]


def test_query_source_must_fit():
    source = numbered(np.repeat(np.arange(3), 9), ["a", "b", "c"])
    other = numbered(np.repeat(np.arange(3), 9), ["a", "b", "x"])
    with pytest.raises(ValueError, match=r"query source without \[c\]"):
        data.EpisodeDataset(source, SAMPLER, query_source=other)
    large = data.ArraySource(
        np.zeros((3, 8, 8, 3), "uint8"), [0, 1, 2], ["a", "b", "c"]
    )
    with pytest.raises(ValueError, match=r"\(6, 6, 3\) and \(8, 8, 3\)"):
        data.EpisodeDataset(source, SAMPLER, query_source=large)
    few = numbered(np.repeat(np.arange(3), 3), ["a", "b", "c"])
    with pytest.raises(ValueError, match="has 3 images, needs 4"):
        data.EpisodeDataset(source, SAMPLER, query_source=few)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_episodes=0), "`num_episodes`.*num_episodes=0"),
        (dict(seed=-1), "`seed`.*seed=-1"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(seed=None), "seed=None"),
        (dict(workers=-1), "workers=-1"),
        (dict(max_queue_size=0), "max_queue_size=0"),
        (dict(support_buckets=[3, 5]), r"6 images.*support_buckets=\[3, 5\]"),
        (dict(query_buckets=[]), r"12 images.*query_buckets=\[\]"),
        (dict(sampler=data.FixedEpisodes(6, 1, 1)), "n_way=6"),
        (dict(sampler=data.FixedEpisodes(5, 9, 12)), "'0' has 20.*needs 21"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("source", [np.zeros((4, 6, 6, 3)), (1, 2), None])
def test_the_source_must_be_one(source):
    with pytest.raises(ValueError, match=r"`source` as an.*ArraySource.*type"):
        data.EpisodeDataset(source, SAMPLER)


@pytest.mark.parametrize("sampler", [(3, 2, 3), data.FixedEpisodes])
def test_the_sampler_must_be_one(sampler):
    with pytest.raises(ValueError, match=r"`sampler` as an.*Received"):
        make(sampler)


def test_bounds_of_index_and_epoch():
    episodes = make()
    for index in [-1, 8]:
        with pytest.raises(IndexError, match=r"0..7. Received: index="):
            episodes[index]
        with pytest.raises(IndexError):
            episodes.indices(index)
    with pytest.raises(ValueError, match="epoch=-1"):
        episodes.set_epoch(-1)
    assert len(list(episodes)) == 8


def test_protocol():
    protocol = make(augment=data.MetaTrainAugmentation(4)).protocol()
    assert protocol["sampler"]["n_way"] == 3
    assert protocol["augment"]["image_size"] == (4, 4)
    assert protocol["seed"] == 0 and protocol["num_episodes"] == 8
    assert json.loads(json.dumps(protocol))["source"] == protocol["source"]
    assert make(augment=broken).protocol()["augment"] == "broken"
    assert make().protocol()["augment"] is None


class Large(data.ImageSource):
    image_shape = (4, 4, 3)

    def __init__(self, labels):
        self.labels = labels
        self.class_names = [str(i) for i in range(1000)]

    def load(self, indices):
        return np.zeros((len(indices), 4, 4, 3), "uint8")


def test_millions_of_images():
    labels = np.random.default_rng(0).integers(0, 1000, 5_000_000)
    start = time.perf_counter()
    episodes = data.EpisodeDataset(Large(labels), data.VariableEpisodes())
    assert time.perf_counter() - start < 2
    assert not any(isinstance(v, list) for v in vars(episodes).values())
    drawn = episodes.indices(0)
    np.testing.assert_array_equal(
        labels[drawn["support"]], drawn["classes"][drawn["support_labels"]]
    )


def test_all_is_sorted():
    assert data.__all__ == sorted(data.__all__)


PUBLIC = [getattr(data, name) for name in data.__all__]
PUBLIC.append(data.EpisodeDataset.from_manifest)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda x: x.__name__)
def test_docstring_examples_run(public):
    for code in re.findall(r"```python\n(.*?)```", public.__doc__, re.S):
        lines = code.splitlines()
        indent = min(len(s) - len(s.lstrip()) for s in lines if s.strip())
        exec("\n".join(s[indent:] for s in lines), {})
