"""Named settings: `"smoke"`, `"paper"`, `"recommended"` and `"mlp_experts"`.

`learner_arguments(name)` are constructor arguments of `SMAT`, `get(name,
learner, total_steps)` arguments of `compile` for any learner that trains.
"""

import re

import keras

from keras_smat.checks import check_choice
from keras_smat.checks import check_integer
from keras_smat.checks import check_positive

NAMES = ("smoke", "paper", "recommended", "mlp_experts")

_PAPER = {
    "num_experts": 8,
    "target_sparsity": 0.9,
    "eval_beta": 1.0,
    "constraint": "measured",
    "multiplier_gain": 0.0,
    "weight_penalty_by_score": True,
    "readout": "class_0",
    "inner_steps": 1,
    "inner_lr": 1e-3,
    "teacher_steps": 1,
    "teacher_lr": 5e-3,
    "kd_weight": 0.25,
    "kd_pretrained": 0.5,
    "kd_temperature": 2.0,
    "logit_l2": 1e-4,
    "delta_l2": 1e-4,
}
_SMOKE = {"num_experts": 2, "target_sparsity": 0.5}
# Row 5 of the paper's table 2: dense, and nothing shared.
_MLP_EXPERTS = {
    "include": ["mlp"],
    "target_sparsity": None,
    "shared_delta": False,
}
_ARGUMENTS = {
    "smoke": _SMOKE,
    "paper": _PAPER,
    "recommended": {},
    "mlp_experts": _MLP_EXPERTS,
}

# The released run: 25 epochs of 2000 tasks, 4 tasks per optimizer step.
_PAPER_STEPS = 50_000
_PAPER_ACCUMULATION = 4


def learner_arguments(name):
    """Constructor arguments of `SMAT` for a recipe.

    Args:
        name: `"smoke"`, `"paper"` (the released configuration),
            `"recommended"` (the constructor's defaults) or `"mlp_experts"`
            (dense experts with their own deltas in the MLP layers alone).

    Returns:
        Dict.

    Example:

    ```python
    arguments = keras_smat.recipes.learner_arguments("paper")
    learner = keras_smat.SMAT(backbone, **arguments)
    ```
    """
    check_choice("name", name, NAMES)
    return dict(_ARGUMENTS[name])


def get(name, learner, total_steps=None, learning_rate=None):
    """Arguments of `learner.compile` for a recipe.

    Args:
        name: one of `recipes.NAMES`; `"smoke"` and `"mlp_experts"` train as
            `"recommended"` does.
        learner: `SMAT`, `SoftMerge` (with the groups of SMAT, less the
            masks), or `ProtoNet(backbone, trainable=True)` for PMF.
        total_steps: int, episodes of the whole run (epochs times episodes per
            epoch); schedules are stretched to it. Defaults to `None` (50,000,
            the length of the released run).
        learning_rate: float, the highest rate of what adapts the backbone:
            its deltas, or for PMF its weights. Worth choosing on validation
            classes: the shorter the run, the higher. Defaults to `None`, the
            recipe's.

    Returns:
        Dict with `optimizer` and, for SMAT, `multiplier_learning_rate`,
        `temperature_steps` and `sparsity_steps`.

    Example:

    ```python
    recipe = keras_smat.recipes.get("recommended", learner, total_steps=5000)
    learner.compile(**recipe)
    ```

    The multipliers' rate is constant; the released code warms it up and
    decays it with the others.

    Reference: the released configuration of SMAT; PMF's README.
    """
    check_choice("name", name, NAMES)
    steps = _PAPER_STEPS
    if total_steps is not None:
        steps = check_integer("total_steps", total_steps, 1)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    if not learner.trainable_variables:
        raise ValueError(
            f"{type(learner).__name__} has nothing to train, so no recipe "
            "applies to it."
        )
    if not hasattr(learner, "experts"):
        return {"optimizer": _pmf_optimizer(name, steps, learning_rate)}
    build = _paper_groups if name == "paper" else _recommended_groups
    groups = build(learner, steps, learning_rate or 1e-4)
    recipe = {"optimizer": group_optimizers(groups, learner)}
    if not hasattr(learner, "temperature"):
        return recipe
    return {
        **recipe,
        "multiplier_learning_rate": 2e-3 if name == "paper" else 400 / steps,
        # The temperature reaches its end after 36 % of the released run.
        "temperature_steps": max(1, round(0.36 * steps)),
        # Experts that are sparse at once keep the entries that chance gave
        # them: a short run loses accuracy by it.
        "sparsity_steps": 0 if name == "paper" else round(0.4 * steps),
    }


