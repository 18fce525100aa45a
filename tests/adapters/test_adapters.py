"""What holds for every adapter on every learner."""

import keras
import numpy as np
import pytest
from tools import BACKEND
from tools import SIZE
from tools import array
from tools import arrays
from tools import assert_same
from tools import cnn_backbone
from tools import dense_backbone
from tools import distance
from tools import make_episodes
from tools import make_smat
from tools import make_soft_merge

import keras_smat
from keras_smat import ProtoNet
from keras_smat.adapters.gradient import GradientAdapter
from keras_smat.adapters.held_out import HeldOutSelection

TARGETS = ["hidden", "features"]


def adapters(steps=3):
    return {
        "search": keras_smat.ExpertSearch(),
        "full": keras_smat.FullFineTune(1e-2, steps),
        "lora": keras_smat.LoRAFineTune(1e-2, steps, targets=["features"]),
        "norm": keras_smat.LayerNormTune(1e-2, steps),
        "full_smat": keras_smat.FullSMATFineTune(1e-2, steps),
        "held_out": HeldOutSelection(
            [keras_smat.FullFineTune(r, steps) for r in (1e-2, 2e-2)], 2
        ),
    }


LEARNERS = {
    "smat": lambda: make_smat(cnn_backbone()),
    "soft_merge": lambda: make_soft_merge(cnn_backbone()),
    "proto_net": lambda: ProtoNet(cnn_backbone(), max_way=5),
}
CASES = [
    *(("smat", name) for name in adapters()),
    ("soft_merge", "search"),
    ("proto_net", "full"),
    ("proto_net", "lora"),
]
GRADIENT = [n for n, a in adapters().items() if isinstance(a, GradientAdapter)]


@pytest.fixture(scope="module")
def learners():
    return {name: make() for name, make in LEARNERS.items()}


@pytest.fixture(scope="module")
def x():
    return make_episodes(way=3, shot=3)[0][0]


@pytest.mark.parametrize("name, kind", CASES)
def test_it_is_pure_and_never_reads_the_query(name, kind, learners, x):
    learner, adapter = learners[name], adapters()[kind]
    variables, config = arrays(learner.variables), adapter.get_config()
    expected = arrays(learner.task_weights(x, adapter))
    if kind != "search":  # It may find the same pattern for any task.
        other = make_episodes(way=3, shot=3)[1][0]
        other = arrays(learner.task_weights(other, adapter))
        assert distance(other, expected) > 1e-4
        assert distance(arrays(learner.task_weights(x)), expected) > 1e-4
    replaced = dict(x, query_images=255 - x["query_images"])
    assert_same(arrays(learner.task_weights(replaced, adapter)), expected)
    # And where someone hands the queries over.
    weights = learner.task_weights(x)
    assert_same(arrays(adapter(learner, replaced, weights)), expected)
    assert_same(arrays(learner.variables), variables)
    assert adapter.get_config() == config


@pytest.mark.parametrize("name, kind", CASES)
def test_the_classifier_says_what_the_learner_says(name, kind, learners, x):
    learner, adapter = learners[name], adapters()[kind]
    support = x["support_images"], x["support_labels"]
    model = learner.build_classifier(*support, adapter=adapter)
    weights = learner.task_weights(x, adapter)
    logits = learner.query_logits(weights, x)[:, :3]
    actual = model.predict(x["query_images"], verbose=0)
    assert np.abs(actual - array(keras.ops.softmax(logits))).max() < 1e-5
    backbone = learner.export_backbone(*support, adapter=adapter)
    assert_same(backbone.get_weights(), arrays(weights))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("kind", adapters())
