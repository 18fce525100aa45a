"""SoftMerge: its merge by hand, its training, its count."""

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops
from tools import array
from tools import arrays
from tools import assert_same
from tools import dense_backbone
from tools import distance
from tools import episode_loss
from tools import make_episodes
from tools import make_smat
from tools import make_soft_merge

from keras_smat import SoftMerge
from keras_smat import recipes


@pytest.fixture(scope="module")
def x():
    return make_episodes()[0][0]


def test_without_deltas_it_is_the_pretrained_model(x):
    learner = SoftMerge(dense_backbone(), num_experts=3, max_way=5)
    pretrained = arrays(learner.pretrained_weights)
    assert_same(arrays(learner.adapt(x)), pretrained)


def test_it_merges_by_a_softmax(x):
    learner = make_soft_merge()
    logits = array(learner.expert_logits(x)[0])
    a = array(learner.encode_task(x))
    np.testing.assert_allclose(a, twin.softmax(logits), atol=1e-5)
    delta = array(learner.experts.delta)
    assert delta.shape == (3, learner.experts.num_parameters)
    merged = np.concatenate([array(w).ravel() for w in learner.adapt(x)])
    theta = [array(w).ravel() for w in learner.pretrained_weights]
    expected = np.concatenate(theta) + a @ delta
    assert distance([merged], [expected]) < 1e-5


def test_expert_dropout():
    learner = SoftMerge(dense_backbone(), num_experts=3, expert_dropout=0.3)
    logits = np.array([1.0, 2.0, 3.0], "float32")
    p = twin.softmax(logits)

    def scores(*noise):
        noise = np.array(noise, "float32")
        return array(learner.scores(ops.convert_to_tensor(logits), True, noise))

    np.testing.assert_allclose(scores(0.5, 0.9, 0.31), p, atol=1e-6)
    kept = p * [1, 0, 1]
    np.testing.assert_allclose(
        scores(0.5, 0.2, 0.31), kept / kept.sum(), atol=1e-6
    )
    np.testing.assert_allclose(scores(0.1, 0.2, 0.29), p, atol=1e-6)
    assert learner.draw_noise(training=False)["scores"] is None
    assert learner.draw_noise()["scores"].shape == (3,)
    never = SoftMerge(dense_backbone(), expert_dropout=0.0)
    assert never.draw_noise()["scores"] is None


def test_the_loss_is_the_cross_entropy_of_the_queries(x):
    learner = make_soft_merge()
    episode = make_episodes()[0]
    noise = {"scores": np.array([0.5, 0.05, 0.5], "float32"), "masks": None}
    loss, logits = episode_loss(learner, episode, noise=noise)
    assert loss == pytest.approx(twin.cross_entropy(logits, episode[1]), 1e-4)
    other = dict(noise, scores=np.array([0.5, 0.5, 0.5], "float32"))
    assert episode_loss(learner, episode, noise=other)[0] != loss


def test_experts_part_ways_in_training():
    learner = SoftMerge(dense_backbone(), num_experts=3, max_way=5, seed=1)
    episodes = make_episodes(8, way=5, shot=1)
    learner.compile(
        recipes.group_optimizers(
            {
                "delta$": keras.optimizers.Adam(5e-3),
                "hypernetwork": keras.optimizers.Adam(1e-3),
            },
            learner,
        )
    )
    before = learner.evaluate(episodes, verbose=0)[0]
    keys = array(learner.hypernetwork.keys).copy()
    learner.fit(episodes, epochs=4, verbose=0)
    assert learner.evaluate(episodes, verbose=0)[0] < 0.8 * before
    delta = array(learner.experts.delta)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert distance([delta[one]], [delta[other]]) > 0.05
    assert distance([array(learner.hypernetwork.keys)], [keys]) > 0
    assert not learner.backbone.trainable_variables


def test_it_saves_and_loads(tmp_path, x):
    learner = make_soft_merge()
    expected = learner.predict(x)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.saving.load_model(tmp_path / "learner.keras")
    assert_same([loaded.predict(x)], [expected])
    learner.save_experts(tmp_path / "experts.npz")
    other = SoftMerge(
        learner_backbone(learner), num_experts=3, max_way=5, seed=9
    )
    other.load_experts(tmp_path / "experts.npz")
    assert distance([other.predict(x)], [expected]) < 1e-6


def learner_backbone(learner):
    """The learner's backbone, as it was before it was frozen."""
    backbone = dense_backbone()
    backbone.set_weights(learner.backbone.get_weights())
    return backbone


def test_counts():
    """Dense experts are M x P; sparse ones twice what their masks leave."""
    soft = make_soft_merge()
    size = soft.backbone.count_params()
    counts = soft.parameter_counts()
    assert counts["experts"] == 3 * size and counts["backbone"] == size
    router = sum(np.prod(v.shape) for v in soft.hypernetwork.weights)
    assert counts["hypernetwork"] == router
    assert counts["total"] == 4 * size + router
    smat = make_smat()
    logits = smat.experts.mask.logits
    values = np.full(logits.shape, -4.0, "float32")
    values[0, :100] = 4.0  # 100 of them on
    values[1, : size // 2 + 50] = 4.0  # more than half: stored dense
    logits.assign(values)
    assert smat.parameter_counts()["experts"] == 2 * 100 + size + 0


def test_errors():
    with pytest.raises(ValueError, match="expert_dropout=1.0"):
        SoftMerge(dense_backbone(), expert_dropout=1.0)
