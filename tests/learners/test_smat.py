"""SMAT: its loss by hand, its settings, its invariants."""

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops
from tools import BACKEND
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

from keras_smat import SMAT
from keras_smat import _backend
from keras_smat import data
from keras_smat import recipes


@pytest.mark.parametrize("make", [dense_backbone, cnn_backbone])
def test_without_a_delta_it_is_the_pretrained_model(make):
    backbone = make(dropout=0.3)
    learner = make_smat(backbone, move=False)
    x = make_episodes()[0][0]
    merged = learner.adapt(x)
    assert_same(arrays(merged), arrays(backbone.weights))
    images = x["query_images"]
    features = learner.embed(merged, images)
    pretrained = learner.embed(learner.pretrained_weights, images)
    assert_same([array(features)], [array(pretrained)])


def test_what_trains():
    learner = make_smat(cnn_backbone())
    paths = {v.path for v in learner.trainable_variables}
    others = {p for p in paths if "hypernetwork" not in p}
    assert len(paths) > len(others) == 2
    assert {p.split("/")[-1] for p in others} == {"delta", "logits"}


def test_merging_weights_are_normalized():
    x = make_episodes()[0][0]
    a = array(make_smat().encode_task(x))
    assert a.shape == (3,)
    assert a.sum() == pytest.approx(1.0, abs=1e-5)
    assert (a > 0).all()
    single = array(make_smat(num_experts=1).encode_task(x))
    assert single.shape == (1,) and 0 < single[0] < 1


