"""The mathematics of sparse meta-tuning as pure functions of tensors.

Nothing here holds state or draws random numbers: noise is an argument, so
that the same numbers give the same result on every backend.

Shapes: W way, S support, Q query, M experts, D feature width, P parameters.

Reference: Chen et al., "Unleashing the Power of Meta-tuning for Few-shot
Generalization Through Sparse Interpolated Experts", ICML 2024
(https://arxiv.org/abs/2403.08477); Louizos et al., "Learning Sparse Neural
Networks through L0 Regularization", ICLR 2018 (hard concrete).
"""

import math

from keras import ops

# Hard concrete: the sigmoid is stretched to (GAMMA, ZETA), then clipped.
GAMMA = -0.1
ZETA = 1.1
BETA = 2.0 / 3.0
EPSILON = 1e-6
# Mask logits live in [-LOGIT_LIMIT, LOGIT_LIMIT] = [ln 0.01, ln 100].
LOGIT_LIMIT = math.log(100.0)
# Logit of a class that is absent from the episode.
ABSENT = -1e9


def logit(probability):
    """Inverse of the sigmoid, finite at 0 and 1."""
    u = ops.clip(probability, EPSILON, 1.0 - EPSILON)
    return ops.log(u) - ops.log1p(-u)


def hard_concrete(logits, beta=BETA, noise=None):
    """Hard concrete masks with exact zeros and ones.

    `z = clip(sigmoid((logit(u) + l) / beta) * (zeta - gamma) + gamma, 0, 1)`;
    without noise, `u = 1/2` and `logit(u) = 0`. The gradient is zero where
    the clip is active.

    Args:
        logits: tensor of mask logits of any shape.
        beta: float. Temperature. Without noise, `z = 0` for
            `l <= -beta * ln 11`. Defaults to `2/3`.
        noise: optional tensor of uniform numbers in (0, 1) of the shape of
            `logits`. Defaults to `None` (deterministic).

    Returns:
        Tensor of masks in [0, 1], of the shape of `logits`.

    Reference: Louizos et al. 2018, equation 10.
    """
    if noise is not None:
        logits = logits + logit(noise)
    stretched = ops.sigmoid(logits / beta) * (ZETA - GAMMA) + GAMMA
    return ops.clip(stretched, 0.0, 1.0)


def nonzero_probability(logits, beta=BETA):
    """P(z > 0) of a hard concrete mask under full noise.

    Args:
        logits: tensor of mask logits of any shape.
        beta: float. Temperature. Defaults to `2/3`.

    Returns:
        Tensor of probabilities of the shape of `logits`.

    Reference: Louizos et al. 2018, equation 12.
    """
    probability = ops.sigmoid(logits - beta * math.log(-GAMMA / ZETA))
    return ops.clip(probability, EPSILON, 1.0 - EPSILON)


def merge_masks(logits, weights, sizes=1.0, beta=BETA, noise=None):
    """Everything a training step needs of the masks, in one pass.

    Args:
        logits: tensor of shape (M, K), the mask logits.
        weights: tensor of shape (M,), the merging weights.
        sizes: float or tensor of shape (K,), the parameters that each entry
            masks. Defaults to `1.0`.
        beta: float, temperature of the masks; P(z > 0) keeps `2/3`. Defaults
            to `2/3`.
        noise: optional uniform numbers in (0, 1) of shape (M, K). Defaults to
            `None`.

    Returns:
        Tuple of the merged mask `sum_m a_m z_m` of shape (K,), the expected
        number of non-zeros of shape (M,), and the number of exact zeros of
        shape (M,), which carries no gradient.
    """
    masks = hard_concrete(logits, beta, noise)
    # A sum, not a matrix product: compilers then never write the masks out.
    merged = ops.sum(ops.expand_dims(weights, 1) * masks, axis=0)
    expected = ops.sum(nonzero_probability(logits) * sizes, axis=1)
    zeros = ops.sum(ops.cast(masks <= 0.0, logits.dtype) * sizes, axis=1)
    return merged, expected, ops.stop_gradient(zeros)


def gumbel_sigmoid(logits, temperature=1.0, noise=None):
    """Relaxed Bernoulli scores, `sigmoid((l + logit(u)) / T)`.

    Args:
        logits: tensor of logits of any shape.
        temperature: float or scalar tensor. Defaults to `1.0`.
        noise: optional tensor of uniform numbers in (0, 1) of the shape of
            `logits`. Defaults to `None` (no sampling).

    Returns:
        Tensor of scores in (0, 1), of the shape of `logits`.
    """
    if noise is not None:
        logits = logits + logit(noise)
    return ops.sigmoid(logits / temperature)


def normalize_scores(scores):
    """Merging weights from expert scores: `a_m = s_m / sum(s)`.

    A single expert keeps its raw score.

    Args:
        scores: tensor of shape (..., M).

    Returns:
        Tensor of merging weights of shape (..., M).
    """
    if scores.shape[-1] == 1:
        return scores
    return scores / (ops.sum(scores, axis=-1, keepdims=True) + 1e-8)


def interpolate(pretrained, delta, mask):
    """Interpolated weights `theta_pre + delta * mask`, elementwise.

    Args:
        pretrained: tensor, the pretrained weight.
        delta: tensor of the same shape, the shared dense update.
        mask: tensor that broadcasts against it, the merged mask
            `sum_m a_m z_m`.

    Returns:
        Tensor of the shape of `pretrained`.

    Reference: SMAT, equation 1.
    """
    return pretrained + delta * mask


