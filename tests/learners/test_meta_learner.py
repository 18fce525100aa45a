"""What all learners share: embedding, chunks, padding, stock Keras verbs."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from tools import SIZE
from tools import array
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import distance
from tools import episode_loss
from tools import make_episodes
from tools import make_smat
from tools import make_source
from tools import sgd_groups
from tools import varied_episodes

from keras_smat import MetaLearner
from keras_smat import ProtoNet
from keras_smat import data


def padded(episode, support, query):
    """The same episode in larger buckets."""
    x, y, weight = episode

    def pad(values, size, fill=0):
        width = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, width, constant_values=fill)

    x = {
        "support_images": pad(x["support_images"], support),
        "support_labels": pad(x["support_labels"], support, -1),
        "query_images": pad(x["query_images"], query),
    }
    return x, pad(y, query), pad(weight, query)


def twin(learner, **changes):
    """A learner with the same variables and other settings."""
    other = type(learner)(cnn_backbone(dropout=0.0), **{**SETTINGS, **changes})
    for v, w in zip(other.variables, learner.variables, strict=True):
        v.assign(np.array(array(w)))
    return other


SETTINGS = dict(num_experts=3, max_way=5, target_sparsity=0.5, seed=5)
VARIANTS = {
    "recommended": {},
    "paper": dict(inner_steps=1, kd_pretrained=0.5, readout="class_0"),
    "pooled": dict(split=False),
}


@pytest.mark.parametrize("make", [dense_backbone, cnn_backbone])
def test_the_clone_has_the_same_weights_and_the_original_stays(make):
    backbone = make(dropout=0.3)
    before = arrays(backbone.weights)
    learner = ProtoNet(backbone)
    assert learner.backbone is not backbone
    assert_same(arrays(learner.backbone.weights), before)
    assert_same(arrays(learner.pretrained_weights), before)
    assert not {id(v) for v in learner.variables} & {
        id(v) for v in backbone.variables
    }
    for weight in learner.backbone.weights:
        weight.assign(0.0 * array(weight))
    assert_same(arrays(backbone.weights), before)


def test_embed_runs_the_backbone_on_any_weights():
    backbone = cnn_backbone()
    learner = ProtoNet(backbone)
    images = make_episodes()[0][0]["query_images"]
    expected = array(backbone(images))
    actual = array(learner.embed(learner.pretrained_weights, images))
    assert actual.dtype == "float32"
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    rng = np.random.default_rng(0)
    weights = [
        w + 0.1 * rng.uniform(size=w.shape)
        for w in arrays(learner.backbone.weights)
    ]
    actual = array(learner.embed(weights, images))
    backbone.set_weights(weights)
    expected = array(backbone(images))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    # The learner's own weights did not move.
    assert_same(
        arrays(learner.pretrained_weights), arrays(learner.backbone.weights)
    )


def test_embedding_in_training_moves_only_dropout_seeds():
    learner = ProtoNet(cnn_backbone(dropout=0.5), trainable=True)
    images = make_episodes()[0][0]["query_images"]
    before = arrays(learner.backbone.weights)
    first, second = (
        array(learner.embed(learner.pretrained_weights, images, training=True))
        for _ in range(2)
    )
    assert np.abs(first - second).max() > 1e-3
    assert_same(arrays(learner.backbone.weights), before)


def test_call_is_the_nearest_prototype():
    learner = ProtoNet(dense_backbone(), max_way=5)
    x, y, _ = make_episodes(way=3)[0]
    weights = learner.pretrained_weights
    support = array(learner.embed(weights, x["support_images"]))
    query = array(learner.embed(weights, x["query_images"]))
    prototypes = np.stack(
        [support[x["support_labels"] == c].mean(0) for c in range(3)]
    )
    cosine = query @ prototypes.T
    cosine /= np.linalg.norm(query, axis=1)[:, None]
    cosine /= np.linalg.norm(prototypes, axis=1)
    logits = array(learner(x))
    assert logits.shape == (len(y), 5)
    np.testing.assert_allclose(logits[:, :3], 10 * cosine, atol=1e-4)
    assert (logits[:, 3:] < -1e8).all()
    spec = learner.compute_output_spec(x)
    assert (tuple(spec.shape), spec.dtype) == (logits.shape, "float32")


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    learner = make_smat(**VARIANTS[variant])
    episode = make_episodes(way=3)[0]
    larger = padded(episode, 11, 14)
    noise = learner.draw_noise()
    real = len(episode[1])
    for training in (False, True):
        fed = noise if training else None
        losses, logits = zip(
            *(
                episode_loss(learner, e, training, fed)
                for e in (episode, larger)
            )
        )
        assert losses[0] == pytest.approx(losses[1], abs=2e-6)
        np.testing.assert_allclose(logits[0], logits[1][:real], atol=1e-5)
    np.testing.assert_allclose(
        learner.predict(episode[0]), learner.predict(larger[0])[:real],
        atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_change_nothing(variant):
    settings = VARIANTS[variant]
    whole = make_smat(cnn_backbone(dropout=0.0), **settings)
    parts = twin(whole, max_images_per_chunk=4, **settings)
    episode = make_episodes(way=3, shot=3, n_query=3)[0]
    assert len(episode[1]) == 9  # Two full chunks and one image.
    logs = []
    for learner in (whole, parts):
        # The optimizer's step is the gradient.
        sgd_groups(learner, mask_rate=1.0)
        logs.append(learner.train_on_batch(*episode, return_dict=True))
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    for v, w in zip(whole.variables, parts.variables):
        assert distance([array(w)], [array(v)]) < 1e-5, v.path
    np.testing.assert_allclose(
        whole.predict(episode[0]), parts.predict(episode[0]), atol=1e-4
    )


def test_chunks_with_dropout_train_and_are_repeatable():
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        learner = make_smat(
            cnn_backbone(dropout=0.3), max_images_per_chunk=4, inner_steps=1
        )
        sgd_groups(learner)
        logs = learner.train_on_batch(
            *make_episodes(way=3, shot=3)[0], return_dict=True
        )
        assert np.isfinite(logs["loss"])
        weights.append(arrays(learner.trainable_variables))
    assert_same(*weights)


@pytest.mark.slow
def test_an_episode_of_a_thousand_images_trains_in_bounded_memory():
    """Without chunks the step takes 2 GB more on PyTorch, 3 on JAX."""
    script = pathlib.Path(__file__).with_name("large_episode.py")
    command = [sys.executable, str(script)]
    output = subprocess.check_output(command, text=True)
    assert float(output.splitlines()[-1]) < 1.3


@pytest.mark.slow
def test_an_episode_of_a_thousand_images_trains():
    learner = make_smat(cnn_backbone(dropout=0.3))
    sgd_groups(learner)
    episodes = data.EpisodeDataset(
        make_source(num_classes=5, per_class=200),
        data.FixedEpisodes(5, 100, 100),
        num_episodes=2,
    )
    assert len(episodes[0][1]) == 500
    before = arrays(learner.trainable_variables)
    history = learner.fit(episodes, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [
        (a != b).any()
        for a, b in zip(before, arrays(learner.trainable_variables))
    ]
    assert all(moved[:2])


def test_training_leaves_both_backbones_alone():
    backbone = cnn_backbone(dropout=0.3)
    given = arrays(backbone.variables)
    learner = make_smat(backbone, inner_steps=1, kd_pretrained=0.5)
    own = arrays(learner.backbone.weights)
    sgd_groups(learner)
    before = arrays(learner.trainable_variables)
    learner.fit(
        make_episodes(3), validation_data=make_episodes(2), epochs=2, verbose=0
    )
    assert distance(arrays(learner.trainable_variables), before) > 1e-3
    assert_same(arrays(backbone.variables), given)
    assert_same(arrays(learner.backbone.weights), own)


def test_weighted_and_unweighted_metrics_skip_padded_queries():
    learner = ProtoNet(dense_backbone(), max_way=5)
    episodes = varied_episodes(4)
    learner.compile(
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="w")],
    )
    logs = learner.evaluate(episodes, verbose=0, return_dict=True)
    right = total = padding = 0
    for x, y, weight in list(episodes)[: len(episodes)]:
        padding += (weight == 0).sum()
        hits = learner.predict(x).argmax(-1) == y
        right, total = right + hits[weight > 0].sum(), total + weight.sum()
    assert padding
    assert logs["accuracy"] == pytest.approx(right / total, abs=1e-6)
    assert logs["w"] == pytest.approx(right / total, abs=1e-6)


def test_evaluate_and_test_on_batch_agree():
    learner = make_smat()
    learner.compile()
    episodes = make_episodes(1)
    logs = learner.evaluate(episodes, verbose=0, return_dict=True)
    batch = learner.test_on_batch(*episodes[0], return_dict=True)
    assert logs == pytest.approx(batch, rel=1e-5)
    loss, accuracy = learner.evaluate(episodes, verbose=0)
    assert [loss, accuracy] == pytest.approx(
        [logs["loss"], logs["accuracy"]], rel=1e-5
    )
    expected, _ = episode_loss(learner, episodes[0], training=False)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_predict_takes_an_episode_or_a_dataset():
    learner = make_smat()
    episodes = make_episodes(3)
    rows = [learner.predict(episodes[i][0]) for i in range(3)]
    assert isinstance(rows[0], np.ndarray)
    np.testing.assert_allclose(rows[0], array(learner(episodes[0][0])), 1e-4)
    together = learner.predict(episodes, verbose=0)
    np.testing.assert_allclose(together, np.concatenate(rows), 1e-4, 1e-5)


def test_predict_refuses_episodes_that_do_not_fit():
    learner = make_smat(max_way=3)
    with pytest.raises(ValueError, match="up to 5 classes"):
        learner.predict(make_episodes(way=5), verbose=0)
    x = make_episodes()[0][0]

    def wrong(match, **changes):
        with pytest.raises(ValueError, match=match):
            learner.predict({**x, **changes})

    labels, images = x["support_labels"], x["support_images"]
    wrong(r"\['support_labels'\]` between -1 and 2", support_labels=labels + 7)
    wrong("a support image in `x`", support_labels=0 * labels - 1)
    wrong("integers, one per image", support_labels=labels[:-1])
    wrong("integers, one per image", support_labels=labels.astype("float32"))
    wrong("uint8 pixels", query_images=x["query_images"] / 255.0)
    wrong("3 channels.*Received: 1", support_images=images[..., :1])
    with pytest.raises(ValueError, match="as a dict with"):
        learner.predict({"support_images": images})


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_datasets_of_others_are_checked_by_their_first_episode(verb):
    class Mine(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            x, y, _ = make_episodes(2)[index]
            return x, y + 9

    learner = make_smat()
    learner.compile()
    with pytest.raises(ValueError, match="`y` between 0 and 4"):
        getattr(learner, verb)(Mine(), verbose=0)
    x, y, _ = make_episodes()[0]
    with pytest.raises(ValueError, match="as a dataset of episodes.*dict"):
        getattr(learner, verb)(x, y, verbose=0)


def test_a_backbone_of_any_image_size_takes_any():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128)(inputs)
    x = keras.layers.Conv2D(4, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    learner = ProtoNet(keras.Model(inputs, x), max_way=3)
    assert learner.image_size is None
    learner.compile()
    episodes = make_episodes()
    learner.evaluate(episodes, verbose=0)
    x = episodes[0][0]
    model = learner.build_classifier(x["support_images"], x["support_labels"])
    assert model.predict(x["query_images"], verbose=0).shape == (9, 3)


@pytest.mark.parametrize(
    "make", [make_smat, lambda: ProtoNet(cnn_backbone(), trainable=True)]
)
def test_trainable_off_and_on_trains_what_it_trained_before(make):
    learner = make()
    before = [v.path for v in learner.trainable_variables]
    learner.trainable = False
    assert learner.trainable_variables == []
    learner.trainable = True
    assert [v.path for v in learner.trainable_variables] == before


class _Fixed(MetaLearner):
    """The least that a new learner has to write."""

    def adapt(self, x, training=False):
        return self.pretrained_weights


def test_a_subclass_writes_adapt_alone():
    learner = _Fixed(dense_backbone(), max_way=5)
    assert learner.encode_task(None) is None
    assert learner.epoch_logs() == {}
    x = make_episodes()[0][0]
    expected = ProtoNet(dense_backbone(), max_way=5)
    expected.set_weights(learner.get_weights())
    assert_same([array(learner(x))], [array(expected(x))])
    base = MetaLearner(dense_backbone())
    with pytest.raises(NotImplementedError, match="MetaLearner must implement"):
        base.adapt(x)


@pytest.mark.parametrize("name", ["max_way", "max_images_per_chunk"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many", None])
def test_counts_must_be_positive_integers(name, value):
    message = (
        f"`{name}` as an integer of at least 1. Received: {name}={value!r}"
    )
    with pytest.raises(ValueError, match=message):
        ProtoNet(dense_backbone(), **{name: value})


def test_arguments_of_the_head():
    with pytest.raises(ValueError, match="`distance` must be one of"):
        ProtoNet(dense_backbone(), distance="manhattan")
    learner = ProtoNet(
        dense_backbone(), distance="euclidean", logit_scale=2.0, trainable=True,
        learn_scale=True,
    )  # fmt: skip
    paths = [v.path for v in learner.trainable_variables]
    assert learner.head.logit_scale.path in paths


def test_the_backbone_must_be_a_built_model_with_flat_features():
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Conv2D(2, 3)(inputs)
    with pytest.raises(ValueError, match=r"\(N, D\).*output shape \(None, 6"):
        ProtoNet(keras.Model(inputs, outputs))
    flat = keras.layers.Flatten()(outputs)
    with pytest.raises(ValueError, match=r"\(N, D\).*Received: output shape"):
        ProtoNet(keras.Model(inputs, [flat, flat]))

    class Subclassed(keras.Model):
        def call(self, x):
            return keras.ops.mean(x, axis=(1, 2))

    subclassed = Subclassed()
    subclassed(np.zeros((1, SIZE, SIZE, 3)))
    with pytest.raises(ValueError, match="functional or Sequential.*Received"):
        ProtoNet(subclassed)
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="must be a built `keras.Model`"):
        ProtoNet(unbuilt)
    with pytest.raises(ValueError, match="Received: 'dinov2_small'"):
        ProtoNet("dinov2_small")


@pytest.mark.parametrize("verb", ["fit", "evaluate", "validation"])
def test_episodes_must_fit_the_learner(verb):
    def use(learner, episodes):
        learner.compile()
        if verb == "fit":
            learner.fit(episodes, verbose=0)
        elif verb == "evaluate":
            learner.evaluate(episodes, verbose=0)
        else:
            learner.fit(
                make_episodes(way=2), validation_data=episodes, verbose=0
            )

    name = {"validation": "validation_data"}.get(verb, "x")
    with pytest.raises(
        ValueError,
        match=f"`{name}` have up to 5 classes.*Received: max_way=3",
    ):
        use(make_smat(max_way=3), make_episodes(way=5))
    large = data.EpisodeDataset(
        make_source(size=12), data.FixedEpisodes(2, 1, 1), 2
    )
    with pytest.raises(ValueError, match=r"\(8, 8\). Received: \(12, 12\)"):
        use(make_smat(), large)


def test_a_loss_is_refused():
    with pytest.raises(ValueError, match="brings its own loss"):
        make_smat().compile(loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="brings its own loss"):
        make_smat().compile("sgd", loss="mse")


def test_fit_before_compile_says_so():
    with pytest.raises(ValueError, match="call `compile"):
        make_smat().fit(make_episodes(1), verbose=0)
    with pytest.raises(ValueError, match="call `compile.*evaluate_few_shot"):
        make_smat().evaluate(make_episodes(1), verbose=0)


@pytest.mark.parametrize("given", ["accuracy", {"logits": "accuracy"}])
@pytest.mark.parametrize("name", ["metrics", "weighted_metrics"])
def test_metrics_are_a_list(name, given):
    with pytest.raises(ValueError, match=f"`{name}` as a list. Received"):
        make_smat().compile("sgd", **{name: given})


def test_fit_takes_arguments_by_position_as_keras_does():
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile("sgd")
    seen = keras.callbacks.History()
    learner.fit(make_episodes(1), None, None, 2, 0, [seen])
    assert seen.epoch == [0, 1]


def test_class_weights_are_refused():
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile("sgd")
    with pytest.raises(ValueError, match="another label in every episode"):
        learner.fit(make_episodes(1), class_weight={0: 2.0}, verbose=0)


@pytest.mark.parametrize("form", [tuple, list, lambda episode: None])
def test_a_single_episode_is_no_dataset(form):
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    learner.compile("sgd")
    given = form(make_episodes(1)[0])
    for verb in (learner.fit, learner.evaluate, learner.predict):
        with pytest.raises(ValueError, match="`x` as a dataset of episodes"):
            verb(given, verbose=0)
    if given is not None:
        with pytest.raises(ValueError, match="`validation_data` as a dataset"):
            learner.fit(make_episodes(1), validation_data=given, verbose=0)
