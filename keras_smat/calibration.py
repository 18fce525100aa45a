"""Probabilities that mean something: temperature and calibration error.

Plain NumPy on arrays of logits and probabilities.
"""

import numpy as np

# Far beyond what a support set can tell.
_RANGE = (1e-3, 1e3)


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
    """Temperature that makes the probabilities of logits most likely.

    Minimises the cross-entropy of `softmax(logits / T)`, which is convex in
    `1 / T`. As in Platt scaling, labels are smoothed as if every class had
    been seen once more: the true class has (N + 1) / (N + W) instead of 1.
    This keeps T above 0 where all N examples are told right.

    Args:
        logits: float array of shape (N, W).
        labels: int array of shape (N,), classes 0..W-1.

    Returns:
        Float, positive; 1.0 where there is nothing to learn from (no
        example, or a single class).

    Reference: Platt, "Probabilistic Outputs for Support Vector Machines",
    1999; Guo et al., ICML 2017, section 4.2.
    """
    logits = np.asarray(logits, "float64")
    count, way = logits.shape
    if count == 0 or way == 1:
        return 1.0
    targets = np.full((count, way), 1.0 / (count + way))
    targets[np.arange(count), labels] = (count + 1.0) / (count + way)
    logits = logits - logits.max(axis=1, keepdims=True)
    wanted = (targets * logits).sum()

    def slope(rate):
        """Derivative of the cross-entropy for 1 / T: it only rises."""
        weight = np.exp(rate * logits)
        weight /= weight.sum(axis=1, keepdims=True)
        return (weight * logits).sum() - wanted

    low, high = np.log(_RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        if slope(np.exp(middle)) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp(-(low + high) / 2))
