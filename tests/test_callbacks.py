"""Epochs reach the data, and runs survive what interrupts them."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from tools import BACKEND
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import make_episodes
from tools import make_smat
from tools import make_source
from tools import sgd_groups

from keras_smat import ProtoNet
from keras_smat import data
from keras_smat import recipes
from keras_smat.callbacks import BackupAndRestore


class Recorded(data.EpisodeDataset):
    """Notes which episodes were asked for."""

    def __init__(self, num_episodes, seed):
        sampler = data.FixedEpisodes(3, 2, 3)
        super().__init__(make_source(), sampler, num_episodes, seed=seed)
        self.seen = []

    def __getitem__(self, index):
        episode = super().__getitem__(index)
        self.seen.append((self.epoch, index, fingerprint(episode)))
        return episode


class Interruption(Exception):
    pass


class InterruptIn(keras.callbacks.Callback):
    """Fails in the middle of an epoch, counted from 0."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch >= 1:
            raise Interruption


def fingerprint(episode):
    x, y, weight = episode
    digest = hashlib.sha256()
    for part in (*x.values(), y, weight):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def pmf():
    """As a new process would: same seed, names from 0 on."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    learner = ProtoNet(dense_backbone(dropout=0.3), trainable=True, max_way=5)
    learner.compile(**recipes.get("recommended", learner, total_steps=9))
    return learner


def noisy_smat():
    """Dropout, sampled masks and scores, two tasks per optimizer step."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    learner = make_smat(cnn_backbone(dropout=0.3), mask_noise="hard_concrete")
    return sgd_groups(learner, every=2)


def everything(learner):
    """All variables, random states and the optimizer's included."""
    return arrays(learner.variables + learner.optimizer.variables)


def test_fit_moves_the_data_to_its_epoch():
    episodes, learner = Recorded(2, seed=1), pmf()
    learner.fit(episodes, epochs=3, verbose=0)
    for epoch, index, digest in episodes.seen:
        assert digest == fingerprint(episodes.episode(epoch, index))
    expected = {(epoch, index) for epoch in range(3) for index in range(2)}
    assert {(e, i) for e, i, _ in episodes.seen} == expected
    assert len({digest for _, _, digest in episodes.seen}) == 6
    # The epoch's number decides, not how often `fit` was called.
    again = Recorded(2, seed=1)
    learner.fit(again, initial_epoch=2, epochs=3, verbose=0)
    trained = {s for s in episodes.seen if s[0] == 2}
    assert trained <= set(again.seen)


def test_validation_episodes_stay_the_same():
    validation = Recorded(2, seed=9)
    pmf().fit(make_episodes(2), validation_data=validation, epochs=3, verbose=0)
    assert {e for e, _, _ in validation.seen} == {0}
    assert len({digest for _, _, digest in validation.seen}) == 2


def test_an_epoch_has_the_first_so_many_episodes():
    train, validation = Recorded(4, seed=1), Recorded(3, seed=9)
    settings = dict(steps_per_epoch=2, validation_steps=1, verbose=0)
    pmf().fit(train, validation_data=validation, epochs=2, **settings)
    # On TensorFlow, Keras asks for the first once more.
    expected = [(epoch, index) for epoch in range(2) for index in range(2)]
    assert sorted({seen[:2] for seen in train.seen}) == expected
    assert {seen[:2] for seen in validation.seen} == {(0, 0)}
    assert (train.num_episodes, validation.num_episodes) == (4, 3)


@pytest.mark.parametrize("build", [pmf, noisy_smat])
def test_a_resumed_run_ends_as_an_undisturbed_one(build, tmp_path):
    """Three tasks an epoch: gradients are half accumulated at its end."""

    def fit(learner, folder, *others):
        learner.fit(
            make_episodes(3),
            validation_data=make_episodes(1, seed=3),
            epochs=3,
            callbacks=[BackupAndRestore(folder), *others],
            verbose=0,
        )

    undisturbed = build()
    fit(undisturbed, tmp_path / "undisturbed")
    with pytest.raises(Interruption):
        fit(build(), tmp_path / "interrupted", InterruptIn(1))
    names = os.listdir(tmp_path / "interrupted")
    assert names == ["epoch_000001.weights.h5"]
    resumed = build()
    fit(resumed, tmp_path / "interrupted")
    assert_same(everything(resumed), everything(undisturbed))


def test_a_learner_goes_on_after_its_own_interruption(tmp_path):
    backup, learner, undisturbed = BackupAndRestore(tmp_path), pmf(), pmf()
    with pytest.raises(Interruption):
        learner.fit(
            make_episodes(3),
            epochs=3,
            callbacks=[backup, InterruptIn(1)],
            verbose=0,
        )
    learner.fit(make_episodes(3), epochs=3, callbacks=backup, verbose=0)
    undisturbed.fit(make_episodes(3), epochs=3, verbose=0)
    assert_same(everything(learner), everything(undisturbed))


def test_without_the_callback_epochs_count_from_zero(tmp_path):
    learner, episodes = pmf(), make_episodes(1)
    backup = BackupAndRestore(tmp_path)
    learner.fit(episodes, epochs=2, callbacks=backup, verbose=0)
    assert os.listdir(tmp_path) == ["epoch_000002.weights.h5"]
    with pytest.raises(Interruption):
        learner.fit(
            make_episodes(2),
            epochs=4,
            callbacks=[backup, InterruptIn(2)],
            verbose=0,
        )
    history = learner.fit(episodes, epochs=1, verbose=0)
    assert history.epoch == [0]


def test_a_failure_while_writing_leaves_the_last_snapshot(
    tmp_path, monkeypatch
):
    learner, backup = pmf(), BackupAndRestore(tmp_path)
    save = learner.save_weights

    def fail_in_the_second_epoch(path, **kwargs):
        save(path, **kwargs)
        if (tmp_path / "epoch_000001.weights.h5").exists():
            content = pathlib.Path(path).read_bytes()
            pathlib.Path(path).write_bytes(content[: len(content) // 2])
            raise Interruption

    monkeypatch.setattr(learner, "save_weights", fail_in_the_second_epoch)
    with pytest.raises(Interruption):
        learner.fit(make_episodes(2), epochs=3, callbacks=backup, verbose=0)
    assert os.listdir(tmp_path) == ["epoch_000001.weights.h5"]
    resumed = pmf()
    history = resumed.fit(
        make_episodes(2), epochs=3, callbacks=backup, verbose=0
    )
    assert history.epoch == [1, 2]
    assert os.listdir(tmp_path) == ["epoch_000003.weights.h5"]


def train_until_killed(folder):
    pmf().fit(
        make_episodes(1),
        epochs=400,
        callbacks=BackupAndRestore(folder),
        verbose=0,
    )


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="one backend is enough")
def test_a_killed_process_leaves_a_snapshot_that_loads(tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], env=environment
    )
    try:
        patience = time.monotonic() + 120
        while not list(tmp_path.glob("epoch_*")):
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.05)
        time.sleep(np.random.default_rng().uniform(0.1, 1.0))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Between the rename and the removal there can be two.
    names = sorted(path.name for path in tmp_path.glob("epoch_*"))
    assert len(names) in (1, 2)
    done = int(names[-1][6:12])
    resumed, undisturbed = pmf(), pmf()
    for learner, callbacks in (
        (resumed, [BackupAndRestore(tmp_path)]),
        (undisturbed, []),
    ):
        learner.fit(
            make_episodes(1), epochs=done + 1, callbacks=callbacks, verbose=0
        )
    assert_same(everything(resumed), everything(undisturbed))


if __name__ == "__main__":
    train_until_killed(sys.argv[1])
