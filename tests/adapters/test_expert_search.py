"""The search over expert patterns, against brute force."""

import itertools

import numpy as np
import numpy_twin as twin
import pytest
from tools import array
from tools import arrays
from tools import assert_same
from tools import distance
from tools import make_episodes
from tools import make_smat
from tools import make_soft_merge

from keras_smat import ExpertSearch


@pytest.fixture(scope="module")
def learner():
    return make_smat(num_experts=4)


def support(index=0, shot=3):
    x = make_episodes(8, way=3, shot=shot)[index][0]
    return {k: x[k] for k in ("support_images", "support_labels")}


def twin_loss(learner, x, merging_weights, leave_one_out):
    """From the learner's features on, in loops."""
    weights = learner.experts.merge(merging_weights)
    features = array(learner.embed(weights, x["support_images"]))
    features = features.astype("float64")
    labels = x["support_labels"]
    losses = []
    for i, label in enumerate(labels):
        if label < 0:
            continue
        chosen = labels >= 0
        if leave_one_out and (labels == label).sum() > 1:
            chosen = chosen & (np.arange(len(labels)) != i)
        elif leave_one_out and np.bincount(labels[labels >= 0]).max() > 1:
            continue
        prototypes, _ = twin.class_prototypes(
            features[chosen], labels[chosen], labels.max() + 1
        )
        logits = twin.cosine_logits(features[i : i + 1], prototypes)
        losses.append(twin.cross_entropy(logits, [label]))
    return np.mean(losses)


def uniform(pattern):
    bits = np.array(pattern, "float32")
    return bits / max(bits.sum(), 1)


@pytest.mark.parametrize(
    "loss, shot",
    [("leave_one_out", 3), ("leave_one_out", 1), ("resubstitution", 3)],
)
def test_the_exhaustive_search_finds_the_best(learner, loss, shot):
    x = support(shot=shot)
    search = ExpertSearch(exhaustive=True, loss=loss)
    found = search.search(learner, x)
    assert len(found.visited) == 2**4
    for pattern in itertools.product((False, True), repeat=4):
        expected = twin_loss(
            learner, x, uniform(pattern), loss == "leave_one_out"
        )
        assert found.visited[pattern] == pytest.approx(expected, abs=1e-4)
    assert found.loss == min(found.visited.values())
    assert found.visited[found.pattern] == found.loss
    weights = learner.task_weights(x, search)
    expected = learner.experts.merge(uniform(found.pattern))
    assert distance(weights, expected) < 1e-6


def test_classes_with_one_image_do_not_count(learner):
    x = support(shot=2)
    x["support_labels"] = np.array([0, 0, 1, 1, 2, -1], "int32")
    found = ExpertSearch(rounds=0).search(learner, x)
    expected = twin_loss(learner, x, uniform(found.pattern), True)
    assert found.loss == pytest.approx(expected, abs=1e-4)


def greedy(losses, start, rounds):
    """Algorithm 2 with certain acceptance, on a table of losses."""
    pattern, seen = start, [start]
    for _ in range(rounds):
        for m in range(len(start)):
            bits = list(pattern)
            bits[m] = not bits[m]
            flipped = tuple(bits)
            seen.append(flipped)
            if losses[flipped] < losses[pattern]:
                pattern = flipped
    return pattern, seen


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_greedy_search(learner, index, rounds):
    x = support(index)
    losses = ExpertSearch(exhaustive=True).search(learner, x).visited
    found = ExpertSearch(rounds=rounds).search(learner, x)
    start = next(iter(found.visited))
    scores = array(learner.expert_scores(x))
    assert start == tuple(scores > 0.5)
    pattern, seen = greedy(losses, start, rounds)
    assert found.pattern == pattern
    assert list(found.visited) == list(dict.fromkeys(seen))
    assert found.loss == pytest.approx(losses[pattern], abs=1e-6)


def test_a_softmax_counts_more_than_its_equal_share_as_on():
    x, learner = support(), make_soft_merge(num_experts=4)
    scores = array(learner.expert_scores(x))
    found = ExpertSearch(rounds=0).search(learner, x)
    assert found.pattern == tuple(scores > 0.25)
    assert any(found.pattern)


