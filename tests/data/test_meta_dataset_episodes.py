import json
import math
import pickle

import numpy as np
import pytest

from keras_smat import data


class Sized(data.ImageSource):
    """A source of black images with given class sizes, sorted by class."""

    image_shape = (2, 2, 1)

    def __init__(self, sizes, groups=None, rule="uniform"):
        self.labels = np.repeat(np.arange(len(sizes)), sizes)
        self.class_names = [f"class {i}" for i in range(len(sizes))]
        if groups is not None:
            self.hierarchy = data.ClassHierarchy(groups, rule)

    def load(self, indices):
        return np.zeros((len(indices), 2, 2, 1), "uint8")


def episodes_of(source, num_episodes=200, query_source=None, **settings):
    return data.EpisodeDataset(
        source,
        data.MetaDatasetEpisodes(**settings),
        num_episodes,
        query_source=query_source,
    )


def drawn(*args, **kwargs):
    """Way, shots and queries by class of many episodes."""
    episodes = episodes_of(*args, **kwargs)
    for i in range(len(episodes)):
        found = episodes.indices(i)
        both = np.concatenate([found["support"], found["query"]])
        if episodes.query_source is None:
            assert len(set(both)) == len(both)
        shots = np.bincount(found["support_labels"])
        queries = np.bincount(found["query_labels"])
        assert len(shots) == len(queries) == len(found["classes"])
        yield found, shots, queries


def test_bounds():
    sampler = data.MetaDatasetEpisodes()
    assert sampler.max_way == 50
    assert sampler.max_support == sampler.max_query == 500
    assert sampler.min_support == sampler.min_query == 5
    episodes = episodes_of(Sized([30] * 60))
    assert episodes.support_buckets == (125, 250, 500)
    assert episodes.query_buckets == (125, 250, 500)
    few = episodes_of(Sized([16] * 6))
    assert few.max_way == 6
    assert few.support_buckets == (24, 48, 96)
    assert few.query_buckets == (15, 30, 60)
    fixed = data.MetaDatasetEpisodes(way=10, shot=(2, 5))
    assert (fixed.max_support, fixed.min_support) == (50, 20)
    assert (fixed.max_query, fixed.min_query) == (100, 10)
    assert data.MetaDatasetEpisodes(way=50, shot=20).max_support == 1000


def test_repr_and_protocol():
    sampler = data.MetaDatasetEpisodes(way=(5, 20), shot=5)
    assert "way=(5, 20), shot=(5, 5), n_query=10" in repr(sampler)
    again = eval(repr(sampler), vars(data))
    assert again.protocol() == sampler.protocol()
    assert sampler.protocol()["hierarchy"] is None
    source = Sized([20] * 12, [range(5), range(5, 12)])
    protocol = episodes_of(source).protocol()
    assert protocol["sampler"]["hierarchy"] == source.hierarchy.fingerprint()
    assert protocol["sampler"]["log_weights"] == (math.log(0.5), math.log(2))
    json.dumps(protocol)


def test_fixed_way_and_shot():
    source = Sized([9] * 4 + [40] * 10)
    for found, shots, queries in drawn(source, way=5, shot=6):
        small = min(found["classes"]) < 4
        assert shots.tolist() == [6] * 5
        assert queries.tolist() == [3 if small else 10] * 5


def test_a_shot_range_is_drawn_once_per_episode():
    seen = []
    for found, shots, queries in drawn(Sized([12] * 20), shot=(1, 4)):
        assert len(set(shots)) == 1
        assert set(queries) == {min(10, 12 - shots[0])}
        seen.append(shots[0])
        assert 5 <= len(shots) <= 20
    np.testing.assert_allclose(np.bincount(seen)[1:] / 200, 0.25, atol=0.1)


def test_fixed_way_with_variable_shots():
    ways = [len(shots) for _, shots, _ in drawn(Sized([30] * 20), way=7)]
    assert set(ways) == {7}


def test_small_classes_are_left_out():
    source = Sized([1, 0, 3, 8, 9, 30, 10, 20, 15, 70])
    settings = dict(way=(5, 10), min_class_size=8)
    classes = set()
    for found, _, queries in drawn(source, **settings):
        classes |= set(found["classes"].tolist())
        assert set(queries) <= {4, 5, 7, 10}
    assert classes == {3, 4, 5, 6, 7, 8, 9}


def test_every_class_of_two_images():
    for _, shots, queries in drawn(Sized([2] * 6), 20):
        assert set(shots) == set(queries) == {1}


def test_queries_from_another_source():
    source, queries = Sized([30] * 6), Sized([4, 9, 90, 90, 90, 90])
    for found, shots, query in drawn(source, query_source=queries):
        assert set(query) == {
            min(10, queries.class_sizes[found["classes"]].min())
        }
        assert shots.max() <= 30
    for _, shots, _ in drawn(source, query_source=queries, shot=30):
        assert set(shots) == {30}


def test_two_levels():
    groups = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9, 10, 11, 12]]
    ways = []
    for found, _, _ in drawn(Sized([20] * 13, groups)):
        classes = set(found["classes"].tolist())
        assert classes <= set(groups[0]) or classes <= set(groups[1])
        ways.append(len(classes))
    assert set(ways) == {5, 6, 7, 8}
    # Of one group more than five classes do not exist.
    assert ways.count(5) > 100


