"""Pure NumPy statistics of benchmarks: arrays in, numbers out."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Mean of paired differences, and whether it can be told from zero.

    Attributes:
        difference: float, the mean.
        ci95: float, half of its 95 % confidence interval; NaN where a sample
            has a single pair.
        p_value: float, two-sided; NaN likewise.
    """

    difference: float
    ci95: float
    p_value: float


def paired_t_test(samples):
    """Student's t test on paired differences of one or several samples.

    The estimate is the mean of the samples' means, so that every data set
    counts alike. Its standard error is that of independent samples, the
    degrees of freedom are those of Welch and Satterthwaite; for one sample
    this is the ordinary paired t test.

    Args:
        samples: list of float arrays of shape (n_i,), the differences of
            every sample.

    Returns:
        `PairedTest`.

    Example:

    ```python
    from keras_smat import statistics

    test = statistics.paired_t_test([[0.1, 0.3, 0.2], [0.0, 0.1, 0.2]])
    test.difference  # 0.15
    ```

    Reference: Welch, Biometrika 34, 1947.
    """
    samples = [np.asarray(sample, "float64") for sample in samples]
    if not samples or any(s.ndim != 1 or not len(s) for s in samples):
        raise ValueError(
            "Expected `samples` as a list of arrays of shape (n,), n >= 1. "
            f"Received: shapes {[s.shape for s in samples]}"
        )
    difference = float(np.mean([s.mean() for s in samples]))
    if min(map(len, samples)) < 2:
        return PairedTest(difference, math.nan, math.nan)
    sizes = np.array([len(s) for s in samples])
    variances = np.array([s.var(ddof=1) for s in samples]) / sizes
    error = math.sqrt(variances.sum()) / len(samples)
    # All pairs differ alike: no doubt is left, or rather none was measured.
    if error <= 1e-12 * max(1.0, abs(difference)):
        return PairedTest(difference, 0.0, float(abs(difference) <= 1e-12))
    dof = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    return PairedTest(
        difference,
        t_quantile(0.95, dof) * error,
        t_tail(difference / error, dof),
    )


def t_tail(t, dof):
    """Probability that a Student t variable is at least |t| from zero.

    Args:
        t: float.
        dof: float, degrees of freedom, positive.

    Returns:
        Float, the regularised incomplete beta function `I_x(dof/2, 1/2)` at
        `x = dof / (dof + t^2)`, to about 1e-9 up to a million degrees.

    Reference: Abramowitz and Stegun, 26.7.1 and 26.5.8.
    """
    total = dof + t * t
    return _incomplete_beta(dof / total, t * t / total, dof / 2, 0.5)


def t_quantile(probability, dof):
    """The t > 0 with `P(|T| < t) = probability`, by bisection.

    Args:
        probability: float in (0, 1).
        dof: float, degrees of freedom, positive.
    """
    low, high = 0.0, 1.0
    while 1 - t_tail(high, dof) < probability:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        if 1 - t_tail(middle, dof) < probability:
            low = middle
        else:
            high = middle
    return high


def holm(p_values):
    """p values corrected for their number, by Holm's step-down method.

    Args:
        p_values: float array of shape (n,). NaN stays NaN and counts for
            nothing.

    Returns:
        Float array of shape (n,).

    Reference: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p_values = np.asarray(p_values, "float64")
    adjusted = np.full(p_values.shape, math.nan)
    order = np.argsort(p_values)  # NaN last
    count = int(np.isfinite(p_values).sum())
    smallest = 0.0
    for rank, i in enumerate(order[:count]):
        smallest = max(smallest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = smallest
    return adjusted


def leaderboard_ranks(accuracy, ci95):
    """Ranks on every data set, as the Meta-Dataset leaderboard has them.

    The best of the methods that are left, and all whose accuracy cannot be
    told from it at the 95 % level (the difference lies within the root of the
    summed squares of both intervals), share the mean of their places.

    Args:
        accuracy: float array of shape (methods, sets).
        ci95: float array of the same shape, half widths of the intervals;
            NaN, unknown, ties with everything.

    Returns:
        Float array of shape (methods, sets); 1 is best. Its mean over the
        sets is the leaderboard's average rank.

    Reference: Triantafillou et al., "Meta-Dataset", ICLR 2020, and the rule
    by which its public leaderboard ranks.
    """
    accuracy, ci95 = np.atleast_2d(accuracy), np.atleast_2d(ci95)
    if accuracy.shape != ci95.shape:
        raise ValueError(
            "Expected `accuracy` and `ci95` of one shape (methods, sets). "
            f"Received: {accuracy.shape} and {ci95.shape}"
        )
    ranks = np.empty(accuracy.shape)
    for j in range(accuracy.shape[1]):
        left = list(np.argsort(-accuracy[:, j], kind="stable"))
        place = 1
        while left:
            best = left[0]
            gap = accuracy[best, j] - accuracy[left, j]
            apart = gap > np.hypot(ci95[best, j], ci95[left, j])
            group = [i for i, far in zip(left, apart) if not far]
            ranks[group, j] = place + (len(group) - 1) / 2
            place += len(group)
            left = [i for i, far in zip(left, apart) if far]
    return ranks


def _incomplete_beta(x, y, a, b):
    """`I_x(a, b)` with y = 1 - x, both given for the sake of precision."""
    if x <= 0.0 or y <= 0.0:
        return float(x > 0.0)
    # The continued fraction converges fast on this side of the mean.
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(y, x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log(y) - math.log(a)
    return math.exp(log_front) / _beta_fraction(x, a, b)


def _beta_fraction(x, a, b, tiny=1e-300):
    """`1 + d_1 / (1 + d_2 / (1 + ...))`, by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, 10_000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / ((1.0 + term * d) or tiny)
        c = (1.0 + term / c) or tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value