def group_optimizers(groups, learner):
    """One optimizer per group of variables.

    Args:
        groups: dict of regular expressions to `keras.optimizers.Optimizer`.
            A variable belongs to the group whose expression is found in its
            path.
        learner: `keras.Model`, built.

    Returns:
        `keras.optimizers.MultiOptimizer`.

    Raises:
        ValueError: if a group matches no trainable variable, or a variable
            is matched by no group or by several.
    """
    paths = [v.path for v in learner.trainable_variables]
    for pattern in groups:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"The optimizer group {pattern!r} matches no trainable "
                f"variable. Received: {len(paths)} variables such as "
                f"{paths[:3]}"
            )
    for path in paths:
        owners = [p for p in groups if re.search(p, path)]
        if len(owners) != 1:
            raise ValueError(
                "Every trainable variable must belong to exactly one "
                f"optimizer group. Received: {path!r} in {owners}"
            )
    # The first group is the map's default: one more optimizer, which owns no
    # variable, would not survive saving.
    (_, default), *others = groups.items()
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            default, {f".*(?:{p}).*": optimizer for p, optimizer in others}
        )
    )


def _schedule(rate, updates, warmup=0.1, horizon=1.0):
    """Linear warm-up, then a cosine that ends at `horizon` run lengths."""
    warmup_updates = max(1, round(warmup * updates))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, round(horizon * updates) - warmup_updates),
        warmup_target=rate,
        warmup_steps=warmup_updates,
    )


def _paper_groups(learner, steps, learning_rate):
    every = _PAPER_ACCUMULATION if steps >= _PAPER_ACCUMULATION else None
    updates = max(1, steps // (every or 1))

    def schedule(rate):
        # 5 of 25 epochs warm up; the cosine would end after 50.
        return _schedule(rate, updates, warmup=0.2, horizon=2.0)

    optimizers = keras.optimizers
    groups = {
        "delta$": optimizers.SGD(
            schedule(learning_rate),
            momentum=0.9,
            gradient_accumulation_steps=every,
        ),
        "hypernetwork|logit_scale": optimizers.AdamW(
            schedule(1e-4),
            weight_decay=1e-2,
            global_clipnorm=1.0,
            gradient_accumulation_steps=every,
        ),
    }
    if learner.controller is not None:
        groups["mask.*logits$"] = optimizers.SGD(
            schedule(1e6),
            global_clipnorm=5.0,
            gradient_accumulation_steps=every,
        )
    return groups


def _recommended_groups(learner, steps, learning_rate):
    optimizers = keras.optimizers
    groups = {
        "delta$": optimizers.Adam(_schedule(learning_rate, steps)),
        "hypernetwork|logit_scale": optimizers.AdamW(
            _schedule(1e-3, steps), weight_decay=1e-2, global_clipnorm=1.0
        ),
    }
    if learner.controller is not None:
        # The penalty is a mean over the parameters: a rate in proportion to
        # their number moves the logits of any backbone equally fast, and
        # over the run's length equally far.
        rate = 60.0 / steps * learner.experts.num_parameters
        # It does not decay: the controller holds the target to the end.
        groups["mask.*logits$"] = optimizers.SGD(
            _schedule(rate, steps, horizon=1e6)
        )
    return groups


def _pmf_optimizer(name, steps, learning_rate):
    if name == "paper":
        rate = learning_rate or 5e-5
        return keras.optimizers.SGD(
            _schedule(rate, steps, warmup=0.05), momentum=0.9
        )
    return keras.optimizers.Adam(_schedule(learning_rate or 1e-5, steps))
