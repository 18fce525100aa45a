"""What `fit` and `evaluate` ask of their data."""

import types

import keras


def check(learner, data, name):
    """Refuses data that would train or count wrongly, before it runs."""
    if isinstance(data, keras.utils.PyDataset):
        _check_episodes(learner, data, name)
    elif keras.backend.backend() == "tensorflow":
        unknown = isinstance(data, types.GeneratorType)
        if hasattr(data, "cardinality"):
            unknown = int(data.cardinality()) == -2
        if unknown:
            raise ValueError(
                f"`{name}` must have a known length: on TensorFlow, Keras "
                "reports wrong metrics and takes one step too many on data of "
                "unknown length. Use a `keras_smat.data.EpisodeDataset`, or "
                "add `dataset.apply(tf.data.experimental.assert_cardinality"
                f"(n))`. Received: {type(data).__name__} of unknown length"
            )


def _check_episodes(learner, data, name):
    way = getattr(data, "max_way", None)
    if way is not None and way > learner.max_way:
        raise ValueError(
            f"Episodes of `{name}` have up to {way} classes, more than the "
            f"learner's `max_way`. Received: max_way={learner.max_way}"
        )
    size = getattr(data, "image_size", None)
    if size is not None and tuple(size) != learner.image_size:
        raise ValueError(
            f"Images of `{name}` must have the size that the backbone takes, "
            f"{learner.image_size}. Received: {tuple(size)}"
        )


class _EpochLink(keras.callbacks.Callback):
    """Tells the data its epoch, and the logs the learner's own figures."""

    def __init__(self, data):
        super().__init__()
        self._data = data

    def on_train_begin(self, logs=None):
        # What a resumed run left behind, if it was interrupted again.
        self.model._initial_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        if hasattr(self._data, "set_epoch"):
            self._data.set_epoch(epoch)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.model.epoch_logs())


def with_epochs(learner, data, callbacks):
    """Callbacks, preceded by the link between data, learner and logs."""
    link = _EpochLink(data)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # A new list: the given one may serve another model later.
        return keras.callbacks.CallbackList(
            [link, *callbacks.callbacks],
            add_history=True,
            model=learner,
            **(callbacks.params or {}),
        )
    if callbacks is None:
        callbacks = []
    elif not isinstance(callbacks, (list, tuple)):
        callbacks = [callbacks]
    return [link, *callbacks]