def test_all_leaves_of_a_node():
    groups = [range(80), range(20), range(15, 21), range(4)]
    source = Sized([20] * 80, groups, "all")
    found = [set(f["classes"].tolist()) for f, _, _ in drawn(source)]
    whole = [set(group) for group in groups]
    large = [classes for classes in found if len(classes) == 50]
    assert all(c in whole[1:3] for c in found if len(c) < 50)
    assert len(set().union(*large)) == 80 and large[0] != large[1]
    # 79 leaves at most: the root has too many, the last node too few.
    found = [f["classes"] for f, _, _ in drawn(source, max_span=79)]
    assert {len(classes) for classes in found} == {20, 6}
    # The label of a class says nothing about it.
    firsts = {c[0] for c in found if len(c) == 6}
    assert firsts == set(groups[2])


def test_a_hierarchy_can_be_left_out():
    source = Sized([20] * 12, [range(5), range(5, 12)])
    settings = dict(way=8, use_hierarchy=False)
    assert {len(shots) for _, shots, _ in drawn(source, **settings)} == {8}


def test_one_sampler_serves_several_sources():
    sampler = data.MetaDatasetEpisodes()
    source = Sized([20] * 12, [range(5), range(5, 12)])
    first = data.EpisodeDataset(source, sampler)
    plain = data.EpisodeDataset(source.subset(range(12)), sampler)
    assert plain.source.hierarchy is None
    assert max(len(plain.indices(i)["classes"]) for i in range(50)) > 7
    assert max(len(first.indices(i)["classes"]) for i in range(50)) == 7
    again = pickle.loads(pickle.dumps(first))
    for i in range(5):
        np.testing.assert_array_equal(
            again.indices(i)["support"], first.indices(i)["support"]
        )


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(way=(1, 5)), "2 <= low.*way="),
        (dict(shot=0), "shot=0"),
        (dict(n_query=0), "n_query=0"),
        (dict(max_support=49), "largest way. Received: max_support=49"),
        (dict(max_class_support=0), "max_class_support=0"),
        (dict(min_class_size=-1), "min_class_size=-1"),
        (dict(max_span=None), "max_span=None"),
        (dict(log_weights=(1.0, -1.0)), r"log_weights=\(1.0, -1.0\)"),
        (dict(log_weights=3), "log_weights=3"),
    ],
)
def test_arguments_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        data.MetaDatasetEpisodes(**settings)


TREE = [range(5), range(5, 12)]


@pytest.mark.parametrize(
    "source, settings, message",
    [
        (Sized([9] * 8 + [1]), {}, "class 'class 8' has 1 images, needs 2"),
        (Sized([9] * 8 + [0]), {}, "class 'class 8' has 0 images, needs 2"),
        (Sized([9] * 8), dict(shot=(1, 9)), "needs 10 .9 support images and"),
        (Sized([9] * 4), {}, "`way`.*number of classes, 4. Received: way=5"),
        (Sized([9] * 8), dict(min_class_size=10), "of classes, 0. .*way=5"),
        (Sized([9] * 12, TREE), dict(way=5), r"range for `way`.*way=\(5, 5\)"),
        (Sized([9] * 12, TREE), dict(min_class_size=3), "min_class_size=3"),
        (Sized([9] * 12, TREE), dict(way=(6, 9)), "of classes, 5. .*way=6"),
        (Sized([9] * 8, TREE), {}, r"0\.\.7. Received: .*class 11"),
        (Sized([9] * 12, TREE, "all"), dict(way=(8, 9)), "group of 8 to 392"),
        (Sized([9] * 12, TREE, "all"), dict(max_span=4), r"classes\.$"),
        (Sized([9] * 5 + [1], [range(5)]), {}, "class 'class 5' has 1 images"),
    ],
)
def test_sources_are_checked(source, settings, message):
    with pytest.raises(ValueError, match=message):
        episodes_of(source, **settings)


def test_queries_are_checked():
    with pytest.raises(ValueError, match="'class 2' has 0 images.*a query"):
        episodes_of(Sized([5] * 5), query_source=Sized([1, 1, 0, 1, 1]))


SAMPLERS = [
    data.MetaDatasetEpisodes(),
    data.MetaDatasetEpisodes(way=5, shot=5),
    data.VariableEpisodes(way=(5, 10), shot=(1, 10)),
    data.FixedEpisodes(5, 5, 10),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_tracks_do_not_sit_together(sampler):
    """Traffic Sign stores 30 photos of one sign after another. Were images
    taken in that order, nearly every query would have its own sign in the
    support; drawn at random, few have."""
    tracks = 40
    source = Sized([30 * tracks] * 10)
    episodes = data.EpisodeDataset(source, sampler, 200)
    seen, chance, places = [], [], []
    for i in range(200):
        found = episodes.indices(i)
        support, query = found["support"] // 30, found["query"] // 30
        seen.append(np.isin(query, support).mean())
        shots = np.bincount(found["support_labels"])[found["query_labels"]]
        # No other photo of the sign among `shots` of the class's others.
        others = 30 * tracks - 1
        free = [math.comb(others - 29, k) / math.comb(others, k) for k in shots]
        chance.append(1 - np.mean(free))
        places.append(found["support"][0] % (30 * tracks))
    assert abs(np.mean(seen) - np.mean(chance)) < 0.03
    assert np.mean(chance) < 0.7
    # Positions are uniform: one image of each episode, ten bins.
    counts = np.bincount(np.array(places) * 10 // (30 * tracks), minlength=10)
    assert ((counts - 20) ** 2 / 20).sum() < 30


def test_no_work_per_image_of_a_class():
    """A draw from millions costs what a draw from thousands costs."""
    sampler = data.MetaDatasetEpisodes()
    sizes = np.full(345, 2**40)
    sampler.check(sizes, [""] * 345)
    for _ in range(100):  # any array of the size of a class fills no memory
        sampler.sample(np.random.default_rng(0), sizes)
