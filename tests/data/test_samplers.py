import numpy as np
import pytest

from keras_smat.data import FixedEpisodes
from keras_smat.data import VariableEpisodes


def names(n):
    return [f"class_{i}" for i in range(n)]


def lengths(lists):
    return [len(positions) for positions in lists]


def assert_valid(drawn, sizes):
    assert len(set(drawn.classes)) == len(drawn.classes)
    for c, support, query in zip(drawn.classes, drawn.support, drawn.query):
        both = np.concatenate([support, query])
        assert len(set(both)) == len(both)
        assert both.min() >= 0 and both.max() < sizes[c]


def test_fixed_episodes():
    sampler = FixedEpisodes(n_way=3, n_shot=2, n_query=4)
    assert (sampler.max_way, sampler.max_support, sampler.max_query) == (
        3,
        6,
        12,
    )
    sizes = np.array([6, 7, 8, 9, 100_000])
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = sampler.sample(rng, sizes)
        assert_valid(drawn, sizes)
        assert lengths(drawn.support) == [2, 2, 2]
        assert lengths(drawn.query) == [4, 4, 4]


def test_fixed_episodes_use_every_class_and_image_alike():
    sampler = FixedEpisodes(n_way=2, n_shot=1, n_query=1)
    rng = np.random.default_rng(0)
    classes, support = np.zeros(4), np.zeros(5)
    for _ in range(2000):
        drawn = sampler.sample(rng, np.full(4, 5))
        np.add.at(classes, drawn.classes, 1)
        np.add.at(support, np.concatenate(drawn.support), 1)
    np.testing.assert_allclose(classes / 2000, 0.5, atol=0.05)
    np.testing.assert_allclose(support / 4000, 0.2, atol=0.03)


def test_separate_queries():
    sampler = FixedEpisodes(n_way=2, n_shot=3, n_query=5)
    sizes, query_sizes = np.full(4, 3), np.full(4, 5)
    sampler.check(sizes, names(4), query_sizes)
    drawn = sampler.sample(np.random.default_rng(0), sizes, query_sizes)
    for support, query in zip(drawn.support, drawn.query):
        assert sorted(support) == [0, 1, 2]
        assert sorted(query) == [0, 1, 2, 3, 4]


def test_variable_episodes_statistics():
    sampler = VariableEpisodes(way=(2, 6), shot=(1, 4), n_query=3)
    sizes = np.full(10, 20)
    rng = np.random.default_rng(0)
    ways, shots = np.zeros(7), np.zeros(5)
    for _ in range(3000):
        drawn = sampler.sample(rng, sizes)
        assert lengths(drawn.query) == [3] * len(drawn.classes)
        ways[len(drawn.classes)] += 1
        np.add.at(shots, lengths(drawn.support), 1)
    np.testing.assert_allclose(ways[2:] / 3000, 1 / 5, atol=0.03)
    np.testing.assert_allclose(shots[1:] / shots.sum(), 1 / 4, atol=0.02)
    assert shots[0] == 0


def test_variable_episodes_fit_small_data():
    sampler = VariableEpisodes(way=(2, 50), shot=(1, 10), n_query=10)
    sizes = np.array([2, 3, 5, 40])
    sampler.check(sizes, names(4))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        drawn = sampler.sample(rng, sizes)
        assert_valid(drawn, sizes)
        seen.add(len(drawn.classes))
        smallest = sizes[drawn.classes].min()
        queries = min(10, smallest // 2)
        assert lengths(drawn.query) == [queries] * len(drawn.classes)
        assert min(lengths(drawn.support)) >= 1
    assert seen == {2, 3, 4}


def test_variable_episodes_bound_the_support():
    sampler = VariableEpisodes(way=(5, 20), shot=(2, 10), max_support=60)
    rng = np.random.default_rng(0)
    assert sampler.max_support == 60
    for _ in range(200):
        drawn = sampler.sample(rng, np.full(30, 100))
        assert sum(lengths(drawn.support)) <= 60
        assert min(lengths(drawn.support)) >= 2


def test_variable_episodes_with_separate_queries():
    sampler = VariableEpisodes(way=2, shot=9, n_query=4)
    drawn = sampler.sample(
        np.random.default_rng(0), np.full(3, 5), np.full(3, 2)
    )
    assert lengths(drawn.support) == [5, 5]
    assert lengths(drawn.query) == [2, 2]


def test_default_bounds():
    sampler = VariableEpisodes()
    assert sampler.max_way == 50
    assert sampler.max_support == sampler.max_query == 500
    assert VariableEpisodes(way=3, shot=2).max_support == 6


def test_check_names_classes_and_counts():
    sampler = FixedEpisodes(2, 1, 5)
    message = (
        r"Received: class 'class_1' has 3 images, needs 6 "
        r"\(n_shot=1 \+ n_query=5\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        sampler.check(np.array([6, 3]), names(2))
    with pytest.raises(ValueError, match="and 4 more classes"):
        sampler.check(np.full(9, 1), names(9))
    with pytest.raises(ValueError, match="needs 5 .n_query=5."):
        sampler.check(np.full(2, 1), names(2), np.full(2, 4))
    with pytest.raises(ValueError, match="number of classes, 1.*n_way=2"):
        sampler.check(np.full(1, 9), names(1))
    with pytest.raises(ValueError, match="number of classes, 4.*way=5"):
        VariableEpisodes().check(np.full(4, 9), names(4))
    with pytest.raises(ValueError, match="has 1 images, needs 2"):
        VariableEpisodes().check(np.full(5, 1), names(5))
    with pytest.raises(ValueError, match="a query"):
        VariableEpisodes().check(np.full(5, 1), names(5), np.zeros(5, int))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: FixedEpisodes(1, 1, 1), "`n_way`.*at least 2.*n_way=1"),
        (lambda: FixedEpisodes(2, 0, 1), "n_shot=0"),
        (lambda: FixedEpisodes(2, 1, 1.5), "n_query=1.5"),
        (lambda: FixedEpisodes(2, True, 1), "n_shot=True"),
        (lambda: VariableEpisodes(way=(6, 5)), r"way=\(6, 5\)"),
        (lambda: VariableEpisodes(way=(1, 5)), "2 <= low"),
        (lambda: VariableEpisodes(shot=(1, 2, 3)), "shot="),
        (lambda: VariableEpisodes(shot=1.5), "shot=1.5"),
        (lambda: VariableEpisodes(max_support=49), "at least 50"),
    ],
)
def test_arguments_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_protocol_and_repr():
    sampler = FixedEpisodes(5, 1, 15)
    assert repr(sampler) == "FixedEpisodes(n_way=5, n_shot=1, n_query=15)"
    assert sampler.protocol() == {
        "name": "FixedEpisodes",
        "n_way": 5,
        "n_shot": 1,
        "n_query": 15,
    }
    sampler = VariableEpisodes()
    assert eval(repr(sampler)).protocol() == sampler.protocol()
