import os
import pathlib
import re

import keras

from keras_smat.files import replacing

_SNAPSHOT = re.compile(r"epoch_(\d+)\.weights\.h5")


class BackupAndRestore(keras.callbacks.Callback):
    """Survives interruptions: a resumed run ends as an undisturbed one.

    After every epoch the whole training state (weights, optimizer,
    multipliers, schedules, random seeds) goes to a temporary file that is
    then renamed, so that a kill at any moment leaves the last complete
    snapshot loadable. When `fit` starts and finds a snapshot, it goes on with
    the epoch after it, on the episodes of that epoch.

    Args:
        backup_dir: str or path. Made when it does not exist; use one
            directory per run.
        delete_checkpoint: bool, whether the snapshot goes when training has
            ended. Defaults to `False`.

    Raises:
        ValueError: when the snapshot cannot be loaded into the model.

    Example:

    ```python
    backup = keras_smat.callbacks.BackupAndRestore("runs/smat")
    learner.fit(train_episodes, epochs=25, callbacks=[backup])
    ```
    """

    def __init__(self, backup_dir, delete_checkpoint=False):
        super().__init__()
        self.backup_dir = pathlib.Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs=None):
        snapshots = self._snapshots()
        if not snapshots:
            return
        epoch = max(snapshots)
        self.model.optimizer.build(self.model.trainable_variables)
        try:
            self.model.load_weights(snapshots[epoch])
        except Exception as error:
            raise ValueError(
                "The snapshot does not fit the model: was it made by another "
                f"run? Received: {snapshots[epoch]}"
            ) from error
        self.model._initial_epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        older = self._snapshots()
        target = self.backup_dir / f"epoch_{epoch + 1:06d}.weights.h5"
        with replacing(target) as temporary:
            self.model.save_weights(temporary, overwrite=True)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        for path in older.values():
            if path != target:
                path.unlink()

    def on_train_end(self, logs=None):
        # The attribute would make the next `fit` start late.
        self.model._initial_epoch = None
        if self.delete_checkpoint:
            for path in self._snapshots().values():
                path.unlink()

    def _snapshots(self):
        """Complete snapshots by the number of finished epochs."""
        if not self.backup_dir.is_dir():
            return {}
        matches = (
            (_SNAPSHOT.fullmatch(path.name), path)
            for path in self.backup_dir.iterdir()
        )
        return {int(m.group(1)): path for m, path in matches if m}
