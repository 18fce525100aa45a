"""What `fit`, `evaluate` and `predict` ask of their data."""

import copy
import types

import keras
import numpy as np

from keras_smat import _backend
from keras_smat.data.base import Episodes
from keras_smat.data.episode import check_images

_LIMITS = {"x": "steps_per_epoch", "validation_data": "validation_steps"}
_NAMES = ("support_images", "support_labels", "query_images")


def prepare(learner, arguments):
    """Arguments of `keras.Model.fit`, checked and made fit for episodes."""
    if arguments.get("class_weight") is not None:
        raise ValueError(
            "A class has another label in every episode: leave `class_weight` "
            f"out of `fit`. Received: {arguments['class_weight']!r}"
        )
    arguments = {"validation_data": None, "callbacks": None, **arguments}
    for name, limit in _LIMITS.items():
        data, steps = arguments[name], arguments.get(limit)
        if data is not None or name == "x":
            check(learner, data, name)
        if isinstance(data, Episodes) and steps and steps <= len(data):
            # Keras would go on where the last epoch ended, and a resumed run
            # could not.
            arguments[name] = copy.copy(data)
            arguments[name].num_episodes = arguments.pop(limit)
    arguments["callbacks"] = _with_epochs(
        learner, arguments["x"], arguments["callbacks"]
    )
    for name in _LIMITS:
        arguments[name] = feed(arguments[name])
    return arguments | {"shuffle": False}


def feed(data):
    """The data as Keras shall read it."""
    return _backend.feed(data) if isinstance(data, Episodes) else data


def check(learner, data, name):
    """Refuses data that would train or count wrongly, before it runs."""
    if isinstance(data, Episodes):
        _check_shapes(learner, data, name)
    elif isinstance(data, keras.utils.PyDataset):
        # Nobody has checked these: the first one stands for all.
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data[0])
        check_episode(learner, x, y, f"{name}[0]")
    elif data is None or isinstance(data, dict | list | tuple | np.ndarray):
        raise ValueError(
            f"Expected `{name}` as a dataset of episodes, such as "
            "`keras_smat.data.EpisodeDataset`; `train_on_batch` and "
            "`test_on_batch` take a single one. "
            f"Received: {name} of type {type(data).__name__}"
        )
    elif keras.backend.backend() == "tensorflow":
        _check_length(data, name)


def check_episode(learner, x, y=None, name="x"):
    """Refuses an episode that breaks the contract.

    Args:
        learner: `MetaLearner` that takes it.
        x: dict of `support_images` (S, H, W, C), `support_labels` (S,) and
            `query_images` (Q, H, W, C), arrays.
        y: optional int array (Q,). Defaults to `None`.
        name: str, how errors call `x`. Defaults to `"x"`.
    """
    if not isinstance(x, dict) or any(key not in x for key in _NAMES):
        raise ValueError(
            f"Expected `{name}` as a dict with {list(_NAMES)}. Received: "
            f"{sorted(x) if isinstance(x, dict) else type(x).__name__}"
        )
    for key in ("support_images", "query_images"):
        label = f"{name}[{key!r}]"
        images = check_images(x[key], learner.image_size, label)
        check_channels(learner, images.shape[-1], label)
    support = _check_labels(
        x["support_labels"],
        len(x["support_images"]),
        (-1, learner.max_way - 1),
        f"{name}['support_labels']",
    )
    if support.max() < 0:
        raise ValueError(
            f"Expected a support image in `{name}`. Received: labels -1 "
            "(padding) alone"
        )
    if y is not None:
        _check_labels(y, len(x["query_images"]), (0, learner.max_way - 1), "y")


def _check_labels(labels, count, bounds, name):
    labels = np.asarray(labels)
    integers = np.issubdtype(labels.dtype, np.integer)
    if not integers or labels.shape != (count,):
        raise ValueError(
            f"Expected `{name}` as {count} integers, one per image. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    if labels.min() < bounds[0] or labels.max() > bounds[1]:
        raise ValueError(
            f"Expected `{name}` between {bounds[0]} and {bounds[1]}, the "
            "learner's `max_way` less one. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    return labels


def check_channels(learner, channels, name):
    expected = learner.backbone.input_shape[-1]
    if expected not in (None, channels):
        raise ValueError(
            f"Images of `{name}` must have the {expected} channels that the "
            f"backbone takes. Received: {channels} channels"
        )


def _check_shapes(learner, data, name):
    if data.max_way > learner.max_way:
        raise ValueError(
            f"Episodes of `{name}` have up to {data.max_way} classes, more "
            "than the learner's `max_way`. "
            f"Received: max_way={learner.max_way}"
        )
    size = tuple(data.image_size)
    if learner.image_size not in (None, size):
        raise ValueError(
            f"Images of `{name}` must have the size that the backbone takes, "
            f"{learner.image_size}. Received: {size}"
        )
    check_channels(learner, data.image_shape[-1], name)


def _check_length(data, name):
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


def _with_epochs(learner, data, callbacks):
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
