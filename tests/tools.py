"""Tiny backbones, episodes and learners for the tests of the learners."""

import keras
import numpy as np
from keras import ops

from keras_smat import SMAT
from keras_smat import SoftMerge
from keras_smat import _backend
from keras_smat import data
from keras_smat import recipes

SIZE = 8
BACKEND = keras.backend.backend()


def exact_float64():
    """Keras promotes float64 to float32 in most operations, save on
    TensorFlow: a matrix product of two float64 tensors would be rounded."""
    from keras.src.backend.common import dtypes

    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"


def array(x):
    return ops.convert_to_numpy(x)


def arrays(variables):
    """Copies, since NumPy shares memory with the variables of PyTorch."""
    return [np.array(array(v)) for v in variables]


def distance(actual, expected):
    """Norm of the difference over the norm, all tensors together; the norm
    of the difference where the expected tensors are zero."""
    actual, expected = (
        np.concatenate([np.ravel(array(a)).astype("float64") for a in group])
        for group in (actual, expected)
    )
    scale = np.linalg.norm(expected) or 1.0
    return np.linalg.norm(actual - expected) / scale


def assert_same(actual, expected):
    """Bit for bit."""
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected)):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and (a == b).all(), (
            f"tensor {i} differs by {np.abs(a - b).max()}"
        )


def dense_backbone(dropout=0.0, activation="gelu"):
    layers = [
        keras.Input((SIZE, SIZE, 3)),
        keras.layers.Rescaling(1 / 128, offset=-1.0),
        keras.layers.Flatten(),
        keras.layers.Dense(12, activation=activation, name="hidden"),
        keras.layers.Dense(8, name="features"),
    ]
    if dropout:
        layers.insert(4, keras.layers.Dropout(dropout, name="dropout", seed=3))
    return keras.Sequential(layers, name="backbone")


def cnn_backbone(dropout=0.3):
    """Convolution, batch normalisation and dropout."""
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(x)
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Activation("relu")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout", seed=3)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(8, name="features")(x)
    model = keras.Model(inputs, x, name="backbone")
    norm = model.get_layer("norm")
    norm.moving_mean.assign([0.1, -0.2, 0.3, 0.0])
    norm.moving_variance.assign([0.5, 1.0, 2.0, 0.7])
    return model


def make_source(num_classes=6, per_class=16, size=SIZE, seed=0):
    """Noisy images, each class around a pattern of its own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    patterns = rng.uniform(0, 255, (num_classes, size, size, 3))
    images = patterns[labels] + rng.normal(0, 60, (len(labels), size, size, 3))
    return data.ArraySource(np.clip(images, 0, 255).astype("uint8"), labels)


def make_episodes(num_episodes=4, way=3, shot=2, n_query=3, seed=1, **kwargs):
    return data.EpisodeDataset(
        make_source(),
        data.FixedEpisodes(way, shot, n_query),
        num_episodes,
        seed=seed,
        **kwargs,
    )


def varied_episodes(num_episodes=8, seed=1, query_buckets=(8, 15)):
    """Padded episodes in two support and two query buckets."""
    return data.EpisodeDataset(
        make_source(),
        data.VariableEpisodes(way=(2, 5), shot=(1, 3), n_query=3),
        num_episodes,
        seed=seed,
        support_buckets=[7, 15],
        query_buckets=list(query_buckets),
    )


def make_smat(backbone=None, move=True, **kwargs):
    """SMAT whose delta and mask logits have moved away from their start."""
    settings = dict(num_experts=3, max_way=5, target_sparsity=0.5, seed=5)
    learner = SMAT(backbone or dense_backbone(), **{**settings, **kwargs})
    if move:
        rng = np.random.default_rng(7)
        shape = learner.experts.delta.shape
        learner.experts.delta.assign(0.1 * rng.standard_normal(shape))
        shape = learner.experts.mask.logits.shape
        learner.experts.mask.logits.assign(1.5 * rng.standard_normal(shape))
    return learner


def make_soft_merge(backbone=None, **kwargs):
    """SoftMerge whose deltas have moved away from zero."""
    settings = dict(num_experts=3, max_way=5, seed=5)
    learner = SoftMerge(backbone or dense_backbone(), **{**settings, **kwargs})
    rng = np.random.default_rng(7)
    shape = learner.experts.delta.shape
    learner.experts.delta.assign(0.1 * rng.standard_normal(shape))
    return learner


def episode_loss(learner, episode, training=True, noise=None):
    """Loss and logits, compiled since eager JAX compiles every operation;
    the learner's state stays as it is."""
    settings = {} if noise is None else {"noise": noise}
    variables = learner.variables

    @_backend.jit
    def compute(values, episode):
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return learner.compute_episode_loss(
                *episode, training=training, **settings
            )

    loss, logits = compute([v.value for v in variables], episode)
    return array(loss), array(logits)


def sgd_groups(learner, every=None, mask_rate=None, jit_compile="auto"):
    """Compiles with plain SGD, and masks that move at a real rate."""
    if mask_rate is None:
        mask_rate = 0.5 * learner.experts.num_parameters

    def sgd(rate, **kwargs):
        return keras.optimizers.SGD(
            rate, gradient_accumulation_steps=every, **kwargs
        )

    groups = {
        "delta$": sgd(0.1, momentum=0.9),
        "hypernetwork": sgd(20.0, global_clipnorm=1.0),
    }
    if learner.controller is not None:
        groups["mask.*logits$"] = sgd(mask_rate)
    learner.compile(
        optimizer=recipes.group_optimizers(groups, learner),
        multiplier_learning_rate=0.1,
        temperature_steps=10,
        jit_compile=jit_compile,
    )
    return learner
