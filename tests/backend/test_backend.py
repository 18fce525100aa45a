"""The backend seam: vector-Jacobian products and merged masks."""

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops
from tools import BACKEND
from tools import varied_episodes

from keras_smat import _backend
from keras_smat import functional as F


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float32")


def array(x):
    return ops.convert_to_numpy(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(
        array(actual), expected, rtol=tolerance, atol=tolerance
    )


def test_vjp_of_a_matrix_product():
    a, b, c = normal(3, 4), normal(4, 2, seed=1), normal(3, 2, seed=2)
    outputs, pullback = _backend.vjp(
        lambda x: ops.matmul(x[0], x[1]), [tensor(a), tensor(b)]
    )
    close(outputs, a @ b)
    for gradient, expected in zip(
        pullback(tensor(c)), [c @ b.T, a.T @ c], strict=True
    ):
        close(gradient, expected)


def test_vjp_pulls_back_more_than_once():
    a, c = normal(3), normal(3, seed=1)
    _, pullback = _backend.vjp(lambda x: ops.square(x[0]), [tensor(a)])
    for factor in (1.0, 2.0):
        close(pullback(tensor(factor * c))[0], 2 * a * factor * c)


def test_vjp_gives_zeros_for_unused_weights():
    outputs, pullback = _backend.vjp(
        lambda x: 2.0 * x[0], [tensor([1.0, 2.0]), tensor([[3.0]])]
    )
    gradients = pullback(ops.ones_like(outputs))
    close(gradients[0], [2.0, 2.0])
    assert array(gradients[1]).tolist() == [[0.0]]


def test_vjp_spreads_a_scalar_cotangent():
    outputs, pullback = _backend.vjp(
        lambda x: ops.sum(x[0] ** 2), [tensor([1.0, 2.0])]
    )
    close(pullback(ops.ones_like(outputs))[0], [2.0, 4.0])


def test_vjp_of_gathered_rows_is_dense():
    table, rows = tensor(normal(5, 2)), np.array([0, 3, 3])
    outputs, pullback = _backend.vjp(
        lambda x: ops.take(x[0], rows, axis=0), [table]
    )
    gradient = array(pullback(ops.ones_like(outputs))[0])
    assert gradient[:, 0].tolist() == [1.0, 0.0, 0.0, 2.0, 0.0]


def test_vjp_is_first_order_and_its_outputs_stay_differentiable():
    """d/dw of w^2 + (w - stop(2 w))^2 at w = 3: 2 w + 2 (w - 2 w) = 0."""

    def outer(weights):
        value, pullback = _backend.vjp(lambda x: x[0] ** 2, weights)
        gradient = pullback(ops.ones_like(value))[0]
        return value + (weights[0] - gradient) ** 2

    value, pullback = _backend.vjp(outer, [tensor(3.0)])
    close(value, 18.0)
    close(pullback(ops.ones_like(value))[0], 0.0)


def test_jit_keeps_values():
    function = _backend.jit(lambda x: ops.tanh(x) * 2.0)
    for size in (3, 4):
        x = normal(size)
        close(function(tensor(x)), 2 * np.tanh(x))


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="blocks are PyTorch's"
)
@pytest.mark.parametrize("block", [4, 5, 64])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_blocks_equal_the_plain_function(monkeypatch, block, sized, noisy):
    from keras_smat._backend import torch as module

    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(3)
    logits = tensor(2.0 * normal(3, 13))
    weights = tensor(rng.uniform(size=3))
    sizes = tensor(np.arange(1.0, 14.0)) if sized else 1.0
    noise = tensor(rng.uniform(0.01, 0.99, (3, 13))) if noisy else None
    c = [tensor(normal(13, seed=5)), tensor(normal(3, seed=6))]

    def total(merge):
        def function(x):
            merged, nonzero, zeros = merge(x[0], x[1], sizes, 2 / 3, noise)
            return ops.concatenate([merged, nonzero, zeros])

        value, pullback = _backend.vjp(function, [logits, weights])
        cotangent = ops.concatenate([*c, ops.ones_like(c[1])])
        return [value, *pullback(cotangent)]

    for one, other in zip(total(module.merge_masks), total(F.merge_masks)):
        close(one, array(other), 1e-5)


@pytest.mark.parametrize("beta", [2 / 3, 1.0])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("part", ["merged", "nonzero", "both"])
def test_merge_masks_gradient(beta, sized, noisy, part):
    rng = np.random.default_rng(3)
    logits, weights = 2.0 * normal(3, 11), rng.uniform(size=3)
    sizes = np.arange(1.0, 12.0) if sized else 1.0
    noise = rng.uniform(0.01, 0.99, (3, 11)) if noisy else None
    c_merged, c_nonzero = normal(11, seed=5), normal(3, seed=6)
    if part == "merged":
        c_nonzero = 0.0 * c_nonzero
    elif part == "nonzero":
        c_merged = 0.0 * c_merged

    def reference(logits, weights):
        merged, nonzero, _ = twin.merge_masks(
            logits, weights, sizes, beta, noise if noisy else 0.5
        )
        return (merged * c_merged).sum() + (nonzero * c_nonzero).sum()

    def function(x):
        merged, nonzero, zeros = _backend.merge_masks(
            x[0],
            x[1],
            tensor(sizes) if sized else sizes,
            beta,
            tensor(noise) if noisy else None,
        )
        total = ops.sum(merged * tensor(c_merged))
        total = total + ops.sum(nonzero * tensor(c_nonzero))
        # The count of zeros carries no gradient.
        return total + 0.0 * ops.sum(ops.stop_gradient(zeros))

    value, pullback = _backend.vjp(function, [tensor(logits), tensor(weights)])
    close(value, reference(logits, weights))
    gradients = pullback(ops.ones_like(value))
    numeric = [
        twin.central_differences(lambda x: reference(x, weights), logits),
        twin.central_differences(lambda x: reference(logits, x), weights),
    ]
    for gradient, expected in zip(gradients, numeric, strict=True):
        close(gradient, expected)
    masks = twin.hard_concrete(logits, beta, noise if noisy else 0.5)
    clipped = (masks == 0) | (masks == 1)
    assert clipped.any()
    if part == "merged":
        assert (array(gradients[0])[clipped] == 0).all()


def test_merge_masks_values_over_many_blocks():
    logits, weights = 2.0 * normal(2, 70_000), np.array([0.3, 0.7])
    actual = _backend.merge_masks(tensor(logits), tensor(weights))
    expected = twin.merge_masks(logits, weights)
    close(actual[0], expected[0], 1e-5)
    close(actual[1], expected[1], 1e-5)
    assert array(actual[2]).tolist() == expected[2].tolist()


def test_keras_is_fed_the_episodes():
    episodes = varied_episodes(4, query_buckets=(9, 15))
    fed = _backend.feed(episodes)
    for epoch in range(2):
        episodes.set_epoch(epoch)
        count = 0
        for episode in fed:
            for actual, expected in zip(
                keras.tree.flatten(episode),
                keras.tree.flatten(episodes[count]),
                strict=True,
            ):
                np.testing.assert_array_equal(actual, expected)
            count += 1
        assert count == len(episodes) == len(fed)
    if BACKEND == "tensorflow":
        assert fed.options().autotune.enabled is False