def class_prototypes(features, labels, max_way):
    """Mean feature per class; padded examples (label -1) are ignored.

    Args:
        features: tensor of shape (S, D).
        labels: int tensor of shape (S,), classes 0..way-1, -1 for padding.
        max_way: int, the number of rows of the result.

    Returns:
        Tuple `(prototypes, present)`: tensors of shape (W, D) and (W,), with
        `present` 1.0 for classes that have a support image, else 0.0.
        Prototypes of absent classes are zero.
    """
    labels = ops.cast(labels, "int32")
    classes = ops.arange(max_way, dtype="int32")
    membership = ops.cast(
        ops.expand_dims(labels, 0) == ops.expand_dims(classes, 1),
        features.dtype,
    )  # (W, S)
    counts = ops.sum(membership, axis=1)
    present = ops.minimum(counts, 1.0)
    totals = ops.matmul(membership, features)
    return totals / ops.maximum(counts, 1.0)[:, None], present


def leave_one_out_prototypes(features, labels, max_way):
    """For each support image, its class's prototype without that image.

    Classes with a single image have none, so that their images do not count;
    if that is true of all classes, all count, against their own prototype.

    Args:
        features: tensor of shape (S, D).
        labels: int tensor of shape (S,), classes 0..way-1, -1 for padding.
        max_way: int, W.

    Returns:
        Tuple `(prototypes, valid)`: tensors of shape (S, D) and (S,), with
        `valid` 1.0 for images that count, else 0.0.
    """
    labels = ops.cast(labels, "int32")
    membership = ops.one_hot(labels, max_way, dtype=features.dtype)  # (S, W)
    counts = ops.matmul(membership, ops.sum(membership, axis=0))
    totals = ops.matmul(
        membership, ops.matmul(ops.transpose(membership), features)
    )
    several = ops.cast(counts > 1.0, features.dtype)
    single = ops.cast(counts > 0.0, features.dtype)
    valid = ops.where(ops.max(several) > 0.0, several, single)
    others = totals - several[:, None] * features
    return others / ops.maximum(counts - several, 1.0)[:, None], valid


def l2_normalize(x):
    """Unit vectors along the last axis; zero vectors stay zero."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, 1e-24))


def cosine_logits(features, prototypes, scale=10.0, present=None):
    """`scale * cos(feature, prototype)`.

    Args:
        features: tensor of shape (Q, D).
        prototypes: tensor of shape (W, D).
        scale: float or scalar tensor. Defaults to `10.0`.
        present: optional tensor of shape (W,); classes with 0 get a large
            negative logit. Defaults to `None` (all present).

    Returns:
        Tensor of logits of shape (Q, W).
    """
    similarity = ops.matmul(
        l2_normalize(features), ops.transpose(l2_normalize(prototypes))
    )
    return mask_absent(scale * similarity, present)


def euclidean_logits(features, prototypes, scale=1.0, present=None):
    """`-scale * ||feature - prototype||^2`.

    Args:
        features: tensor of shape (Q, D).
        prototypes: tensor of shape (W, D).
        scale: float or scalar tensor. Defaults to `1.0`.
        present: optional tensor of shape (W,); classes with 0 get a large
            negative logit. Defaults to `None` (all present).

    Returns:
        Tensor of logits of shape (Q, W).

    Reference: Snell et al., "Prototypical Networks", NeurIPS 2017.
    """
    cross = ops.matmul(features, ops.transpose(prototypes))
    distance = (
        ops.sum(ops.square(features), axis=-1, keepdims=True)
        - 2.0 * cross
        + ops.sum(ops.square(prototypes), axis=-1)
    )
    return mask_absent(-scale * distance, present)


def mask_absent(logits, present):
    """Replaces the logits (Q, W) of absent classes by a large negative."""
    if present is None:
        return logits
    return ops.where(present > 0, logits, ops.cast(ABSENT, logits.dtype))


def weighted_mean(values, sample_weight=None):
    """Mean of values (Q,) under optional weights (Q,)."""
    if sample_weight is None:
        return ops.mean(values)
    weight = ops.cast(sample_weight, values.dtype)
    return ops.sum(values * weight) / ops.maximum(ops.sum(weight), EPSILON)


def cross_entropy(logits, labels, sample_weight=None):
    """Mean cross-entropy of integer labels; padded queries weigh zero.

    Args:
        logits: tensor of shape (Q, W).
        labels: int tensor of shape (Q,). Negative labels give loss 0.
        sample_weight: optional tensor of shape (Q,). Defaults to `None`.

    Returns:
        Scalar tensor.
    """
    targets = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    log_probability = ops.log_softmax(logits, axis=-1)
    return weighted_mean(
        -ops.sum(targets * log_probability, axis=-1), sample_weight
    )


def distillation_loss(student, teacher, temperature=2.0, sample_weight=None):
    """`T^2 KL(teacher_T || student_T)`, averaged over the queries.

    No gradient flows into the teacher.

    Args:
        student: tensor of logits of shape (Q, W).
        teacher: tensor of logits of shape (Q, W).
        temperature: float. Defaults to `2.0`.
        sample_weight: optional tensor of shape (Q,). Defaults to `None`.

    Returns:
        Scalar tensor.
    """
    teacher = ops.stop_gradient(teacher)
    log_p = ops.log_softmax(teacher / temperature, axis=-1)
    log_q = ops.log_softmax(student / temperature, axis=-1)
    divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * weighted_mean(divergence, sample_weight)
