"""Files: snapshots and resume, `.keras`, experts alone."""

import json

import keras
import numpy as np
import pytest
from tools import array
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import make_episodes
from tools import make_smat

import keras_smat
from keras_smat import recipes
from keras_smat.callbacks import BackupAndRestore

EPOCHS, EPISODES = 3, 3


def new_learner(kind="recommended"):
    """Dropout, score noise and (for "paper") gradient accumulation."""
    keras.utils.set_random_seed(11)
    arguments = recipes.learner_arguments(kind)
    arguments.update(num_experts=2, target_sparsity=0.5, seed=3, max_way=5)
    learner = keras_smat.SMAT(dense_backbone(dropout=0.3), **arguments)
    steps = EPOCHS * EPISODES
    learner.compile(**recipes.get(kind, learner, total_steps=steps))
    return learner


class Interrupt(keras.callbacks.Callback):
    """Stops the process's work in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.current, batch) == (self.epoch, 1):
            raise KeyboardInterrupt


def train(learner, callbacks=()):
    episodes = make_episodes(EPISODES)
    learner.fit(episodes, epochs=EPOCHS, verbose=0, callbacks=list(callbacks))
    return learner


@pytest.mark.parametrize("kind", ["recommended", "paper"])
def test_a_resumed_run_ends_as_an_undisturbed_one(kind, tmp_path):
    expected = train(new_learner(kind))
    with pytest.raises(KeyboardInterrupt):
        train(new_learner(kind), [BackupAndRestore(tmp_path), Interrupt(1)])
    snapshots = [p.name for p in tmp_path.iterdir()]
    assert snapshots == ["epoch_000001.weights.h5"]
    resumed = train(new_learner(kind), [BackupAndRestore(tmp_path)])
    # Weights, seeds, multipliers, temperature and optimizer, bit for bit.
    assert_same(arrays(resumed.variables), arrays(expected.variables))
    assert_same(
        arrays(resumed.optimizer.variables),
        arrays(expected.optimizer.variables),
    )


def test_a_finished_run_starts_no_epoch(tmp_path):
    train(new_learner(), [BackupAndRestore(tmp_path)])
    learner = new_learner()
    history = learner.fit(
        make_episodes(EPISODES),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[BackupAndRestore(tmp_path)],
    )
    assert history.epoch == []


def test_an_interrupted_write_leaves_the_last_snapshot(tmp_path, monkeypatch):
    learner = new_learner()
    backup = BackupAndRestore(tmp_path)
    save = learner.save_weights

    def broken(path, **kwargs):
        save(path, **kwargs)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        raise OSError("no space left")

    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                monkeypatch.setattr(learner, "save_weights", broken)

    with pytest.raises(OSError, match="no space"):
        train(learner, [backup, Break()])
    resumed = train(new_learner(), [BackupAndRestore(tmp_path)])
    expected = train(new_learner())
    assert_same(arrays(resumed.variables), arrays(expected.variables))


def test_a_snapshot_of_another_model_is_refused(tmp_path):
    train(new_learner(), [BackupAndRestore(tmp_path)])
    other = make_smat(cnn_backbone())
    other.compile(**recipes.get("recommended", other, total_steps=9))
    with pytest.raises(ValueError, match="does not fit the model.*epoch_0000"):
        train(other, [BackupAndRestore(tmp_path)])


@pytest.mark.parametrize("name", ["mine.keras", "mine.weights.h5"])
def test_an_interrupted_save_leaves_the_last_file(name, tmp_path, monkeypatch):
    learner = make_smat()
    path = tmp_path / name
    save = learner.save if name.endswith(".keras") else learner.save_weights
    save(path)
    before = path.read_bytes()

    def interrupted(store):
        raise KeyboardInterrupt

    monkeypatch.setattr(learner, "save_own_variables", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_delete_checkpoint(tmp_path):
    train(new_learner(), [BackupAndRestore(tmp_path, delete_checkpoint=True)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error:Skipping variable loading")
@pytest.mark.parametrize("make", [dense_backbone, cnn_backbone])
def test_keras_file_of_smat(make, tmp_path):
    learner = make_smat(make(dropout=0.2))
    learner.compile(**recipes.get("recommended", learner, total_steps=9))
    episodes = make_episodes(EPISODES)
    learner.fit(episodes, verbose=0)
    learner.save(tmp_path / "smat.keras")
    loaded = keras.models.load_model(tmp_path / "smat.keras")
    x = episodes[0][0]
    assert_same([loaded.predict(x)], [learner.predict(x)])
    ours, theirs = learner.get_config(), loaded.get_config()
    # Backbone configs carry shapes, as tuples or as lists.
    assert json.dumps(ours) == json.dumps(theirs)
    # Training goes on as if nothing had happened.
    for one in (learner, loaded):
        one.fit(episodes, verbose=0)
    assert_same(arrays(loaded.variables), arrays(learner.variables))


@pytest.mark.filterwarnings("error:Skipping variable loading")
def test_keras_file_of_proto_net(tmp_path):
    learner = keras_smat.ProtoNet(
        dense_backbone(), trainable=True, max_way=5, learn_scale=True
    )
    learner.compile(**recipes.get("recommended", learner, total_steps=9))
    episodes = make_episodes(EPISODES)
    learner.fit(episodes, verbose=0)
    learner.save(tmp_path / "pmf.keras")
    loaded = keras.models.load_model(tmp_path / "pmf.keras")
    for one in (learner, loaded):
        one.fit(episodes, verbose=0)
    assert_same(arrays(loaded.variables), arrays(learner.variables))


def test_experts_alone(tmp_path):
    backbone = dense_backbone()
    learner = make_smat(backbone)
    path = tmp_path / "experts.npz"
    learner.save_experts(path)
    other = make_smat(backbone, move=False, seed=99)
    other.load_experts(path)
    x = make_episodes()[0][0]
    assert_same([other.predict(x)], [learner.predict(x)])
    assert [p.name for p in tmp_path.iterdir()] == ["experts.npz"]


def test_experts_of_another_backbone_are_refused(tmp_path):
    backbone = dense_backbone()
    path = tmp_path / "experts.npz"
    make_smat(backbone).save_experts(path)
    with pytest.raises(ValueError, match="other arguments.*Received"):
        make_smat(backbone, num_experts=4).load_experts(path)
    kernel = backbone.get_layer("features").kernel
    kernel.assign(array(kernel) + 0.5)
    other = make_smat(backbone)
    before = arrays(other.variables)
    with pytest.raises(ValueError, match="features/kernel.*other values"):
        other.load_experts(path)
    with pytest.raises(ValueError, match="conv/kernel.*other shape"):
        make_smat(cnn_backbone()).load_experts(path)
    hidden = backbone.get_layer("hidden").output
    shorter = keras.Model(backbone.inputs, hidden)
    with pytest.raises(ValueError, match="only one of them has is 'feature"):
        make_smat(shorter).load_experts(tmp_path / "experts.npz")
    assert_same(arrays(other.variables), before)


@pytest.mark.parametrize("content", [b"", b"PK nonsense", "half", "foreign"])
def test_damaged_expert_files_are_refused(content, tmp_path):
    learner = make_smat()
    path = tmp_path / "experts.npz"
    if content == "foreign":
        np.savez(path, header=np.zeros(3))
    elif content == "half":
        learner.save_experts(path)
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_bytes(content)
    before = arrays(learner.variables)
    with pytest.raises(ValueError, match="save_experts"):
        learner.load_experts(path)
    assert_same(arrays(learner.variables), before)


def test_expert_files_are_npz():
    with pytest.raises(ValueError, match=r"end in '\.npz'.*experts\.h5"):
        make_smat().save_experts("experts.h5")