def test_eval_scores():
    x = make_episodes()[0][0]
    mean = make_smat()
    assert_same([array(mean.encode_task(x))], [array(mean.encode_task(x))])
    sample = make_smat(eval_scores="sample")
    first, second = (array(sample.encode_task(x)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    # Compiled, the random state moves on as well.
    first, second = (sample.task_weights(x) for _ in range(2))
    assert distance(first, second) > 1e-5
    hard = make_smat(eval_scores="hard")
    hard.hypernetwork.keys.assign(20.0 * array(hard.hypernetwork.keys))
    a = array(hard.encode_task(x))
    assert set(np.round(a * np.count_nonzero(a), 4)) <= {0.0, 1.0}


def test_only_the_support_decides_the_weights():
    learner = make_smat()
    x = dict(make_episodes()[0][0])
    expected = arrays(learner.adapt(x))
    del x["query_images"]
    assert_same(arrays(learner.adapt(x)), expected)


def test_the_order_of_classes_does_not_matter():
    x, y, _ = make_episodes(way=3)[0]
    swap = np.array([2, 0, 1], "int32")
    swapped = dict(x, support_labels=swap[x["support_labels"]])
    learner = make_smat()
    expected = learner.predict(x)[:, :3]
    actual = learner.predict(swapped)[:, swap]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.skipif(
    BACKEND == "jax", reason="JAX chooses its precision when it starts"
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(kd_pretrained=0.5, delta_l2=0.1, logit_l2=0.1),
        dict(constraint="expected", multiplier_gain=0.0, split=False),
        dict(mask_noise="hard_concrete", distance="euclidean", kd_weight=0.6),
        dict(granularity="input", shared_delta=False),
        dict(target_sparsity=None, num_experts=1),
        dict(learn_scale=True),
    ],
    ids=lambda s: ",".join(s) or "default",
)
def test_gradients_are_those_of_the_loss(settings, float64, monkeypatch):
    backbone = dense_backbone(activation="tanh")
    learner = make_smat(backbone, max_way=3, **settings)
    if learner.controller is not None:
        learner.controller.multipliers.assign([0.3, 0.0, 0.7])
    assert {v.dtype for v in learner.trainable_variables} == {"float64"}
    episode = make_episodes(way=3)[0]
    noise = learner.draw_noise()
    rows = len(episode[1])
    if "split" in settings:
        rows += len(episode[0]["support_labels"])
    rng = np.random.default_rng(0)
    teacher = ops.convert_to_tensor(rng.standard_normal((rows, 3)))
    # The teacher is a constant of the loss.
    monkeypatch.setattr(learner, "_teacher_logits", lambda *args: teacher)
    parts = [learner.experts.delta, learner.hypernetwork.keys]
    if learner.controller is not None:
        parts.append(learner.experts.mask.logits)
    if learner.head.learn_scale:
        parts.append(learner.head.logit_scale)
    state = [v for v in learner.variables if all(v is not p for p in parts)]
    fixed = [(v, v.value) for v in state]

    def loss_of(values):
        scope = keras.StatelessScope(
            state_mapping=[*zip(parts, values), *fixed]
        )
        with scope:
            return learner.compute_episode_loss(*episode, noise=noise)[0]

    values = [ops.convert_to_tensor(v.value) for v in parts]
    loss, pullback = _backend.vjp(loss_of, values)
    assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    gradients = arrays(pullback(ops.ones_like(loss)))
    loss_of = _backend.jit(loss_of)
    step = 1e-5
    for i, gradient in enumerate(gradients):
        flat = array(values[i]).ravel()
        for j in rng.choice(flat.size, min(8, flat.size), replace=False):
            sides = []
            for sign in (1, -1):
                moved = np.array(flat)
                moved[j] += sign * step
                arguments = list(values)
                arguments[i] = ops.convert_to_tensor(
                    moved.reshape(gradient.shape)
                )
                sides.append(float(array(loss_of(arguments))))
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert gradient.ravel()[j] == pytest.approx(
                numeric, rel=1e-4, abs=1e-8
            ), (parts[i].path, j)


@pytest.mark.parametrize(
    "settings",
    [{}, dict(kd_weight=0.0, inner_steps=1), dict(kd_pretrained=0.5)],
    ids=lambda s: ",".join(s) or "default",
)
def test_a_learned_scale_trains(settings):
    learner = make_smat(learn_scale=True, **settings)
    learner.compile("sgd")
    learner.fit(make_episodes(2), verbose=0)
    scale = float(array(learner.head.logit_scale))
    assert scale == pytest.approx(10.0, abs=1.0) and scale != 10.0


def captured(learner, episode, monkeypatch):
    """The arguments and results of the teacher in one loss."""
    calls = []
    teach = learner._teacher_logits

    def listen(*args):
        calls.append((args, teach(*args)))
        return calls[-1][1]

    monkeypatch.setattr(learner, "_teacher_logits", listen)
    noise = learner.draw_noise()
    loss, logits = learner.compute_episode_loss(*episode, noise=noise)
    ((arguments, result),) = calls
    return noise, loss, logits, arguments, result


class Explicit:
    """The same mathematics in plain PyTorch."""

    def __init__(self, learner):
        self.backbone = learner.backbone

    def features(self, weights, images):
        trainable = self.backbone.trainable_variables
        assert not trainable
        return self.backbone.stateless_call(
            [], [*weights, *self.seeds()], images, training=True
        )[0]

    def seeds(self):
        count = len(self.backbone.weights)
        return [v.value for v in self.backbone.variables[count:]]

    def logits(self, features, prototypes):
        import torch

        normalize = torch.nn.functional.normalize
        return 10 * normalize(features) @ normalize(prototypes).T

    def step(self, weights, prototypes, images, labels, rate):
        """SGD on all weights and on prototypes that are their own leaf."""
        import torch

        weights = [w.detach().clone().requires_grad_() for w in weights]
        prototypes = prototypes.detach().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            self.logits(self.features(weights, images), prototypes),
            torch.as_tensor(labels).long(),
        )
        gradients = torch.autograd.grad(loss, [*weights, prototypes])
        *weights, prototypes = [
            (w - rate * g).detach()
            for w, g in zip([*weights, prototypes], gradients)
        ]
        return weights, prototypes