def test_half_precision(policy, kind, x):
    keras.config.set_dtype_policy(policy)
    try:
        learner = make_smat(cnn_backbone())
        adapter = adapters()[kind]
        weights = learner.task_weights(x, adapter)
        plain = arrays(learner.task_weights(x))
        support = x["support_images"], x["support_labels"]
        model = learner.build_classifier(*support, adapter=adapter)
    finally:
        keras.config.set_dtype_policy("float32")
    weights = [array(keras.ops.cast(w, "float32")) for w in weights]
    assert all(np.isfinite(w).all() for w in weights)
    if kind != "search":
        plain = [w.astype("float32") for w in plain]
        assert distance(weights, plain) > 1e-4
    logits = learner.query_logits(learner.task_weights(x, adapter), x)[:, :3]
    actual = model.predict(x["query_images"], verbose=0)
    # What one compiler fuses, another rounds in between: features differ by
    # roundings of bfloat16, 2^-8, and logits by ten times as much.
    assert np.abs(actual - array(keras.ops.softmax(logits))).max() < 5e-2


@pytest.mark.parametrize("kind", ["search", "full", "held_out"])
def test_padding_does_not_matter(kind, learners, x):
    learner, adapter = learners["smat"], adapters()[kind]
    expected = arrays(learner.task_weights(x, adapter))
    rubbish = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3))
    padded = {
        "support_images": np.concatenate([x["support_images"], rubbish]),
        "support_labels": np.append(x["support_labels"], [-1] * 4),
    }
    padded = {k: v.astype(x[k].dtype) for k, v in padded.items()}
    actual = arrays(learner.task_weights(padded, adapter))
    assert distance(actual, expected) < 1e-4


@pytest.mark.parametrize("kind", GRADIENT)
def test_a_rate_of_zero_leaves_the_weights(kind, learners, x):
    learner, adapter = learners["smat"], adapters()[kind]
    expected = arrays(learner.task_weights(x))
    for settings in ({"learning_rate": 0.0}, {"steps": 0}):
        still = adapter.replace(**settings)
        assert_same(arrays(learner.task_weights(x, still)), expected)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_support_is_fitted(kind, learners, x):
    """Without augmentation the loss that is minimised falls."""
    learner, adapter = learners["smat"], adapters(steps=20)[kind]
    adapter = adapter.replace(augment=False)

    def loss(weights):
        features = learner.embed(weights, x["support_images"])
        labels = x["support_labels"]
        prototypes, present = keras_smat.functional.class_prototypes(
            features, labels, 5
        )
        logits = learner.head(features, prototypes, present)
        return float(array(keras_smat.functional.cross_entropy(logits, labels)))

    before = loss(learner.task_weights(x))
    assert loss(learner.task_weights(x, adapter)) < 0.98 * before


def test_large_supports_come_in_chunks(x):
    adapter = adapters()["full"]
    backbone = dense_backbone()
    expected = ProtoNet(backbone, max_way=5).task_weights(x, adapter)
    learner = ProtoNet(backbone, max_way=5, max_images_per_chunk=4)
    assert distance(learner.task_weights(x, adapter), expected) < 1e-4


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles nothing")
def test_one_compilation_per_support_size(monkeypatch):
    learner = make_smat()
    forward, sizes = learner._forward_chunk, []

    def traced(training, weights, state, images):
        sizes.append(images.shape[0])
        return forward(training, weights, state, images)

    monkeypatch.setattr(learner, "_forward_chunk", traced)
    sets = [make_episodes(2, way=3, shot=shot) for shot in (1, 2)]
    for rate in (1e-3, 1e-2):
        for x, *_ in (episode for episodes in sets for episode in episodes):
            full = keras_smat.FullFineTune(rate, steps=4)
            for adapter in (full, keras_smat.ExpertSearch()):
                learner.task_weights(x, adapter)
    # Plain inference, clean and augmented support, scores and candidates.
    assert sizes == 5 * [3] + 5 * [6]


def test_a_learner_that_trained_on_is_not_mistaken_for_its_old_self(x):
    adapter = keras_smat.ExpertSearch(rounds=0, relaxed=True)
    learner = make_smat()
    before = arrays(learner.task_weights(x, adapter))
    delta = learner.experts.delta
    delta.assign(2.0 * array(delta))
    after = arrays(learner.task_weights(x, adapter))
    theta = arrays(learner.pretrained_weights)
    doubled = [p + 2.0 * (w - p) for w, p in zip(before, theta)]
    assert distance(after, doubled) < 1e-5 < distance(after, before)


