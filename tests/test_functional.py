"""The functional core against its NumPy twin, known values, gradients."""

import contextlib

import keras
import numpy as np
import numpy_twin as twin
import pytest
from keras import ops

from keras_smat import _backend
from keras_smat import functional as F

BETAS = (2 / 3, 1.0)


@pytest.fixture(autouse=True)
def double_precision():
    """All of this file in float64, which JAX switches off by default."""
    scope = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        scope = jax.enable_x64(True)
    with scope:
        yield


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


def array(x):
    return ops.convert_to_numpy(x)


def close(actual, expected, tolerance=1e-6):
    actual = array(actual)
    if keras.backend.backend() == "torch":
        # Keras's matrix product gives float32 for float64 here.
        tolerance *= 4.0
    else:
        assert actual.dtype == "float64"
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def normal(*shape, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def uniform(*shape, seed=1):
    return np.random.default_rng(seed).uniform(1e-4, 1 - 1e-4, shape)


def check_gradient(function, reference, *arrays, tolerance=1e-6):
    """Gradient of `sum(c * function)` against the twin's differences."""
    value = reference(*arrays)
    cotangent = normal(*np.shape(value), seed=9)
    outputs, pullback = _backend.vjp(
        lambda tensors: function(*tensors), [tensor(x) for x in arrays]
    )
    close(outputs, value)
    gradients = pullback(tensor(cotangent))
    assert len(gradients) == len(arrays)
    for i, gradient in enumerate(gradients):

        def scalar(x, i=i):
            replaced = [*arrays[:i], x, *arrays[i + 1 :]]
            return (cotangent * reference(*replaced)).sum()

        numeric = twin.central_differences(scalar, arrays[i])
        close(gradient, numeric, tolerance)
    return [array(gradient) for gradient in gradients]


# Hard concrete masks


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("noisy", [False, True])
def test_hard_concrete_equals_twin(beta, noisy):
    logits = normal(3, 400, scale=2.0)
    noise = uniform(3, 400) if noisy else None
    actual = F.hard_concrete(
        tensor(logits), beta, tensor(noise) if noisy else None
    )
    expected = twin.hard_concrete(logits, beta, noise if noisy else 0.5)
    close(actual, expected)
    assert (array(actual) == 0).any() and (array(actual) == 1).any()


def test_noise_of_one_half_is_no_noise():
    logits = tensor(normal(50))
    half = tensor(np.full(50, 0.5))
    close(F.hard_concrete(logits, noise=half), array(F.hard_concrete(logits)))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_noise_at_the_ends_stays_finite(noise):
    u = tensor([noise])
    assert np.isfinite(array(F.logit(u))).all()
    assert array(F.hard_concrete(tensor([0.0]), noise=u)) == noise


@pytest.mark.parametrize("beta,threshold", [(2 / 3, 1.5986), (1.0, 2.3979)])
def test_masks_saturate_exactly_at_the_known_thresholds(beta, threshold):
    outside = array(
        F.hard_concrete(tensor([-threshold - 1e-4, threshold + 1e-4]), beta)
    )
    inside = array(
        F.hard_concrete(tensor([-threshold + 1e-4, threshold - 1e-4]), beta)
    )
    assert outside.tolist() == [0.0, 1.0]
    assert 0 < inside[0] < 1e-4 and 1 - 1e-4 < inside[1] < 1


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_at_the_clamp_are_exactly_off_and_on(beta, dtype):
    ends = np.array([-F.LOGIT_LIMIT, F.LOGIT_LIMIT], dtype)
    masks = F.hard_concrete(ops.convert_to_tensor(ends, dtype), beta)
    assert ops.convert_to_numpy(masks).tolist() == [0.0, 1.0]


def test_initial_logits_have_the_known_sparsity():
    logits = tensor(normal(1_000_000, scale=0.5))
    nonzero = array(F.nonzero_probability(logits))
    error = nonzero.std() / 1000
    assert abs(nonzero.mean() - 0.8207) < 4 * error + 5e-5
    train = (array(F.hard_concrete(logits)) == 0).mean()
    test = (array(F.hard_concrete(logits, beta=1.0)) == 0).mean()
    # P(l < -1.5986) and P(l < -2.3979) of Normal(0, 0.5), four deviations.
    assert abs(train - 6.9e-4) < 4 * (6.9e-4 / 1e6) ** 0.5
    assert test <= 7e-6


def test_nonzero_probability_equals_twin_and_known_values():
    logits = normal(100, scale=2.0)
    for beta in BETAS:
        close(
            F.nonzero_probability(tensor(logits), beta),
            twin.nonzero_probability(logits, beta),
        )
    ends = array(F.nonzero_probability(tensor([-4.605, 4.605])))
    np.testing.assert_allclose(ends, [0.0471, 0.9980], atol=5e-5)


def test_nonzero_probability_is_the_share_of_nonzero_samples():
    logits = np.repeat([-3.0, -1.0, 0.5], 20_000)
    noise = np.random.default_rng(2).uniform(size=logits.shape)
    masks = array(F.hard_concrete(tensor(logits), noise=tensor(noise)))
    share = (masks > 0).reshape(3, -1).mean(1)
    expected = array(F.nonzero_probability(tensor([-3.0, -1.0, 0.5])))
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("noisy", [False, True])
def test_hard_concrete_gradient(beta, noisy):
    logits = normal(40, scale=2.5)
    u = uniform(40) if noisy else np.full(40, 0.5)
    noise = tensor(u) if noisy else None
    (gradient,) = check_gradient(
        lambda x: F.hard_concrete(x, beta, noise),
        lambda x: twin.hard_concrete(x, beta, u),
        logits,
    )
    masks = twin.hard_concrete(logits, beta, u)
    clipped = (masks == 0) | (masks == 1)
    assert clipped.any() and (~clipped).any()
    assert (gradient[clipped] == 0).all() and (gradient[~clipped] != 0).all()


def test_nonzero_probability_gradient():
    check_gradient(
        F.nonzero_probability, twin.nonzero_probability, normal(20, scale=3.0)
    )


@pytest.mark.parametrize("sizes", [1.0, "tensor"])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("beta", BETAS)
def test_merge_masks_equals_twin(sizes, noisy, beta):
    logits, weights = normal(3, 50, scale=2.0), uniform(3)
    noise = uniform(3, 50, seed=4) if noisy else None
    sizes = np.arange(1.0, 51.0) if sizes == "tensor" else sizes
    actual = F.merge_masks(
        tensor(logits),
        tensor(weights),
        sizes if isinstance(sizes, float) else tensor(sizes),
        beta,
        tensor(noise) if noisy else None,
    )
    expected = twin.merge_masks(
        logits, weights, sizes, beta, noise if noisy else 0.5
    )
    for one, other in zip(actual, expected, strict=True):
        close(one, other)
    assert array(actual[2]).min() > 0


# Scores


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("noisy", [False, True])
def test_gumbel_sigmoid_equals_twin(temperature, noisy):
    logits, u = normal(8, scale=2.0), uniform(8) if noisy else np.full(8, 0.5)
    check_gradient(
        lambda x: F.gumbel_sigmoid(
            x, temperature, tensor(u) if noisy else None
        ),
        lambda x: twin.gumbel_sigmoid(x, temperature, u),
        logits,
    )


@pytest.mark.parametrize("shape", [(8,), (2, 3)])
def test_normalized_scores_sum_to_one(shape):
    scores = uniform(*shape)
    check_gradient(F.normalize_scores, twin.normalize_scores, scores)
    close(ops.sum(F.normalize_scores(tensor(scores)), -1), 1.0)


def test_a_single_expert_keeps_its_score():
    close(F.normalize_scores(tensor([0.3])), [0.3])


def test_scores_of_zero_give_weights_of_zero():
    close(F.normalize_scores(tensor([0.0, 0.0])), [0.0, 0.0])


def test_interpolate_equals_twin():
    theta, delta = normal(4, 3), normal(4, 3, seed=1)
    weights, masks = uniform(2), uniform(2, 4, 3)
    merged = np.tensordot(weights, masks, axes=1)
    actual = F.interpolate(tensor(theta), tensor(delta), tensor(merged))
    close(actual, twin.interpolate(theta, delta, masks, weights))


# Prototypes and logits


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_prototypes_equal_twin(dtype):
    features, labels = normal(7, 5), np.array([0, 3, 3, 1, 0, 0, 3], dtype)
    prototypes, present = F.class_prototypes(tensor(features), labels, 5)
    expected, expected_present = twin.class_prototypes(features, labels, 5)
    close(prototypes, expected)
    assert array(present).tolist() == expected_present.tolist()
    assert expected_present.tolist() == [1, 1, 0, 1, 0]


def test_padding_leaves_prototypes_alone():
    features, labels = normal(7, 5), np.array([0, 2, -1, 1, -1, 0, 2])
    padded = F.class_prototypes(tensor(features), labels, 3)
    kept = labels >= 0
    close(padded[0], twin.class_prototypes(features[kept], labels[kept], 3)[0])
    _, pullback = _backend.vjp(
        lambda x: F.class_prototypes(x[0], labels, 3)[0], [tensor(features)]
    )
    (gradient,) = pullback(tensor(np.ones((3, 5))))
    assert ((array(gradient) == 0).all(1) == ~kept).all()


def test_prototype_gradient():
    labels = np.array([0, 2, -1, 2])
    check_gradient(
        lambda x: F.class_prototypes(x, labels, 4)[0],
        lambda x: twin.class_prototypes(x, labels, 4)[0],
        normal(4, 3),
    )


@pytest.mark.parametrize("name", ["cosine_logits", "euclidean_logits"])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_logits_equal_twin(name, scale):
    check_gradient(
        lambda f, p: getattr(F, name)(f, p, scale),
        lambda f, p: getattr(twin, name)(f, p, scale),
        normal(4, 5),
        normal(3, 5, seed=2),
    )


@pytest.mark.parametrize("name", ["cosine_logits", "euclidean_logits"])
def test_absent_classes_get_no_probability_and_no_gradient(name):
    features, prototypes = normal(4, 5), normal(3, 5, seed=2)
    prototypes[1] = 0.0
    present = tensor([1.0, 0.0, 1.0])
    logits = getattr(F, name)(
        tensor(features), tensor(prototypes), present=present
    )
    kept = getattr(twin, name)(features, prototypes[[0, 2]])
    close(ops.softmax(logits)[:, 1], np.zeros(4), 0)
    close(ops.softmax(logits), np.insert(twin.softmax(kept), 1, 0, axis=1))

    def loss(x):
        logits = getattr(F, name)(x[0], x[1], present=present)
        return F.cross_entropy(logits, np.array([0, 2, 2, 0]))

    _, pullback = _backend.vjp(loss, [tensor(features), tensor(prototypes)])
    gradients = [array(g) for g in pullback(tensor(1.0))]
    assert all(np.isfinite(g).all() for g in gradients)
    assert (gradients[1][1] == 0).all()


def test_zero_features_have_cosine_zero():
    logits = F.cosine_logits(tensor(np.zeros((1, 4))), tensor(np.eye(3, 4)))
    close(logits, np.zeros((1, 3)), 0)


# Losses

WEIGHTS = (None, np.array([1.0, 0.0, 0.5, 1.0]))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_cross_entropy_equals_twin(weight):
    labels = np.array([2, 0, 1, 2])
    check_gradient(
        lambda x: F.cross_entropy(x, labels, weight),
        lambda x: twin.cross_entropy(x, labels, weight),
        normal(4, 3, scale=3.0),
    )


def test_cross_entropy_of_padding_is_zero():
    logits = normal(4, 3)
    weight = np.array([1.0, 1.0, 0.0, 0.0])
    labels = np.array([2, 0, 0, 0])
    changed = logits.copy()
    changed[2:] += 100 * normal(2, 3, seed=5)
    close(
        F.cross_entropy(tensor(changed), labels, weight),
        array(F.cross_entropy(tensor(logits[:2]), labels[:2])),
    )
    nothing = F.cross_entropy(tensor(logits), labels, np.zeros(4))
    close(nothing, 0.0, 0)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_equals_twin(weight, temperature):
    teacher = normal(4, 3, seed=8)
    check_gradient(
        lambda x: F.distillation_loss(x, tensor(teacher), temperature, weight),
        lambda x: twin.distillation(x, teacher, temperature, weight),
        normal(4, 3, scale=3.0),
    )


def test_distillation_gives_the_teacher_no_gradient():
    def loss(x):
        return F.distillation_loss(x[0], x[1])

    inputs = [tensor(normal(4, 3)), tensor(normal(4, 3, seed=8))]
    _, pullback = _backend.vjp(loss, inputs)
    student, teacher = pullback(tensor(1.0))
    assert np.abs(array(student)).max() > 0 and (array(teacher) == 0).all()


def test_distillation_ignores_absent_classes():
    student, teacher = normal(4, 3), normal(4, 3, seed=8)
    absent = np.full((4, 1), F.ABSENT)
    padded = F.distillation_loss(
        tensor(np.hstack([student, absent])),
        tensor(np.hstack([teacher, absent])),
    )
    close(padded, twin.distillation(student, teacher))


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1, 1, -1, -1], [0, 0, 1, 2, 2, 2, 3], [2, 0, 1, -1, 3, -1, 4]],
)
def test_leave_one_out_prototypes(labels):
    features = np.random.default_rng(0).standard_normal((7, 5))
    expected, valid = twin.leave_one_out_prototypes(features, labels)
    actual, counted = F.leave_one_out_prototypes(
        ops.convert_to_tensor(features, "float32"), np.array(labels, "int32"), 6
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(counted), valid)
    real = np.array(labels) >= 0
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual)[real], expected[real], atol=1e-5
    )