def test_acceptance_is_seeded_and_the_best_is_kept(learner):
    x = support()
    table = ExpertSearch(exhaustive=True).search(learner, x).visited
    paths = set()
    for seed in range(6):
        search = ExpertSearch(rounds=2, acceptance=0.5, seed=seed)
        found = search.search(learner, x)
        assert found == search.search(learner, x)
        assert found.loss == min(found.visited.values())
        assert found.visited.keys() <= table.keys()
        paths.add(tuple(found.visited))
    assert len(paths) > 1
    # What would help is refused, what harms is taken: another path.
    never = ExpertSearch(rounds=1, acceptance=0.0).search(learner, x)
    greedy_path = ExpertSearch(rounds=1).search(learner, x)
    assert list(never.visited)[:2] == list(greedy_path.visited)[:2]
    assert tuple(never.visited) != tuple(greedy_path.visited)


def test_rounded_scores_are_hard_scores():
    """Without a round, it is the learner's own rounding."""
    x = support()
    learner = make_smat(eval_scores="hard", num_experts=4)
    keys = learner.hypernetwork.keys
    keys.assign(30.0 * array(keys))
    assert 0 < array(learner.encode_task(x)).max() < 1
    expected = learner.task_weights(x)
    actual = learner.task_weights(x, ExpertSearch(rounds=0))
    assert distance(actual, expected) < 1e-6


def test_no_expert_is_the_pretrained_model(learner):
    updates = learner.experts.updates()
    off = ExpertSearch().merging_weights((False,) * 4, np.ones(4))
    weights = learner.experts.merge_updates(updates, off)
    assert_same(arrays(weights), arrays(learner.pretrained_weights))


def test_relaxed_starts_at_plain_inference(learner):
    x = support()
    start = learner.task_weights(x, ExpertSearch(rounds=0, relaxed=True))
    assert distance(start, learner.task_weights(x)) < 1e-6
    search = ExpertSearch(rounds=1, relaxed=True)
    found = search.search(learner, x)
    scores = array(learner.expert_scores(x))
    for pattern, loss in found.visited.items():
        soft = np.where(pattern == (scores > 0.5), scores, 1 - scores)
        expected = twin_loss(learner, x, soft / soft.sum(), True)
        assert loss == pytest.approx(expected, abs=1e-4)
    assert found.loss <= next(iter(found.visited.values()))


def test_a_single_expert_keeps_its_score():
    scores = np.array([0.3], "float32")
    for relaxed, expected in ((False, [0.0, 1.0]), (True, [0.3, 0.7])):
        search = ExpertSearch(relaxed=relaxed)
        for on in (False, True):
            actual = search.merging_weights((on,), scores)
            np.testing.assert_allclose(actual, expected[on : on + 1])


@pytest.mark.parametrize(
    "learner",
    [
        make_smat(granularity="output", always_on=["bias"]),
        make_smat(shared_delta=False, include=["hidden"]),
        make_smat(target_sparsity=None),
        make_soft_merge(),
    ],
    ids=["output", "own_delta", "dense", "soft_merge"],
)
def test_kept_updates_merge_as_the_bank_does(learner):
    merging_weights = np.array([0.2, 0.5, 0.1], "float32")
    expected = learner.experts.merge(merging_weights)
    updates = learner.experts.updates()
    actual = learner.experts.merge_updates(updates, merging_weights)
    assert distance(actual, expected) < 1e-6


def test_one_forward_pass_of_the_support_per_pattern(learner, monkeypatch):
    forward = learner._forward_chunk
    passes = []

    def counted(*arguments):
        passes.append(len(arguments[-1]))
        return forward(*arguments)

    x = support()
    search = ExpertSearch(rounds=2)
    # Not compiled, so that every pass runs in Python.
    monkeypatch.setattr(
        learner, "compiled_call", lambda key, call, *inputs: call(*inputs)
    )
    monkeypatch.setattr(learner, "_forward_chunk", counted)
    found = search.search(learner, x)
    # And one for the hypernetwork.
    assert len(passes) == len(found.visited) + 1 <= 2 + 2 * 4


def test_too_many_experts_for_all_patterns():
    learner = make_smat(num_experts=11)
    with pytest.raises(ValueError, match="at most 10 experts.*2.11 patterns"):
        learner.task_weights(support(), ExpertSearch(exhaustive=True))