@pytest.mark.skipif(BACKEND != "torch", reason="written in plain PyTorch")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("inner", [0, 1])
def test_inner_step_and_teacher_by_hand(steps, inner, float64, monkeypatch):
    learner = make_smat(
        max_way=3, target_sparsity=None, inner_steps=inner, inner_lr=0.1,
        teacher_steps=steps, teacher_lr=0.2, kd_pretrained=0.5, logit_l2=0.0,
        kd_weight=0.4,
    )  # fmt: skip
    episode = make_episodes(way=3)[0]
    x, y, _ = episode
    noise, loss, logits, arguments, result = captured(
        learner, episode, monkeypatch
    )
    explicit = Explicit(learner)
    merging_weights, _, _ = learner._encode(x, True, noise)
    weights = learner.experts.merge(merging_weights, training=True)
    support = explicit.features(weights, x["support_images"])
    prototypes = ops.stack(
        [support[x["support_labels"] == c].mean(0) for c in range(3)]
    )
    if inner:
        weights, prototypes = explicit.step(
            weights, prototypes, x["support_images"], x["support_labels"], 0.1
        )
    assert distance(arguments[0], weights) < 1e-9
    assert distance([arguments[3]], [prototypes]) < 1e-9
    student = explicit.logits(
        explicit.features(weights, x["query_images"]), prototypes
    )
    assert distance([logits], [student]) < 1e-9
    for _ in range(steps):
        weights, prototypes = explicit.step(
            weights, prototypes, x["query_images"], y, 0.2
        )
    teacher = explicit.logits(
        explicit.features(weights, x["query_images"]), prototypes
    )
    assert distance([result], [teacher]) < 1e-9
    assert distance([result], [student]) > 1e-3
    pretrained = learner.query_logits(learner.pretrained_weights, x)
    student, teacher, pretrained = map(array, (student, teacher, pretrained))
    expected = 0.6 * twin.cross_entropy(student, y)
    for target in (teacher, pretrained):
        expected += 0.4 * 0.5 * twin.distillation(student, target, 2.0)
    assert float(array(loss)) == pytest.approx(float(expected), rel=1e-9)


def test_a_pool_plays_both_parts():
    """Support and query pooled equal an episode that repeats the pool."""
    pooled = make_smat(split=False)
    split = make_smat()
    for v, w in zip(split.variables, pooled.variables, strict=True):
        v.assign(np.array(array(w)))
    x, y, weight = make_episodes(way=3)[0]
    noise = pooled.draw_noise()
    images = np.concatenate([x["support_images"], x["query_images"]])
    labels = np.concatenate([x["support_labels"], y])
    both = {
        "support_images": images,
        "support_labels": labels,
        "query_images": images,
    }
    loss, logits = episode_loss(pooled, (x, y, weight), noise=noise)
    expected, rows = episode_loss(
        split, (both, labels, np.ones(len(labels), "float32")), noise=noise
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(logits, rows[-len(y) :], atol=1e-4)
    without, _ = episode_loss(pooled, (x, y), noise=noise)
    assert without == pytest.approx(expected, rel=1e-5)
    # At test time nothing is pooled.
    np.testing.assert_allclose(pooled.predict(x), split.predict(x), atol=1e-5)


def test_mask_noise_and_score_noise_are_drawn_anew():
    learner = make_smat(mask_noise="hard_concrete")
    first, second = learner.draw_noise(), learner.draw_noise()
    for key in ("scores", "masks"):
        u = array(first[key])
        assert 0 <= u.min() and u.max() <= 1
        assert np.abs(u - array(second[key])).max() > 1e-3
    assert tuple(first["masks"].shape) == learner.experts.noise_shape
    assert learner.draw_noise(training=False) == {
        "scores": None,
        "masks": None,
    }
    assert make_smat().draw_noise()["masks"] is None


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(mask_noise="some"), r"`mask_noise`.*none.*Received.*'some'"),
        (dict(eval_scores="best"), "`eval_scores`.*mean.*Received.*'best'"),
        (dict(readout="last"), "`readout`.*mean.*Received.*'last'"),
        (dict(constraint="both"), "`constraint`.*measured.*Received.*'both'"),
        (dict(granularity="row"), "`granularity`.*element.*Received.*'row'"),
        (dict(kd_weight=1.5), r"`kd_weight`.*\[0, 1\].*Received.*1.5"),
        (dict(kd_pretrained=-1), r"`kd_pretrained`.*\[0, 1\].*Received.*-1"),
        (dict(target_sparsity=1.0), "`target_sparsity`.*Received.*1.0"),
        (dict(kd_weight="a"), r"`kd_weight`.*number.*Received.*'a'"),
        (dict(kd_temperature=0), "`kd_temperature`.*> 0.*Received.*0"),
        (dict(temperature_start=-1), "`temperature_start`.*> 0.*Received.*-1"),
        (dict(temperature_end=0.0), "`temperature_end`.*> 0.*Received.*0.0"),
        (dict(eval_beta=0.0), "`eval_beta`.*> 0.*Received.*0.0"),
        (dict(mask_init_stddev=-1), "`init_stddev`.*>= 0.*Received.*-1"),
        (dict(logit_scale=-1.0), "`logit_scale`.*> 0.*Received.*-1.0"),
        (dict(teacher_lr=-1), "`teacher_lr`.*>= 0.*Received.*-1"),
        (dict(inner_lr=float("nan")), "`inner_lr`.*finite.*Received.*nan"),
        (dict(delta_l2=True), "`delta_l2`.*number.*Received.*True"),
        (dict(num_experts=0), "`num_experts`.*at least 1.*Received.*0"),
        (dict(include=["attention"]), "`include`.*Received: 'attention'"),
    ],
    ids=lambda s: next(iter(s)) if isinstance(s, dict) else "",
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        make_smat(move=False, **settings)


