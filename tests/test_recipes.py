"""Recipes: groups, constants of the released run, schedules."""

import keras
import pytest
from tools import array
from tools import dense_backbone
from tools import make_episodes
from tools import make_smat

from keras_smat import SMAT
from keras_smat import ProtoNet
from keras_smat import SoftMerge
from keras_smat import feature_backbone
from keras_smat import recipes


def groups(recipe):
    """Sub-optimizers by what they train."""
    multi = recipe["optimizer"]
    delta = multi._optimizer_map.default_optimizer
    found = {"delta": delta}
    for pattern, optimizer in multi._optimizer_map.items():
        found["masks" if "mask" in pattern else "hypernetwork"] = optimizer
    return found


def rate(optimizer, step):
    schedule = keras.optimizers.schedules.deserialize(
        keras.optimizers.serialize(optimizer)["config"]["learning_rate"]
    )
    return float(array(schedule(step)))


def test_paper_is_the_released_configuration():
    learner = make_smat(**recipes.learner_arguments("paper"))
    recipe = recipes.get("paper", learner)
    parts = groups(recipe)
    assert isinstance(parts["delta"], keras.optimizers.SGD)
    assert parts["delta"].momentum == 0.9
    assert isinstance(parts["hypernetwork"], keras.optimizers.AdamW)
    assert parts["hypernetwork"].weight_decay == 1e-2
    assert parts["hypernetwork"].global_clipnorm == 1.0
    assert isinstance(parts["masks"], keras.optimizers.SGD)
    assert parts["masks"].momentum == 0.0
    assert parts["masks"].global_clipnorm == 5.0
    for optimizer, peak in zip(
        (parts["delta"], parts["hypernetwork"], parts["masks"]),
        (1e-4, 1e-4, 1e6),
    ):
        assert optimizer.gradient_accumulation_steps == 4
        # 5 epochs of 500 updates warm up, 25 epochs end at a factor of 0.6.
        assert rate(optimizer, 0) == 0.0
        assert rate(optimizer, 2500) == pytest.approx(peak)
        assert rate(optimizer, 12500) == pytest.approx(0.587 * peak, rel=1e-2)
    assert recipe["multiplier_learning_rate"] == 2e-3
    assert recipe["temperature_steps"] == 18000
    assert recipe["sparsity_steps"] == 0


PAPER_ARGUMENTS = dict(
    target_sparsity=0.9,
    eval_beta=1.0,
    inner_steps=1,
    inner_lr=1e-3,
    teacher_steps=1,
    teacher_lr=5e-3,
    kd_weight=0.25,
    kd_pretrained=0.5,
    kd_temperature=2.0,
    readout="class_0",
    constraint="measured",
    weight_penalty_by_score=True,
    logit_l2=1e-4,
    delta_l2=1e-4,
    multiplier_gain=0.0,
)


def test_paper_learner_arguments():
    arguments = recipes.learner_arguments("paper")
    assert {k: arguments[k] for k in PAPER_ARGUMENTS} == PAPER_ARGUMENTS


def test_recommended_is_what_the_constructor_does():
    assert recipes.learner_arguments("recommended") == {}


