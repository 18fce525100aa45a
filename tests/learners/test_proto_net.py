"""ProtoNet: the frozen baseline, and PMF."""

import keras
import numpy as np
import pytest
from tools import array
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import distance
from tools import episode_loss
from tools import make_episodes

from keras_smat import ProtoNet
from keras_smat import functional as F


def test_frozen_it_has_nothing_to_train():
    learner = ProtoNet(cnn_backbone(), max_way=5)
    assert learner.trainable_variables == []
    learner.compile()
    with pytest.raises(ValueError, match="ProtoNet has nothing to train.*PMF"):
        learner.fit(make_episodes(1), verbose=0)
    loss, accuracy = learner.evaluate(make_episodes(2), verbose=0)
    assert loss > 0 and 0 <= accuracy <= 1


def test_the_loss_is_the_cross_entropy_of_the_queries():
    learner = ProtoNet(dense_backbone(), max_way=5)
    x, y, weight = make_episodes()[0]
    weight = np.linspace(0.0, 1.0, len(y)).astype("float32")
    loss, logits = episode_loss(learner, (x, y, weight), training=False)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[np.arange(len(y)), y] * weight).sum() / weight.sum()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(array(F.cross_entropy(logits, y, weight)))


def test_pmf_trains_the_whole_backbone():
    backbone = cnn_backbone(dropout=0.3)
    given = arrays(backbone.variables)
    learner = ProtoNet(backbone, trainable=True, max_way=5, learn_scale=True)
    paths = {v.path for v in learner.trainable_variables}
    assert {"conv/kernel", "norm/gamma", "features/bias"} <= paths
    assert not any("moving" in path for path in paths)
    assert any("logit_scale" in path for path in paths)
    statistics = arrays(learner.backbone.get_layer("norm").weights[2:])
    learner.compile(keras.optimizers.SGD(0.5))
    before = arrays(learner.trainable_variables)
    history = learner.fit(make_episodes(4), epochs=3, verbose=0).history
    for v, a in zip(learner.trainable_variables, before):
        assert distance([array(v)], [a]) > 1e-6, v.path
    assert np.isfinite(history["loss"]).all()
    # The clone's statistics and the given backbone stay.
    assert_same(
        arrays(learner.backbone.get_layer("norm").weights[2:]), statistics
    )
    assert_same(arrays(backbone.variables), given)


def test_one_step_descends_the_loss():
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile(keras.optimizers.SGD(1e-2))
    episode = make_episodes(way=5, shot=1)[0]
    before, _ = episode_loss(learner, episode)
    logs = learner.train_on_batch(*episode, return_dict=True)
    after, _ = episode_loss(learner, episode)
    assert logs["loss"] == pytest.approx(before, rel=1e-5)
    assert after < before


def test_layers_frozen_by_the_user_stay_frozen():
    backbone = dense_backbone()
    backbone.get_layer("hidden").trainable = False
    learner = ProtoNet(backbone, trainable=True)
    paths = [v.path for v in learner.trainable_variables]
    assert paths == ["features/kernel", "features/bias"]
    assert backbone.get_layer("features").trainable


def test_config_round_trips():
    learner = ProtoNet(
        dense_backbone(), trainable=True, max_way=7, distance="euclidean",
        logit_scale=0.5, max_images_per_chunk=9,
    )  # fmt: skip
    again = ProtoNet.from_config(learner.get_config())
    assert again.get_config() == learner.get_config()
    assert (again.max_way, again.max_images_per_chunk) == (7, 9)
    assert again.trains_backbone