def test_config_round_trips_with_every_argument():
    settings = dict(
        num_experts=2, target_sparsity=0.7, granularity="output",
        shared_delta=False, include=["hidden", "features"],
        exclude=["features/bias"], always_on=["hidden/bias"],
        mask_noise="hard_concrete", eval_beta=1.0, mask_init_stddev=0.1,
        constraint="expected", multiplier_gain=1.0,
        weight_penalty_by_score=True, project_multipliers=False,
        readout="extra_token", eval_scores="hard", temperature_start=4.0,
        temperature_end=1.0, temperature_steps=10, logit_l2=0.0,
        inner_steps=2, inner_lr=0.1, teacher_steps=2, teacher_lr=0.1,
        kd_weight=0.5, kd_pretrained=0.2, kd_temperature=3.0, delta_l2=0.1,
        split=False, seed=3,
    )  # fmt: skip
    learner = SMAT(dense_backbone(), max_way=4, **settings)
    config = learner.get_config()
    assert {k: config[k] for k in settings} == settings
    again = SMAT.from_config(config)
    assert again.get_config() == config
    shapes = [tuple(v.shape) for v in learner.variables]
    assert [tuple(v.shape) for v in again.variables] == shapes


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="one backend, the fastest")
@pytest.mark.parametrize("target", [0.5, 0.75, 0.9, 0.95])
def test_the_recommended_recipe_holds_the_target(target):
    import keras_hub

    steps, per_epoch = 300, 10
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(inputs)
    tokens = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2,
        hidden_dim=32, mlp_dim=64,
    )(x)  # fmt: skip
    backbone = keras.Model(inputs, tokens[:, 0])
    learner = SMAT(
        backbone, num_experts=4, target_sparsity=target, max_way=5, seed=0
    )
    learner.compile(**recipes.get("recommended", learner, total_steps=steps))
    episodes = data.EpisodeDataset(
        make_source(num_classes=10, size=32), data.FixedEpisodes(5, 1, 5),
        per_epoch,
    )  # fmt: skip
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            array(learner.experts.measured_sparsity())
        )
    )
    learner.fit(
        episodes, epochs=steps // per_epoch, callbacks=[note], verbose=0
    )
    error = np.abs(np.stack(seen) - target).max(axis=1)
    assert error[-1] < 0.01, error
    assert (error[int(0.7 * len(error)) :] < 0.01).all(), error


def quiet_loss(backbone, **settings):
    keras.utils.set_random_seed(0)
    learner = make_smat(backbone, **settings)
    noise = {"scores": None, "masks": None}
    loss, _ = learner.compute_episode_loss(*make_episodes()[0], noise=noise)
    return float(array(loss))


def test_queries_are_embedded_after_the_inner_step_of_a_pool():
    """With a teacher or without one, whose share of the loss is nothing."""
    backbone = dense_backbone()
    settings = dict(split=False, inner_steps=1, inner_lr=0.5)
    alone = quiet_loss(backbone, kd_weight=0.0, **settings)
    taught = quiet_loss(backbone, kd_weight=1e-9, **settings)
    assert alone == pytest.approx(taught, rel=1e-5)


def test_without_a_teacher_the_cross_entropy_has_the_whole_weight():
    backbone = dense_backbone()
    assert quiet_loss(backbone, teacher_steps=0) == quiet_loss(
        backbone, kd_weight=0.0
    )