def test_schedules_stretch_to_the_run():
    learner = make_smat()
    for steps in (100, 1000):
        recipe = recipes.get("recommended", learner, total_steps=steps)
        assert recipe["sparsity_steps"] == round(0.4 * steps)
        parts = groups(recipe)
        peak = rate(parts["delta"], steps // 10)
        assert peak == pytest.approx(1e-4)
        assert rate(parts["delta"], steps) == pytest.approx(0.0, abs=1e-8)
        # Masks are held at the target to the end.
        assert rate(parts["masks"], steps) == pytest.approx(
            rate(parts["masks"], steps // 10), rel=1e-3
        )


@pytest.mark.parametrize("name", ["paper", "recommended"])
def test_the_rate_of_what_adapts_can_be_chosen(name):
    learner, steps = make_smat(), 100
    usual = groups(recipes.get(name, learner, steps))
    chosen = groups(recipes.get(name, learner, steps, learning_rate=3e-3))
    peak = max(rate(chosen["delta"], t) for t in range(steps))
    assert peak == pytest.approx(3e-3, rel=0.1)
    for part in ("hypernetwork", "masks"):
        assert rate(chosen[part], 20) == rate(usual[part], 20)
    pmf = ProtoNet(dense_backbone(), trainable=True, max_way=4)
    optimizer = recipes.get(name, pmf, steps, learning_rate=3e-3)["optimizer"]
    peak = max(rate(optimizer, t) for t in range(steps))
    assert peak == pytest.approx(3e-3, rel=0.1)
    with pytest.raises(ValueError, match="> 0. Received: learning_rate=0"):
        recipes.get(name, learner, steps, learning_rate=0)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_trains(name):
    arguments = recipes.learner_arguments(name)
    arguments.update(num_experts=2, max_way=5, seed=0)
    backbone = dense_backbone()
    if name == "mlp_experts":
        with pytest.raises(ValueError, match="'mlp', which matches none"):
            SMAT(backbone, **arguments)
        arguments["include"] = ["hidden"]
    learner = SMAT(backbone, **arguments)
    # 4 tasks a step, the first of which has a rate of 0.
    learner.compile(**recipes.get(name, learner, total_steps=8))
    history = learner.fit(make_episodes(8), verbose=0)
    assert history.history["loss"][0] > 0.0
    assert array(learner.experts.delta).any()


@pytest.mark.parametrize("name", recipes.NAMES)
def test_pmf_recipes(name):
    learner = ProtoNet(dense_backbone(), trainable=True, max_way=5)
    recipe = recipes.get(name, learner, total_steps=20)
    assert list(recipe) == ["optimizer"]
    if name == "paper":
        assert recipe["optimizer"].momentum == 0.9
        assert rate(recipe["optimizer"], 1) == pytest.approx(5e-5)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_soft_merge_recipes(name):
    learner = SoftMerge(dense_backbone(), num_experts=2, max_way=5)
    recipe = recipes.get(name, learner, total_steps=20)
    assert list(recipe) == ["optimizer"]
    assert set(groups(recipe)) == {"delta", "hypernetwork"}
    learner.compile(**recipe)


def test_mlp_experts():
    """In a real transformer they sit where their name says, and are dense."""
    backbone = feature_backbone("vit_mini", image_size=16, num_blocks=1)
    arguments = recipes.learner_arguments("mlp_experts")
    learner = SMAT(backbone, num_experts=2, **arguments)
    paths = learner.experts.expert_paths
    assert len(paths) == 4 and all("/mlp/" in p for p in paths)
    assert learner.experts.delta.shape[0] == 2
    assert learner.controller is None
    counts = learner.parameter_counts()
    assert counts["experts"] == 2 * learner.experts.num_parameters


def test_learners_without_masks_have_no_mask_group():
    learner = make_smat(target_sparsity=None, move=False)
    assert set(groups(recipes.get("recommended", learner))) == {
        "delta",
        "hypernetwork",
    }


def test_errors():
    learner = make_smat()
    with pytest.raises(ValueError, match="'best'"):
        recipes.get("best", learner)
    with pytest.raises(ValueError, match="'best'"):
        recipes.learner_arguments("best")
    with pytest.raises(ValueError, match="Received: total_steps=0"):
        recipes.get("smoke", learner, total_steps=0)
    with pytest.raises(ValueError, match="nothing to train"):
        recipes.get("smoke", ProtoNet(dense_backbone()))


def sgd():
    return keras.optimizers.SGD(0.1)


@pytest.mark.parametrize(
    "patterns, match",
    [
        (["delta$", "hypernetwork", "mask", "router"], "'router' matches no"),
        (["delta$", "hypernetwork"], "exactly one.*logits"),
        (["delta$", "hypernetwork", "mask", "logits"], "exactly one.*logits"),
    ],
)
def test_groups_must_cover_every_variable_once(patterns, match):
    with pytest.raises(ValueError, match=match):
        recipes.group_optimizers({p: sgd() for p in patterns}, make_smat())


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_trained_scale_has_an_optimizer(name):
    learner = make_smat(learn_scale=True)
    assert recipes.get(name, learner, total_steps=8)["optimizer"]
