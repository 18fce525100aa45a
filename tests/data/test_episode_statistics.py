"""The sampler of Meta-Dataset against a simulation of its own.

The simulation is written from the published constants, all episodes of a
group at once, and shares no code with the sampler.
"""

import types

import keras
import numpy as np
import pytest
import two_sample

from keras_smat.data import ClassHierarchy
from keras_smat.data import MetaDatasetEpisodes

EPISODES = 100_000

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="plain NumPy: one backend is enough",
)


def simulate(seed, sizes, groups, whole, episodes):
    """Draws episodes from groups of classes.

    Args:
        sizes: `(classes,)`.
        groups: List of arrays of classes, each drawn alike.
        whole: Whether all classes of a group are taken, up to 50.

    Returns:
        A dict of `way`, `query`, `support` `(episodes,)`, and of `classes`
        and `shots` `(episodes, 50)`, -1 behind the last class.
    """
    random = np.random.RandomState(seed)
    out = {
        name: np.zeros(episodes, int) for name in ["way", "query", "support"]
    }
    out |= {n: np.full((episodes, 50), -1) for n in ["classes", "shots"]}
    group_of = random.randint(len(groups), size=episodes)
    for number, group in enumerate(groups):
        rows = np.nonzero(group_of == number)[0]
        longest = min(50, len(group))
        order = np.argsort(random.random_sample((len(rows), len(group))), 1)
        classes = np.asarray(group)[order[:, :longest]]
        way = np.full(len(rows), longest)
        if not whole:
            way = random.randint(5, longest + 1, size=len(rows))
        absent = np.arange(longest) >= way[:, None]
        size = np.where(absent, 10**9, sizes[classes])
        query = np.minimum(10, size.min(1) // 2)
        rest = size - query[:, None]
        beta = random.random_sample((len(rows), 1))
        share = np.floor(beta * np.minimum(rest, 100) + 1)
        support = np.minimum(500, np.where(absent, 0, share).sum(1))
        noise = random.uniform(np.log(0.5), np.log(2), size.shape)
        weight = np.where(absent, 0, size * np.exp(noise))
        weight = weight / weight.sum(1, keepdims=True)
        shots = np.floor(weight * (support - way)[:, None]) + 1
        shots = np.minimum(shots, rest)
        out["way"][rows], out["query"][rows] = way, query
        out["support"][rows] = np.where(absent, 0, shots).sum(1)
        out["classes"][rows, :longest] = np.where(absent, -1, classes)
        out["shots"][rows, :longest] = np.where(absent, -1, shots)
    return out


def draw(sampler, sizes, episodes):
    """The same dict from the sampler."""
    rng = np.random.default_rng(0)
    out = {
        name: np.zeros(episodes, int) for name in ["way", "query", "support"]
    }
    out |= {n: np.full((episodes, 50), -1) for n in ["classes", "shots"]}
    for i in range(episodes):
        classes, shots, queries = sampler.plan(rng, sizes)
        out["way"][i], out["query"][i] = len(classes), queries[0]
        out["support"][i] = shots.sum()
        out["classes"][i, : len(classes)] = classes
        out["shots"][i, : len(classes)] = shots
    return out


def assert_alike(a, b, num_classes):
    two_sample.assert_same_counts(a["way"], b["way"], "way")
    two_sample.assert_same_counts(a["query"], b["query"], "query")
    two_sample.assert_same_distribution(a["support"], b["support"], "support")
    # One class of each episode, as classes of an episode depend on another.
    a_class, b_class = a["classes"][:, 0], b["classes"][:, 0]
    two_sample.assert_same_counts(a_class, b_class, "first class")
    a_shots, b_shots = a["shots"][:, 0], b["shots"][:, 0]
    two_sample.assert_same_distribution(a_shots, b_shots, "shots")
    two_sample.assert_same_distribution(
        spread(a), spread(b), "largest over mean shots"
    )
    for c in np.linspace(0, num_classes - 1, 5).astype(int):
        shots = [x["shots"][x["classes"] == c] for x in (a, b)]
        two_sample.assert_same_distribution(*shots, f"shots of class {c}")
    counts = [
        np.bincount(x["classes"][x["classes"] >= 0], minlength=num_classes)
        for x in (a, b)
    ]
    trials = len(a["way"])
    two_sample.assert_same_rates(*counts, trials, "classes")


def spread(drawn):
    return drawn["shots"].max(1) * drawn["way"] / drawn["support"]


def bound(hierarchy=None, **settings):
    sampler = MetaDatasetEpisodes(**settings)
    return sampler.bind(types.SimpleNamespace(hierarchy=hierarchy))


def plain_sizes():
    """70 classes of 2 to 3000 images: every cap is reached and not reached."""
    sizes = np.geomspace(12, 3000, 70).astype(int)
    sizes[[3, 40]] = [2, 5]
    return np.random.default_rng(5).permutation(sizes)


def alphabets():
    """Groups of classes of 20 images each."""
    ends = np.cumsum([5, 14, 26, 55, 20, 48, 23, 6])
    return np.split(np.arange(ends[-1]), ends[:-1])


def nodes():
    """Spans of a small graph over 420 classes, some of them shared."""
    spans = [(0, 420), (0, 392), (0, 50), (10, 61), (100, 220), (60, 65)]
    spans += [(300, 309), (305, 325), (40, 44), (7, 8), (400, 420)]
    return [np.arange(*span) for span in spans]


@pytest.mark.slow
def test_plain():
    sizes = plain_sizes()
    drawn = draw(bound(), sizes, EPISODES)
    expected = simulate(1, sizes, [np.arange(70)], False, EPISODES)
    assert_alike(drawn, expected, 70)


@pytest.mark.slow
def test_large_classes():
    """As many images as QuickDraw has: the cap of the support counts."""
    sizes = np.random.default_rng(3).integers(113_000, 340_000, 100)
    drawn = draw(bound(), sizes, EPISODES)
    expected = simulate(1, sizes, [np.arange(100)], False, EPISODES)
    assert_alike(drawn, expected, 100)
    # The cap is on what is shared out; rounding down leaves some of it.
    assert 450 < drawn["support"].max() <= 500
    assert (drawn["query"] == 10).all()


def test_two_levels():
    sizes = np.full(197, 20)
    hierarchy = ClassHierarchy(alphabets(), "uniform")
    drawn = draw(bound(hierarchy), sizes, EPISODES)
    expected = simulate(1, sizes, alphabets(), False, EPISODES)
    assert_alike(drawn, expected, 197)


def test_graph():
    sizes = np.random.default_rng(4).integers(15, 1300, 420)
    drawn = draw(bound(ClassHierarchy(nodes(), "all")), sizes, EPISODES)
    eligible = [n for n in nodes() if 5 <= len(n) <= 392]
    assert len(eligible) == len(nodes()) - 3
    expected = simulate(1, sizes, eligible, True, EPISODES)
    assert_alike(drawn, expected, 420)
    # 50, 51, 120 and 392 classes give 50; no other group has one of 5 to 50.
    assert np.unique(drawn["way"]).tolist() == [5, 9, 20, 50]


WRONG = {
    "way": dict(way=(5, 49)),
    "smallest way": dict(way=(6, 50)),
    "query": dict(n_query=9),
    "support": dict(max_support=480),
    "contribution": dict(max_class_support=97),
    "weights": dict(log_weights=(np.log(0.6), np.log(2))),
    "no weights": dict(log_weights=(0.0, 0.0)),
    "left out": dict(min_class_size=5),
}


@pytest.mark.parametrize("constant", WRONG)
def test_a_wrong_constant_is_noticed(constant):
    sizes = plain_sizes()
    if constant == "contribution":  # else the cap of the support hides it
        sizes = np.full(5, 600)
    drawn = draw(bound(**WRONG[constant]), sizes, 20_000)
    expected = simulate(1, sizes, [np.arange(len(sizes))], False, 20_000)
    with pytest.raises(AssertionError, match="chi-square|distance|rate"):
        assert_alike(drawn, expected, len(sizes))


def test_a_wrong_group_is_noticed():
    sizes = np.full(197, 20)
    drawn = draw(bound(ClassHierarchy(alphabets(), "all")), sizes, 5000)
    expected = simulate(1, sizes, alphabets(), False, 5000)
    with pytest.raises(AssertionError, match="way: chi-square"):
        assert_alike(drawn, expected, 197)


def test_the_statistics_themselves():
    """Equal distributions pass, and the levels are about as they should."""
    rng = np.random.default_rng(0)
    distances = [ks(rng) for _ in range(400)]
    assert 0.0 < np.mean(np.array(distances) > 1.36) < 0.1  # 5 %
    scores = [chi_square(rng) for _ in range(400)]
    assert abs(np.mean(scores)) < 0.2 and 0.8 < np.std(scores) < 1.2


def ks(rng):
    return two_sample.ks(rng.normal(size=300), rng.normal(size=200))


def chi_square(rng):
    a, b = rng.integers(0, 9, 400), rng.integers(0, 9, 300)
    return two_sample.chi_square_score(a, b)
