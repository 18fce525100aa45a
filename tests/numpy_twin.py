"""The equations of sparse meta-tuning once more, in NumPy and float64.

Written from the papers, not from the library: loops and plain formulas, so
that the two can only agree by both being right.
"""

import math

import numpy as np

GAMMA, ZETA, LIMIT = -0.1, 1.1, np.log(100.0)


def double(x):
    return np.asarray(x, "float64")


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-double(x)))


def logit(u):
    return np.log(double(u) / (1.0 - double(u)))


def hard_concrete(logits, beta=2 / 3, noise=0.5):
    s = sigmoid((logit(noise) + double(logits)) / beta)
    return np.clip(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def nonzero_probability(logits, beta=2 / 3):
    # 1 - Q(s_bar <= 0), Q the distribution function of the stretched variable.
    return 1.0 - sigmoid(beta * np.log(-GAMMA / ZETA) - double(logits))


def gumbel_sigmoid(logits, temperature=1.0, noise=0.5):
    return sigmoid((double(logits) + logit(noise)) / temperature)


def normalize_scores(scores):
    scores = double(scores)
    if scores.shape[-1] == 1:
        return scores
    return scores / scores.sum(-1, keepdims=True)


def merge_masks(logits, weights, sizes=1.0, beta=2 / 3, noise=0.5):
    masks = hard_concrete(logits, beta, noise)
    merged = sum(a * z for a, z in zip(double(weights), masks))
    expected = (nonzero_probability(logits) * sizes).sum(1)
    return merged, expected, ((masks == 0) * sizes).sum(1)


def interpolate(pretrained, delta, masks, weights):
    mixture = sum(a * double(z) for a, z in zip(double(weights), masks))
    return double(pretrained) + double(delta) * mixture


def class_prototypes(features, labels, max_way):
    features, labels = double(features), np.asarray(labels)
    prototypes = np.zeros((max_way, features.shape[1]))
    present = np.zeros(max_way)
    for c in range(max_way):
        if (labels == c).any():
            prototypes[c] = features[labels == c].mean(0)
            present[c] = 1.0
    return prototypes, present


def leave_one_out_prototypes(features, labels):
    features, labels = double(features), np.asarray(labels)
    counts = [(labels == c).sum() for c in labels]
    real = labels >= 0
    most = max(n for n, r in zip(counts, real) if r)
    own, valid = np.zeros_like(features), np.zeros(len(labels))
    for i, label in enumerate(labels):
        others = (labels == label) & (np.arange(len(labels)) != i)
        if real[i] and others.any():
            own[i] = features[others].mean(0)
        elif real[i]:
            own[i] = features[i]
        valid[i] = real[i] and (counts[i] > 1 or most == 1)
    return own, valid


def cosine_logits(features, prototypes, scale=10.0):
    return scale * np.array(
        [
            [f @ p / np.sqrt((f @ f) * (p @ p)) for p in double(prototypes)]
            for f in double(features)
        ]
    )


def euclidean_logits(features, prototypes, scale=1.0):
    difference = double(features)[:, None] - double(prototypes)[None]
    return -scale * (difference**2).sum(-1)


def log_softmax(x):
    x = double(x)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def average(values, weight=None):
    weight = np.ones(len(values)) if weight is None else double(weight)
    return (values * weight).sum() / weight.sum()


def cross_entropy(logits, labels, weight=None):
    rows = log_softmax(logits)
    losses = np.array([-row[y] for row, y in zip(rows, labels)])
    return average(losses, weight)


def distillation(student, teacher, temperature=2.0, weight=None):
    p = softmax(double(teacher) / temperature)
    q = softmax(double(student) / temperature)
    divergence = (p * np.log(p / q)).sum(-1)
    return temperature**2 * average(divergence, weight)


def mask_mixture(mask, weights, features):
    """sum_m a_m z_m for M masks of any shape, spread over the features."""
    flat = double(mask).reshape(len(mask), -1)
    return np.broadcast_to(double(weights) @ flat, (features,))


def central_differences(function, array, step=1e-6):
    """Gradient of a scalar function by central differences."""
    array = double(array).copy()
    gradient = np.zeros_like(array)
    for i in np.ndindex(array.shape):
        value = array[i]
        array[i] = value + step
        above = function(array)
        array[i] = value - step
        below = function(array)
        array[i] = value
        gradient[i] = (above - below) / (2 * step)
    return gradient


def layer_norm(x, gamma, beta, epsilon=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def gelu(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / np.sqrt(2.0)))


def hypernetwork(prototypes, w, heads, readout):
    """Expert logits from a dict of weights; kernels are unit in spectrum."""
    w = {name: double(value) for name, value in w.items()}
    unit = {k: w[k] / np.linalg.norm(w[k], 2) for k in w if "_kernel" in k}
    way, width = prototypes.shape
    x = np.concatenate([double(prototypes), w["extra_tokens"]])
    y = layer_norm(x, w["norm_1/gamma"], w["norm_1/beta"])
    query, key, value = np.split(y @ unit["qkv_kernel"], 3, axis=1)
    context, size = [], width // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = query[:, part] @ key[:, part].T / np.sqrt(size)
        context.append(softmax(scores) @ value[:, part])
    context = np.concatenate(context, axis=1)
    x = x + context @ unit["projection_kernel"] + w["projection_bias"]
    y = layer_norm(x, w["norm_2/gamma"], w["norm_2/beta"])
    y = gelu(y @ unit["expand_kernel"] + w["expand_bias"])
    x = x + y @ unit["contract_kernel"] + w["contract_bias"]
    rows = {"mean": x[:way].mean(0), "extra_token": x[way], "class_0": x[0]}
    return w["keys"] @ rows[readout]
