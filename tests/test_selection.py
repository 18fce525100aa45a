"""Which settings of an adapter are chosen, and on what."""

import json

import keras
import numpy as np
import pytest
from tools import array
from tools import arrays
from tools import assert_same
from tools import dense_backbone
from tools import make_episodes

import keras_smat
from keras_smat import selection
from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.adapters.held_out import HeldOutSelection

X = make_episodes(way=3, shot=3)[0][0]


class Shrink(GradientAdapter):
    """Weights times `1 - learning_rate`, and 0 from `fatal` steps on."""

    def __init__(self, learning_rate=0.0, steps=1, fatal=9, selection=None):
        super().__init__(learning_rate, steps, selection=selection)
        self.fatal = fatal
        self.seen = []

    def __call__(self, learner, x, weights):
        self.seen.append(x)
        factor = 1.0 - self.learning_rate if self.steps < self.fatal else 0.0
        return [factor * w for w in weights]


@pytest.fixture(scope="module")
def learner():
    return keras_smat.ProtoNet(dense_backbone(), max_way=5)


@pytest.fixture
def accuracies(monkeypatch):
    """Accuracies by (learning rate, steps) instead of measured ones."""
    table, asked = {}, []

    def accuracy(learner, adapter, episodes, count):
        key = adapter.learning_rate, adapter.steps
        asked.append((*key, count))
        return table.get(key, 0.0)

    monkeypatch.setattr(selection, "_accuracy", accuracy)
    return table, asked


