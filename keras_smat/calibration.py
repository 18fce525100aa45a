"""Probabilities that mean something: temperature and calibration error.

Plain NumPy on arrays of logits and probabilities.
"""

import numpy as np

# Of log T before any example is seen: chosen on validation episodes, where 0.3
# to 1 are equally good.
_SPREAD = 0.5
_REACH = 7.0  # Largest |log T|: far beyond what a support set can tell.


def calibration_error(probabilities, labels, num_bins=10):
    """Expected calibration error of class probabilities.

    Predictions are sorted into bins of equal width by their confidence, the
    largest probability. The error is the mean over predictions of the
    distance between the accuracy and the mean confidence of their bin: 0
    where 80 % of what is said with 80 % confidence is true.

    Args:
        probabilities: float array of shape (N, W), rows sum to 1.
        labels: int array of shape (N,), classes 0..W-1.
        num_bins: int. Defaults to `10`.

    Returns:
        Float in [0, 1].

    Raises:
        ValueError: if the shapes do not fit, or there is no prediction.

    Example:

    ```python
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4]])
    keras_smat.calibration_error(probabilities, [0, 1])  # 0.4
    ```

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017, equation 3.
    """
    probabilities = np.asarray(probabilities, "float64")
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "Expected `probabilities` of shape (N, W) and `labels` of shape "
            f"(N,). Received: {probabilities.shape} and {labels.shape}"
        )
    if not len(labels) or num_bins < 1:
        raise ValueError(
            "Expected at least one prediction and one bin. Received: "
            f"{len(labels)} predictions, num_bins={num_bins}"
        )
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    # Bins are closed above: 0.8 belongs to (0.7, 0.8].
    bins = np.ceil(confidence * num_bins - 1e-9).astype(int) - 1
    bins = np.clip(bins, 0, num_bins - 1)
    gaps = np.bincount(bins, hits - confidence, num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits, labels):
    """Temperature that makes the labels of a few examples most likely.

    Minimises `-sum log softmax(logits / T)[label] + (log T)^2 / (2 s^2)`, the
    cross-entropy and a log-normal prior around 1, the logits as they were
    trained, with `s = 0.5`. Few examples move T little, many as far as they
    say, and none of them drives it to 0 by being told right.

    Args:
        logits: float array of shape (N, W).
        labels: int array of shape (N,), classes 0..W-1.

    Returns:
        Float, positive, exact to a thousandth of itself; 1.0 where there is
        nothing to learn from (no example, or a single class).

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017, section 4.2, for the cross-entropy; the prior is ours.
    """
    logits = np.asarray(logits, "float64")
    count, way = logits.shape
    if count == 0 or way == 1:
        return 1.0
    # What each logit has less than that of the true class.
    gaps = logits - logits[np.arange(count), labels][:, None]

    def cost(log_t):
        z = gaps * np.exp(-log_t)
        top = z.max(axis=1)
        loss = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        return loss.sum() + 0.5 * (log_t / _SPREAD) ** 2

    best, step = 0.0, 0.1
    around = np.arange(-_REACH, _REACH + step, step)
    for _ in range(3):  # Steps of 0.1, 0.01 and 0.001 in log T.
        best = min(best + around, key=cost)
        around = np.arange(-10, 11) * (step / 10)
        step /= 10
    return float(np.exp(best))