def test_dropout_is_off(x):
    """A backbone with dropout adapts as one without."""
    adapter = keras_smat.FullFineTune(1e-2, 2)
    with_dropout = ProtoNet(cnn_backbone(dropout=0.5), max_way=5)
    without = ProtoNet(cnn_backbone(dropout=0.0), max_way=5)
    without.backbone.set_weights(with_dropout.backbone.get_weights())
    expected = without.task_weights(x, adapter)
    assert distance(with_dropout.task_weights(x, adapter), expected) < 1e-5


def test_statistics_stay_and_norms_tune(learners, x):
    learner = learners["proto_net"]
    before = learner.task_weights(x)
    for adapter in (adapters()["full"], adapters()["norm"]):
        after = learner.task_weights(x, adapter)
        moved = {
            v.path.split("backbone/")[-1]
            for v, a, b in zip(learner.backbone.weights, after, before)
            if distance([a], [b]) > 0
        }
        norms = {"norm/gamma", "norm/beta"}
        assert norms <= moved
        assert not {m for m in moved if "moving" in m}
        if adapter.__class__ is keras_smat.LayerNormTune:
            assert moved == norms


def test_include_chooses_the_weights(x):
    learner = ProtoNet(dense_backbone(), max_way=5)
    adapter = keras_smat.FullFineTune(1e-2, 2, include=["features"])
    before, after = learner.task_weights(x), learner.task_weights(x, adapter)
    for v, a, b in zip(learner.backbone.weights, after, before):
        # The last bias alone may stand still: it moves all features alike.
        if v.name == "kernel":
            assert (distance([a], [b]) > 0) == ("features" in v.path)


def test_reports_tell_the_adapter():
    learner = ProtoNet(dense_backbone(), max_way=5)
    adapter = keras_smat.FullFineTune(1e-3, steps=1)
    report = keras_smat.evaluate_few_shot(
        learner, make_episodes(), num_episodes=2, adapter=adapter, verbose=0
    )
    protocol = report.protocol["adapter"]
    assert protocol["name"] == "FullFineTune"
    assert protocol["config"]["learning_rate"] == 1e-3


ERRORS = [
    (lambda: keras_smat.FullFineTune(-1.0), "learning_rate=-1.0"),
    (lambda: keras_smat.FullFineTune(float("nan")), "learning_rate=nan"),
    (lambda: keras_smat.FullFineTune(steps=1.5), "steps=1.5"),
    (lambda: keras_smat.FullFineTune(seed=-1), "seed=-1"),
    (lambda: keras_smat.LoRAFineTune(rank=0), "rank=0"),
    (lambda: keras_smat.ExpertSearch(acceptance=1.5), "acceptance=1.5"),
    (lambda: keras_smat.ExpertSearch(loss="test"), "'test'"),
    (lambda: keras_smat.ExpertSearch(rounds=-1), "rounds=-1"),
    (lambda: HeldOutSelection([]), r"candidates=\[\]"),
]


@pytest.mark.parametrize("make, match", ERRORS)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    "adapter, match",
    [
        (keras_smat.ExpertSearch(), "with experts.*Received: ProtoNet"),
        (keras_smat.FullSMATFineTune(), "with experts.*Received: ProtoNet"),
        (keras_smat.LoRAFineTune(), "'query', which matches none"),
        (keras_smat.LayerNormTune(), "no weight to tune.*'backbone'"),
        (keras_smat.FullFineTune(include=["mlp"]), "'mlp', which matches"),
    ],
    ids=lambda a: type(a).__name__,
)
def test_learners_that_do_not_fit(adapter, match, x):
    learner = ProtoNet(dense_backbone(), max_way=5)
    with pytest.raises(ValueError, match=match):
        learner.task_weights(x, adapter)


def test_the_base_class_has_to_be_filled(x):
    learner = ProtoNet(dense_backbone(), max_way=5)
    with pytest.raises(NotImplementedError, match="Adapter must implement"):
        learner.task_weights(x, keras_smat.Adapter())
