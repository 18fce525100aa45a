"""Two-sample tests, with thresholds that hold at a level of about 1e-4."""

import numpy as np


def assert_same_distribution(a, b, name=""):
    """Two independent samples of numbers, by Kolmogorov and Smirnov.

    For numbers with ties the level is smaller still.
    """
    distance = ks(a, b)
    assert distance < 2.2, f"{name}: scaled KS distance {distance:.2f}"


def assert_same_counts(a, b, name=""):
    """Two independent samples of few integers, by chi-square."""
    score = chi_square_score(a, b)
    assert score < 3.8, f"{name}: chi-square at {score:.2f} deviations"


def assert_same_rates(a, b, trials, name=""):
    """Two arrays of counts of events, each out of `trials`: every one."""
    scale = np.sqrt(np.maximum((a + b) * (1 - (a + b) / (2 * trials)), 1e-9))
    worst = np.max(np.abs(a - b) / scale)
    assert worst < 5, f"{name}: a rate differs by {worst:.1f} deviations"


def ks(a, b):
    """Largest distance of the distribution functions, scaled: at most x with
    a probability of 1 - 2 exp(-2 x^2)."""
    values = np.union1d(a, b)
    below = [
        np.searchsorted(np.sort(x), values, "right") / len(x) for x in (a, b)
    ]
    distance = np.abs(below[0] - below[1]).max()
    return distance * np.sqrt(len(a) * len(b) / (len(a) + len(b)))


def chi_square_score(a, b):
    """How far the homogeneity statistic is above its mean, in standard
    deviations of its cube root, which is about normal. Rare values go to
    their neighbours."""
    values, both = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = np.stack(
        [
            np.bincount(both[: len(a)], minlength=len(values)),
            np.bincount(both[len(a) :], minlength=len(values)),
        ]
    )
    bins = np.cumsum(counts.sum(0)) // 20  # about 20 of both in a bin
    counts = np.stack([np.bincount(bins, weights=row) for row in counts])
    counts = counts[:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.shape[1] - 1
    if not freedom:
        return 0.0
    spread = 2 / (9 * freedom)
    return (np.cbrt(statistic / freedom) - (1 - spread)) / np.sqrt(spread)
