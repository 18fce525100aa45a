"""What a learner hands to its user: plain Keras models."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from tools import SIZE
from tools import array
from tools import assert_same
from tools import cnn_backbone
from tools import make_episodes
from tools import make_smat

import keras_smat
from keras_smat.calibration import fit_temperature


@pytest.fixture(scope="module")
def learner():
    return make_smat(cnn_backbone(dropout=0.0))


@pytest.fixture(scope="module")
def episode():
    return make_episodes()[0][0]


def support(episode):
    return episode["support_images"], episode["support_labels"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_probabilities_are_those_of_the_learner(distance, episode):
    learner = make_smat(distance=distance, logit_scale=3.0)
    model = learner.build_classifier(*support(episode))
    expected = softmax(learner.predict(episode)[:, :3].astype("float64"))
    actual = model.predict(episode["query_images"], verbose=0)
    assert actual.shape == (len(episode["query_images"]), 3)
    assert np.abs(actual - expected).max() < 1e-5


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_temperature_from_the_support(distance):
    """It is that of images that are left out in turn."""
    learner = make_smat(distance=distance)
    x = make_episodes(way=3, shot=4)[0][0]
    model = learner.build_classifier(*support(x), temperature="auto")
    features = array(learner.embed(learner.adapt(x), x["support_images"]))
    labels, rows = x["support_labels"], []
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        prototypes = np.stack(
            [features[rest & (labels == c)].mean(0) for c in range(3)]
        )
        rows.append(array(learner.head(features[i : i + 1], prototypes))[0])
    temperature = fit_temperature(np.stack(rows), labels)
    # The tiny backbone's squared distances are near 0: there the prior stays.
    assert distance == "euclidean" or not 0.99 < temperature < 1.01
    logits = learner.predict(x)[:, :3].astype("float64")
    actual = model.predict(x["query_images"], verbose=0)
    assert np.abs(actual - softmax(logits / temperature)).max() < 1e-4


def test_temperature_by_hand_and_without_shots(learner, episode):
    images = episode["query_images"]
    logits = learner.predict(episode)[:, :3].astype("float64")
    for temperature in (2.5, 4):
        model = learner.build_classifier(
            *support(episode), temperature=temperature
        )
        actual = model.predict(images, verbose=0)
        assert np.abs(actual - softmax(logits / temperature)).max() < 1e-5
    for bad in (0, -1.0, "best", float("inf")):
        with pytest.raises(ValueError, match="`temperature`"):
            learner.build_classifier(*support(episode), temperature=bad)
    # One image per class: nothing can be left out.
    x = make_episodes(way=3, shot=1)[0][0]
    plain, auto = (
        learner.build_classifier(*support(x), temperature=t)
        for t in (1.0, "auto")
    )
    assert_same(auto.get_weights(), plain.get_weights())


def test_classes_with_one_image_do_not_calibrate(learner):
    x = make_episodes(way=3, shot=3)[0][0]
    first = np.flatnonzero(x["support_labels"] == 2)[0]
    keep = np.append(np.flatnonzero(x["support_labels"] != 2), first)
    x = {k: x[k][keep] for k in ("support_images", "support_labels")}
    features = learner.embed(learner.task_weights(x), x["support_images"])
    labels = x["support_labels"]
    logits, valid = learner.head.leave_one_out(features, labels, 3)
    assert array(valid).tolist() == [1.0] * 6 + [0.0]
    temperature = fit_temperature(array(logits)[:6], labels[:6])
    plain, auto = (
        learner.build_classifier(*support(x), temperature=t)
        .get_layer("prototypes")
        .kernel
        for t in (1.0, "auto")
    )
    ratio = array(plain) / array(auto)
    np.testing.assert_allclose(ratio, temperature, rtol=1e-3)


def test_class_names(learner, episode):
    names = ["a", "b", "c"]
    model = learner.build_classifier(*support(episode), class_names=names)
    assert model.class_names == names
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        learner.build_classifier(*support(episode), class_names=names[:2])


def test_the_saved_file_needs_keras_alone(learner, episode, tmp_path):
    model = learner.build_classifier(*support(episode))
    model.save(tmp_path / "mine.keras")
    images = episode["query_images"]
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('mine.keras')\n"
        "np.save('out.npy', model.predict(np.load('images.npy'), verbose=0))\n"
        # By package: an editable install leaves a finder named after it.
        "assert 'keras_smat' not in {n.split('.')[0] for n in sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = model.predict(images, verbose=0)
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() < 1e-6


def test_export_backbone(learner, episode):
    backbone = learner.export_backbone(*support(episode))
    weights = learner.adapt(episode)
    expected = array(learner.embed(weights, episode["query_images"]))
    actual = backbone.predict(episode["query_images"], verbose=0)
    assert np.abs(actual - expected).max() < 1e-5
    assert type(backbone) is type(learner.backbone)
    assert backbone.trainable_variables


def test_an_adapter_sees_the_support_alone(learner, episode):
    seen = []

    def adapter(learner, x, weights):
        seen.append(sorted(x))
        return [0.0 * w for w in weights]

    model = learner.build_classifier(*support(episode), adapter=adapter)
    assert seen == [["support_images", "support_labels"]]
    kernel = model.get_layer("features").kernel
    assert not np.any(array(kernel))


LABELS = [
    ([0, 0, 2, 2], "contiguous|missing|0..way-1"),
    ([0, 0, -1, 1], "-1"),
    ([0.0, 0.0, 1.0, 1.0], "integer"),
    ([0, 1], "4"),
    ([0, 1, 2, 7], "contiguous|missing|0..way-1"),
]


@pytest.mark.parametrize("labels, match", LABELS)
def test_bad_labels(learner, labels, match):
    images = np.zeros((4, SIZE, SIZE, 3), "uint8")
    with pytest.raises(ValueError, match=match):
        learner.build_classifier(images, np.array(labels))


def test_too_many_classes(learner):
    images = np.zeros((6, SIZE, SIZE, 3), "uint8")
    with pytest.raises(ValueError, match="max_way=5"):
        learner.build_classifier(images, np.arange(6))


@pytest.mark.parametrize("adapter", ["full", keras_smat.FullFineTune])
def test_bad_adapters(learner, adapter):
    # No images: nothing ran before.
    for build in (learner.build_classifier, learner.export_backbone):
        with pytest.raises(ValueError, match="`adapter` as a callable"):
            build(None, None, adapter=adapter)


IMAGES = [
    (np.zeros((4, SIZE, SIZE, 3), "float32"), "uint8"),
    (np.full((4, SIZE, SIZE, 3), np.nan), "NaN"),
    (np.zeros((4, 9, 9, 3), "uint8"), r"\(8, 8\)|8"),
    (np.zeros((4, SIZE, SIZE), "uint8"), "N, H, W, C"),
    (np.zeros((4, SIZE, SIZE, 1), "uint8"), "3 channels.*Received: 1"),
    (np.zeros((0, SIZE, SIZE, 3), "uint8"), "at least one|N > 0|empty|0"),
]


@pytest.mark.parametrize("images, match", IMAGES)
def test_bad_images(learner, images, match):
    labels = np.arange(4)[: len(images)] // 2
    with pytest.raises(ValueError, match=match):
        learner.build_classifier(images, labels)
    x = {
        "support_images": images,
        "support_labels": labels,
        "query_images": np.zeros((2, SIZE, SIZE, 3), "uint8"),
    }
    with pytest.raises(ValueError, match=match):
        learner.predict(x)


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras exports no SavedModel of any model on PyTorch here",
)
def test_export_to_saved_model(learner, episode, tmp_path):
    import tensorflow as tf

    model = learner.build_classifier(*support(episode))
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    images = episode["query_images"]
    expected = model.predict(images, verbose=0)
    assert np.abs(served.serve(images).numpy() - expected).max() < 1e-5


def test_frozen_proto_net_builds_one_too(episode):
    learner = keras_smat.ProtoNet(cnn_backbone(dropout=0.0), max_way=5)
    model = learner.build_classifier(*support(episode))
    predicted = model.predict(episode["query_images"], verbose=0).argmax(1)
    expected = learner.predict(episode).argmax(1)
    assert (predicted == expected).all()