def test_the_best_wins_and_ties_go_to_the_smaller_rate(accuracies):
    table, asked = accuracies
    full = keras_smat.FullFineTune(seed=7, augment=False)
    episodes = make_episodes(40)

    def choose(**kwargs):
        asked.clear()
        return keras_smat.select_adapter(None, full, episodes, **kwargs)

    adapter = choose()
    assert adapter.learning_rate == 0.0
    assert [a[0] for a in asked] == [0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert {a[1:] for a in asked} == {(50, 20)}
    table.update({(1e-4, 50): 0.7, (1e-2, 50): 0.7, (1e-3, 50): 0.6})
    adapter = choose()
    assert adapter.learning_rate == 1e-4
    assert (adapter.seed, adapter.augment) == (7, False)
    table[(1e-2, 10)] = 0.9
    adapter = choose(learning_rates=[1e-2, 0.0], steps=[50, 10])
    assert (adapter.learning_rate, adapter.steps) == (1e-2, 10)
    assert [a[:2] for a in asked] == [(0.0, 10), (1e-2, 10), (1e-2, 50)]
    choose(learning_rates="other", num_episodes=3)
    assert len(asked) == 9 and asked[1] == (1e-7, 50, 3)


def test_lora_searches_ten_times_the_rates(accuracies):
    _, asked = accuracies
    lora = keras_smat.LoRAFineTune()
    keras_smat.select_adapter(None, lora, make_episodes(), learning_rates="pmf")
    rates = [a[0] for a in asked]
    assert rates == pytest.approx([0.0, 1e-3, 1e-2, 1e-1])


@pytest.mark.parametrize("hpo, count", [("validation", 8), ("pmf", 6)])
def test_reports_are_stamped(hpo, count, learner):
    episodes = make_episodes(8, shot=1)
    adapter = keras_smat.select_adapter(
        learner,
        keras_smat.FullFineTune(steps=2),
        episodes,
        hpo,
        learning_rates=[0.0, 1e-2],
    )
    report = keras_smat.evaluate_few_shot(
        learner, episodes, num_episodes=2, adapter=adapter, verbose=0
    )
    stamp = report.protocol["adapter"]["config"]["selection"]
    assert stamp["hpo"] == hpo and stamp["num_episodes"] == count
    assert ("TEST" in stamp["reads"]) == (hpo == "pmf")
    plain, tuned = (
        keras_smat.evaluate_few_shot(
            learner, episodes, num_episodes=count, adapter=a, verbose=0
        )
        .results["episodes"]
        .accuracy
        for a in (None, keras_smat.FullFineTune(1e-2, steps=2))
    )
    assert [a["accuracy"] for a in stamp["accuracies"]] == [plain, tuned]
    assert adapter.learning_rate == (1e-2 if tuned > plain else 0.0)
    json.dumps(adapter.get_config())


def test_held_out_hits_by_hand(learner):
    """Fold by fold: the k-th image of a class against the others."""
    labels = X["support_labels"].copy()
    labels[np.flatnonzero(labels == 1)[2]] = -1
    labels[np.flatnonzero(labels == 2)[1:]] = -1  # shots 3, 2, 1
    x = dict(X, support_labels=labels)
    features = array(
        learner.embed(learner.pretrained_weights, x["support_images"])
    )
    hits = 0
    ranks = {0: [0, 1, 2], 1: [0, 1, 0]}
    for fold in range(3):
        held = [np.flatnonzero(labels == c)[r[fold]] for c, r in ranks.items()]
        rest = np.setdiff1d(np.flatnonzero(labels >= 0), held)
        prototypes = np.stack(
            [
                features[[i for i in rest if labels[i] == c]].mean(0)
                for c in range(3)
            ]
        )
        logits = array(learner.head(features[held], prototypes))
        hits += (logits.argmax(1) == labels[held]).sum()
    adapter = HeldOutSelection([None, Shrink(1.0)])
    actual = adapter.hits(learner, x)
    # Without weights all features are 0, and class 0 is as good as any.
    assert actual.tolist() == [hits, 3]


def test_held_out_images_are_held_out(learner):
    """Candidates see them as padding, with the weights made without them."""
    spy, labels = Shrink(0.5), X["support_labels"]
    HeldOutSelection([None, spy], folds=2).hits(learner, X)
    assert len(spy.seen) == 2
    for fold, x in enumerate(spy.seen):
        assert set(x) == {"support_images", "support_labels"}
        gone = (x["support_labels"] == -1) & (labels >= 0)
        expected = [np.flatnonzero(labels == c)[fold] for c in range(3)]
        assert np.flatnonzero(gone).tolist() == sorted(expected)


def test_support_chooses_within_the_task(learner):
    adapter = keras_smat.select_adapter(
        learner, Shrink(), hpo="support", learning_rates=[0.0, 1.0, 0.5]
    )
    assert adapter.candidates[0] is None
    assert [c.learning_rate for c in adapter.candidates[1:]] == [0.5, 1.0]
    hits = adapter.hits(learner, X)
    assert hits[0] > hits[2]
    # Cosines do not see a scale: a tie with the first, which wins.
    assert hits[0] == hits[1]
    expected = arrays(learner.task_weights(X))
    assert_same(arrays(learner.task_weights(X, adapter)), expected)
    better = HeldOutSelection([Shrink(1.0), Shrink(0.5)])
    halved = arrays(learner.task_weights(X, better))
    assert_same(halved, [0.5 * w for w in expected])
    assert adapter.selection["hpo"] == "support"


def test_one_shot_leaves_the_first_candidate(learner):
    x = make_episodes(way=3, shot=1)[0][0]
    adapter = HeldOutSelection([None, Shrink(0.5)])
    assert adapter.hits(learner, x).tolist() == [0, 0]
    expected = arrays(learner.task_weights(x))
    assert_same(arrays(learner.task_weights(x, adapter)), expected)


def test_errors():
    full, episodes = keras_smat.FullFineTune(), make_episodes()
    cases = [
        ((full, episodes, "test"), {}, "'test'"),
        ((full, None, "validation"), {}, "episodes=None"),
        ((full, episodes, "support"), {}, "none for hpo='support'"),
        ((keras_smat.ExpertSearch(), episodes), {}, "learning rate"),
        ((full, episodes), {"learning_rates": "best"}, "'best'"),
        ((full, episodes), {"learning_rates": [-1.0]}, "number >= 0"),
        ((full, episodes), {"learning_rates": 1e-3}, "a list of numbers"),
        ((full, {"a": episodes}), {}, "once per data set"),
        ((full, episodes), {"steps": 5}, "list of integers"),
        ((full, episodes), {"steps": []}, "list of integers"),
        ((full, episodes), {"num_episodes": 0}, "num_episodes=0"),
    ]
    for arguments, settings, match in cases:
        with pytest.raises(ValueError, match=match):
            keras_smat.select_adapter(None, *arguments, **settings)


def test_it_survives_serialization():
    adapter = keras_smat.select_adapter(
        None, keras_smat.LoRAFineTune(), hpo="support", learning_rates="pmf"
    )
    config = keras.saving.serialize_keras_object(adapter)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == adapter.get_config()
    assert again.candidates[0] is None
    assert again.candidates[2].learning_rate == pytest.approx(1e-2)
