"""Dual ascent, step by step, against arithmetic on paper."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_smat import _backend
from keras_smat.sparsity import SparsityController

TAU = 0.9
RATE = 0.5


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def controller(multipliers=(0.0, 0.0), **arguments):
    arguments = {"learning_rate": RATE, **arguments}
    layer = SparsityController(len(multipliers), TAU, **arguments)
    layer.multipliers.assign(np.array(multipliers, "float32"))
    return layer


def step(layer, *tasks, tasks_per_step=None):
    """Observes tasks (sparsity, merging weights), updating after each."""
    for sparsity, weights in tasks:
        layer.observe(tensor(sparsity), tensor(weights))
        layer.update(tasks_per_step or len(tasks))


def test_multipliers_start_at_zero():
    layer = SparsityController(3)
    close(layer.multipliers, np.zeros(3), 0)
    assert layer.trainable_weights == []


def test_the_target_rises_along_a_cubic_and_stays():
    layer = controller(ramp_steps=4)
    seen = []
    for _ in range(6):
        seen.append(float(array(layer.target())))
        # The gap of the penalty and of the ascent is to the target so far.
        layer.gain = 1.0
        value = layer.penalty(tensor([1, 1]), tensor([0, 0]), tensor([1, 1]))
        close(value, 2 * seen[-1] * seen[-1])
        before = array(layer.multipliers)
        step(layer, ([0.0, 0.0], [1.0, 1.0]))
        close(array(layer.multipliers) - before, RATE * seen[-1])
        layer.multipliers.assign([0.0, 0.0])
    done = np.minimum(np.arange(6) / 4, 1)
    close(np.array(seen), TAU * (1 - (1 - done) ** 3))


def test_the_ramp_counts_optimizer_steps():
    layer = controller(ramp_steps=2)
    task = [0.0, 0.0], [1.0, 1.0]
    step(layer, task, task, task)
    close(layer.target(), TAU * (1 - 0.5**3))


# The penalty


@pytest.mark.parametrize("weight_by_score", [True, False])
@pytest.mark.parametrize("gain", [0.0, 2.0])
def test_penalty_and_its_gradient(weight_by_score, gain):
    layer = controller((0.5, 2.0, 3.0), weight_by_score=weight_by_score)
    layer.gain = gain
    nonzero, sparsity, a = [0.5, 0.4, 0.3], [0.2, 0.8, 0.95], [0.3, 0.5, 0.2]
    # The third expert is too sparse: its multiplier counts as zero, and the
    # proportional term turns around.
    gap = np.array([0.7, 0.1, -0.05])
    weight = np.array([0.5, 2.0, 0.0]) + gain * gap
    if weight_by_score:
        weight = weight * a
    value, pullback = _backend.vjp(
        lambda x: layer.penalty(*x), [tensor(x) for x in (nonzero, sparsity, a)]
    )
    close(value, (weight * (np.array(nonzero) - 0.1)).sum())
    gradients = pullback(ops.ones_like(value))
    close(gradients[0], weight)
    assert np.sign(array(gradients[0])).tolist() == [1, 1, -(gain > 0)]
    close(gradients[1], np.zeros(3), 0)
    close(gradients[2], np.zeros(3), 0)


def test_no_multipliers_and_no_gain_is_no_penalty():
    layer = controller()
    close(layer.penalty(tensor([0.9, 0.9]), tensor([0, 0]), tensor([1, 1])), 0)


def test_gain_pushes_before_the_multipliers_have_moved():
    layer = controller(gain=1.0, weight_by_score=False)
    penalty = layer.penalty(
        tensor([0.8, 0.8]), tensor([0.1, 0.9]), tensor([0.5, 0.5])
    )
    close(penalty, 0.8 * (0.8 - 0.1))


# The ascent


def test_one_step_of_ascent():
    layer = controller((0.0, 1.0))
    step(layer, ([0.1, 0.6], [0.25, 0.75]))
    close(layer.multipliers, [RATE * 0.25 * 0.8, 1.0 + RATE * 0.75 * 0.3])


def test_ascent_is_weighted_by_score_even_where_the_penalty_is_not():
    layer = controller(weight_by_score=False)
    step(layer, ([0.4, 0.4], [1.0, 0.0]))
    close(layer.multipliers, [RATE * 0.5, 0.0])


def test_multipliers_are_reset_when_satisfied():
    layer = controller((3.0, 3.0))
    step(layer, ([0.91, 0.89], [0.5, 0.5]))
    close(layer.multipliers, [0.0, 3.0 + RATE * 0.5 * 0.01])


@pytest.mark.parametrize("project", [True, False])
def test_projection(project):
    """Two tasks: sparse enough where the score is high, not on average."""
    layer = controller(project=project)
    tasks = [([1.0, 0.5], [1.0, 0.5]), ([0.7, 0.5], [0.1, 0.5])]
    step(layer, *tasks)
    moved = RATE * (1.0 * -0.1 + 0.1 * 0.2) / 2
    assert moved < 0
    close(layer.multipliers, [0.0 if project else moved, RATE * 0.5 * 0.4])


@pytest.mark.parametrize("project", [True, False])
def test_a_satisfied_multiplier_is_reset_before_the_ascent(project):
    layer = controller((1.0, 0.0), project=project)
    step(layer, ([TAU + 0.05, TAU], [1.0, 1.0]))
    close(layer.multipliers, [0.0 if project else -RATE * 0.05, 0.0])


def test_a_loss_outside_of_training_does_not_shift_the_update():
    layer = controller()
    stray = ops.convert_to_tensor([0.1, 0.1])
    layer.observe(stray, stray)
    for i in range(8):
        before = array(layer.multipliers)
        step(layer, ([0.1, 0.1], [0.5, 0.5]), tasks_per_step=4)
        moved = (array(layer.multipliers) != before).all()
        assert moved == (i % 4 == 3)


def test_multipliers_move_once_per_optimizer_step():
    layer = controller()
    tasks = [([0.1 * i, 0.5], [0.2, 0.1 * i]) for i in range(1, 5)]
    for i, task in enumerate(tasks):
        close(layer.multipliers, [0.0, 0.0], 0)
        step(layer, task, tasks_per_step=4)
        assert (array(layer.multipliers) > 0).all() == (i == 3)
    ascent = np.mean(
        [np.array(a) * (TAU - np.array(s)) for s, a in tasks], axis=0
    )
    close(layer.multipliers, RATE * ascent)


def test_sums_start_again_after_each_step():
    layer = controller()
    first = [([0.1, 0.2], [0.5, 0.5])] * 4
    second = [([0.6, 0.5], [0.25, 0.5])] * 4
    step(layer, *first)
    step(layer, *second)
    close(
        layer.multipliers,
        [RATE * (0.5 * 0.8 + 0.25 * 0.3), RATE * (0.5 * 0.7 + 0.5 * 0.4)],
    )


def test_update_without_tasks_changes_nothing():
    layer = controller((1.0, 2.0))
    layer.update(1)
    close(layer.multipliers, [1.0, 2.0], 0)


def test_observing_carries_no_gradient():
    layer = controller()

    def observe(tensors):
        with keras.StatelessScope() as scope:
            layer.observe(*tensors)
        state = scope.get_current_value(layer._ascent_sum)
        return ops.sum(state) + 0.0 * ops.sum(tensors[0])

    value, pullback = _backend.vjp(
        observe, [tensor([0.1, 0.2]), tensor([0.3, 0.7])]
    )
    close(value, 0.3 * 0.8 + 0.7 * 0.7)
    for gradient in pullback(ops.ones_like(value)):
        close(gradient, [0.0, 0.0], 0)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_the_ascent_reaches_the_target(gain):
    """A mask whose log-odds of being on fall with the penalty's gradient."""
    layer = controller((0.0,), learning_rate=0.2, gain=gain)
    position, a = 2.0, np.ones(1)

    for _ in range(200):
        on = 1 / (1 + np.exp(-position))
        # The penalty is linear in E[L0].
        ends = (
            array(layer.penalty(tensor([x]), tensor([1 - on]), tensor(a)))
            for x in (1.0, 0.0)
        )
        gradient = float(np.subtract(*ends))
        position -= 2 * gradient * on * (1 - on)
        step(layer, ([1 - on], a))
    assert 0.88 < 1 - on < 0.95


def test_state_stays_float32():
    layer = SparsityController(2, dtype="mixed_bfloat16")
    assert {
        keras.backend.standardize_dtype(w.dtype) for w in layer.weights
    } == {"float32"}


def test_config_round_trip():
    layer = SparsityController(3, 0.7, 0.1, 2.0, "expected", False, False)
    again = SparsityController.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.constraint == "expected" and not again.project


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"target_sparsity": 0.0}, "target_sparsity=0.0"),
        ({"target_sparsity": 1.0}, "target_sparsity=1.0"),
        ({"constraint": "mean"}, "constraint='mean'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        SparsityController(**{"num_experts": 2, **arguments})
